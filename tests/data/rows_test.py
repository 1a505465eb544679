"""Every known form of a row gives the same conversation; every bad row its reason."""

import json

import pytest

from simpo_jax.data.rows.fields import rename
from simpo_jax.data.rows.formats import check_texts, to_conversation, to_prompt
from simpo_jax.data.rows.read import split_answers
from simpo_jax.data.rows.reasons import REASONS, SkipRow

U = lambda text: {"role": "user", "content": text}  # noqa: E731
A = lambda text: {"role": "assistant", "content": text}  # noqa: E731
S = lambda text: {"role": "system", "content": text}  # noqa: E731
H = lambda text: {"from": "human", "value": text}  # noqa: E731
G = lambda text: {"from": "gpt", "value": text}  # noqa: E731

YES, NO = (A("yes"),), (A("no"),)
ONE_TURN = ((U("hi"),), YES, NO)
TWO_TURNS = ((U("hi"), A("yo"), U("go")), YES, NO)
WITH_SYSTEM = ((S("be"), U("hi")), YES, NO)
HH = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: go\n\nAssistant:"
CALL = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]


def _row(chosen, rejected, **other):
  return {"chosen": chosen, "rejected": rejected, **other}


@pytest.mark.parametrize(
  "row, expected",
  [
    # TRL: strings, which stay plain
    (_row(" yes", " no", prompt="1 + 1 ="), ("1 + 1 =", " yes", " no")),
    # TRL: message lists
    (_row([A("yes")], [A("no")], prompt=[U("hi")]), ONE_TURN),
    (_row([A("yes")], [A("no")], prompt=[U("hi"), A("yo"), U("go")]), TWO_TURNS),
    (_row("yes", "no", prompt=[U("hi")]), ONE_TURN),
    # the prompt, and the prompt again in front of each answer
    (_row([U("hi"), A("yes")], [U("hi"), A("no")], prompt=[U("hi")]), ONE_TURN),
    # TRL: implicit prompt
    (_row([U("hi"), A("yes")], [U("hi"), A("no")]), ONE_TURN),
    (_row([*TWO_TURNS[0], A("yes")], [*TWO_TURNS[0], A("no")]), TWO_TURNS),
    # UltraFeedback-binarized: more columns, a prompt string that repeats the turn
    (_row([U("hi"), A("yes")], [U("hi"), A("no")], prompt="hi", score_chosen=8.0), ONE_TURN),
    (_row([A("yes")], [A("no")], prompt="hi"), ONE_TURN),
    # HH-RLHF, implicit and explicit
    (_row(HH + " yes", HH + " no"), TWO_TURNS),
    (_row(" yes", " no", prompt=HH), TWO_TURNS),
    (_row(HH + " yes", HH + " no", prompt="ignored"), TWO_TURNS),
    # ShareGPT
    (_row(G("yes"), G("no"), conversations=[H("hi")]), ONE_TURN),
    (_row([G("yes")], [G("no")], conversations=[H("hi"), G("yo"), H("go")]), TWO_TURNS),
    (_row(G("yes"), G("no"), conversations=[H("hi")], system="be"), WITH_SYSTEM),
    (
      _row(G("yes"), G("no"), conversations=[{"from": "system", "value": "be"}, H("hi")]),
      WITH_SYSTEM,
    ),
    (_row(A("yes"), A("no"), conversations=[U("hi")], system=""), ONE_TURN),
    # parquet fills absent keys with None
    (_row(" b", " c", prompt="a", conversations=None), ("a", " b", " c")),
    (_row(G("yes") | {"role": None}, G("no"), conversations=[H("hi")]), ONE_TURN),
  ],
)
def test_forms(row, expected):
  assert to_conversation(row)[:3] == expected


