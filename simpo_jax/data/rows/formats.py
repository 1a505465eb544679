"""Converts the common formats of preference pairs, and of prompts, to `Conversation`.

The answers, `chosen` and `rejected`, are strings, messages or full conversations. The prompt is in
the first of `read.PROMPT_FIELDS` that the row has, or in the turns that two full conversations
share:
  * TRL, conversational: message lists `prompt`, `chosen`, `rejected`, or with an implicit prompt.
  * UltraFeedback-binarized: a string `prompt`, and full conversations, which take precedence.
  * ShareGPT: `conversations` (from/value); axolotl: `messages`; Intel: `question`, `system`.
  * HH-RLHF: strings "\\n\\nHuman: ...\\n\\nAssistant: ...", which become messages.
  * Alpaca, as in LLaMA-Factory: `instruction`, `input`, `history`, `system`.
  * TRL, standard: strings `prompt`, `chosen`, `rejected`. They stay plain text without a chat
    template, as in TRL.

Strings with an implicit prompt are rejected unless they have HH-RLHF's format: splitting them at
the first different character could move part of a word into the prompt.

What a row has and this does not use is noted, so that it can be counted and told.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from simpo_jax.arith import common_prefix
from simpo_jax.data.rows import read
from simpo_jax.data.rows.messages import check_text, hh_turns, to_messages
from simpo_jax.data.rows.read import Row
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.types import Message

Messages = tuple[Message, ...]

_SYSTEM_FIELDS = ("system", "system_prompt")
_CHAT_FIELDS = (*_SYSTEM_FIELDS, "history", "tools")  # their rows are conversations, not text
# Notes.
PLAIN = "are plain text, which sees no chat template"
CHAT = "are conversations for the chat template"
_HH = "are Human and Assistant texts, which become messages"
_SYSTEM = "have a system instruction beside the prompt, which becomes a system message"
_OTHER_PROMPT = "have a prompt that differs from their conversations, which are used"


class Conversation(NamedTuple):
  """A prompt with two responses, or with none (only the prompt is wanted).

  Attributes:
    prompt: messages for the chat template, of which the last is not the assistant's; or a string,
      which is plain text without a template.
    chosen, rejected: the messages that follow the prompt: the first and the last are the
      assistant's. Strings if the prompt is one.
    tools, variables: what the template gets beside the messages; see `tokenizer.Render`.
    notes: facts that the user should know; see `read.Row`.
  """

  prompt: Messages | str
  chosen: Messages | str = ()
  rejected: Messages | str = ()
  tools: tuple[Any, ...] | None = None
  variables: Mapping[str, Any] = MappingProxyType({})
  notes: tuple[str, ...] = ()


def to_conversation(row: dict[str, Any]) -> Conversation:
  """Converts a row of any supported format; raises SkipRow."""
  parsed = read.read_fields(row)
  if not parsed.is_pair:
    raise parsed.missing()
  answers = [read.read_answer(parsed, name) for name in read.ANSWERS]
  prompt = _prompt(parsed)
  texts = [answer for answer in answers if isinstance(answer, str)]
  if len(texts) == 2:
    return _from_strings(parsed, prompt, *texts)
  if texts and not isinstance(prompt, tuple):
    raise SkipRow("mixed_forms")
  turns = [_assistant(a) if isinstance(a, str) else to_messages(a) for a in answers]
  if any(map(_has_prompt, turns)) and not isinstance(prompt, tuple):
    return _from_full_conversations(parsed, prompt, *turns)
  if prompt is None:
    raise parsed.missing()
  if isinstance(prompt, str):
    prompt = _user(prompt)
  return _make(parsed, prompt, *(_after(prompt, t) for t in turns))


def to_prompt(row: dict[str, Any]) -> Conversation:
  """Converts a row to a conversation without responses; raises SkipRow.

  If the row is a preference pair, this is its prompt. A string prompt by itself becomes the
  user's message; that of a pair of strings stays plain text.
  """
  parsed = read.read_fields(row)
  if parsed.is_pair:
    _, first = next(read.split_answers("", row))
    return to_conversation(first)._replace(chosen=(), rejected=())
  parsed.notes.extend(f"have no pair for {n}" for n in read.ANSWERS if n in parsed.fields)
  prompt = _prompt(parsed)
  if prompt is None:
    raise parsed.missing()
  return _make(parsed, _user(prompt) if isinstance(prompt, str) else prompt)


def check_texts(conversation: Conversation) -> None:
  """Raises SkipRow if the prompt (system messages aside) or a response has no content."""
  check_prompt(conversation)
  for name, answer in zip(read.ANSWERS, conversation[1:3], strict=True):
    if not any(map(_has_content, [answer] if isinstance(answer, str) else answer)):
      raise SkipRow(f"empty_{name}")


def check_prompt(conversation: Conversation) -> None:
  """Raises SkipRow if the prompt has no content beside system messages."""
  prompt = conversation.prompt
  turns = [prompt] if isinstance(prompt, str) else [m for m in prompt if m["role"] != "system"]
  if not any(map(_has_content, turns)):
    raise SkipRow("empty_prompt")


def _has_content(turn: Message | str) -> bool:
  if isinstance(turn, str):
    return bool(turn.strip())
  return bool(turn["content"].strip() or turn.get("tool_calls") or turn.get("reasoning_content"))


def _user(text: str) -> Messages:
  return ({"role": "user", "content": text},)


def _assistant(text: str) -> Messages:
  return ({"role": "assistant", "content": check_text(text)},)


def _prompt(row: Row) -> Messages | str | None:
  """The prompt from its field: messages, or plain text; None if no field has one."""
  fields = row.fields
  names = [n for n in read.PROMPT_FIELDS if n in fields and fields[n] not in ("", [], ())]
  if "messages" in names and _is_complete(fields["messages"]):
    # The prompt with an answer, as in UltraFeedback: not what the answers follow.
    if len(names) > 1 or isinstance(fields.get("chosen"), list) and len(fields["chosen"]) > 1:
      names.remove("messages")
      if fields["messages"] != fields.get("chosen"):
        row.unused("messages", names[0] if names else "chosen")
  if not names:
    return None
  name, *others = names
  for other in others:
    row.unused(other, name)
  value = fields[name]
  if isinstance(value, (list, tuple, dict)) or name in ("conversations", "messages"):
    prompt: Messages | str = to_messages(value)
  else:
    prompt = check_text(value, name)
  return _with_context(row, name, prompt)


def _is_complete(messages: Any) -> bool:
  """Whether the last of these messages is the assistant's."""
  last = messages[-1] if isinstance(messages, list) else None
  return isinstance(last, dict) and last.get("role") == "assistant"


