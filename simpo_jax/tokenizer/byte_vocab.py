"""Bytes and six special tokens: the vocabulary of the embedded model.

A rendered conversation is a string in which "<|end|>" means the token. User
text may spell the same characters, so `escape` marks them: "<|" becomes
"<" MARK "|", and encoding takes the mark out again. Nothing that a user writes
can forge the end of a turn, and decoding gives the text back unchanged.
"""

import re
from collections.abc import Callable, Sequence

from simpo_jax.data.row_formats import Message

END = "<|end|>"
SPECIAL_IDS = {
  "<|pad|>": 256,
  "<|bos|>": 257,
  END: 258,
  "<|user|>": 259,
  "<|assistant|>": 260,
  "<|system|>": 261,
}
TEMPLATE = (
  "<|bos|>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_MARK = "\ue000"
_MARKED = re.compile(f"{_MARK}([{_MARK}|])")
_SPECIAL = re.compile(f"({'|'.join(re.escape(s) for s in SPECIAL_IDS)})")


def escape(text: str) -> str:
  """Text that `encode` takes for plain characters, whatever it spells."""
  return text.replace(_MARK, _MARK * 2).replace("<|", f"<{_MARK}|")


def encode(text: str) -> list[int]:
  """Ids of escaped or rendered text: its UTF-8 bytes, and the special tokens it names."""
  ids = []
  for part in _SPECIAL.split(text):
    if part in SPECIAL_IDS:
      ids.append(SPECIAL_IDS[part])
    else:
      ids.extend(_MARKED.sub(r"\1", part).encode("utf-8"))
  return ids


def decode(ids: Sequence[int]) -> str:
  """The text of ids, special tokens left out; half a character becomes U+FFFD."""
  # Generation stops anywhere, also inside a character.
  return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")


def byte_functions() -> tuple[Callable, Callable, Callable, Callable]:
  """(encode, decode, escape, render) of the byte vocabulary."""
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  template = ImmutableSandboxedEnvironment().from_string(TEMPLATE)

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    escaped = [{"role": m["role"], "content": escape(m["content"])} for m in messages]
    return template.render(messages=escaped, add_generation_prompt=add_generation_prompt)

  return encode, decode, escape, render