@pytest.mark.parametrize(
    "row, expected, note",
    [
        # a system instruction beside the prompt
        (_row("yes", "no", prompt="hi", system="be"), WITH_SYSTEM, "becomes a system message"),
        (_row(YES, NO, prompt=[U("hi")], system_prompt="be"), WITH_SYSTEM, "becomes a system"),
        (_row([U("hi"), *YES], [U("hi"), *NO], prompt="hi", system="be"), WITH_SYSTEM, "becomes"),
        (_row(YES, NO, prompt=[S("be"), U("hi")], system="other"), WITH_SYSTEM,
         "a column system beside a system message"),
        (_row("yes", "no", prompt="hi", system=""), ONE_TURN, "are conversations"),
        # other names of the prompt
        (_row(YES[0], NO[0], messages=[S("be"), U("hi")]), WITH_SYSTEM, "are conversations"),
        (_row(YES, NO, question="hi"), ONE_TURN, "are conversations"),
        (_row("yes", "no", question="hi"), ("hi", "yes", "no"), "are plain text"),
        (_row("yes", "no", instruction="hi", input=""), ONE_TURN, "are conversations"),
        (_row("yes", "no", instruction="a", input="b"), ((U("a\nb"),), YES, NO), "conversations"),
        (_row("yes", "no", instruction="go", history=[["hi", "yo"]]), TWO_TURNS, "conversations"),
        (_row("yes", "no", prompt="a", input="b"), ("a", "yes", "no"), "a column input beside"),
        # an empty or absent field beside a good prompt
        (_row(YES, NO, prompt=[U("hi")], conversations=[]), ONE_TURN, "are conversations"),
        (_row(YES, NO, prompt="hi", conversations=float("nan")), ONE_TURN, "are conversations"),
        # UltraFeedback's messages are the chosen conversation
        (_row([U("hi"), *YES], [U("hi"), *NO], prompt="hi", messages=[U("hi"), *YES]), ONE_TURN,
         "are conversations"),
        (_row(YES, NO, prompt="hi", messages=[U("hi"), A("else")]), ONE_TURN,
         "a column messages beside prompt"),
        (_row([U("hi"), *YES], [U("hi"), *NO], prompt="ho"), ONE_TURN, "differs from their"),
        # texts that begin with the prompt: TRL trains them as they are
        (_row("a yes", "a no", prompt="a"), ("a", "a yes", "a no"), "begin with the prompt again"),
        # what has no place beside full conversations
        (_row([U("hi"), *YES], [U("hi"), *NO], input="x"), ONE_TURN, "column input beside chosen"),
        (_row([U("hi"), *YES], [U("hi"), *NO], history=[["x", "y"]]), ONE_TURN,
         "a column history beside chosen"),
        (_row([U("hi"), *YES], [U("hi"), *NO], question="ho"), ONE_TURN, "a column question that"),
        (_row([U("hi"), *YES], [A("no")], prompt="hi"), ONE_TURN, "are conversations"),
        ({"chosen": [A("hi"), U("yo"), *YES], "rejected": [A("hi"), U("yo"), *NO]},
         ((A("hi"), U("yo")), YES, NO), "are conversations"),
        (_row(YES, NO, prompt="hi", messages=[H("hi"), G("else")]), ONE_TURN,
         "a column messages beside prompt"),
        (_row(HH + " yes", HH + " no", system="be"), ((S("be"), *TWO_TURNS[0]), YES, NO),
         "becomes a system message"),
        (_row(HH + " yes", HH + " no", prompt="hi", tools=[]), TWO_TURNS, "Human and Assistant"),
        (_row(HH + " yes", HH + " no", prompt=HH), TWO_TURNS, "Human and Assistant texts"),
        (_row("yes", "no", prompt="hi", chat_template_kwargs={"a": 1}), ONE_TURN, "conversations"),
        (_row("yes", "no", instruction="go", history='[["hi", "yo"]]'), TWO_TURNS, "conversations"),
        (_row("yes", "no", prompt="a", id="7"), ("a", "yes", "no"), "a column id, which is not"),
        (_row("yes", "no", prompt="a", **{"b\n\ud800": 7}), ("a", "yes", "no"),
         "have a column b \\ud800, which is not read"),
        (_row("yes", "no", prompt="a", **{"": 7}), ("a", "yes", "no"), "have a column '', which"),
        # JSON text
        (_row(*(json.dumps([a]) for a in (YES[0], NO[0])), prompt=json.dumps([U("hi")])), ONE_TURN,
         "have messages as JSON text"),
        (_row("yes", "no", conversations=json.dumps([H("hi")])), ONE_TURN, "as JSON text"),
        (_row(json.dumps([A("x")]), "no", prompt="hi"), ("hi", json.dumps([A("x")]), "no"),
         "are plain text"),
        # HH-RLHF after strip()
        (_row(" yes ", " no", prompt=HH.strip()), TWO_TURNS, "Human and Assistant texts"),
        (_row(HH.strip() + " yes", HH.strip() + " no"), TWO_TURNS, "Human and Assistant texts"),
        # answers in lists of one
        (_row(["yes"], ["no"], prompt="a"), ("a", "yes", "no"), "are plain text"),
        (_row([list(YES)], [list(NO)], prompt="hi"), ONE_TURN, "are conversations"),
        # roles
        (_row(YES, NO, prompt=[{"role": "User", "content": "hi"}]), ONE_TURN, "are conversations"),
        (_row({"role": "model", "content": "yes"}, NO, prompt="hi"), ONE_TURN, "conversations"),
        (_row(YES, NO, prompt={"role": "user", "content": "hi"}), ONE_TURN, "are conversations"),
        # parts
        (_row(YES, NO, prompt=[U([{"type": "text", "text": "hi"}])]), ONE_TURN, "conversations"),
        (_row(YES, NO, prompt=[U(["a", {"text": "b"}])]), ((U("a\nb"),), YES, NO), "conversation"),
        (_row(YES, NO, prompt=[U([{"type": None, "text": "hi", "image": None}])]), ONE_TURN, "con"),
        # columns that are not read
        (_row("yes", "no", prompt="a", score=3, source=None), ("a", "yes", "no"), "a column score"),
    ],
)  # fmt: skip
def test_forms_that_are_noted(row, expected, note):
  found = to_conversation(row)
  assert found[:3] == expected
  assert any(note in told for told in found.notes), found.notes
  assert not any("source" in told for told in found.notes)


