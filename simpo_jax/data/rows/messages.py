"""Converts the ways in which data sets write messages to {"role", "content", ...}.

All other keys of a message ("tool_calls", "reasoning_content", "name", ...) are kept for the chat
template, as in transformers and TRL. Keys whose value is None are absent: tables fill them in.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.types import REASONING, Message
from simpo_jax.errors import one_line, shown

# Roles are compared without case. Templates know most of them by one name only.
ROLES = {
  **{name: name for name in ("system", "developer", "user", "assistant", "tool", "ipython")},
  "human": "user",
  "prompter": "user",  # OpenAssistant
  "gpt": "assistant",
  "model": "assistant",  # Gemma
  "bot": "assistant",
  "chatbot": "assistant",  # Cohere
  "function": "tool",  # OpenAI, before tools
  "observation": "tool",  # ShareGPT, as read by LLaMA-Factory
  "function_call": "assistant",  # its content is the call
}
# What an assistant's message without content may say; the last three are one thing.
OTHER_CONTENT = ("tool_calls", *REASONING)
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def to_messages(value: Any) -> tuple[Message, ...]:
  """Converts one message or a list of them, {role, content} or {from, value}; raises SkipRow."""
  if isinstance(value, Mapping):
    value = [value]
  if not isinstance(value, (list, tuple)):
    raise SkipRow("not_a_message", f"it has {_described(value)} in place of messages")
  return tuple(_message(m) for m in value)


def parse_json_messages(value: Any) -> Any:
  """Returns the list of messages that a JSON text holds, or the value if it is not such a text."""
  if not isinstance(value, str) or not value.lstrip().startswith(("[{", "[ {", "[\n", "{")):
    return value
  try:
    parsed = json.loads(value)
  except (ValueError, RecursionError):
    return value
  items = [parsed] if isinstance(parsed, dict) else parsed
  return parsed if items and all(map(_is_like_message, items)) else value


def _is_like_message(m: Any) -> bool:
  if not isinstance(m, dict):
    return False
  return any(n in m for n in _ROLE_KEYS) and any(n in m for n in (*_CONTENT_KEYS, *OTHER_CONTENT))


def hh_turns(text: str) -> tuple[Message, ...] | None:
  """Parses "Human: ... Assistant: ..." of HH-RLHF; None if the text is not of this form.

  Blank lines before the first "Human:" may be stripped. The last turn may be empty.
  """
  text = text.lstrip()
  if not text.startswith("Human:") or "\n\nAssistant:" not in text:
    return None
  parts = _HH_TURN.split(f"\n\n{text}")[1:]
  return tuple(
    {"role": _HH_ROLES[name], "content": content.strip()}
    for name, content in zip(parts[::2], parts[1::2], strict=True)
  )


def check_text(value: Any, what: str = "a text") -> str:
  """Returns a string that can be encoded; raises SkipRow for anything else."""
  if not isinstance(value, str):
    raise SkipRow("not_a_string", f"{what} is {_described(value)}")
  check_unicode(value)
  return value


def check_unicode(value: Any) -> None:
  """Raises SkipRow if any string in a JSON value has a lone surrogate."""
  if isinstance(value, str):
    try:
      value.encode("utf-8")
    except UnicodeEncodeError as error:
      raise SkipRow("not_unicode") from error
  elif isinstance(value, Mapping):
    for name, inner in value.items():
      check_unicode(name)
      check_unicode(inner)
  elif isinstance(value, (list, tuple)):
    for inner in value:
      check_unicode(inner)


def is_absent(value: Any) -> bool:
  """Whether a table's value stands for no value: None or NaN."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def without_none(value: Any) -> Any:
  """Removes keys whose value is None, at any depth, like TRL's `remove_none_values`."""
  if isinstance(value, Mapping):
    return {name: without_none(inner) for name, inner in value.items() if inner is not None}
  if isinstance(value, (list, tuple)):
    return [without_none(inner) for inner in value]
  return value


def _message(m: Any) -> Message:
  if not isinstance(m, Mapping):
    raise SkipRow("not_a_message", f"one is {_described(m)}")
  extra = {k: without_none(v) for k, v in m.items() if not is_absent(v)}
  present = ", ".join(map(named, extra)) or "nothing"
  name, content = (_take(extra, names) for names in (_ROLE_KEYS, _CONTENT_KEYS))
  if content is None and any(map(extra.get, OTHER_CONTENT)):
    content = ""
  if name is None or content is None:
    raise SkipRow("not_a_message", f"one has {present}")
  role = ROLES.get(name.lower()) if isinstance(name, str) else None
  if role is None:
    raise SkipRow("unknown_role", f"role {shown(name)!r}")
  if role == "assistant" and name.lower() == "function_call":
    return {"role": role, "content": "", "tool_calls": [_sharegpt_call(content)], **extra}
  check_unicode(extra)
  return {"role": role, "content": _content(content), **extra}


def _take(message: dict[str, Any], names: tuple[str, ...]) -> Any:
  """Removes the first of these keys that a message has, and others of the same value."""
  first = next((name for name in names if name in message), None)
  if first is None:
    return None
  value = message.pop(first)
  for name in names:
    if name in message and message[name] == value:
      del message[name]
  return value


def _content(value: Any) -> str:
  """The text of a content; parts are joined by line breaks, as in vLLM and llama.cpp."""
  if not isinstance(value, (list, tuple)):
    return check_text(value, "a content")
  texts = []
  for part in value:
    if isinstance(part, Mapping):
      part = {k: v for k, v in part.items() if not is_absent(v)}
      kind, others = part.get("type", "text"), part.keys() - {"type", "text"}
      if kind != "text" or others:
        beside = f" with {', '.join(map(named, sorted(others, key=str)))}" if kind == "text" else ""
        raise SkipRow("not_text_content", f"a part of type {shown(kind)!r}{beside}")
      part = part.get("text")
    texts.append(check_text(part, "a part"))
  return "\n".join(texts)


def _sharegpt_call(content: Any) -> dict[str, Any]:
  try:
    call = json.loads(content) if isinstance(content, str) else content
    function = {"name": call["name"], "arguments": call["arguments"]}
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise SkipRow("not_a_message", "a function_call without name and arguments") from error
  check_unicode(function)
  return {"type": "function", "function": function}


def named(name: Any) -> str:
  """A name that a row has, for messages."""
  return one_line(shown(name)) if str(name).strip() else repr(name)


def _described(value: Any) -> str:
  if value is None:
    return "null"
  kinds = {bool: "a truth value", int: "a number", float: "a number", str: "a text"}
  kinds |= {dict: "an object", tuple: "a list"}
  kind = kinds.get(type(value), f"a {type(value).__name__}")
  return kind if isinstance(value, (list, tuple, dict)) else f"{kind}, {shown(value)}"
