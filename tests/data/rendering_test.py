"""What a template does to a pair: what is trained, and what is told.

The templates are written here; the expected ids and texts by hand.
"""

import dataclasses

import jinja2
import numpy as np
import pytest

from simpo_jax.data.packing import pack
from simpo_jax.data.rendering import render_pair, render_prompt, unshown
from simpo_jax.data.rows.formats import Conversation, to_conversation
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.tokenize_pairs import encode_pair, read_row
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.byte_vocab import SPECIAL_IDS
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from simpo_jax.train.batch import BatchShape

BYTE = byte_tokenizer()
BOS, END, USER, ASSISTANT = 257, 258, 259, 260
U = lambda text, **more: {"role": "user", "content": text, **more}  # noqa: E731
A = lambda text, **more: {"role": "assistant", "content": text, **more}  # noqa: E731
CALL = {"function": {"name": "f", "arguments": {"x": 1}}}

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
ALWAYS_OPEN = TURNS + "<|assistant|>"
# The answer loses everything up to "]", and the generation prompt opens "[".
THINKS = (
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split(']')[-1] }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>[{% endif %}"
)
# Only the last turn's reasoning is shown.
LAST_REASONING = (
  "{% for m in messages %}<|{{ m.role }}|>"
  "{% if loop.last and m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
  "{{ m.content }}<|end|>{% endfor %}" + OPEN
)
TOOLS = (
  "{% if tools %}{{ tools | length }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content"
  " }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments.x }}{% endfor"
  " %}<|end|>{% endfor %}" + OPEN
)


def tokenizer(template):
  """The byte tokenizer with another template, which sees all that a template sees."""
  compiled = jinja2.Environment().from_string(template)

  def render(messages, add_generation_prompt, tools=None, variables={}):  # noqa: B006
    try:
      return compiled.render(
        messages=messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
      )
    except jinja2.TemplateError as error:
      raise TemplateFailed(str(error)) from error

  return dataclasses.replace(BYTE, render=render, chat_template=template)


def pair_of(template, row):
  return encode_pair(to_conversation(row), tokenizer(template), "prompt")


def row(chosen, rejected, prompt=None, **more):
  return {"prompt": prompt or [U("hi")], "chosen": chosen, "rejected": rejected, **more}


def test_a_header_that_is_always_opened_is_not_trained():
  pair, notes = pair_of(ALWAYS_OPEN, row("yes", "no"))
  assert pair.prompt.tolist() == [BOS, USER, *b"hi", END, ASSISTANT]
  assert pair.chosen.tolist() == [*b"yes", END]
  assert pair.rejected.tolist() == [*b"no", END]
  assert not notes


def test_a_template_that_drops_reasoning_is_trained_as_it_writes():
  pair, notes = pair_of(THINKS, row("hm]yes", "ha]no"))
  assert pair.prompt.tolist() == [BOS, USER, *b"hi", END, ASSISTANT]
  assert pair.chosen.tolist() == [*b"yes", END]
  assert any("in another way than its generation prompt" in note for note in notes)
  assert any("a message by assistant that the chat template shows only in part" in n for n in notes)


def test_a_template_that_rewrites_the_prompt_is_refused():
  rewrites = "{{ messages | length }}" + TURNS
  with pytest.raises(SkipRow, match="template_not_prefix"):
    pair_of(rewrites, row("yes", "no"))


@pytest.mark.parametrize("header, first", [("prompt", []), ("response", [ASSISTANT])])
def test_only_the_assistants_turns_are_trained(header, first):
  chosen = [A("a"), U("sure?"), A("yes")]
  conversation = to_conversation(row(chosen, [A("no")]))
  pair, notes = encode_pair(conversation, tokenizer(TURNS + OPEN), header)
  read_only = [USER, *b"sure?", END, *([ASSISTANT] if header == "prompt" else [])]
  expected = [*first, *b"a", END, *(~i for i in read_only), *first, *b"yes", END]
  assert pair.chosen.tolist() == expected
  assert pair.rejected.tolist() == [*first, *b"no", END]
  assert not notes


