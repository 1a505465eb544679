"""Makes what comes next while what is here is used."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
  """`make(index)`, called in a thread for the indices that follow the one asked for last.

  Asking for any index is right at any time; only the next ones are quick. What `make`
  raises is raised to whoever asks for its index. Used as a context, the thread ends with it.

  Args:
    make: a pure function of the index; never called by two threads at once.
    depth: how many indices beyond the last one asked for are made and kept.
  """

  def __init__(self, make: Callable[[int], T], depth: int):
    self._make, self._depth = make, depth
    self._made: dict[int, tuple[T | None, BaseException | None]] = {}
    self._asked: int | None = None
    self._closed = False
    self._changed = threading.Condition()
    self._thread: threading.Thread | None = None

  def __call__(self, index: int) -> T:
    with self._changed:
      if self._closed:
        raise RuntimeError("asked after its end")
      self._asked = index
      self._made = {i: made for i, made in self._made.items() if self._wanted(i)}
      if self._thread is None:
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()
      self._changed.notify_all()
      self._changed.wait_for(lambda: index in self._made)
      value, error = self._made[index]
    if error is not None:
      raise error
    return value

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with self._changed:
      self._closed = True
      self._changed.notify_all()

  def _wanted(self, index: int) -> bool:
    return self._asked <= index <= self._asked + self._depth

  def _next(self) -> int | None:
    """The first wanted index that is not made yet."""
    wanted = range(self._asked, self._asked + self._depth + 1)
    return next((i for i in wanted if i not in self._made), None)

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._next() is not None)
        if self._closed:
          return
        index = self._next()
      try:
        made = (self._make(index), None)
      except BaseException as error:  # the asker's to handle
        made = (None, error)
      with self._changed:
        if self._wanted(index):
          self._made[index] = made
          self._changed.notify_all()
