"""A model's text on its way to a terminal: whole characters, and none that acts on it."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

_HALF = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
_PENDING = 3  # bytes of a character at most, before its last one
# Of the invisible characters, those that join and part letters are part of ordinary writing.
_KEPT = "\n\t\u00ad\u200b\u200c\u200d\u2060"


def stream_text(
  decode: Callable[[Sequence[int]], str], pieces: Iterable[list[int]]
) -> Iterator[str]:
  """Yields the text of tokens that come piece by piece; together, what `decode` makes of all.

  Half a character waits for its other half.
  """
  ids, shown = [], 0
  for piece in pieces:
    ids += piece
    text = decode(ids)
    pending = len(text) - len(text.rstrip(_HALF))
    ready = len(text) - min(pending, _PENDING)
    if ready > shown:
      yield text[shown:ready]
      shown = ready
  if rest := decode(ids)[shown:]:
    yield rest


def visible(text: str) -> str:
  """The text, with whatever would move a cursor, color, hide or turn text round spelled out."""
  if text.isascii() and text.isprintable():
    return text
  return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _harmless(c: str) -> bool:
  return c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


HELP = """\
/help                   this
/reset                  begin anew; the system's message stays
/again                  another answer to your last message
/system TEXT            the system's message; without TEXT, none
/settings NAME=VALUE    how to sample: {names}; alone, shows them
/save FILE              the conversation, as JSON
/exit                   or ^D
^C stops an answer. A line that ends in \\ goes on in the next. A message may begin with / after
a space."""