def test_what_a_message_has_stays():
  asked = {"role": "assistant", "content": None, "tool_calls": CALL}
  told = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"}
  thinks = {**A("yes"), "reasoning_content": "hm", "weight": None}
  row = _row([thinks], list(NO), prompt=[U("hi"), asked, told], tools=[{"name": "f", "x": None}])
  found = to_conversation({**row, "chat_template_kwargs": {"enable_thinking": False}})
  assert found.prompt == (U("hi"), {**asked, "content": ""}, told)
  assert found.chosen == ({**A("yes"), "reasoning_content": "hm"},)
  assert found.tools == ({"name": "f"},)
  assert found.variables == {"enable_thinking": False}
  as_text = {**row, "tools": json.dumps(row["tools"]), "chat_template_kwargs": '{"a": 1}'}
  assert to_conversation(as_text).tools == ({"name": "f"},)
  assert to_conversation(as_text).variables == {"a": 1}


def test_both_of_two_names_stay_unless_they_are_the_same():
  twice = {**A("yes"), "from": "gpt", "value": "yes"}
  found = to_conversation(_row([twice], [{**A("no"), "value": "other"}], prompt="hi"))
  assert found.chosen == ({**A("yes"), "from": "gpt"},)
  assert found.rejected == ({**A("no"), "value": "other"},)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning", "tool_calls"])
def test_an_answer_may_be_something_else_than_text(name):
  answer = {"role": "assistant", "content": None, name: CALL if name == "tool_calls" else "hm"}
  found = to_conversation(_row([answer], list(NO), prompt="hi"))
  check_texts(found)
  assert found.chosen == ({**answer, "content": ""},)


@pytest.mark.parametrize("tools", [[], "[]", "", " ", "null", None])
def test_no_tools_are_none(tools):
  assert to_conversation(_row(YES, NO, prompt="hi", tools=tools)).tools is None