def test_tokens_that_are_only_read_are_in_the_row_but_no_targets():
  chosen = [A("a"), U("u"), A("y")]
  pair, _ = pair_of(TURNS + OPEN, row(chosen, [A("no")]))
  batch = pack([pair], BatchShape(micro=1, rows=1, row_length=40, slots=1, pairs=1))
  ids = [*b"a", END, USER, *b"u", END, ASSISTANT, *b"y", END]
  assert batch.tokens[0, 0, :8].tolist() == ids[::-1]
  assert batch.target_id[0, 0, :8].tolist() == [*b"a", END, *b"y", END, *b"no", END, -1]
  assert batch.target_seq[0, 0, :8].tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
  # Each is predicted from the token before it, which in the reversed part is to the right.
  before = [batch.tokens[0, 0, i] for i in batch.target_index[0, 0, :7]]
  assert before == [ASSISTANT, *b"a", ASSISTANT, *b"y", ASSISTANT, *b"no"]


def test_calls_and_tools_are_trained_and_what_is_not_shown_is_told():
  calls = row([A("", tool_calls=[CALL])], [A("no")], tools=[{"name": "f"}])
  pair, notes = pair_of(TOOLS, calls)
  assert pair.prompt.tolist() == [BOS, *b"1", USER, *b"hi", END, ASSISTANT]
  assert pair.chosen.tolist() == [*b"f1", END]
  assert not notes
  _, notes = pair_of(TURNS + OPEN, {**calls, "chosen": [A("x", tool_calls=[CALL])]})
  assert notes == (
    "have tool_calls in messages, which the chat template does not show",
    "have tools, which the chat template does not show",
  )


def test_a_call_that_the_template_drops_makes_no_answer():
  result = read_row("f:1", row([A("", tool_calls=[CALL])], [A("no")]), BYTE, DataSettings())
  assert result.skipped == "empty_chosen"


def test_reasoning_variables_and_names_are_told_where_they_are_not_shown():
  shown = row([A("yes", reasoning_content="r")], [A("no")])
  pair, notes = pair_of(LAST_REASONING, shown)
  assert pair.chosen.tolist() == [*b"(r)yes", END] and not notes
  earlier = row([A("yes")], [A("no")], [U("a"), A("b", reasoning_content="r"), U("c")])
  _, notes = pair_of(LAST_REASONING, earlier)
  assert notes == ("have reasoning_content in messages, which the chat template does not show",)
  _, notes = pair_of(TURNS + OPEN, row("yes", "no", [U("a", name="Ann")]))
  assert notes == ("have name in messages, which the chat template does not show",)
  _, notes = pair_of(TURNS + OPEN, row("yes", "no", chat_template_kwargs={"date": "x"}))
  assert "date in chat_template_kwargs" in notes[0]
  _, notes = pair_of("{{ date }}" + TURNS + OPEN, row("y", "n", chat_template_kwargs={"date": "x"}))
  assert not notes


def test_what_is_shown_in_one_message_only_is_told():
  earlier = [U("a"), A("b", reasoning_content="r"), U("c")]
  both = row([A("yes", reasoning_content="s")], [A("no")], earlier)
  pair, notes = pair_of(LAST_REASONING, both)
  assert pair.chosen.tolist() == [*b"(s)yes", END]
  assert notes == ("have reasoning_content in messages, which the chat template does not show",)
  everywhere = LAST_REASONING.replace("loop.last and ", "")
  assert not pair_of(everywhere, both)[1]


def test_what_a_template_cannot_do_without_is_shown():
  needs = TURNS.replace("{{ m.content }}", "{{ m.content ~ (m.key + 1) }}") + OPEN
  pair, notes = pair_of(needs, row([A("yes", key=1)], [A("no", key=2)], [U("a", key=3)]))
  assert pair.chosen.tolist() == [*b"yes2", END]
  assert not notes


@pytest.mark.parametrize("header", ["prompt", "response"])
def test_an_answer_of_which_only_its_header_is_shown_is_none(header):
  pair = row([A("", tool_calls=[CALL])], [A("no")])
  data = DataSettings(header=header)
  result = read_row("f:1", pair, tokenizer(TURNS + OPEN), data)
  assert result.skipped == "empty_chosen"
  assert result.id == "f:1 (as the chat template shows it)"


