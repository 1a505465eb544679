"""Loads Hugging Face tokenizers from a folder, a GGUF file or the hub as a `Tokenizer`."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simpo_jax.data.types import Message
from simpo_jax.errors import UserError, first_line
from simpo_jax.models.gguf_header import check_header
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.chat_template import render as render_template
from simpo_jax.tokenizer.end_tokens import end_tokens, generation_end_tokens
from simpo_jax.tokenizer.gguf_metadata import without_torch
from simpo_jax.tokenizer.gguf_split import apply_split, split_named
from simpo_jax.tokenizer.tokenizer import NO_VARIABLES, Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_NO_LIMIT = int(1e30)
# Arguments of transformers' `apply_chat_template` that are no variables of a template.
_NO_VARIABLES = (
  "conversation", "chat_template", "continue_final_message", "tokenize", "padding", "truncation",
  "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
  "sanitize_control_tokens",
)  # fmt: skip
_REASONING = ("reasoning_content", "thinking", "reasoning")


def has_tokenizer(folder: pathlib.Path) -> bool:
  """Whether a folder contains tokenizer files."""
  return any((folder / name).exists() for name in _TOKENIZER_FILES)


def load_local(
  folder: pathlib.Path, gguf_file: str | None, date: str, template: str | None
) -> Tokenizer:
  """Loads the tokenizer of a folder, or of a GGUF file in it.

  Args:
    gguf_file: the name of the GGUF file; None: the folder has tokenizer files.
    date: current time for the chat template, ISO 8601.
    template: replaces the tokenizer's chat template.

  Raises:
    UserError: no tokenizer can be read.
  """
  origin = str(folder / (gguf_file or ""))
  try:
    with _panic_as_user_error(origin):
      hf = auto_tokenizer(str(folder), gguf_file)
    # A GGUF stores its end tokens; a JSON file in the same folder may be of another model.
    eos = [] if gguf_file else generation_end_tokens(folder / "generation_config.json")
    return _from_transformers(hf, eos, origin, date, template)
  except UserError:
    raise
  # The type depends on which file is missing or broken.
  except Exception as error:
    raise UserError(
      f"no tokenizer can be read from {origin} ({first_line(error)});"
      " it needs tokenizer.json and tokenizer_config.json, or to be a complete .gguf"
    ) from error


def load_hub(name: str, date: str, template: str | None) -> Tokenizer:
  """Loads the tokenizer of a hub id; see `load_local`."""
  try:
    with _panic_as_user_error(name):
      hf = auto_tokenizer(name)
    config = _hub_generation_config(name)
    return _from_transformers(
      hf, generation_end_tokens(config) if config else [], name, date, template
    )
  except UserError:
    raise
  # No network, an unknown name, no permission: each library raises its own types.
  except Exception as error:
    raise UserError(
      f"{name} is neither a folder here nor a model that can be fetched"
      f" ({first_line(error)}); check the name, or download it and give the folder"
    ) from error


def _hub_generation_config(name: str) -> pathlib.Path | None:
  import huggingface_hub
  from huggingface_hub.errors import EntryNotFoundError

  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(name, "generation_config.json"))
  except EntryNotFoundError:
    return None


def auto_tokenizer(origin: str, gguf_file: str | None = None) -> Any:
  """Loads a transformers tokenizer, that of a GGUF file with its pre-tokenization.

  Args:
    origin: a folder or a hub id.
    gguf_file: the name of a GGUF file in the folder.

  Raises:
    UserError: the GGUF's pre-tokenization is missing or unknown; see `gguf_split.split_named`.
    ValueError, OSError: the GGUF is damaged. Other errors of transformers pass through.
  """
  if gguf_file is None:
    return _from_pretrained(origin)
  path = pathlib.Path(origin, gguf_file)
  split = split_named(path, check_header(path))
  with without_torch():
    hf = _from_pretrained(origin, gguf_file=gguf_file)
  if split:
    apply_split(hf, split)
  return hf


def encode_unsplit(path: pathlib.Path) -> Callable[[str], list[int]]:
  """Returns the `encode` of a GGUF without its pre-tokenization, as in earlier versions."""
  with without_torch():
    hf = _from_pretrained(str(path.parent), gguf_file=path.name)
  return lambda text: list(hf.encode(text, add_special_tokens=False))


def _from_pretrained(origin: str, **options: Any) -> Any:
  import transformers

  # By default, transformers would prompt on the terminal for a repository with custom code.
  return transformers.AutoTokenizer.from_pretrained(
    origin, trust_remote_code=False, model_max_length=_NO_LIMIT, **options
  )


def _from_transformers(
  hf: Any, generation_eos: list[int], origin: str, date: str, template: str | None
) -> Tokenizer:
  template, tool_template = _templates(hf, template, origin)
  vocab = hf.get_vocab()
  eos_ids = end_tokens(hf.eos_token_id, generation_eos, template or "", vocab)
  if not eos_ids:
    raise UserError(f"the tokenizer of {origin} has no end token; set eos_token in it")

  def encode(text: str) -> list[int]:
    with _panic_as_user_error(origin):
      return list(hf.encode(text, add_special_tokens=False))

  def decode(ids: Sequence[int]) -> str:
    with _panic_as_user_error(origin):
      return hf.decode(
        [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
      )

  def render(
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Any] | None = None,
    variables: Mapping[str, Any] = NO_VARIABLES,
  ) -> str:
    if template is None:
      raise UserError(
        f"the tokenizer of {origin} has no chat template, which messages need; give it"
        " one with --config.data.chat_template=FILE.jinja, or train on plain strings"
      )
    if not messages:
      raise TemplateFailed("there is no message")
    given = {
      "messages": [_template_message(m) for m in messages],
      "tools": None if tools is None else list(tools),
      "documents": None,
      "add_generation_prompt": add_generation_prompt,
    }
    if taken := sorted(variables.keys() & {*given, *_NO_VARIABLES} - {"documents"}):
      raise TemplateFailed(f"chat_template_kwargs cannot set {taken[0]}")
    source = tool_template if tools is not None and tool_template else template
    return render_template(source, {**hf.special_tokens_map, **given, **variables}, origin, date)

  bos = hf.bos_token_id
  vocab_size = max(vocab.values()) + 1  # ids may have gaps
  with _panic_as_user_error(origin):
    with_specials = list(hf.encode("a"))
  return Tokenizer(
    encode=encode,
    decode=decode,
    escape=lambda text: text,
    render=render,
    bos_id=bos,
    eos_ids=eos_ids,
    pad_id=eos_ids[0] if hf.pad_token_id is None else hf.pad_token_id,
    vocab_size=vocab_size,
    chat_template=template,
    adds_bos=bos is not None and with_specials[:1] == [bos],
    token_bytes=lambda: _token_bytes(hf, vocab_size),
  )


def _template_message(message: Message) -> Message:
  """Returns a message as templates get it from transformers' `apply_chat_template` (5.24).

  Keys whose value is None, with which columnar files fill rows, are absent: templates would print
  them. Reasoning under any of its names is also `reasoning_content` and `thinking`.
  """
  message = {key: value for key, value in message.items() if value is not None}
  reasoning = next((message[name] for name in _REASONING if name in message), None)
  if reasoning is None:
    return message
  return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _templates(hf: Any, given: str | None, origin: str) -> tuple[str | None, str | None]:
  """Returns the chat template and, if there is another for conversations with tools, that one."""
  templates = hf.chat_template if given is None else given
  if not isinstance(templates, dict):
    templates = {"default": templates}
  chosen = templates.get("default"), templates.get("tool_use")
  if not all(isinstance(template, str | None) for template in chosen):
    raise UserError(f"the chat template of {origin} is not a string; fix chat_template in it")
  return chosen


@contextlib.contextmanager
def _panic_as_user_error(origin: str):
  """Converts a panic of the tokenizers library (Rust), which is not an `Exception`."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != "PanicException":
      raise
    raise UserError(
      f"the tokenizer of {origin} is broken ({first_line(error)}); download it again"
    ) from error


def _token_bytes(hf: Any, vocab_size: int) -> list[bytes]:
  byte_level = "ByteLevel" in hf.backend_tokenizer.to_str()
  added = hf.added_tokens_decoder  # stored as plain text, not as byte spellings
  return [
    added[i].content.encode() if i in added else _token_to_bytes(token or "", byte_level)
    for i, token in enumerate(hf.convert_ids_to_tokens(range(vocab_size)))
  ]


def _token_to_bytes(token: str, byte_level: bool) -> bytes:
  """Decodes a vocabulary entry, written in GPT-2's byte alphabet or in SentencePiece's."""
  if byte_level and all(c in _BYTE_OF for c in token):
    return bytes(_BYTE_OF[c] for c in token)
  if match := _HEX_BYTE.fullmatch(token):
    return bytes([int(match[1], 16)])
  return token.replace("\u2581", " ").encode()


def byte_spellings() -> dict[str, int]:
  """Returns GPT-2's {character: byte}: printable bytes as themselves, others from U+0100 on.

  The inverse of `bytes_to_unicode` in GPT-2's encoder.py.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = byte_spellings()
_HEX_BYTE = re.compile("<0x([0-9A-F]{2})>")
