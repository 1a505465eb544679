"""Model text for a terminal: complete characters, with control characters escaped."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from simpo_jax.generate.stop_automaton import before_stop

_REPLACEMENT = "\ufffd"  # decoded from bytes that are not a character, or not a complete one
_MAX_PENDING = 3  # bytes of an incomplete UTF-8 character
# Joiners and soft breaks are invisible, but part of ordinary text in some languages.
_ALLOWED_INVISIBLE = "\n\t\u00ad\u200b\u200c\u200d\u2060"


def stream_text(
  decode: Callable[[Sequence[int]], str], pieces: Iterable[list[int]]
) -> Iterator[str]:
  """Yields text while token ids arrive; the concatenation equals `decode` of all ids.

  An incomplete character is held back until its remaining bytes arrive.
  """
  ids, shown = [], 0
  for piece in pieces:
    ids += piece
    text = decode(ids)
    pending = len(text) - len(text.rstrip(_REPLACEMENT))
    ready = len(text) - min(pending, _MAX_PENDING)
    if ready > shown:
      yield text[shown:ready]
      shown = ready
  if rest := decode(ids)[shown:]:
    yield rest


def strip_stop(
  texts: Iterable[str], strings: Sequence[str], stopped: Callable[[], bool]
) -> Iterator[str]:
  """Yields streamed text without the stop string that ends it, nor what follows.

  Text that may be the beginning of a stop string is held back until that is known.

  Args:
    strings: the stop strings.
    stopped: whether the newest text is the last, since the answer ends with a stop.
  """
  held = ""
  for text in texts:
    held += text
    if stopped():
      continue
    begun = [n for s in strings for n in range(1, len(s)) if held.endswith(s[:n])]
    ready = len(held) - max(begun, default=0)
    if ready:
      yield held[:ready]
      held = held[ready:]
  if rest := before_stop(held, strings) if stopped() else held:
    yield rest


def visible(text: str) -> str:
  """Escapes characters that would move the cursor, or color, hide or reorder text."""
  if text.isascii() and text.isprintable():
    return text
  return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(c: str) -> bool:
  return c in _ALLOWED_INVISIBLE or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


HELP = """\
/help                   this list
/reset                  start over; keeps the system message
/again                  another answer to your last message
/system TEXT            set the system message; without TEXT, remove it
/settings NAME=VALUE    sampling settings: {names}; alone, shows them
/save FILE              save the conversation as JSON
/exit                   or ^D
^C stops an answer. A line that ends in \\ continues on the next line. Put a space before a /
that begins a message."""