def test_a_mapped_column_hides_none_of_the_same_name():
  row = rename({"prompt": "a", "query": "b", "chosen": "c"}, {"prompt": "query", "rejected": "d"})
  assert row == {"prompt (data.columns has query for it)": "a", "prompt": "b", "chosen": "c"}


def test_sharegpt_calls():
  call = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": 1}})}
  seen = {"from": "observation", "value": "3"}
  found = to_conversation(_row(G("yes"), G("no"), conversations=[H("hi"), call, seen]))
  asked = {"role": "assistant", "content": "", "tool_calls": CALL}
  assert found.prompt == (U("hi"), asked, {"role": "tool", "content": "3"})


@pytest.mark.parametrize(
    "chosen, rejected",
    [
        ([A("a"), U("sure?"), A("yes")], [A("b"), U("sure?"), A("no")]),
        ([A("a"), U("sure?"), A("yes")], [A("b")]),
        ([A("a"), U("sure?"), A("yes")], [A("a")]),
    ],
)  # fmt: skip
def test_answers_of_several_turns(chosen, rejected):
  explicit = to_conversation(_row(chosen, rejected, prompt=[U("hi")]))
  implicit = to_conversation(_row([U("hi"), *chosen], [U("hi"), *rejected]))
  assert explicit[:3] == implicit[:3] == ((U("hi"),), tuple(chosen), tuple(rejected))


def test_rows_that_differ_in_a_call_are_not_identical():
  other = [{"type": "function", "function": {"name": "f", "arguments": {"x": 2}}}]
  row = _row([{**A(""), "tool_calls": CALL}], [{**A(""), "tool_calls": other}], prompt=[U("hi")])
  found = to_conversation(row)
  check_texts(found)
  assert found.chosen != found.rejected


def test_several_rejected_answers_make_a_pair_each():
  row = _row("yes", ["no", "never"], prompt="hi")
  parts = list(split_answers("f:1", row))
  assert [name for name, _ in parts] == ["f:1/1", "f:1/2"]
  assert [to_conversation(part)[:3] for _, part in parts] == [
    ("hi", "yes", "no"), ("hi", "yes", "never")
  ]  # fmt: skip
  assert "several rejected" in to_conversation(parts[0][1]).notes[0]
  with pytest.raises(SkipRow, match="several_rejected"):
    to_conversation(row)
  assert list(split_answers("f:1", _row("yes", "no"))) == [("f:1", _row("yes", "no"))]


@pytest.mark.parametrize(
  "row, prompt",
  [
    ({"prompt": "hi"}, (U("hi"),)),
    ({"question": "hi"}, (U("hi"),)),
    ({"prompt": HH}, TWO_TURNS[0]),
    ({"prompt": "hi", "messages": [U("hi"), A("yes")]}, (U("hi"),)),
    ({"messages": [U("hi"), A("yo"), {"role": "tool", "content": "3"}]}, None),
    (_row("yes", "no", prompt="hi"), "hi"),
    (_row("yes", ["no", "never"], prompt="hi"), "hi"),
    (_row([U("hi"), *YES], [U("hi"), *NO]), (U("hi"),)),
    (_row("yes", "no", prompt="hi", system="be"), WITH_SYSTEM[0]),
  ],
)
def test_a_prompt_is_read_as_that_of_the_pair(row, prompt):
  found = to_prompt(row)
  assert found.prompt == (tuple(row["messages"]) if prompt is None else prompt)
  assert not found.chosen and not found.rejected
  if {"chosen", "rejected"} <= row.keys():
    assert found.prompt == to_conversation(next(split_answers("", row))[1]).prompt


def test_hh_splits_at_the_last_assistant_not_at_the_first_difference():
  prompt = "\n\nHuman: q\n\nAssistant: "
  c = to_conversation(_row(prompt + "I think", prompt + "I thought"))
  assert c[:3] == ((U("q"),), (A("I think"),), (A("I thought"),))


