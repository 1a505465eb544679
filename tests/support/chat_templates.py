"""Chat templates of the field, each with a tiny tokenizer, and conversations of many shapes."""

import contextlib
import datetime
import json
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import Tokenizer
from support.folders import TESTS

FOLDER = TESTS / "tokenizer" / "chat_templates"
SPECIALS = json.loads((FOLDER / "special_tokens.json").read_text(encoding="utf-8"))
NAMES = tuple(SPECIALS)
DATE = datetime.datetime(2026, 11, 23, 23, 59, 30)  # when templates are rendered

TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "weather",
      "description": "Temperature in °C",
      "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
  }
]


def system(content, **more):
  return {"role": "system", "content": content, **more}


def user(content, **more):
  return {"role": "user", "content": content, **more}


def assistant(content, **more):
  return {"role": "assistant", "content": content, **more}


def tool(content, number="abc456789", **more):
  return {"role": "tool", "tool_call_id": number, "content": content, **more}


def call(arguments, number="abc456789"):
  function = {"name": "weather", "arguments": arguments}
  return {"id": number, "type": "function", "function": function}


COLOGNE = {"city": "Köln", "days": 3, "exact": True, "limit": 1.5e-7, "at": None}
ODD = (
  "  {{ 7*7 }}{% raw %}{# x #}\n\n\t<|im_end|></s><|eot_id|><end_of_turn>[/INST]<｜User｜> \r\n"
  'é漢🙂 "q" \\n \u2028 <think>a</think> <tool_response>\n  '
)
SAY = [user("Hi"), assistant("Hello"), user("Go on")]
ASK = [user("How warm?"), assistant("", tool_calls=[call(COLOGNE)]), tool("21.5")]

# {shape: (messages, tools, template variables)}
SHAPES = {
  "user": ([user("Hi")], None, {}),
  "system": ([system("Be terse."), user("Hi")], None, {}),
  "turns": (SAY, None, {}),
  "system_turns": ([system("Be terse."), *SAY, assistant("Bye")], None, {}),
  "two_systems": ([system("Be terse."), system("Be kind."), *SAY], None, {}),
  "tools": ([user("How warm?")], TOOLS, {}),
  "system_tools": ([system("Be terse."), user("How warm?")], TOOLS, {}),
  "no_tools": ([user("How warm?")], [], {}),
  "call": (ASK, TOOLS, {}),
  "call_answer": ([*ASK, assistant("Warm.")], TOOLS, {}),
  "text_and_call": (
    [user("How warm?"), assistant("Let me see.", tool_calls=[call('{"city": "Bonn"}')])],
    TOOLS,
    {},
  ),
  "two_calls": (
    [
      user("How warm?"),
      assistant("", tool_calls=[call(COLOGNE), call({"city": "Bonn"}, "def456789")]),
      tool("21.5"),
      tool("22", "def456789"),
      assistant("Warm."),
      user("Thanks"),
    ],
    TOOLS,
    {},
  ),
  "short_id": (
    [user("How warm?"), assistant("", tool_calls=[call({}, "x")]), tool("", "x")],
    TOOLS,
    {},
  ),
  "reasoning_last": ([user("Hi"), assistant("Hello", reasoning_content="A greeting.\n")], None, {}),
  "reasoning_earlier": (
    [user("Hi"), assistant("Hello", reasoning_content="A greeting."), user("Go on")],
    None,
    {},
  ),
  "reasoning_in_content": (
    [
      user("Hi"),
      assistant("<think>\nA greeting.\n</think>\n\nHello"),
      user("Go on"),
      assistant("<think>\nA wish.\n</think>\n\nNo"),
    ],
    None,
    {},
  ),
  "reasoning_and_call": (
    [
      user("How warm?"),
      assistant("", reasoning_content="Look it up.", tool_calls=[call(COLOGNE)]),
      tool("21.5"),
    ],
    TOOLS,
    {},
  ),
  # Other names of the same thing.
  "thinking": ([user("Hi"), assistant("Hello", thinking="A greeting.")], None, {}),
  "reasoning": ([user("Hi"), assistant("Hello", reasoning="A greeting.")], None, {}),
  "odd": ([system(ODD), user(ODD), assistant(ODD), user(ODD)], None, {}),
  "odd_without_system": ([user(ODD), assistant(ODD)], None, {}),
  "blank": ([user(""), assistant(" \n "), user("\n")], None, {}),
  "names": (
    [user("Hi", name="ann"), assistant("Hello", name="bot"), user("So", name="bob")],
    None,
    {},
  ),
  # As columnar files fill them.
  "none": (
    [
      user("How warm?", name=None, tool_calls=None, reasoning_content=None),
      assistant(None, name=None, tool_calls=[call(COLOGNE)], reasoning_content=None),
      tool("21.5", name=None, tool_calls=None, reasoning_content=None),
    ],
    TOOLS,
    {},
  ),
  "no_json": (
    [user("Hi", time=datetime.datetime(2026, 11, 23)), assistant("Hello", more={"hash": b"1"})],
    None,
    {},
  ),
  "variables": (
    SAY,
    None,
    {
      "enable_thinking": False,
      "date_string": "02 Jan 2030",
      "controls": {"length": "short"},
      "documents": [{"title": "Sky", "text": "It is blue."}, {"text": "Sea"}],
      "unknown": 1,
    },
  ),
  "variables_and_tools": (
    SAY,
    TOOLS,
    {"tools_in_user_message": False, "documents": [{"text": "a"}]},
  ),
  "own_tokens": (SAY, None, {"bos_token": "<a>", "eos_token": "<b>"}),
  "assistant_first": ([assistant("Hello"), user("Hi")], None, {}),
  "other_role": ([user("Hi"), {"role": "critic", "content": "Bad"}, user("So")], None, {}),
}


