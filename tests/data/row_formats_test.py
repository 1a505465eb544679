"""Every known form of a row gives the same conversation; every bad row its reason."""

import pytest

from simpo_jax.data.row_formats import REASONS, Conversation, SkipRow, to_conversation

U = lambda text: {"role": "user", "content": text}  # noqa: E731
A = lambda text: {"role": "assistant", "content": text}  # noqa: E731
S = lambda text: {"role": "system", "content": text}  # noqa: E731
H = lambda text: {"from": "human", "value": text}  # noqa: E731
G = lambda text: {"from": "gpt", "value": text}  # noqa: E731

ONE_TURN = Conversation((U("hi"),), "yes", "no")
TWO_TURNS = Conversation((U("hi"), A("yo"), U("go")), "yes", "no")
WITH_SYSTEM = Conversation((S("be"), U("hi")), "yes", "no")
HH = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: go\n\nAssistant:"


def _row(chosen, rejected, **other):
  return {"chosen": chosen, "rejected": rejected, **other}


@pytest.mark.parametrize(
  "row, expected",
  [
    # TRL: strings, which stay plain
    (_row(" yes", " no", prompt="1 + 1 ="), Conversation("1 + 1 =", " yes", " no")),
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
    (_row(" b", " c", prompt="a", conversations=None), Conversation("a", " b", " c")),
    (_row(G("yes") | {"role": None}, G("no"), conversations=[H("hi")]), ONE_TURN),
  ],
)
def test_forms(row, expected):
  assert to_conversation(row) == expected


def test_hh_splits_at_the_last_assistant_not_at_the_first_difference():
  prompt = "\n\nHuman: q\n\nAssistant: "
  c = to_conversation(_row(prompt + "I think", prompt + "I thought"))
  assert c == Conversation((U("q"),), "I think", "I thought")


@pytest.mark.parametrize(
    "row, reason",
    [
        ({}, "missing_field"),
        ({"prompt": "a", "chosen": "b"}, "missing_field"),
        (_row("b", "c"), "missing_field"),
        (_row("b", None, prompt="a"), "missing_field"),
        (_row("b", "c", prompt=3), "not_a_string"),
        (_row([A(["part"])], [A("no")], prompt=[U("hi")]), "not_a_string"),
        (_row("b\ud800", "c", prompt="a"), "not_unicode"),
        (_row(3, 4, prompt="a"), "not_a_message"),
        (_row(["yes"], ["no"], prompt="a"), "not_a_message"),
        (_row([{"content": "yes"}], [A("no")], prompt="a"), "not_a_message"),
        (_row(G("yes"), G("no"), conversations="hi"), "not_a_message"),
        (_row(G("y"), G("n"), conversations=[{"from": "observation", "value": "x"}]),
         "unknown_role"),
        (_row("yes", [A("no")], prompt="a"), "mixed_forms"),
        (_row([U("hi"), A("yes")], [U("ho"), A("no")]), "prompts_differ"),
        (_row([U("hi"), A("yes")], [A("no")], prompt=[U("ho")]), "prompts_differ"),
        (_row(HH + " yes", "\n\nHuman: else\n\nAssistant: no"), "prompts_differ"),
        (_row(HH + " yes", "no"), "prompts_differ"),
        (_row([U("hi"), U("yes")], [U("hi"), A("no")]), "last_turn_not_assistant"),
        (_row([], [], prompt="a"), "last_turn_not_assistant"),
        (_row(H("yes"), G("no"), conversations=[H("hi")]), "last_turn_not_assistant"),
        (_row(HH + " y\n\nHuman: z", HH + " y\n\nHuman: z"), "last_turn_not_assistant"),
        (_row(G("yes"), G("no"), conversations=[H("hi"), G("yo")]), "prompt_ends_with_assistant"),
    ],
)  # fmt: skip
def test_bad_rows_have_a_reason(row, reason):
  with pytest.raises(SkipRow) as skip:
    to_conversation(row)
  assert skip.value.reason == reason and reason in REASONS
