"""Pairs under all chat templates of the field: their ids are those of transformers and tokenizers.

What is trained follows from the texts alone: TRL's rule says where an answer begins, and the
template's own end token where it ends.
"""

import os

import jinja2
import pytest

from simpo_jax.data.rows.formats import to_conversation
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.tokenize_pairs import encode_pair
from support.chat_templates import (
  COLOGNE,
  NAMES,
  SPECIALS,
  TOOLS,
  Opened,
  assistant,
  call,
  open_chat,
  stopped_clock,
  system,
  tool,
  user,
)

YES, NO = [assistant("Yes, so.")], [assistant("No 1.")]
SAY = [user("Hi"), assistant("Hello"), user("Go on")]
# Without its None: keys whose value is None are absent, as in TRL.
CITY = {key: value for key, value in COLOGNE.items() if value is not None}
WARM, CALLS = user("How warm?"), assistant("", tool_calls=[call(CITY)])
ASK = [WARM, CALLS, tool("21.5")]
TWO_CALLS = assistant("", tool_calls=[call(CITY), call({"city": "Bonn"}, "def456789")])
THINKS = [assistant("Yes", reasoning_content="Hm.\n")]
ODD = '  {{ 7*7 }} é漢🙂 "q" \\n \u2028 [/INST] <tool_response>\n  '

# {shape: (prompt, chosen, rejected, other fields)}
SHAPES = {
  "plain": ([user("Hi")], YES, NO, {}),
  "system": ([system("Be terse."), user("Hi")], YES, NO, {}),
  "turns": (SAY, YES, NO, {}),
  "system_turns": ([system("Be terse."), *SAY], YES, NO, {}),
  "tools": ([WARM], YES, NO, {"tools": TOOLS}),
  "call_in_answer": ([WARM], [CALLS], NO, {"tools": TOOLS}),
  "text_and_call": (
    [WARM], [assistant("Let me see.", tool_calls=[call({"city": "Bonn"})])], NO, {"tools": TOOLS},
  ),
  "other_call": (
    [WARM], [CALLS], [assistant("", tool_calls=[call({"city": "Bonn"})])], {"tools": TOOLS},
  ),
  "call_earlier": ([*ASK, assistant("Warm."), user("So?")], YES, NO, {"tools": TOOLS}),
  "two_calls_earlier": (
    [WARM, TWO_CALLS, tool("21.5"), tool("22", "def456789"), assistant("Warm."), user("So?")],
    YES, NO, {"tools": TOOLS},
  ),
  "result_last": (ASK, YES, NO, {"tools": TOOLS}),
  "agents": (
    [WARM], [CALLS, tool("21.5"), *YES], [CALLS, tool("21.5"), *NO], {"tools": TOOLS},
  ),
  "reasoning": ([user("Hi")], THINKS, NO, {}),
  "reasoning_earlier": (
    [user("Hi"), assistant("Hello", reasoning_content="A greeting."), user("Go on")], YES, NO, {},
  ),
  "reasoning_and_call": (
    [WARM], [assistant("", reasoning_content="Look.", tool_calls=[call(CITY)])], THINKS,
    {"tools": TOOLS},
  ),
  "reasoning_in_content": (
    [user("Hi")], [assistant("<think>\nHm.\n</think>\n\nYes")], [assistant("<think>x</think>No")],
    {},
  ),
  "answers_of_turns": (
    [user("Hi")], [assistant("A"), user("Sure?"), *YES], [assistant("B"), user("Really?"), *NO], {},
  ),
  "one_of_turns": (
    SAY, [assistant("A"), user("B?"), assistant("C"), user("D?"), assistant("E")], NO, {},
  ),
  "names": ([user("Hi", name="ann")], [assistant("Yes", name="bot")], NO, {}),
  "variables": (
    SAY, YES, NO,
    {"chat_template_kwargs": {"enable_thinking": False, "date_string": "02 Jan 2030"}},
  ),
  "odd": ([user(ODD)], [assistant(ODD)], [assistant("\n\n" + ODD)], {}),
  "merges": ([user("Hi\n")], [assistant("\n\n  Yes\n")], [assistant(" \n>No")], {}),
}  # fmt: skip
DROPPED = {"call_in_answer": "empty_chosen", "other_call": "empty_chosen",
           "reasoning_and_call": "empty_chosen"}  # fmt: skip
TOOL_ROLE = dict.fromkeys(
  ("call_earlier", "two_calls_earlier", "result_last", "agents"), "template_failed"
)
SYSTEM = dict.fromkeys(("system", "system_turns"), "template_failed")
# What has no pair, and why: its template shows no calls, refuses a role, or moves an earlier turn.
REFUSED = {
  "chatml": DROPPED,
  "llama-2": {**DROPPED, **TOOL_ROLE},
  "llama-3": DROPPED,
  "llama-3-original": DROPPED,
  "llama-3.1": {"two_calls_earlier": "template_failed"},
  "gemma-2": {**DROPPED, **TOOL_ROLE, **SYSTEM},
  "gemma-3": {**DROPPED, **TOOL_ROLE},
  "mistral-v0.3": {"system": "template_not_prefix", "system_turns": "template_not_prefix"},
  "phi-3": DROPPED,
  "phi-4": DROPPED,
  "zephyr": DROPPED,
  "alpaca": {**DROPPED, **TOOL_ROLE},
  "granite": DROPPED,
  "olmo-2": DROPPED,
}
# What a template opens after every conversation: no part of an answer.
ALWAYS = {"llama-3-original": "<|start_header_id|>assistant<|end_header_id|>\n\n"}
# What it writes only where a conversation ends, after the end of the turn.
CLOSING = {"phi-3": "<|endoftext|>"}