def test_an_end_that_only_the_last_turn_has_is_no_part_of_earlier_ones():
  closes = TURNS + "{% if add_generation_prompt %}<|assistant|>{% else %}<|pad|>{% endif %}"
  two_ends = dataclasses.replace(tokenizer(closes), eos_ids=(END, BYTE.pad_id))
  conversation = to_conversation(row([A("a"), U("b"), A("c")], [A("no")]))
  pair, _ = encode_pair(conversation, two_ends, "response")
  assert pair.prompt.tolist() == [BOS, USER, *b"hi", END]
  first, last = [ASSISTANT, *b"a", END], [ASSISTANT, *b"c", END]
  assert pair.chosen.tolist() == [*first, ~USER, ~ord("b"), ~END, *last]


def test_a_turn_that_is_shown_otherwise_once_answered_ends_at_its_end_token():
  marked = "{{ '-' if loop.last and m.role != 'user' }}{{ m.content }}"
  last_marked = TURNS.replace("{{ m.content }}", marked) + OPEN
  pair, _ = pair_of(last_marked, row([A("a"), U("b"), A("c")], [A("no")], [U("hi")]))
  read_only = [USER, *b"b", END, ASSISTANT]
  assert pair.chosen.tolist() == [*b"a", END, *(~i for i in read_only), *b"-c", END]


def test_a_role_that_the_template_passes_over_is_told():
  no_tools = (
    "{% for m in messages if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    + OPEN
  )
  _, notes = pair_of(no_tools, row("yes", "no", [U("a"), {"role": "tool", "content": "seen"}]))
  [note] = notes
  assert note == "have a message by tool that the chat template shows only in part or not at all"


def test_the_templates_own_words_are_the_detail():
  refuses = tokenizer("{{ raise('Conversation roles must alternate') }}")
  failing = dataclasses.replace(refuses, render=_raises("Conversation roles must alternate"))
  result = read_row("f:1", row("yes", "no"), failing, DataSettings())
  assert result.skipped == "template_failed"
  assert result.id == "f:1 (Conversation roles must alternate)"


def _raises(text):
  def render(messages, add_generation_prompt, tools=None, variables={}):  # noqa: B006
    raise TemplateFailed(text)

  return render


def test_prompts_are_rendered_like_those_of_pairs():
  conversation = to_conversation(row("yes", "no", tools=[{"name": "f"}]))
  alone = conversation._replace(chosen=(), rejected=())
  t = tokenizer(TOOLS)
  assert render_prompt(alone, t) == render_pair(conversation, t, "prompt").prompt
  t = tokenizer(TURNS + OPEN)
  notes = unshown(alone, t, [render_prompt(alone, t)])
  assert notes == ["have tools, which the chat template does not show"]
  assert render_prompt(Conversation("a<|end|>"), BYTE) == BYTE.escape("a<|end|>")


def test_an_answer_without_an_end_gets_the_turns_own():
  t = dataclasses.replace(tokenizer("{{ messages[-1].content }}"), turn_end=SPECIAL_IDS["<|pad|>"])
  t = dataclasses.replace(t, render=lambda m, opens, tools=None, variables=None: "hi" if opens else
    "hi" + m[-1]["content"])  # fmt: skip
  pair, _ = encode_pair(to_conversation(row("yes", "no")), t, "prompt")
  assert pair.chosen.tolist() == [*b"yes", 256]
  plain = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
  pair, _ = encode_pair(to_conversation(plain), t, "prompt")
  assert pair.chosen.tolist() == [*b"yes", END]


def test_several_turns_are_cut_like_one():
  data = DataSettings(max_length=12, max_prompt_length=6)
  turns = [A("a"), U("sure?"), A("yes")]
  result = read_row("f:1", row(turns, "no"), BYTE, data)
  assert result.pair is not None
  assert result.pair.chosen.tolist() == [*b"a", END, ~USER, *(~i for i in b"sur")]
  assert np.all(result.pair.prompt >= 0)
  assert SPECIAL_IDS["<|user|>"] == USER
