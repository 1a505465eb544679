"""Converts the common formats of preference pairs to `Conversation`.

Supported, in order of precedence:
  * ShareGPT: `conversations` (from/value), `chosen`, `rejected`, optionally `system`.
  * TRL, conversational: message lists `prompt`, `chosen`, `rejected`; or with an implicit prompt,
    where chosen and rejected contain the full conversation.
  * UltraFeedback-binarized: a string `prompt`, and full conversations in chosen and rejected; the
    conversations take precedence over the string.
  * HH-RLHF: strings "\\n\\nHuman: ...\\n\\nAssistant: ...", which become messages.
  * TRL, standard: strings `prompt`, `chosen`, `rejected`. They stay plain text without a chat
    template, as in TRL.

Strings with an implicit prompt are rejected unless they have HH-RLHF's format: splitting them at
the first different character could move part of a word into the prompt.
"""

import re
from typing import Any, NamedTuple

from simpo_jax.data.types import Message

# {reason for skipping a row: explanation for the user}
REASONS = {
  "malformed_json": "not a JSON object; a file that is one list of them is named .json",
  "not_utf8": "the bytes are not valid UTF-8; convert the file",
  "missing_field": "needs prompt (or conversations), chosen and rejected",
  "not_a_string": "a text is not a string",
  "not_unicode": "a text has a lone surrogate",
  "not_a_message": "a message needs role and content, or from and value",
  "unknown_role": "roles are system, user, assistant, human, gpt",
  "mixed_forms": "chosen and rejected are of different kinds",
  "prompts_differ": "chosen and rejected answer different prompts",
  "last_turn_not_assistant": "a response is not by the assistant",
  "prompt_ends_with_assistant": "the prompt must end with the user's turn",
  "empty_prompt": "the prompt has no text",
  "empty_chosen": "the chosen response has no text",
  "empty_rejected": "the rejected response has no text",
  "template_failed": "the chat template refuses the conversation",
  "template_not_prefix": "the chat template rewrites the prompt once it is answered",
  "identical": "both responses are the same tokens",
  "longer_than_row": "the pair does not fit data.row_length",
}

_ROLES = {
  "system": "system",
  "user": "user",
  "human": "user",
  "assistant": "assistant",
  "gpt": "assistant",
}
_HH_START = "\n\nHuman:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class SkipRow(Exception):
  """A row is unusable; `reason` is a key of REASONS."""

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


class Conversation(NamedTuple):
  """A prompt with two responses.

  Attributes:
    prompt: messages ({"role", "content"}; the last is not the assistant's) for the chat template,
      or a string, which is plain text without a template.
    chosen, rejected: the text of the two responses, without a template.
  """

  prompt: tuple[Message, ...] | str
  chosen: str
  rejected: str


def to_conversation(row: dict[str, Any]) -> Conversation:
  """Converts a row of any supported format; raises SkipRow."""
  chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
  if row.get("conversations") is not None:
    messages = to_messages(row["conversations"])
    if row.get("system") and not (messages and messages[0]["role"] == "system"):
      messages = ({"role": "system", "content": _text(row["system"])}, *messages)
    return _from_prompt_and_answers(messages, chosen, rejected)
  prompt = row.get("prompt")
  if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
    return _from_strings(prompt, _text(chosen), _text(rejected))
  if isinstance(prompt, list):
    return _from_prompt_and_answers(to_messages(prompt), chosen, rejected)
  if isinstance(chosen, str) != isinstance(rejected, str):
    raise SkipRow("mixed_forms")
  return _from_full_conversations(prompt, to_messages(chosen), to_messages(rejected))


def check_texts(conversation: Conversation) -> None:
  """Raises SkipRow if the prompt (system messages aside) or a response is blank."""
  prompt, *responses = conversation
  texts = [prompt] if isinstance(prompt, str) else _non_system_texts(prompt)
  if not any(text.strip() for text in texts):
    raise SkipRow("empty_prompt")
  for name, response in zip(("chosen", "rejected"), responses, strict=True):
    if not response.strip():
      raise SkipRow(f"empty_{name}")


