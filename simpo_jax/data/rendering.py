"""Renders conversations with the chat template, and finds what the template leaves out."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from simpo_jax.data.rows.formats import Conversation, Messages
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.types import Message
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
  """The texts of a pair. prompt: a prefix of both conversations; notes: see `read.Row`."""

  prompt: str
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
    return RenderedPair(start, *(Turns(text, ((start, text),)) for text in texts), notes=())
  try:
    render = _renderer(conversation, tokenizer)
    texts = [render((*prompt, *answer), False) for answer in answers]
    start, as_asked = _start(render, prompt, texts, header)
    turns = [
      Turns(text, tuple(_spans(render, prompt, answer, text, start, header)))
      for answer, text in zip(answers, texts, strict=True)
    ]
    notes = unshown(conversation, tokenizer, texts)
  except TemplateFailed as error:
    raise SkipRow("template_failed", str(error)) from error
  return RenderedPair(start, *turns, notes=(*notes, *([] if as_asked else [_OTHER_START])))


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

  def shown(without: Callable[[Message], Message], **changes: Any) -> bool:
    changed = conversation._replace(**changes)
    render = _renderer(changed, tokenizer)
    return any(
      render([without(m) for m in messages], not conversation.chosen) != text
      for messages, text in zip(whole, texts, strict=True)
    )

  for key in {k: None for messages in whole for m in messages for k in m if k not in _TURN}:
    if not shown(lambda m, key=key: {k: v for k, v in m.items() if k != key}):
      notes.append(f"have {key} in messages, which the chat template does not show")
  if conversation.tools and not shown(lambda m: m, tools=None):
    notes.append("have tools, which the chat template does not show")
  for name in conversation.variables:
    others = {k: v for k, v in conversation.variables.items() if k != name}
    if not shown(lambda m: m, variables=others):
      notes.append(f"have {name} in chat_template_kwargs, which the chat template does not use")
  return list(dict.fromkeys(notes))


_TURN = ("role", "content")


def _answers(conversation: Conversation) -> list[Messages]:
  """The two responses, unless they are plain text."""
  return [a for a in (conversation.chosen, conversation.rejected) if not isinstance(a, str)]


def _lost(messages: Messages, text: str, tokenizer: Tokenizer) -> Iterator[str]:
  """Notes on messages whose content is not in the text, as it is or as JSON."""
  for m in messages:
    content = m["content"].strip()
    as_json = json.dumps(content, ensure_ascii=False)[1:-1]
    if tokenizer.escape(content) not in text and as_json not in text:
      yield f"have a message by {m['role']} that the chat template shows only in part or not at all"


def _renderer(conversation: Conversation, tokenizer: Tokenizer) -> _Render:
  """The template as a function of messages; see `_always_opens`."""
  opened = _always_opens(tokenizer)

  def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    tools, variables = conversation.tools, conversation.variables
    text = tokenizer.render(messages, add_generation_prompt, tools, variables)
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return text.removesuffix(opened) if answered and not add_generation_prompt else text

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
  spellings = tokenizer.token_bytes()
  for end in tokenizer.eos_ids:
    tail = tail.rpartition(spellings[end].decode(errors="replace"))[2]
  return tail if tail.strip() else ""


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
  render: _Render, prompt: Messages, answer: Messages, text: str, first: str, header: str
) -> Iterator[tuple[str, str]]:
  """The spans of `Turns`. first: the start of the first one."""
  for i, message in enumerate(answer):
    if message["role"] != "assistant":
      continue
    start = _start(render, (*prompt, *answer[:i]), [text], header)[0] if i else first
    end = text if i == len(answer) - 1 else render((*prompt, *answer[: i + 1]), False)
    if not text.startswith(end):
      raise SkipRow("template_not_prefix")
    yield start, end
