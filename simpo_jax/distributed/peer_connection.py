"""A line between the processes of a run: that one ends, and why, reaches all others at once.

jax's own heartbeats need many seconds to miss a process, and then end the others without
saying which it was. Here every process keeps a connection to process 0. The kernel closes
the connections of a process however it dies, so its end is known within milliseconds,
and a process that ends with an error says so first.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

_SILENCE = 30  # seconds after which the kernel gives up a host that no longer answers
_PATIENCE = 5.0  # seconds that process 0 waits for the others to hear it


class Loss(NamedTuple):
  """The end of a process before its time."""

  process: int
  code: int | None  # the exit code it meant to end with; None: it ended without a word
  text: str  # its error


class PeerConnection:
  """One process's end of the line; threads of its own do the listening.

  Args:
    process, processes: this one's index, and how many there are.
    on_loss: called once, in a thread, with the first process that was lost.
  """

  def __init__(self, process: int, processes: int, on_loss: Callable[[Loss], None]):
    self._process, self._processes = process, processes
    self._on_loss = on_loss
    self._lock = threading.Lock()
    self._lines: dict[int, socket.socket] = {}  # of process 0: to the others; else: to 0
    self._done: set[int] = set()  # processes that said goodbye
    self._closing = False
    self.loss: Loss | None = None
    self.lost = threading.Event()

  def listen(self, token: str) -> int:
    """Process 0's part: waits for the others in a thread; returns the port."""
    server = socket.create_server(("", 0), backlog=self._processes)
    _thread(self._accept, server, token)
    return server.getsockname()[1]

  def connect(self, host: str, port: int, token: str) -> None:
    """Every other process's part.

    Raises:
      OSError: process 0 cannot be reached.
    """
    line = socket.create_connection((host, port), timeout=60)
    line.settimeout(None)
    _keep_alive(line)
    _send(line, {"token": token, "process": self._process})
    self._lines[0] = line
    _thread(self._read, 0, line.makefile())

  def leave(self, code: int, text: str) -> None:
    """Tells the others that this process ends, and returns when they have heard it."""
    self._closing = True
    self._tell(Loss(self._process, code, text))
    if self._process == 0:
      # jax's coordination service dies with process 0, and takes down whoever is left.
      for line in list(self._lines.values()):
        line.settimeout(_PATIENCE)
        with contextlib.suppress(OSError):
          while line.recv(4096):
            pass

  def clean_exit(self) -> None:
    """Says that this process ends as it should."""
    self._closing = True
    for line in list(self._lines.values()):
      _send(line, {"goodbye": self._process})

  def _accept(self, server: socket.socket, token: str) -> None:
    while True:
      line, _ = server.accept()
      _thread(self._greet, line, token)

  def _greet(self, line: socket.socket, token: str) -> None:
    line.settimeout(60)
    messages = line.makefile()
    hello = next(_messages(messages), {})
    if hello.get("token") != token:  # some other program on this network
      line.close()
      return
    line.settimeout(None)
    _keep_alive(line)
    with self._lock:
      self._lines[hello["process"]] = line
    if self.loss:
      _send(line, self.loss._asdict())
    self._read(hello["process"], messages)

  def _read(self, process: int, messages: TextIO) -> None:
    """Hears one line to its end."""
    for message in _messages(messages):
      if "goodbye" in message:
        self._done.add(process)
      else:
        self._lose(Loss(**message))
    if process not in self._done:
      self._lose(Loss(process, None, "it ended without a word"))

  def _lose(self, loss: Loss) -> None:
    with self._lock:
      if self.loss or self._closing:
        return
      self.loss = loss
    if self._process == 0:
      self._tell(loss)
    self.lost.set()
    self._on_loss(loss)

  def _tell(self, loss: Loss) -> None:
    for process, line in list(self._lines.items()):
      if process != loss.process:
        _send(line, loss._asdict())


def _thread(target: Callable[..., None], *args: Any) -> None:
  threading.Thread(target=target, args=args, daemon=True, name="link").start()


def _send(line: socket.socket, message: dict[str, Any]) -> None:
  with contextlib.suppress(OSError):  # whoever is gone no longer needs to hear it
    line.sendall(json.dumps(message).encode() + b"\n")


def _messages(stream: TextIO) -> Iterator[dict[str, Any]]:
  """The messages of a line until it is closed, or broken off."""
  with contextlib.suppress(OSError, ValueError):
    for line in stream:
      yield json.loads(line)


def _keep_alive(line: socket.socket) -> None:
  """Has the kernel notice a host that vanished with its network."""
  line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
    if hasattr(socket, name):
      line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  if hasattr(socket, "TCP_USER_TIMEOUT"):
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE * 1000)