def _non_system_texts(prompt: tuple[Message, ...]) -> list[str]:
  return [m["content"] for m in prompt if m["role"] != "system"]


def to_messages(value: Any) -> tuple[Message, ...]:
  """Converts a list of {role, content} or {from, value} to messages; raises SkipRow."""
  if isinstance(value, dict):
    value = [value]
  if not isinstance(value, (list, tuple)):
    raise SkipRow("not_a_message")
  return tuple(_message(m) for m in value)


def _message(m: Any) -> Message:
  if not isinstance(m, dict):
    raise SkipRow("not_a_message")
  # Columnar files fill missing keys with None.
  role = m.get("role") if m.get("role") is not None else m.get("from")
  content = m.get("content") if m.get("content") is not None else m.get("value")
  if role is None or content is None:
    raise SkipRow("not_a_message")
  if not isinstance(role, str) or role not in _ROLES:
    raise SkipRow("unknown_role")
  return {"role": _ROLES[role], "content": _text(content)}


def _from_strings(prompt: Any, chosen: str, rejected: str) -> Conversation:
  if chosen.startswith(_HH_START) or rejected.startswith(_HH_START):
    return _from_full_conversations(None, _hh_turns(chosen), _hh_turns(rejected))
  if prompt is None:
    raise SkipRow("missing_field")
  prompt = _text(prompt)
  if not prompt.startswith(_HH_START):
    return Conversation(prompt, chosen, rejected)
  turns = _hh_turns(prompt)
  if turns[-1] == {"role": "assistant", "content": ""}:
    turns = turns[:-1]
  return _make_conversation(turns, chosen.strip(), rejected.strip())


def _hh_turns(text: str) -> tuple[Message, ...]:
  if not text.startswith(_HH_START):
    raise SkipRow("prompts_differ")
  parts = _HH_TURN.split(text)[1:]
  roles = {"Human": "user", "Assistant": "assistant"}
  return tuple(
    {"role": roles[name], "content": content.strip()}
    for name, content in zip(parts[::2], parts[1::2], strict=True)
  )


def _from_full_conversations(
  prompt: Any, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> Conversation:
  if not chosen or not rejected:
    raise SkipRow("last_turn_not_assistant")
  if chosen[:-1] != rejected[:-1]:
    raise SkipRow("prompts_differ")
  messages = chosen[:-1]
  if not messages and prompt is not None:
    messages = ({"role": "user", "content": _text(prompt)},)
  return _make_conversation(messages, _last_text(chosen), _last_text(rejected))


def _from_prompt_and_answers(
  prompt: tuple[Message, ...], chosen: Any, rejected: Any
) -> Conversation:
  return _make_conversation(prompt, _answer(prompt, chosen), _answer(prompt, rejected))


def _answer(prompt: tuple[Message, ...], value: Any) -> str:
  if isinstance(value, str):
    return _text(value)
  messages = to_messages(value)
  # Some datasets have a prompt and also repeat it in each response.
  if len(messages) > 1 and messages[:-1] != prompt:
    raise SkipRow("prompts_differ")
  return _last_text(messages)


def _last_text(messages: tuple[Message, ...]) -> str:
  if not messages or messages[-1]["role"] != "assistant":
    raise SkipRow("last_turn_not_assistant")
  return messages[-1]["content"]


def _make_conversation(messages: tuple[Message, ...], chosen: str, rejected: str) -> Conversation:
  if messages and messages[-1]["role"] == "assistant":
    raise SkipRow("prompt_ends_with_assistant")
  return Conversation(messages, chosen, rejected)


def _field(row: dict[str, Any], name: str) -> Any:
  if row.get(name) is None:
    raise SkipRow("missing_field")
  return row[name]


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise SkipRow("not_a_string")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise SkipRow("not_unicode") from error
  return value