def _with_context(row: Row, name: str, prompt: Messages | str) -> Messages | str:
  """Completes a prompt by `input` and `history`; text that is part of a chat becomes a message."""
  fields, extra = row.fields, [n for n in ("input", "history") if row.fields.get(n)]
  if isinstance(prompt, tuple):
    for other in extra:
      row.unused(other, name)
    return prompt
  if "input" in extra and name == "instruction":
    prompt = f"{prompt}\n{check_text(fields['input'], 'input')}"
  elif "input" in extra:
    row.unused("input", name)
  if "history" in extra:
    return (*read.read_history(fields["history"]), *_user(prompt))
  if turns := hh_turns(prompt):
    row.notes.append(_HH)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns
  is_chat = name == "instruction" or any(field in fields for field in _CHAT_FIELDS)
  return _user(prompt) if is_chat else prompt


def _from_strings(
  row: Row, prompt: Messages | str | None, chosen: str, rejected: str
) -> Conversation:
  if not isinstance(prompt, tuple):
    whole_chosen, whole_rejected = hh_turns(chosen), hh_turns(rejected)
    if whole_chosen and whole_rejected:
      row.notes.append(_HH)
      return _from_full_conversations(row, prompt, whole_chosen, whole_rejected)
    if (whole_chosen or whole_rejected) and prompt is None:
      raise SkipRow("prompts_differ")
    if prompt is None:
      raise row.missing()
    row.notes.append(PLAIN)
    return Conversation(prompt, chosen, rejected, notes=tuple(row.notes))
  if _HH in row.notes:
    chosen, rejected = chosen.strip(), rejected.strip()
  return _make(row, prompt, _assistant(chosen), _assistant(rejected))


def _from_full_conversations(
  row: Row, prompt: str | None, chosen: Messages, rejected: Messages
) -> Conversation:
  """Splits two conversations after the turns that they share, like TRL's `extract_prompt`."""
  shared = common_prefix(chosen, rejected)
  if shared == min(len(chosen), len(rejected)):
    shared -= 1  # the shorter one's last turn is its answer
  if any(turns[-1]["role"] != "assistant" for turns in (chosen, rejected)):
    raise SkipRow("last_turn_not_assistant")
  if any(turns[shared]["role"] != "assistant" for turns in (chosen, rejected)):
    raise SkipRow("prompts_differ")
  turns = chosen[:shared]
  if prompt and not turns:
    turns = _user(prompt)
  elif prompt and not any(m["content"] == prompt for m in turns):
    row.notes.append(_OTHER_PROMPT)
  return _make(row, turns, chosen[shared:], rejected[shared:])


def _has_prompt(turns: Messages) -> bool:
  """Whether an answer is a full conversation."""
  return turns[0]["role"] != "assistant"


def _after(prompt: Messages, answer: Messages) -> Messages:
  """The turns of an answer without the prompt, which some datasets repeat in each answer."""
  if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
    return answer[len(prompt) :]
  if _has_prompt(answer):
    raise SkipRow("last_turn_not_assistant" if len(answer) == 1 else "prompts_differ")
  return answer


def _make(
  row: Row, prompt: Messages, chosen: Messages = (), rejected: Messages = ()
) -> Conversation:
  prompt = _with_system(row, prompt)
  if prompt and prompt[-1]["role"] == "assistant":
    raise SkipRow("prompt_ends_with_assistant")
  if any(answer and answer[-1]["role"] != "assistant" for answer in (chosen, rejected)):
    raise SkipRow("last_turn_not_assistant")
  tools, variables = read.read_tools(row), read.read_variables(row)
  row.notes.append(CHAT)
  return Conversation(prompt, chosen, rejected, tools, variables, tuple(row.notes))


def _with_system(row: Row, prompt: Messages) -> Messages:
  given = [name for name in _SYSTEM_FIELDS if row.fields.get(name)]
  if not given:
    return prompt
  for other in given[1:]:
    row.unused(other, given[0])
  text = check_text(row.fields[given[0]], given[0])
  if prompt and prompt[0]["role"] == "system":
    if prompt[0]["content"] != text:
      row.unused(given[0], "a system message")
    return prompt
  row.notes.append(_SYSTEM)
  return ({"role": "system", "content": text}, *prompt)