@pytest.mark.parametrize(
    "row, reason, detail",
    [
        ({}, "missing_field", "it has nothing"),
        ({"prompt": "a", "chosen": "b", "worse": "c"}, "missing_field", "it has prompt, chosen"),
        (_row("b", "c", text="d"), "missing_field", "it has chosen, rejected, text"),
        (_row("b", None, prompt="a"), "missing_field", "it has chosen, prompt"),
        (_row("b", "c", prompt=3), "not_a_string", "prompt is a number, 3"),
        (_row(3, 4, prompt="a"), "not_a_string", "chosen is a number, 3"),
        (_row([A(["part", 3])], NO, prompt=[U("hi")]), "not_a_string", "a part is a number"),
        (_row("b\ud800", "c", prompt="a"), "not_unicode", ""),
        (_row([{**A("b"), "name": "\ud800"}], NO, prompt="a"), "not_unicode", ""),
        (_row([{"content": "yes"}], NO, prompt="a"), "not_a_message", "one has content"),
        (_row([3], NO, prompt="a"), "not_a_message", "one is a number, 3"),
        (_row([None], NO, prompt="a"), "not_a_message", "one is null"),
        (_row([{"role": "assistant", "content": None}], NO, prompt="a"), "not_a_message",
         "one has role"),
        (_row([{**A([{"text": "a", "cache": 1}])}], NO, prompt="a"), "not_text_content",
         "a part of type 'text' with cache"),
        (_row([U("hi"), U("ho"), *YES], NO, prompt=[U("hi")]), "prompts_differ",
         "one begins with a turn by user that is not in the prompt"),
        (_row("yes", HH + " no", prompt="a"), "mixed_forms", "only one is a text of Human"),
        (_row([U("hi"), *YES], NO), "prompts_differ", "only one begins with the prompt"),
        (_row([A("x"), U("b"), *YES], [A("y"), U("b"), *NO]), "missing_field", "it has chosen"),
        ({f"c{i}": 1 for i in range(100)}, "missing_field", "c39 and 60 more"),
        (_row(G("yes"), G("no"), conversations="hi"), "not_a_message", "a text, hi"),
        (_row(YES, NO, prompt=[U([{"type": "image"}])]), "not_text_content", "type 'image'"),
        (_row(G("y"), G("n"), conversations=[{"from": "narrator", "value": "x"}]), "unknown_role",
         "role 'narrator'"),
        (_row(YES, NO, prompt="a", tools="{"), "not_tools", ""),
        (_row(YES, NO, prompt="a", tools={"name": "f"}), "not_tools", ""),
        (_row(YES, NO, prompt="a", chat_template_kwargs=[1]), "not_template_kwargs", ""),
        (_row(["yes", "maybe"], "no", prompt="a"), "several_chosen", "chosen has 2"),
        (_row("yes", [A("no")], prompt="a"), "mixed_forms", ""),
        (_row([U("hi"), A("yes")], [U("ho"), A("no")]), "prompts_differ", ""),
        (_row([U("hi"), A("yes")], [A("no")], prompt=[U("ho")]), "prompts_differ", ""),
        (_row([U("a"), A("b"), U("c"), A("d")], [U("a"), A("b"), U("x"), A("y")]),
         "prompts_differ", ""),
        (_row(HH + " yes", "\n\nHuman: else\n\nAssistant: no"), "prompts_differ", ""),
        (_row(HH + " yes", "no"), "mixed_forms", "only one is a text of Human"),
        (_row([U("hi"), U("yes")], [U("hi"), A("no")]), "last_turn_not_assistant", ""),
        (_row(H("yes"), G("no"), conversations=[H("hi")]), "last_turn_not_assistant", ""),
        (_row(HH + " y\n\nHuman: z", HH + " y\n\nHuman: z"), "last_turn_not_assistant", ""),
        (_row([], [], prompt="a"), "empty_chosen", ""),
        (_row(YES, NO, conversations=[]), "empty_prompt", ""),
        (_row(G("yes"), G("no"), conversations=[H("hi"), G("yo")]), "prompt_ends_with_assistant",
         ""),
    ],
)  # fmt: skip
def test_bad_rows_have_a_reason(row, reason, detail):
  with pytest.raises(SkipRow) as skip:
    to_conversation(row)
  assert skip.value.reason == reason and reason in REASONS
  assert detail in skip.value.detail
