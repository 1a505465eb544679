"""Loads Hugging Face tokenizers from a folder, a GGUF file or the hub as a `Tokenizer`."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers

from simpo_jax.data.types import REASONING, Message
from simpo_jax.errors import UserError, first_line
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.chat_template import render as render_template
from simpo_jax.tokenizer.end_tokens import (
  Declared,
  check_ends,
  end_tokens,
  folder_end_tokens,
  turn_end,
)
from simpo_jax.tokenizer.folder_backend import CONFIG, JSON, MISTRALS, MODEL, folder_backend
from simpo_jax.tokenizer.gguf_metadata import without_torch
from simpo_jax.tokenizer.gguf_tokenizer import gguf_tokenizer
from simpo_jax.tokenizer.tokenizer import NO_VARIABLES, Render, Tokenizer

_READ = (JSON, CONFIG, MODEL, "vocab.json")
_HUB_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model*")
_NO_LIMIT = int(1e30)
# Arguments of transformers' `apply_chat_template` that are no variables of a template.
_RESERVED = (
  "conversation", "chat_template", "continue_final_message", "tokenize", "padding", "truncation",
  "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
  "sanitize_control_tokens",
)  # fmt: skip


def has_tokenizer(folder: pathlib.Path) -> bool:
  """Whether a folder contains tokenizer files."""
  return any((folder / name).exists() for name in (*_READ, *MISTRALS))


def load_gguf(path: pathlib.Path, date: str, template: str | None) -> Tokenizer:
  """Loads the tokenizer of a GGUF file.

  Args:
    date: current time for the chat template, ISO 8601.
    template: replaces the tokenizer's chat template.

  Raises:
    UserError: no tokenizer can be read.
  """
  origin = str(path)
  with _as_user_error(origin):
    # A GGUF states its end tokens; a JSON file in the same folder may be of another model.
    found = gguf_tokenizer(path)
    ends = Declared(found.ends, [])
    return _from_transformers(found.hf, found.hf.backend_tokenizer, ends, origin, date, template)


def load_folder(
  folder: pathlib.Path, date: str, template: str | None, origin: str = ""
) -> Tokenizer:
  """Loads the tokenizer of a folder; see `load_gguf`.

  Args:
    origin: what the user named, for error messages; "": the folder.
  """
  origin = origin or str(folder)
  with _as_user_error(origin):
    found = [name for name in MISTRALS if (folder / name).is_file()]
    if found and not any((folder / name).is_file() for name in (JSON, MODEL, "vocab.json")):
      raise UserError(
        f"{origin} has its tokenizer in {found[0]}, a format of mistral-common, which is not "
        f"supported; get {JSON} and {CONFIG} of this model in Hugging Face's format"
      )
    hf = _from_pretrained(str(folder))
    backend = folder_backend(folder, origin, hf)
    return _from_transformers(hf, backend, folder_end_tokens(folder), origin, date, template)


def load_hub(name: str, date: str, template: str | None) -> Tokenizer:
  """Loads the tokenizer of a hub id; see `load_gguf`."""
  import huggingface_hub

  try:
    folder = huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES))
  # No network, an unknown name, no permission: each library raises its own types.
  except Exception as error:
    raise UserError(
      f"{name} is neither a folder here nor a model that can be fetched"
      f" ({first_line(error)}); check the name, or download it and give the folder"
    ) from error
  return load_folder(pathlib.Path(folder), date, template, name)


def encode_earlier(path: pathlib.Path) -> Callable[[str], list[int]]:
  """Returns the `encode` of earlier versions, which left a model's text to transformers' classes.

  Args:
    path: of a GGUF file, whose pre-tokenization the first versions ignored, or of a folder.

  Opening and encoding raise any `Exception` if transformers does not read the files.
  """
  with _panic_as_user_error(str(path)):
    if path.is_file():
      with without_torch():
        hf = _from_pretrained(str(path.parent), gguf_file=path.name)
    else:
      hf = _from_pretrained(str(path))

  def encode(text: str) -> list[int]:
    with _panic_as_user_error(str(path)):
      return list(hf.encode(text, add_special_tokens=False))

  return encode


def _from_pretrained(origin: str, **options: Any) -> Any:
  import transformers

  # By default, transformers would prompt on the terminal for a repository with custom code.
  return transformers.AutoTokenizer.from_pretrained(
    origin, trust_remote_code=False, model_max_length=_NO_LIMIT, **options
  )


def _from_transformers(
  hf: Any,
  backend: tokenizers.Tokenizer,
  ends: Declared,
  origin: str,
  date: str,
  template: str | None,
) -> Tokenizer:
  """Joins what a class of transformers names with what encodes and decodes.

  Args:
    hf: names special tokens and has the chat template.
    backend: encodes and decodes.
    ends: end tokens of the model's files.
  """
  template, tool_template = _templates(hf, template, origin)
  vocab = backend.get_vocab()
  vocab_size = max(vocab.values()) + 1  # ids may have gaps
  bos, eos, pad = (vocab.get(n) for n in (hf.bos_token, hf.eos_token, hf.pad_token))
  earlier = end_tokens(eos, ends.earlier, template or "", vocab)
  eos_ids = tuple(dict.fromkeys([*earlier, *ends.ids]))
  if not eos_ids:
    raise UserError(f"the tokenizer of {origin} has no end token; set eos_token in it")
  check_ends(eos_ids, vocab_size, origin)

  def encode(text: str) -> list[int]:
    with _panic_as_user_error(origin):
      return backend.encode(text, add_special_tokens=False).ids

  def decode(ids: Sequence[int]) -> str:
    with _panic_as_user_error(origin):
      return backend.decode([int(i) for i in ids], skip_special_tokens=True)

  with _panic_as_user_error(origin):
    begun = backend.encode("a").ids
  return Tokenizer(
    encode=encode,
    decode=decode,
    escape=lambda text: text,
    render=_renderer(template, tool_template, hf.special_tokens_map, origin, date),
    bos_id=bos,
    eos_ids=eos_ids,
    pad_id=eos_ids[0] if pad is None else pad,
    vocab_size=vocab_size,
    chat_template=template,
    adds_bos=bos is not None and begun[:1] == [bos],
    token_bytes=lambda: _token_bytes(backend, vocab_size),
    turn_end=turn_end(eos_ids[0], template or "", vocab),
    later_ends=tuple(i for i in eos_ids if i not in earlier),
  )


def _renderer(
  template: str | None, tool_template: str | None, names: Mapping[str, Any], origin: str, date: str
) -> Render:
  """Returns `Tokenizer.render`; names: of special tokens, such as bos_token, for the template."""

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
    if taken := sorted(variables.keys() & {*given, *_RESERVED} - {"documents"}):
      raise TemplateFailed(f"chat_template_kwargs cannot set {taken[0]}")
    source = tool_template if tools is not None and tool_template else template
    return render_template(source, {**names, **given, **variables}, origin, date)

  return render


def _template_message(message: Message) -> Message:
  """Returns a message as templates get it from transformers' `apply_chat_template` (5.24).

  Keys whose value is None, with which columnar files fill rows, are absent: templates would print
  them. Reasoning under any of its names is also `reasoning_content` and `thinking`.
  """
  message = {key: value for key, value in message.items() if value is not None}
  reasoning = next((message[name] for name in REASONING if name in message), None)
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
def _as_user_error(origin: str):
  """Converts the errors of libraries that read a tokenizer."""
  try:
    with _panic_as_user_error(origin):
      yield
  except UserError:
    raise
  # The type depends on which file is missing or broken.
  except Exception as error:
    raise UserError(
      f"no tokenizer can be read from {origin} ({first_line(error)});"
      f" it needs {JSON} and {CONFIG}, or to be a complete .gguf"
    ) from error


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


def _token_bytes(backend: tokenizers.Tokenizer, vocab_size: int) -> list[bytes]:
  byte_level = "ByteLevel" in backend.to_str()
  added = backend.get_added_tokens_decoder()  # stored as plain text, not as byte spellings
  return [
    added[i].content.encode()
    if i in added
    else _token_to_bytes(backend.id_to_token(i) or "", byte_level)
    for i in range(vocab_size)
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
