"""The vocabulary of the embedded model: 256 bytes and six special tokens.

In a rendered conversation, the string "<|end|>" stands for the token. User text may contain the
same characters, so `escape` changes "<|" to "<" MARK "|", and `encode` removes the mark again. No
user text can forge the end of a turn, and decoding restores the text unchanged.
"""

import re
from collections.abc import Callable, Sequence

from simpo_jax.data.types import Message

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
  """Escapes text, so that `encode` finds no special tokens in it."""
  return text.replace(_MARK, _MARK * 2).replace("<|", f"<{_MARK}|")


def encode(text: str) -> list[int]:
  """Returns the ids of escaped or rendered text: UTF-8 bytes and special tokens."""
  ids = []
  for part in _SPECIAL.split(text):
    if part in SPECIAL_IDS:
      ids.append(SPECIAL_IDS[part])
    else:
      ids.extend(_MARKED.sub(r"\1", part).encode("utf-8"))
  return ids


def decode(ids: Sequence[int]) -> str:
  """Returns the text of ids, without special tokens; incomplete characters become U+FFFD."""
  # Generation may stop inside a multi-byte character.
  return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")


def byte_functions() -> tuple[Callable, Callable, Callable, Callable]:
  """Returns (encode, decode, escape, render) of the byte vocabulary; see `Tokenizer`."""
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  template = ImmutableSandboxedEnvironment().from_string(TEMPLATE)

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    escaped = [{"role": m["role"], "content": escape(m["content"] or "")} for m in messages]
    return template.render(messages=escaped, add_generation_prompt=add_generation_prompt)

  return encode, decode, escape, render