class Chat(Opened):
  def text(self, messages, header, fields):
    """As transformers renders it, without what is no part of any turn."""
    variables = fields.get("chat_template_kwargs", {})
    text = self.theirs.apply_chat_template(
      messages, fields.get("tools"), add_generation_prompt=header, tokenize=False, **variables
    )
    if header:
      return text
    answered = messages[-1]["role"] == "assistant"
    closing = CLOSING.get(self.name, ALWAYS.get(self.name, "") if answered else "")
    assert text.endswith(closing)
    return text.removesuffix(closing)

  def encode(self, text):
    """[(id, its characters)], with one BOS if the tokenizer adds it."""
    encoded, given = self.rust.encode(text, add_special_tokens=False), SPECIALS[self.name]
    tokens = [(i, range(*place)) for i, place in zip(encoded.ids, encoded.offsets, strict=True)]
    bos = self.rust.token_to_id(given["bos"]) if given.get("adds_bos") else None
    return tokens if bos in (None, tokens[0][0]) else [(bos, range(0)), *tokens]

  def ids(self, text):
    return [i for i, _ in self.encode(text)]


@pytest.fixture(scope="module", autouse=True)
def one_date():
  with stopped_clock():
    yield


@pytest.fixture(scope="module", params=NAMES)
def chat(request, tmp_path_factory):
  return Chat(*open_chat(request.param, tmp_path_factory.mktemp("tokenizer")))


def shared(*sequences):
  return len(os.path.commonprefix(sequences))


def expected(chat, shape, header):
  """The ids of the prompt and of both responses, or why there are none."""
  prompt, *answers, fields = SHAPES[shape]
  try:
    wholes = [chat.text([*prompt, *answer], False, fields) for answer in answers]
    start = chat.text(prompt, header == "prompt", fields)
    if shared(start, *wholes) < len(chat.text(prompt, False, fields)):
      return "template_not_prefix"
    ids = [chat.ids(whole) for whole in wholes]
    boundary = shared(chat.ids(start[: shared(start, *wholes)]), *ids)
    responses = [
      response(chat, prompt, answer, whole, boundary, header, fields)
      for answer, whole in zip(answers, wholes, strict=True)
    ]
  except jinja2.TemplateError:
    return "template_failed"
  return ids[0][:boundary], *responses


def response(chat, prompt, answer, whole, boundary, header, fields):
  """Trained are the tokens from where each answer begins to its end token, which is included."""
  turn_end, trained, at = SPECIALS[chat.name]["turn_end"], set(), 0
  tokens = chat.encode(whole)[boundary:]
  for i, message in enumerate(answer):
    if message["role"] == "assistant":
      before = [*prompt, *answer[:i]]
      first = shared(chat.text(before, header == "prompt", fields), whole)
      assert first >= len(chat.text(before, False, fields))
      at = whole.index(turn_end, first) + len(turn_end)
      # Both answers of a pair share the ids of a prompt; what only one of them shares is trained.
      first = first if i else tokens[0][1].start
      trained |= {*range(first, at)}
  assert not whole[at:].strip()
  return [i if trained & {*place} else ~i for i, place in tokens if place.start < at]


@pytest.mark.parametrize("shape", SHAPES)
def test_ids(chat, shape):
  prompt, chosen, rejected, fields = SHAPES[shape]
  row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **fields}
  for header in ("prompt", "response"):
    wanted, refused = expected(chat, shape, header), REFUSED.get(chat.name, {}).get(shape)
    try:
      pair, _ = encode_pair(to_conversation(row), chat.ours, header)
    except SkipRow as skip:
      # An answer of nothing but its end token has ids, but nothing to train.
      assert skip.reason == refused and (isinstance(wanted, tuple) or wanted == refused)
      continue
    assert refused is None
    assert tuple(part.tolist() for part in pair[1:]) == wanted


# By hand: (a text, whether it is trained) of the chosen answer of "answers_of_turns".
BY_HAND = {
  "chatml": (
    ("A<|im_end|>", True),
    ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", False),
    ("Yes, so.<|im_end|>", True),
  ),
  "llama-3": (
    ("A<|eot_id|>", True),
    ("<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>", False),
    ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
    ("Yes, so.<|eot_id|>", True),
  ),
  # Its original opens a turn after the answer: no part of it.
  "llama-3-original": (
    ("A<|eot_id|>", True),
    ("<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>", False),
    ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
    ("Yes, so.<|eot_id|>", True),
  ),
  # An empty place for reasoning is in the last turn only.
  "qwen-3": (
    ("A<|im_end|>", True),
    ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", False),
    ("<think>\n\n</think>\n\nYes, so.<|im_end|>", True),
  ),
}


def test_turns_by_hand(chat):
  prompt, chosen, rejected, _ = SHAPES["answers_of_turns"]
  if chat.name not in BY_HAND:
    return
  row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
  pair, notes = encode_pair(to_conversation(row), chat.ours, "prompt")
  ids = [
    i if trained else ~i
    for text, trained in BY_HAND[chat.name]
    for i in chat.rust.encode(text, add_special_tokens=False).ids
  ]
  assert pair.chosen.tolist() == ids
  assert not notes
