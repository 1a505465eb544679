"""Renders conversations with the chat template, and finds what the template leaves out."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from simpo_jax.data.rows.formats import Conversation, Messages
from simpo_jax.data.rows.messages import named
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.types import TURN, Message
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.tokenizer import Tokenizer

_Render = Callable[[Sequence[Message], bool], str]  # (messages, add_generation_prompt) -> text
_OTHER_START = (
  "have answers that the chat template begins in another way than its generation prompt; they are "
  "trained as it writes them"
)


class Turns(NamedTuple):
  """A response in the text of its conversation.

  Attributes:
    text: the whole conversation.
    spans: (start, end) of each of the assistant's turns, both as prefixes of `text`.
  """

  text: str
  spans: tuple[tuple[str, str], ...]


class RenderedPair(NamedTuple):
  """The texts of a pair.

  Attributes:
    prompt: a prefix of both conversations.
    opened: the prompt with the assistant's header, a prefix of both conversations.
    notes: see `read.Row`.
  """

  prompt: str
  opened: str
  chosen: Turns
  rejected: Turns
  notes: tuple[str, ...]


def render_pair(conversation: Conversation, tokenizer: Tokenizer, header: str) -> RenderedPair:
  """Renders the prompt, and the prompt with each response; raises SkipRow.

  Plain text is only escaped. Where the template begins an answer in another way than its
  generation prompt does (DeepSeek-R1's opens "<think>"), the prompt ends where they part, as in
  TRL.

  Args:
    header: "prompt" or "response", whichever includes the assistant header of the template.
  """
  prompt, answers = conversation.prompt, _answers(conversation)
  if isinstance(prompt, str):
    plain = ("", str(conversation.chosen), str(conversation.rejected))
    start, *texts = (tokenizer.escape(prompt + text) for text in plain)
    return RenderedPair(start, start, *(Turns(text, ((start, text),)) for text in texts), notes=())
  try:
    render = _renderer(conversation, tokenizer)
    texts = [render((*prompt, *answer), False) for answer in answers]
    opened, as_asked = _start(render, prompt, texts, "prompt")
    start = opened if header == "prompt" else _start(render, prompt, texts, header)[0]
    ends = _ends(tokenizer)
    chosen, rejected = [
      Turns(text, tuple(_spans(render, prompt, answer, text, start, header, ends)))
      for answer, text in zip(answers, texts, strict=True)
    ]
    notes = unshown(conversation, tokenizer, texts)
  except TemplateFailed as error:
    raise SkipRow("template_failed", str(error)) from error
  notes += [] if as_asked else [_OTHER_START]
  return RenderedPair(start, opened, chosen, rejected, tuple(notes))


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> str:
  """Renders a prompt up to the start of the answer.

  Without a chat template, a single message is plain text.

  Raises:
    TemplateFailed: the template rejects it, or several messages have no template.
  """
  prompt = conversation.prompt
  if isinstance(prompt, str):
    return tokenizer.escape(prompt)
  if tokenizer.chat_template is not None:
    return tokenizer.render(prompt, True, conversation.tools, conversation.variables)
  contents = [message["content"] for message in prompt]
  if len(contents) != 1:
    raise TemplateFailed("it has several messages, but the tokenizer has no chat template")
  return tokenizer.escape(contents[0])


def unshown(conversation: Conversation, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
  """Returns notes on what a conversation has and the chat template does not show.

  Args:
    texts: the prompt with each response as rendered; without responses, the prompt.
  """
  prompt = conversation.prompt
  if isinstance(prompt, str) or tokenizer.chat_template is None:
    return []
  whole = [(*prompt, *answer) for answer in _answers(conversation)][: len(texts)]
  notes = [note for m, text in zip(whole, texts, strict=True) for note in _lost(m, text, tokenizer)]

  def shown(
    lacking: Callable[[Message], bool] = lambda m: False, key: str = "", **changes: Any
  ) -> bool:
    """Whether a text changes without a key of some messages, or with other tools or variables."""
    render = _renderer(conversation._replace(**changes), tokenizer)
    for messages, text in zip(whole, texts, strict=True):
      if not changes and not any(map(lacking, messages)):
        continue
      changed = [{k: v for k, v in m.items() if k != key or not lacking(m)} for m in messages]
      try:
        if render(changed, not conversation.chosen) != text:
          return True
      except TemplateFailed:  # it reads what is gone
        return True
    return False

  for key in {k: None for messages in whole for m in messages for k in m if k not in TURN}:
    holders = {id(m): m for messages in whole for m in messages if key in m}.values()
    strings = [m[key] for m in holders if isinstance(m[key], str)]
    if (
      any(not any(_occurs(s, text, tokenizer) for text in texts) for s in strings)
      or not shown(lambda m, key=key: key in m, key)
      or len(holders) > 1
      and not all(shown(lambda m, one=one, key=key: m is one, key) for one in holders)
    ):
      notes.append(f"have {named(key)} in messages, which the chat template does not show")
  if conversation.tools and not shown(tools=None):
    notes.append("have tools, which the chat template does not show")
  for name in conversation.variables:
    others = {k: v for k, v in conversation.variables.items() if k != name}
    if not shown(variables=others):
      notes.append(
        f"have {named(name)} in chat_template_kwargs, which the chat template does not use"
      )
  return list(dict.fromkeys(notes))


def _answers(conversation: Conversation) -> list[Messages]:
  """The two responses, unless they are plain text."""
  return [a for a in (conversation.chosen, conversation.rejected) if not isinstance(a, str)]


def _lost(messages: Messages, text: str, tokenizer: Tokenizer) -> Iterator[str]:
  """Notes on messages whose content is not in the text."""
  for m in messages:
    if not _occurs(m["content"], text, tokenizer):
      yield f"have a message by {m['role']} that the chat template shows only in part or not at all"


def _occurs(content: str, text: str, tokenizer: Tokenizer) -> bool:
  """Whether a text has a content, as it is or as JSON."""
  as_json = json.dumps(content.strip(), ensure_ascii=False)[1:-1]
  return tokenizer.escape(content.strip()) in text or as_json in text


def _renderer(conversation: Conversation, tokenizer: Tokenizer) -> _Render:
  """The template as a function of messages, without what is no part of a turn."""
  opened, closing = _always_opens(tokenizer), _closing(tokenizer)

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    tools, variables = conversation.tools, conversation.variables
    text = tokenizer.render(messages, add_generation_prompt, tools, variables)
    if add_generation_prompt:
      return text
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return text.removesuffix(opened if answered else "").removesuffix(closing)

  return render


@functools.lru_cache(maxsize=4)
def _always_opens(tokenizer: Tokenizer) -> str:
  """What a template appends to every conversation to open the assistant's turn; "" for most.

  The first template of Llama-3-Instruct ignores `add_generation_prompt`. What it adds after an
  answer is not the answer's.
  """
  ask, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
  try:
    asked, unasked = tokenizer.render([ask], True), tokenizer.render([ask], False)
    answered = tokenizer.render([ask, answer], False)
  except TemplateFailed:
    return ""
  if asked != unasked or not answered.startswith(asked):
    return ""
  backwards = [text[::-1] for text in (asked, answered[len(asked) :])]
  tail = os.path.commonprefix(backwards)[::-1]
  for end in _ends(tokenizer):
    tail = tail.rpartition(end)[2]
  return tail if tail.strip() else ""


@functools.lru_cache(maxsize=4)
def _closing(tokenizer: Tokenizer) -> str:
  """The end token that a template writes after the last turn only, beside the turn's own.

  Phi-3's writes one after every conversation whose assistant's turn is not opened.
  """
  ask, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
  try:
    asked, answered = (tokenizer.render(turns, False) for turns in ([ask], [ask, answer]))
  except TemplateFailed:
    return ""
  if answered.startswith(asked):
    return ""
  ends = _ends(tokenizer)
  for end in ends:
    rest = asked.removesuffix(end)
    if asked.endswith(end) and answered.endswith(end) and answered.startswith(rest):
      return end if rest.rstrip().endswith(ends) else ""
  return ""


@functools.lru_cache(maxsize=4)
def _ends(tokenizer: Tokenizer) -> tuple[str, ...]:
  spellings = tokenizer.token_bytes()
  return tuple(spellings[end].decode(errors="replace") for end in tokenizer.eos_ids)


def _start(
  render: _Render, before: Sequence[Message], texts: Sequence[str], header: str
) -> tuple[str, bool]:
  """The text before an answer, a prefix of `texts`, and whether it is the generation prompt."""
  start = render(before, header == "prompt")
  if all(text.startswith(start) for text in texts):
    return start, True
  shared = os.path.commonprefix([start, *texts])
  if not shared.startswith(render(before, False)):
    raise SkipRow("template_not_prefix")
  return shared, False


def _spans(
  render: _Render,
  prompt: Messages,
  answer: Messages,
  text: str,
  first: str,
  header: str,
  ends: tuple[str, ...],
) -> Iterator[tuple[str, str]]:
  """The spans of `Turns`.

  Args:
    first: the start of the first one.
    ends: the end tokens.
  """
  turns = [i for i, message in enumerate(answer) if message["role"] == "assistant"]
  later = [_start(render, (*prompt, *answer[:i]), [text], header)[0] for i in turns[1:]]
  for i, start, next_start in zip(turns, [first, *later], [*later, text], strict=True):
    end = text if i == len(answer) - 1 else render((*prompt, *answer[: i + 1]), False)
    yield start, end if text.startswith(end) else _first_end(start, next_start, ends)


def _first_end(start: str, text: str, ends: tuple[str, ...]) -> str:
  """The text up to the first end token after `start`.

  Qwen-3's template shows the reasoning of a turn only as long as no user's turn follows.
  """
  found = [at + len(end) for end in ends if (at := text.find(end, len(start))) >= 0]
  if not found:
    raise SkipRow("template_not_prefix")
  return text[: min(found)]
