"""Hugging Face tokenizers, of a folder, a GGUF file or the hub, as ours."""

import contextlib
import json
import pathlib
import re
from collections.abc import Sequence

from simpo_jax.data.forms import Message
from simpo_jax.data.gguf_metadata import without_torch
from simpo_jax.data.template import TemplateFailed
from simpo_jax.data.template import render as render_template
from simpo_jax.data.tokenizer import Tokenizer
from simpo_jax.errors import UserError, first_line
from simpo_jax.gguf_header import check_header

# Tokens that end a turn in well-known templates, where `eos_token` often is another.
_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|endoftext|>", "</s>", "<|eot|>",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_NO_LIMIT = int(1e30)


def has_tokenizer(folder: pathlib.Path) -> bool:
  """Whether a folder has a tokenizer's files."""
  return any((folder / name).exists() for name in _TOKENIZER_FILES)


def load_local(
  folder: pathlib.Path, gguf_file: str | None, date: str, template: str | None
) -> Tokenizer:
  """The tokenizer of a folder, or of a GGUF file in it.

  Args:
    folder: of the tokenizer's files.
    gguf_file: the name of that file; None: the folder's own.
    date: what its chat template takes for now, ISO 8601.
    template: a chat template in place of the tokenizer's own.

  Raises:
    UserError: none can be read.
  """
  place = str(folder / (gguf_file or ""))
  options = {"gguf_file": gguf_file} if gguf_file else {}
  try:
    if gguf_file:
      check_header(pathlib.Path(place))
    with _panics_told(place):
      hf = auto_tokenizer(str(folder), **options)
    # A GGUF names its own end tokens; a JSON file beside it may be of another model.
    eos = [] if gguf_file else _generation_eos(folder / "generation_config.json")
    return _from_hf(hf, eos, place, date, template)
  except UserError:
    raise
  # Any of a dozen kinds, depending on which file is missing or broken.
  except Exception as error:
    raise UserError(
      f"no tokenizer can be read from {place} ({first_line(error)});"
      " it needs tokenizer.json and tokenizer_config.json, or to be a complete .gguf"
    ) from error


def load_hub(name: str, date: str, template: str | None) -> Tokenizer:
  """The tokenizer of a hub id; the rest as of `load_local`."""
  try:
    with _panics_told(name):
      hf = auto_tokenizer(name)
    config = _hub_generation_config(name)
    return _from_hf(hf, _generation_eos(config) if config else [], name, date, template)
  except UserError:
    raise
  # No network, no such name, no permission: each library has its own kinds.
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


def auto_tokenizer(place: str, **options):
  """The tokenizer of a folder, a GGUF file or a hub id, as transformers has it."""
  with without_torch() if "gguf_file" in options else contextlib.nullcontext():
    import transformers

    # Without the False, a repository with code of its own would ask on the terminal.
    return transformers.AutoTokenizer.from_pretrained(
      place, trust_remote_code=False, model_max_length=_NO_LIMIT, **options
    )


def _generation_eos(config: pathlib.Path) -> list[int]:
  if not config.is_file():
    return []
  try:
    eos = json.loads(config.read_text())["eos_token_id"]
  except KeyError:
    return []
  except (OSError, ValueError, TypeError, RecursionError) as error:
    raise UserError(f"{config} is not readable JSON ({first_line(error)})") from error
  eos = eos if isinstance(eos, list) else [eos]
  return [i for i in eos if type(i) is int and 0 <= i < 2**31]


def _from_hf(
  hf, generation_eos: list[int], place: str, date: str, template: str | None
) -> Tokenizer:
  template = hf.chat_template if template is None else template
  if isinstance(template, dict):
    template = template.get("default")
  if not isinstance(template, str | None):
    raise UserError(f"the chat template of {place} is no text; mend chat_template in it")
  vocab = hf.get_vocab()
  turn_ends = [vocab[t] for t in _turn_ends(template or "") if t in vocab]
  own = [] if hf.eos_token_id is None else [hf.eos_token_id]
  eos_ids = tuple(dict.fromkeys([*own, *generation_eos, *turn_ends]))
  if not eos_ids:
    raise UserError(f"the tokenizer of {place} has no end token; set eos_token in it")

  def encode(text: str) -> list[int]:
    with _panics_told(place):
      return list(hf.encode(text, add_special_tokens=False))

  def decode(ids: Sequence[int]) -> str:
    with _panics_told(place):
      return hf.decode(
        [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
      )

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    if template is None:
      raise UserError(
        f"the tokenizer of {place} has no chat template, which messages need; give it"
        " one with --config.data.chat_template=FILE.jinja, or train on plain strings"
      )
    if not messages:
      raise TemplateFailed("there is no message")
    variables = {
      **hf.special_tokens_map,
      "messages": [dict(m) for m in messages],
      "tools": None,
      "documents": None,
      "add_generation_prompt": add_generation_prompt,
    }
    return render_template(template, variables, place, date)

  bos = hf.bos_token_id
  vocab_size = max(vocab.values()) + 1  # ids may have gaps
  with _panics_told(place):
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


@contextlib.contextmanager
def _panics_told(place: str):
  """The tokenizers library is Rust, whose panics are no `Exception`."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != "PanicException":
      raise
    raise UserError(
      f"the tokenizer of {place} is broken ({first_line(error)}); get it again"
    ) from error


def _token_bytes(hf, vocab_size: int) -> list[bytes]:
  byte_level = "ByteLevel" in hf.backend_tokenizer.to_str()
  added = hf.added_tokens_decoder  # these are written as they are
  return [
    added[i].content.encode() if i in added else _bytes_of(token or "", byte_level)
    for i, token in enumerate(hf.convert_ids_to_tokens(range(vocab_size)))
  ]


def _bytes_of(token: str, byte_level: bool) -> bytes:
  """The bytes of a vocabulary entry, in GPT-2's spelling of bytes or SentencePiece's."""
  if byte_level and all(c in _BYTE_OF for c in token):
    return bytes(_BYTE_OF[c] for c in token)
  if match := _HEX_BYTE.fullmatch(token):
    return bytes([int(match[1], 16)])
  return token.replace("\u2581", " ").encode()


def byte_spellings() -> dict[str, int]:
  """GPT-2 spells a printable byte as itself, the others as the characters from 256 on."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = byte_spellings()
_HEX_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _turn_ends(template: str) -> list[str]:
  # Where a template knows channels, <|end|> closes one of them and not the turn.
  channels = "<|channel|>" in template
  return [t for t in _TURN_ENDS if t in template and not (channels and t == "<|end|>")]
