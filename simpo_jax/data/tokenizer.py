"""One tokenizer for training and generation: functions and ids, nothing hidden.

`load_tokenizer` reads it from wherever the model comes from. `encode` never
adds a token of its own; `encode_with_bos` is the one place where a prompt gets
its BOS, exactly once.
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import re
from collections.abc import Callable, Sequence

from simpo_jax.data.byte_vocab import END, SPECIAL_IDS, TEMPLATE, byte_functions
from simpo_jax.data.forms import Message
from simpo_jax.data.sources import nearest_files
from simpo_jax.data.template import TemplateFailed
from simpo_jax.data.template import render as render_template
from simpo_jax.errors import UserError
from simpo_jax.gguf_header import check_header

# Tokens that end a turn in well-known templates, where `eos_token` often is another.
_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|endoftext|>", "</s>", "<|eot|>",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_HUB_ID = re.compile(r"(?!.*\.\.)\w[\w.-]*(/\w[\w.-]*)?")
_NO_LIMIT = int(1e30)


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


def run_tokenizer(config, date: str = "") -> Tokenizer:
  """The tokenizer of a run: its model's, with the chat template that the config asks for."""
  tokenizer = load_tokenizer(config.model.source, date, _template(config.data.chat_template))
  return with_empty_system(tokenizer) if config.data.empty_system else tokenizer


def _template(text: str) -> str | None:
  if not text.endswith(".jinja"):
    return text or None
  try:
    return pathlib.Path(text).expanduser().read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(f"--config.data.chat_template={text} is no text file to be read") from error


def load_tokenizer(source: str, date: str = "", template: str | None = None) -> Tokenizer:
  """The tokenizer of a model source.

  Args:
    source: "embedded", a Hugging Face folder, a .gguf file, a hub id, or
      "random:FOLDER" (FOLDER's tokenizer if it has one, else the byte tokenizer).
    date: what its chat template takes for now, ISO 8601; "": the time of this call.
    template: a chat template in place of the tokenizer's own.

  Raises:
    UserError: there is no tokenizer there, or none that can be read.
  """
  if source == "embedded":
    return _own_template(template)
  date = date or datetime.datetime.now().isoformat(timespec="seconds")
  if source.startswith("random:"):
    folder = pathlib.Path(source.removeprefix("random:")).expanduser()
    if not folder.is_dir():
      raise UserError(f"{source}: {folder} is not a folder{nearest_files(folder)}")
    if has_tokenizer(folder):
      return _load_local(folder, {}, date, template)
    return _own_template(template)
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return _load_local(path, {}, date, template)
  if path.is_file():
    if path.suffix != ".gguf":
      raise UserError(f"{source} is a file but not a .gguf; give the folder that holds it")
    return _load_local(path.parent, {"gguf_file": path.name}, date, template)
  if path.suffix == ".gguf" or not _HUB_ID.fullmatch(source):
    raise UserError(f"{source} does not exist{nearest_files(path)}")
  return _load_hub(source, date, template)


def _own_template(template: str | None) -> Tokenizer:
  if template is not None:
    raise UserError("--config.data.chat_template: the byte tokenizer has none but its own")
  return byte_tokenizer()


def has_tokenizer(folder: pathlib.Path) -> bool:
  """Whether a folder has a tokenizer's files."""
  return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _load_local(
  folder: pathlib.Path, options: dict[str, str], date: str, template: str | None
) -> Tokenizer:
  place = str(folder / options.get("gguf_file", ""))
  try:
    if options:
      check_header(pathlib.Path(place))
    with _panics_told(place):
      hf = auto_tokenizer(str(folder), **options)
    # A GGUF names its own end tokens; a JSON file beside it may be of another model.
    eos = [] if options else _generation_eos(folder / "generation_config.json")
    return _from_hf(hf, eos, place, date, template)
  except UserError:
    raise
  # Any of a dozen kinds, depending on which file is missing or broken.
  except Exception as error:
    raise UserError(
      f"no tokenizer can be read from {place} ({_one_line(error)});"
      " it needs tokenizer.json and tokenizer_config.json, or to be a complete .gguf"
    ) from error


def _load_hub(name: str, date: str, template: str | None) -> Tokenizer:
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
      f" ({_one_line(error)}); check the name, or download it and give the folder"
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
    raise UserError(f"{config} is not readable JSON ({_one_line(error)})") from error
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
        f"the tokenizer of {place} has no chat template, which messages need; set"
        " chat_template in it, or train on plain prompt, chosen and rejected strings"
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
      f"the tokenizer of {place} is broken ({_one_line(error)}); get it again"
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


def _one_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
