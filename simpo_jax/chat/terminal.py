"""The chat loop of the terminal: reads lines, streams answers, runs commands such as /reset."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from simpo_jax import interrupts
from simpo_jax.chat.engine import ChatEngine
from simpo_jax.chat.history import fit
from simpo_jax.chat.text import HELP, stream_text, strip_stop, visible
from simpo_jax.config_check import kind_problem, range_problem
from simpo_jax.data.prompts import SETTINGS
from simpo_jax.data.types import Message
from simpo_jax.errors import UserError, one_line
from simpo_jax.loaded_model.messages import flag_names
from simpo_jax.loaded_model.model import LoadedModel, describe_model, listed
from simpo_jax.settings import FIELDS
from simpo_jax.storage.paths import plain
from simpo_jax.tokenizer.chat_template import TemplateFailed

_CHANGEABLE = (*SETTINGS, "seed")
_RESERVE_DIVISOR = 4  # at most a quarter of the context is reserved for the answer


class Terminal:
  """Reads user input, and writes answers and notes; without a terminal, notes go to stderr.

  Attributes:
    live: whether both stdin and stdout are a terminal.
  """

  def __init__(
    self, stdin: TextIO | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None
  ):
    self._in, self._out = stdin or sys.stdin, stdout or sys.stdout
    self.live = self._in.isatty() and self._out.isatty()
    self._notes = self._out if self.live else stderr or sys.stderr
    colored = self.live and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    self._dim, self._bold, self._plain = ("\x1b[2m", "\x1b[1m", "\x1b[0m") if colored else [""] * 3
    for file in (self._in, self._out):
      if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="replace")
    if self.live:
      with contextlib.suppress(ImportError):
        import readline  # noqa: F401  adds history and line editing to `input`

  def lines(self) -> Iterator[str | None]:
    """Yields input lines, None for a ^C; a trailing backslash continues a line on the next."""
    before = ""
    while True:
      try:
        line = self._line("... " if before else "you: ")
      except KeyboardInterrupt as e:
        if not self.live:
          raise
        interrupts.acknowledge(e)
        before = ""
        self.write("\n")  # end the line of the prompt
        yield None
        continue
      if line is None:
        if before:
          yield before
        return
      if line.endswith("\\"):
        before += line[:-1] + "\n"
        continue
      yield before + line
      before = ""

  def _line(self, prompt: str) -> str | None:
    if not self.live:
      line = self._in.readline()
      return line.rstrip("\r\n") if line else None
    try:
      # Readline must know which characters of its prompt have no width.
      marked = f"\x01{self._bold}\x02{prompt}\x01{self._plain}\x02" if self._bold else prompt
      return input(marked)
    except EOFError:
      self.write("\n")
      return None

  def write(self, text: str) -> None:
    """Writes text of an answer and flushes."""
    self._out.write(text)
    self._out.flush()

  def note(self, text: str) -> None:
    """Prints a message of the program, which is not part of the conversation."""
    lines = "\n".join(map(visible, text.split("\n")))
    print(f"{self._dim}{lines}{self._plain}", file=self._notes, flush=True)


class Chat:
  """A conversation: `transcript` has all messages, `messages` those the model still sees."""

  def __init__(self, loaded: LoadedModel, engine: ChatEngine, terminal: Terminal, system: str = ""):
    self._loaded, self._engine, self._terminal = loaded, engine, terminal
    self._settings = loaded.config.generate
    self._saved: set[pathlib.Path] = set()
    self._sample = 0
    self.system: str = ""
    self.messages: list[Message] = []
    self.transcript: list[Message] = []
    self.completes = loaded.tokenizer.chat_template is None
    if system:
      self._set_system(system)

  def run(self) -> None:
    """Handles input lines until the input ends or /exit."""
    note = self._terminal.note
    for line in self._terminal.lines():
      try:
        if line is None:
          note("(/exit or ^D ends)")
        elif line.startswith("/"):
          name, _, rest = line[1:].partition(" ")
          if name in ("exit", "quit"):
            return
          self._command(name, rest.strip())
        elif line.strip():
          self.say(line.strip())
      except UserError as e:
        note(f"error: {flag_names(str(e))}")

  def say(self, text: str) -> None:
    """Adds a user message, and streams the answer."""
    message = Message(role="user", content=text)
    if self.completes:
      self._answer([message])
      return
    self._sample = 0
    self._exchange([*self.messages, message], message)

  def _exchange(self, messages: list[Message], message: Message | None) -> None:
    """Streams an answer, and records both messages unless it was stopped before any text."""
    answer, kept = self._answer(messages)
    if answer is None:
      return
    reply = Message(role="assistant", content=answer)
    self.messages = [*kept, reply]
    self.transcript += [reply] if message is None else [message, reply]

  def _answer(self, messages: list[Message]) -> tuple[str | None, list[Message]]:
    """Streams an answer; returns it (None if ^C came first) and the messages the model saw."""
    engine, terminal, tokenizer = self._engine, self._terminal, self._loaded.tokenizer
    system = [Message(role="system", content=self.system)] if self.system else []
    reserve = min(self._settings.max_new_tokens, engine.context // _RESERVE_DIVISOR)
    fitted = fit([*system, *messages], tokenizer, engine.context - reserve)
    if fitted.dropped:
      terminal.note(
        f"[the oldest {fitted.dropped} messages no longer fit into the context of "
        f"{engine.context:,} tokens: from here on the model does not see them]"
      )
    ids, written = [], ""

    def pieces():
      for new in engine.answer(fitted.tokens, self._settings, self._sample):
        ids.extend(new)
        yield new
        if interrupted():
          return

    strip = self._settings.stripped
    with _interrupts() as interrupted:
      texts = stream_text(tokenizer.decode, pieces())
      for text in strip_stop(texts, strip, lambda: engine.finish == "stop"):
        written += text
        terminal.write(visible(text))
      stopped = interrupted()
    terminal.write("" if written.endswith("\n") else "\n")
    self._note_ending(stopped, len(fitted.tokens))
    if stopped and not terminal.live:
      raise KeyboardInterrupt  # a script cannot react, so end it
    if stopped and not written.strip():
      return None, messages
    answer = written if strip else tokenizer.decode(ids)
    return answer, fitted.messages[len(system) :]

  def _note_ending(self, stopped: bool, length: int) -> None:
    """Notes why the answer ended, and its speed if this is a terminal."""
    engine, budget = self._engine, self._settings.max_new_tokens
    if stopped:
      self._terminal.note("[stopped]")
    elif engine.finish == "length" and engine.count >= budget:
      self._terminal.note(
        f"[ends at max_new_tokens={budget}; for more: /settings max_new_tokens={2 * budget}]"
      )
    elif engine.finish == "length":
      self._terminal.note("[ends here: the context is full; /reset, or a larger --context]")
    if self._terminal.live:
      speed = "" if engine.speed is None else f" at {engine.speed:,.1f} tokens/s"
      self._terminal.note(
        f"[{engine.count:,} tokens{speed}; "
        f"{length + engine.count:,} of {engine.context:,} in use]\n"
      )

  def _command(self, name: str, rest: str) -> None:
    commands: dict[str, Callable[[str], None]] = {
      "help": lambda _: self._terminal.note(HELP.format(names=", ".join(_CHANGEABLE))),
      "reset": self._reset,
      "again": self._again,
      "system": self._set_system,
      "settings": self._set,
      "save": self._save,
    }
    if name not in commands:
      raise UserError(
        f"/{name} is not a command; /help lists them (a message may begin with / after a space)"
      )
    commands[name](rest)

  def _reset(self, _: str = "") -> None:
    self.messages, self.transcript = [], []
    self._terminal.note("[a new conversation]")

  def _again(self, _: str) -> None:
    if not self.messages:
      raise UserError("there is no answer yet; say something first")
    if not self._settings.temperature:
      raise UserError("at temperature 0 the answer would be the same; /settings temperature=0.7")
    self._sample += 1
    transcript = self.transcript
    self.transcript = transcript[:-1]
    try:
      self._exchange(self.messages[:-1], None)
    finally:
      if len(self.transcript) < len(transcript):  # it was stopped or failed
        self.transcript = transcript

  def _set_system(self, text: str) -> None:
    if self.completes:
      raise UserError("this model has no chat template, which a system message needs")
    try:
      self._loaded.tokenizer.render(
        [Message(role="system", content=text), Message(role="user", content="a")], True
      )
    except TemplateFailed as e:
      raise UserError(f"the model's chat template rejects a system message ({one_line(e)})") from e
    self.system = text
    self._terminal.note(f"[system: {text}]" if text else "[no system message]")

  def _set(self, text: str) -> None:
    for pair in text.split():
      name, equals, value = pair.partition("=")
      if name not in _CHANGEABLE or not equals:
        raise UserError(f"{pair}: write NAME=VALUE, with one of {', '.join(_CHANGEABLE)}")
      field = FIELDS[f"generate.{name}"]
      try:
        number = type(field.default)(value)
      except ValueError:
        raise UserError(f"{pair} {kind_problem(field, value)}") from None
      if problem := kind_problem(field, number) or range_problem(field, number):
        raise UserError(f"{pair} {problem}")
      self._settings = dataclasses.replace(self._settings, **{name: number})
    self._show_settings()

  def _show_settings(self) -> None:
    engine, note, speed = self._engine, self._terminal.note, self._engine.speed
    note(listed({name: getattr(self._settings, name) for name in _CHANGEABLE}))
    last = "" if speed is None else f"; last answer: {speed:,.1f} tokens/s"
    note(f"{describe_model(self._loaded)}; context of {engine.context:,} tokens{last}")

  def _save(self, name: str) -> None:
    if not name:
      raise UserError("name a file: /save FILE")
    path = plain(name)
    system = [Message(role="system", content=self.system)] if self.system else []
    content = {
      "model": self._loaded.model.name,
      "step": self._loaded.step,
      "settings": {name: getattr(self._settings, name) for name in _CHANGEABLE},
      "messages": [*system, *self.transcript],
    }
    try:
      if path not in self._saved and path.exists():
        raise UserError(f"{name} already exists; choose another name")
      path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, ValueError) as e:
      raise UserError(f"{name} cannot be written ({one_line(e)}); choose another file") from e
    self._saved.add(path)
    self._terminal.note(f"[{len(content['messages'])} messages in {name}]")


@contextlib.contextmanager
def _interrupts():
  """Defers ^C, so that no launch is interrupted; yields a function that reports whether it came."""
  pressed = []
  before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
  try:
    yield lambda: bool(pressed)
  finally:
    signal.signal(signal.SIGINT, before)
