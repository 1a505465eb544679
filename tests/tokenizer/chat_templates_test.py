"""Chat templates of the field: text, ids and refusals are those of transformers and tokenizers."""

import inspect
import json

import jinja2
import pytest

from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import encode_with_bos
from support.chat_templates import (
  FOLDER,
  NAMES,
  SHAPES,
  SPECIALS,
  TOOLS,
  assistant,
  call,
  open_chat,
  save_folder,
  stopped_clock,
  system,
  tool,
  user,
)
from support.folders import GOLDEN

TOOL_ROLE = {"call", "call_answer", "two_calls", "short_id", "reasoning_and_call", "none"}
SYSTEM = {"system", "system_turns", "system_tools", "odd"}
ORDER = {"two_systems", "assistant_first", "other_role"}
# The shapes that a template refuses; it renders all others.
REFUSED = {
  "llama-2": TOOL_ROLE | ORDER,
  "llama-3.1": {"two_calls"},
  "gemma-2": TOOL_ROLE | SYSTEM | {"two_systems", "assistant_first"},
  "gemma-3": TOOL_ROLE | {"two_systems", "assistant_first"},
  "mistral-v0.3": ORDER | {"short_id"},
  "alpaca": TOOL_ROLE | {"two_systems", "other_role"},
}


@pytest.fixture(scope="module", autouse=True)
def one_date():
  with stopped_clock():
    yield


@pytest.fixture(scope="module", params=NAMES)
def chat(request, tmp_path_factory):
  """One after the other: a module's tests of the same parameter follow each other."""
  return open_chat(request.param, tmp_path_factory.mktemp("tokenizer"))


def outcome(render, *args, **options):
  """The text, or why there is none."""
  try:
    return render(*args, **options)
  except (TemplateFailed, jinja2.TemplateError) as error:
    return "refused: ", str(error)


def ids_alone(chat, text):
  """What `tokenizers` makes of the text, and one BOS if the tokenizer adds it."""
  ids, given = chat.rust.encode(text, add_special_tokens=False).ids, SPECIALS[chat.name]
  bos = chat.rust.token_to_id(given["bos"]) if given.get("adds_bos") else None
  return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


@pytest.mark.parametrize("shape", SHAPES)
def test_text_and_ids(chat, shape):
  messages, tools, variables = SHAPES[shape]
  for prompt in (True, False):
    text = outcome(chat.ours.render, messages, prompt, tools, variables)
    options = {**variables, "add_generation_prompt": prompt, "tokenize": False}
    assert text == outcome(chat.theirs.apply_chat_template, messages, tools, **options)
    assert isinstance(text, tuple) == (shape in REFUSED.get(chat.name, ()))
    if isinstance(text, str):
      ids = encode_with_bos(chat.ours, text)
      assert ids == ids_alone(chat, text)
      if SPECIALS[chat.name].get("adds_bos"):
        assert ids[0] == chat.ours.bos_id != ids[1]


def known_texts(name):
  """{(shape, "prompt" or "whole"): text}, written by hand from the formats' documentation."""
  for part in (GOLDEN / "chat_templates.txt").read_text(encoding="utf-8").split("=== ")[1:]:
    head, text = part.split("\n", 1)
    template, *key = head.split(", ")
    if template == name:
      yield tuple(key), text[:-1]


def test_texts_of_the_documentation(chat):
  known = dict(known_texts(chat.name))
  assert len(known) >= 2
  for (shape, end), text in known.items():
    messages, tools, variables = SHAPES[shape]
    assert chat.ours.render(messages, end == "prompt", tools, variables) == text


def test_the_end_of_a_turn_ends_an_answer(chat):
  given = SPECIALS[chat.name]
  ends = [given["eos"], given["turn_end"]]
  assert {chat.rust.token_to_id(t) for t in ends} <= set(chat.ours.eos_ids)


# system, tools, tool calls, their results, reasoning of the last answer, of an earlier one, name of
# a message: "+" is in the text, "-" is left out by the template, "!" is refused.
IN_TEXT = {
  "chatml": "+--+---",
  "llama-2": "+--!---",
  "llama-3": "+--+---",
  "llama-3-original": "+--+---",
  "llama-3.1": "++++---",
  "gemma-2": "!--!---",
  "gemma-3": "+--!---",
  "mistral-v0.3": "++++---",
  "qwen-2.5": "++++---",
  "qwen-3": "+++++--",
  "phi-3": "+------",
  "phi-4": "+------",
  "zephyr": "+------",
  "deepseek-r1": "+-++---",
  "alpaca": "+--!---",
  "granite": "++-+---",
  "olmo-2": "+------",
}
CALLING = [user("a"), assistant("b", tool_calls=[call({"mark": 1})])]
MARKED = (
  ([system("mark"), user("a")], None),
  ([user("a")], [{**TOOLS[0], "function": {"name": "mark"}}]),
  (CALLING, None),
  ([user("a"), assistant("b", tool_calls=[call({})]), tool("mark")], None),
  ([user("a"), assistant("b", reasoning_content="mark")], None),
  ([user("a"), assistant("b", reasoning_content="mark"), user("c"), assistant("d")], None),
  ([user("a", name="mark"), assistant("b", name="mark")], None),
)


def test_what_a_template_leaves_out(chat):
  found = ""
  for messages, tools in MARKED:
    text = outcome(chat.ours.render, messages, False, tools)
    found += "!" if isinstance(text, tuple) else "+" if "mark" in text else "-"
  assert found == IN_TEXT[chat.name]


def test_a_template_of_tools_beside_the_plain_one(tmp_path):
  import transformers

  save_folder("chatml", tmp_path)
  path = tmp_path / "tokenizer_config.json"
  templates = [
    {"name": name, "template": (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")}
    for name, template in (("default", "chatml"), ("tool_use", "qwen-2.5"), ("rag", "granite"))
  ]
  path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
  ours, theirs = load_tokenizer(str(tmp_path)), transformers.AutoTokenizer.from_pretrained(tmp_path)
  for tools, start in ((None, "<|im_start|>user"), (TOOLS, "<|im_start|>system")):
    text = ours.render(SHAPES["user"][0], True, tools)
    assert text.startswith(start)
    assert text == theirs.apply_chat_template(
      SHAPES["user"][0], tools=tools, add_generation_prompt=True, tokenize=False
    )


def test_arguments_of_transformers_are_no_variables(chat):
  arguments = {*inspect.signature(chat.theirs.apply_chat_template).parameters}
  assert {"tokenize", "padding", "chat_template", "add_generation_prompt"} <= arguments
  for name in ("messages", *sorted(arguments - {"documents", "kwargs"})):
    with pytest.raises(TemplateFailed, match=f"^chat_template_kwargs cannot set {name}$"):
      chat.ours.render([user("Hi")], True, variables={name: None})
