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
from simpo_jax.data.rows.messages import OTHER_CONTENT, ROLES, check_text, hh_turns, to_messages
from simpo_jax.data.rows.read import Row
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.types import Message

Messages = tuple[Message, ...]

_SYSTEM_FIELDS = ("system", "system_prompt")
# Their rows are conversations, not text.
_CHAT_FIELDS = (*_SYSTEM_FIELDS, "history", "tools", "chat_template_kwargs")
# Notes.
PLAIN = "are plain text, which sees no chat template"
CHAT = "are conversations for the chat template"
_REPEATED = "have texts as answers that begin with the prompt again, which is trained as it is"
_HH_ANSWER = "have a Human and Assistant text as an answer, which is trained as it is"
_HH = "are Human and Assistant texts, which become messages"
_SYSTEM = "have a system instruction beside the prompt, which becomes a system message"
_OTHER_PROMPT = "have a column {} that differs from their conversations, which are used"


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
    answers = _hh_answers(parsed, prompt, texts)
    if answers is texts and prompt is None:
      raise parsed.missing()
    if answers is texts and isinstance(prompt, str) and not _is_chat(parsed):
      parsed.notes.append(PLAIN)
      return Conversation(prompt, texts[0], texts[1], notes=tuple(parsed.notes))
  elif texts and not isinstance(prompt, tuple):
    raise SkipRow("mixed_forms")
  if any(isinstance(answer, str) and hh_turns(answer) for answer in answers):
    parsed.notes.append(_HH_ANSWER)
  turns = [_assistant(a) if isinstance(a, str) else to_messages(a) for a in answers]
  if prompt is None or isinstance(prompt, str) and all(map(_has_prompt, turns)):
    return _from_full_conversations(parsed, prompt, *turns)
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
    return to_conversation(read.first_answers(row))._replace(chosen=(), rejected=())
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
  return bool(turn["content"].strip()) or any(map(turn.get, OTHER_CONTENT))


def _user(text: str) -> Messages:
  return ({"role": "user", "content": text},)


def _assistant(text: str) -> Messages:
  return ({"role": "assistant", "content": check_text(text)},)


def _prompt(row: Row) -> Messages | str | None:
  """The prompt from its field: messages, or plain text; None if no field has one."""
  fields, names = row.fields, _given(row)
  if "messages" in names and _role(fields["messages"], -1) == "assistant":
    # The prompt with an answer, as in UltraFeedback: not what the answers follow.
    if len(names) > 1 or _role(fields.get("chosen"), 0) in ("system", "developer", "user"):
      names.remove("messages")
      if fields["messages"] != fields.get("chosen"):
        row.unused("messages", names[0] if names else "chosen")
  if not names:
    for other in ("input", "history"):
      if fields.get(other):
        row.unused(other, "chosen")
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


def _given(row: Row) -> list[str]:
  """The fields that have a prompt, the one that is used first."""
  return [n for n in read.PROMPT_FIELDS if row.fields.get(n, "") not in ("", [], ())]


def _role(messages: Any, index: int) -> str | None:
  """The role of a message, if these are messages."""
  message = messages[index] if isinstance(messages, list) and messages else None
  role = message.get("role") or message.get("from") if isinstance(message, dict) else None
  return ROLES.get(role.lower()) if isinstance(role, str) else None


def _is_chat(row: Row) -> bool:
  """Whether strings of this row are turns of a chat."""
  return _given(row)[:1] == ["instruction"] or any(field in row.fields for field in _CHAT_FIELDS)


def _with_context(row: Row, name: str, prompt: Messages | str) -> Messages | str:
  """Completes a prompt by `input` and `history`; HH-RLHF's text becomes messages."""
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
  return prompt


def _hh_answers(
  row: Row, prompt: Messages | str | None, texts: list[str]
) -> list[Messages] | list[str]:
  """The turns of HH-RLHF's texts, which have the prompt in them; the same list if they are none."""
  if isinstance(prompt, tuple) and _HH not in row.notes:
    return texts
  turns = [hh_turns(text) for text in texts]
  if all(turns):
    row.notes.append(_HH)
    return [t for t in turns if t]
  if any(turns):
    raise SkipRow("mixed_forms", "only one is a text of Human and Assistant")
  if isinstance(prompt, str) and all(text.startswith(prompt) for text in texts):
    row.notes.append(_REPEATED)
  return [text.strip() for text in texts] if _HH in row.notes else texts


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
    one = _has_prompt(chosen) != _has_prompt(rejected)
    raise SkipRow("prompts_differ", "only one begins with the prompt" if one else "")
  turns = chosen[:shared]
  if not turns:
    raise row.missing()
  if prompt and not any(m["content"].strip() == prompt.strip() for m in turns):
    row.notes.append(_OTHER_PROMPT.format(_given(row)[0]))
    if row.fields.get("input"):
      row.unused("input", "chosen")
  return _make(row, turns, chosen[shared:], rejected[shared:])


def _has_prompt(turns: Messages) -> bool:
  """Whether an answer is a full conversation."""
  return turns[0]["role"] != "assistant"


def _after(prompt: Messages, answer: Messages) -> Messages:
  """The turns of an answer without the prompt, which some datasets repeat in each answer."""
  if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
    answer = answer[len(prompt) :]
  if _has_prompt(answer):
    first = f"one begins with a turn by {answer[0]['role']} that is not in the prompt"
    raise SkipRow(*(["last_turn_not_assistant"] if len(answer) == 1 else ["prompts_differ", first]))
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
