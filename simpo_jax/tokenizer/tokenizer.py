"""One tokenizer for training and generation: functions and ids, nothing hidden.

`load.py` reads it from wherever the model comes from. `encode` never
adds a token of its own; `encode_with_bos` is the one place where a prompt gets
its BOS, exactly once.
"""

import dataclasses
from collections.abc import Callable, Sequence

from simpo_jax.data.row_formats import Message
from simpo_jax.tokenizer.byte_vocab import END, SPECIAL_IDS, TEMPLATE, byte_functions
from simpo_jax.tokenizer.chat_template import TemplateFailed


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What the trainer and the generator need to know of a tokenizer.

  encode: text -> ids. Adds no BOS or EOS; strings of special tokens become those
    tokens, since templates write them.
  decode: ids -> text, special tokens left out.
  escape: user text -> text whose special-token strings `encode` takes for plain
    characters. Hugging Face tokenizers have no such thing: there it is the
    identity, and text that contains "<|im_end|>" ends a turn, as in transformers.
  render: (messages, add_generation_prompt) -> text for `encode`. Raises
    TemplateFailed, and UserError where there is no chat template or it knows no bounds.
  bos_id: None if there is none.
  eos_ids: every id that ends a turn or a text; the first is the tokenizer's own.
  adds_bos: whether the tokenizer puts BOS before plain text of its own accord.
  token_bytes: the bytes that each id stands for; for a special token, its name.
  """

  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  escape: Callable[[str], str]
  render: Callable[[Sequence[Message], bool], str]
  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int
  vocab_size: int
  chat_template: str | None
  adds_bos: bool
  token_bytes: Callable[[], list[bytes]]


def encode_with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
  """The ids of a text that starts a sequence: one BOS if the model knows BOS, never two."""
  ids = tokenizer.encode(text)
  bos = tokenizer.bos_id
  if bos is None:
    return ids
  while ids[:2] == [bos, bos]:
    ids = ids[1:]
  return [bos, *ids] if tokenizer.adds_bos and ids[:1] != [bos] else ids


def with_empty_system(tokenizer: Tokenizer) -> Tokenizer:
  """The tokenizer, whose conversations begin with a system message, an empty one if they had none.

  As princeton-nlp/SimPO does it: where the chat template speaks of a system, or is ChatML. A
  template that refuses the message stays as it is.
  """
  empty, template = Message(role="system", content=""), tokenizer.chat_template or ""
  if "system" not in template and "<|im_start|>" not in template:
    return tokenizer

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    if messages and messages[0]["role"] != "system":
      messages = (empty, *messages)
    return tokenizer.render(messages, add_generation_prompt)

  try:
    render([Message(role="user", content="a")], False)
  except TemplateFailed:
    return tokenizer
  return dataclasses.replace(tokenizer, render=render)


def byte_tokenizer() -> Tokenizer:
  """The tokenizer of the embedded model: 256 bytes and 6 special tokens, vocabulary 262.

  User text that spells "<|end|>" stays text; see `byte_vocab`.
  """
  encode, decode, escape, render_text = byte_functions()

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    try:
      return render_text(messages, add_generation_prompt)
    except Exception as error:
      raise TemplateFailed(str(error)) from error

  return Tokenizer(
    encode=encode,
    decode=decode,
    escape=escape,
    render=render,
    bos_id=SPECIAL_IDS["<|bos|>"],
    eos_ids=(SPECIAL_IDS[END],),
    pad_id=SPECIAL_IDS["<|pad|>"],
    vocab_size=256 + len(SPECIAL_IDS),
    chat_template=TEMPLATE,
    adds_bos=True,
    token_bytes=lambda: [bytes([i]) for i in range(256)] + [s.encode() for s in SPECIAL_IDS],
  )
