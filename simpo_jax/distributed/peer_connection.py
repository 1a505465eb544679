"""TCP connections between the processes of a run, by which all learn that one ended, and why.

JAX's heartbeats take many seconds to detect a lost process, and then end the others without
naming it. Here every process keeps a connection to process 0. However a process dies, the
kernel closes its connections, so process 0 notices within milliseconds and tells the others;
a process that ends with an error sends the error first.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

_UNREACHABLE_SECONDS = 30  # after which the kernel closes the connection to a silent host
_CLOSE_SECONDS = 5.0  # that process 0 waits for the others to close their connections


class Loss(NamedTuple):
  """A process that ended early."""

  process: int
  code: int | None  # its exit code; None: it died without sending one
  text: str  # its error message


class PeerConnection:
  """The connections of one process, read by background threads.

  Args:
    process: index of this process.
    processes: number of processes.
    on_loss: called once, from a background thread, with the first process that was lost.

  Attributes:
    loss: the first process that was lost; None if none was.
    lost: set once `loss` is.
  """

  def __init__(self, process: int, processes: int, on_loss: Callable[[Loss], None]):
    self._process, self._processes = process, processes
    self._on_loss = on_loss
    self._lock = threading.Lock()
    self._sockets: dict[int, socket.socket] = {}  # by peer; only process 0 has more than one
    self._exited: set[int] = set()  # processes that ended normally
    self._closing = False
    self.loss: Loss | None = None
    self.lost = threading.Event()

  def listen(self, token: str) -> int:
    """Accepts the other processes in a background thread; returns the port. For process 0."""
    server = socket.create_server(("", 0), backlog=self._processes)
    _thread(self._accept, server, token)
    return server.getsockname()[1]

  def connect(self, host: str, port: int, token: str) -> None:
    """Connects to process 0. For all other processes.

    Args:
      token: secret shared by the processes of the run, which `listen` was given.

    Raises:
      OSError: process 0 cannot be reached.
    """
    connection = socket.create_connection((host, port), timeout=60)
    connection.settimeout(None)
    _keep_alive(connection)
    _send(connection, {"token": token, "process": self._process})
    self._sockets[0] = connection
    _thread(self._read, 0, connection.makefile())

  def leave(self, code: int, text: str) -> None:
    """Sends the others this process's error; process 0 then waits until they have closed."""
    self._closing = True
    self._send_to_others(Loss(self._process, code, text))
    if self._process == 0:
      # JAX's coordination service ends with process 0, and ends all processes still connected.
      for connection in list(self._sockets.values()):
        connection.settimeout(_CLOSE_SECONDS)
        with contextlib.suppress(OSError):
          while connection.recv(4096):
            pass

  def clean_exit(self) -> None:
    """Notifies the others that this process ends normally."""
    self._closing = True
    for connection in list(self._sockets.values()):
      _send(connection, {"clean_exit": self._process})

  def _accept(self, server: socket.socket, token: str) -> None:
    while True:
      connection, _ = server.accept()
      _thread(self._handshake, connection, token)

  def _handshake(self, connection: socket.socket, token: str) -> None:
    connection.settimeout(60)
    messages = connection.makefile()
    hello = next(_messages(messages), {})
    if hello.get("token") != token:  # some other program on this network
      connection.close()
      return
    connection.settimeout(None)
    _keep_alive(connection)
    with self._lock:
      self._sockets[hello["process"]] = connection
    if self.loss:
      _send(connection, self.loss._asdict())
    self._read(hello["process"], messages)

  def _read(self, process: int, messages: TextIO) -> None:
    """Reads a connection until it is closed."""
    for message in _messages(messages):
      if "clean_exit" in message:
        self._exited.add(process)
      else:
        self._report_loss(Loss(**message))
    if process not in self._exited:
      self._report_loss(Loss(process, None, "it ended without a word"))

  def _report_loss(self, loss: Loss) -> None:
    with self._lock:
      if self.loss or self._closing:
        return
      self.loss = loss
    if self._process == 0:
      self._send_to_others(loss)
    self.lost.set()
    self._on_loss(loss)

  def _send_to_others(self, loss: Loss) -> None:
    for process, connection in list(self._sockets.items()):
      if process != loss.process:
        _send(connection, loss._asdict())


def _thread(target: Callable[..., None], *args: Any) -> None:
  threading.Thread(target=target, args=args, daemon=True, name="peer connection").start()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
  with contextlib.suppress(OSError):  # a process that is gone need not be notified
    connection.sendall(json.dumps(message).encode() + b"\n")


def _messages(stream: TextIO) -> Iterator[dict[str, Any]]:
  """Yields the messages of a connection until it is closed or fails."""
  with contextlib.suppress(OSError, ValueError):
    for text in stream:
      yield json.loads(text)


def _keep_alive(connection: socket.socket) -> None:
  """Has the kernel detect a host that became unreachable."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
    if hasattr(socket, name):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  if hasattr(socket, "TCP_USER_TIMEOUT"):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREACHABLE_SECONDS * 1000)