def save_folder(name, folder):
  """Saves the tokenizer of a template: bytes, some merges and its special tokens."""
  given = SPECIALS[name]
  template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
  rust = RustTokenizer(models.BPE())
  rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  rust.decoder = decoders.ByteLevel()
  bytes_ = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=bytes_, show_progress=False)
  rust.train_from_iterator([template], trainer)
  ends = {key: given.get(key, False) for key in ("lstrip", "rstrip")}
  specials = [given["bos"], given["eos"], given["turn_end"], *given.get("others", [])]
  for token in dict.fromkeys(filter(None, specials)):
    strips = ends if token not in (given["bos"], given["eos"]) else {}
    rust.add_special_tokens([AddedToken(token, special=True, normalized=False, **strips)])
  rust.add_tokens([AddedToken(t, normalized=False) for t in given.get("plain", [])])
  if given.get("adds_bos"):
    bos = given["bos"]
    rust.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, rust.token_to_id(bos))]
    )
  rust.save(str(folder / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": given["bos"],
    "eos_token": given["eos"],
    "chat_template": template,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return folder


class Opened(NamedTuple):
  """The tokenizer of a template, as we read it, as transformers does, and the bare one."""

  name: str
  ours: Tokenizer
  theirs: Any
  rust: RustTokenizer


def open_chat(name, folder):
  """Saves the tokenizer of a template, and opens it for `DATE`."""
  import transformers

  save_folder(name, folder)
  return Opened(
    name,
    load_tokenizer(str(folder), DATE.isoformat()),
    transformers.AutoTokenizer.from_pretrained(folder),
    RustTokenizer.from_file(str(folder / "tokenizer.json")),
  )


class _Clock(datetime.datetime):
  @classmethod
  def now(cls, tz=None):
    return DATE


@contextlib.contextmanager
def stopped_clock():
  """Transformers renders templates at `DATE`."""
  from transformers.utils import chat_template_utils

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chat_template_utils, "datetime", _Clock)
    yield
