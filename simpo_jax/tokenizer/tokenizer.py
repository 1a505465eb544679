"""The tokenizer interface that training and generation share; `load.py` creates it.

`encode` never adds special tokens; `encode_with_bos` is the only place where a sequence gets its
BOS, exactly once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from simpo_jax.data.types import Message
from simpo_jax.errors import UserError
from simpo_jax.tokenizer.byte_vocab import END, SPECIAL_IDS, TEMPLATE, byte_functions
from simpo_jax.tokenizer.chat_template import TemplateFailed

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class NoEmbedding(UserError):
  """A text has a token for which the model's embedding has no row.

  Attributes:
    token: its id and spelling, for messages about a text that the user knows by another name.
  """

  def __init__(self, message: str, token: str):
    super().__init__(message)
    self.token = token


class Render(Protocol):
  """Renders a conversation with a chat template, like transformers' `apply_chat_template`.

  Args:
    messages: {"role", "content", ...}; the template gets every key whose value is not None;
      "reasoning" and "thinking" are also "reasoning_content".
    add_generation_prompt: whether to open the assistant's turn.
    tools: JSON schemas of the functions that the model may call; None: no tools.
    variables: further variables of the template (transformers' chat_template_kwargs).

  Raises:
    TemplateFailed: the template raised an error.
    UserError: there is no chat template, or it exceeds its limits.
  """

  def __call__(
    self,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Any] | None = None,
    variables: Mapping[str, Any] = NO_VARIABLES,
  ) -> str: ...


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer as a set of functions and ids.

  Attributes:
    encode: text -> ids. Adds no BOS or EOS; the strings of special tokens become those tokens,
      since chat templates write them. Raises NoEmbedding for a token that its model cannot read.
    decode: ids -> text, without special tokens.
    escape: user text -> text in which `encode` finds no special tokens. Hugging Face tokenizers
      have no such function: there it is the identity, and user text that contains "<|im_end|>"
      ends a turn, as in transformers.
    render: a conversation -> text for `encode`; see `Render`.
    bos_id: None if the tokenizer has no BOS.
    eos_ids: all ids that end a turn or a text; the tokenizer's EOS comes first.
    adds_bos: whether transformers' `encode` adds BOS to plain text by default.
    token_bytes: () -> the bytes of each id (its name for a special token).
    turn_end: the one of `eos_ids` that ends a turn of the chat template; for a conversation whose
      template writes none (plain text ends with `eos_ids[0]`).
    later_ends: those of `eos_ids` that earlier versions did not know. The identity of a run leaves
      them out, so that runs of these versions resume.
  """

  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  escape: Callable[[str], str]
  render: Render
  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int
  vocab_size: int
  chat_template: str | None
  adds_bos: bool
  token_bytes: Callable[[], list[bytes]]
  turn_end: int
  later_ends: tuple[int, ...] = ()


def encode_with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
  """Encodes a text that starts a sequence, with one BOS if the tokenizer adds BOS, never two."""
  ids = tokenizer.encode(text)
  bos = tokenizer.bos_id
  if bos is None:
    return ids
  while ids[:2] == [bos, bos]:
    ids = ids[1:]
  return [bos, *ids] if tokenizer.adds_bos and ids[:1] != [bos] else ids


def with_empty_system(tokenizer: Tokenizer) -> Tokenizer:
  """Returns a tokenizer that adds an empty system message to conversations without one.

  As in princeton-nlp/SimPO, this applies to chat templates that mention a system role or are
  ChatML. A template that rejects the message is left unchanged.
  """
  empty: Message = {"role": "system", "content": ""}
  template = tokenizer.chat_template or ""
  if "system" not in template and "<|im_start|>" not in template:
    return tokenizer

  def render(
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Any] | None = None,
    variables: Mapping[str, Any] = NO_VARIABLES,
  ) -> str:
    if messages and messages[0]["role"] != "system":
      messages = (empty, *messages)
    return tokenizer.render(messages, add_generation_prompt, tools, variables)

  try:
    render([{"role": "user", "content": "a"}], False)
  except TemplateFailed:
    return tokenizer
  return dataclasses.replace(tokenizer, render=render)


def byte_tokenizer() -> Tokenizer:
  """Returns the tokenizer of the embedded model: 256 bytes and 6 special tokens; V = 262.

  User text that contains "<|end|>" stays text; see `byte_vocab`.
  """
  encode, decode, escape, render_text = byte_functions()

  def render(
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Any] | None = None,
    variables: Mapping[str, Any] = NO_VARIABLES,
  ) -> str:
    del tools, variables  # its template has none
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
    turn_end=SPECIAL_IDS[END],
  )
