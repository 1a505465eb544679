"""Rows as people write them, with their mistakes; every text in them has a mark of its own."""

import json
import math
import random

FIELDS = ("prompt", "question", "instruction", "messages", "conversations", "chosen", "rejected")
MISSPELT = {
  "chosen": ("choosen", "Chosen", "chosen_response", "accepted"),
  "rejected": ("rejcted", "rejected_response", "loser"),
  "prompt": ("promt", "Prompt", "query", "input_text"),
  "conversations": ("conversation", "dialog"),
  "messages": ("message", "turns"),
  "instruction": ("instructions",),
  "question": ("questions",),
}
UNKNOWN = ("source", "score_chosen", "id", "metadata", "language", "a b\nc", "category")
ROLES = (
  "user", "assistant", "system", "human", "gpt", "tool", "User", "narrator", "function", "bot",
)  # fmt: skip
SURROUND = (
  "", "{}", " {}\n", "é漢🙂 {}", "\n\n{}", "`{}`\r\n| a |", "<think>{}</think>", "{} <|im_end|>",
  "{{{{ {} }}}}", "\t{}\u2028", '{{"a": "{}"}}', "Human: {}",
)  # fmt: skip


class Draw(random.Random):
  """Random choices, and texts of which no two are the same."""

  count, style = 0, False  # texts so far; whether messages are {from, value}

  def text(self, odd=0.3):
    self.count += 1
    mark = f"mk{self.count}x"
    form = self.choice(SURROUND) if self.random() < odd else "Say {}."
    return form.format(mark) if form else mark

  def chance(self, share):
    return self.random() < share

  def message(self, role, **more):
    if self.style:
      return {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": self.text()}
    return {"role": role, "content": self.text(), **more}

  def turns(self, count, first="user"):
    other = {"user": "assistant", "assistant": "user"}
    found, role = [], first
    for _ in range(count):
      found.append(self.message(role))
      role = other[role]
    return found

  def hh(self, count):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {self.text(0)}" for i in range(count))


def _call(d):
  arguments = {"city": d.text(0)} if d.chance(0.7) else json.dumps({"city": d.text(0)})
  return {"id": "abc456789", "type": "function", "function": {"name": "f", "arguments": arguments}}


def _tool(d):
  schema = {"name": "f", "description": d.text(0), "parameters": {"type": "object"}}
  return {"type": "function", "function": schema} if d.chance(0.7) else schema


def _base(d):
  """A row as the documentation has it."""
  prompt = d.turns(d.choice((1, 1, 3)))
  if d.chance(0.2):
    prompt = [d.message("system"), *prompt]
  answers = [d.turns(d.choice((1, 1, 1, 3)), "assistant") for _ in range(2)]
  texts = [d.text(), d.text()]
  hh = d.hh(d.choice((1, 3)))
  kind = d.randrange(12)
  if kind == 0:
    row = {"prompt": d.text(), "chosen": texts[0], "rejected": texts[1]}
  elif kind in (1, 2):
    row = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
  elif kind == 3:
    row = {"chosen": prompt + answers[0], "rejected": prompt + answers[1]}
  elif kind == 4:
    first = next(m for m in prompt if m.get("role", m.get("from")) in ("user", "human"))
    row = {"prompt": first.get("content", first.get("value"))}
    row |= {"chosen": prompt + answers[0], "rejected": prompt + answers[1]}
  elif kind == 5:
    ends = [f"{hh}\n\nAssistant: {t}" for t in (d.text(0), d.text(0))]
    row = {"chosen": ends[0], "rejected": ends[1]}
    if d.chance(0.3):
      row = {"prompt": f"{hh}\n\nAssistant:", "chosen": texts[0], "rejected": texts[1]}
  elif kind == 6:
    row = {"conversations": prompt, "chosen": answers[0][0], "rejected": answers[1][0]}
  elif kind == 7:
    row = {"messages": prompt, "chosen": answers[0][0], "rejected": answers[1][0]}
  elif kind == 8:
    row = {"question": d.text(), "chosen": texts[0], "rejected": texts[1]}
  elif kind == 9:
    row = {"instruction": d.text(), "input": d.choice(("", d.text())), "chosen": texts[0]}
    row |= {"rejected": texts[1], "history": [[d.text(), d.text()]] if d.chance(0.3) else []}
  elif kind == 10:
    call = {"role": "assistant", "content": None, "tool_calls": [_call(d)]}
    result = {"role": "tool", "tool_call_id": "abc456789", "content": d.text(0)}
    asked = [{"role": "user", "content": d.text()}]
    inside = d.chance(0.5)
    row = {"prompt": asked if inside else [*asked, call, result], "tools": [_tool(d)]}
    more = [call, result] if inside else []
    last = [{"role": "assistant", "content": d.text()} for _ in range(2)]
    row |= {"chosen": [*more, last[0]], "rejected": [*more * d.chance(0.5), last[1]]}
  else:
    thinks = {"role": "assistant", "content": d.text(), "reasoning_content": d.text(0)}
    asked = [{"role": "user", "content": d.text()}]
    row = {"prompt": asked, "chosen": [thinks], "rejected": d.turns(1, "assistant")}
  return row


def _messages(d, row):
  """A list of messages of the row, if it has one, and the field."""
  names = [n for n in row if isinstance(row[n], list) and row[n] and isinstance(row[n][0], dict)]
  name = d.choice(names) if names else None
  return name, [m for m in row[name] if isinstance(m, dict)] if name else [{}]


def _wrong_type(d, row):
  wrong = (
    None, math.nan, "", [], 3, 0.5, True, {}, [d.text()], {"text": d.text()}, d.text(), " \n",
    [d.text(), d.text()], [[d.text(), d.text()]], "\ud800", {"role": "user"}, [{}], "null",
    "[]", [None], {"messages": d.turns(2)}, [d.text(), None],
  )  # fmt: skip
  row[d.choice(list(row))] = d.choice(wrong)


def _misspell(d, row):
  name = d.choice([n for n in row if n in MISSPELT] or ["prompt"])
  row[d.choice(MISSPELT[name])] = row.pop(name, d.text())


def _drop(d, row):
  del row[d.choice(list(row))]


def _add_unknown(d, row):
  value = d.choice((d.text(), {"a": d.text()}, [d.text()], None, math.nan, 3))
  row[d.choice(UNKNOWN)] = value


def _add_known(d, row):
  name = d.choice((*FIELDS[:5], "system", "system_prompt", "input", "history", "system"))
  values = {"history": [[d.text(), d.text()]], "messages": d.turns(d.choice((1, 2)))}
  values["conversations"] = d.turns(d.choice((1, 2)))
  row[name] = values.get(name) if name in values and d.chance(0.8) else d.text()


def _add_tools(d, row):
  tools = [_tool(d), _tool(d)]
  forms = (tools, json.dumps(tools), [json.dumps(t) for t in tools], tools[0], {"functions": tools})
  row["tools"] = d.choice((*forms, [], "[]", "", "none", ["f"], None, [None]))


def _add_variables(d, row):
  name = d.choice(("enable_thinking", "custom", "documents", "messages", "tokenize"))
  value = {name: False if name == "enable_thinking" else d.text(0)}
  row["chat_template_kwargs"] = d.choice((value, json.dumps(value), {}, "{", [value], None))


def _as_text(d, row):
  names = [n for n in row if isinstance(row[n], (list, dict))]
  some = names if d.chance(0.6) else names[:1]
  for name in some:
    row[name] = (json.dumps if d.chance(0.8) else str)(row[name])


def _nested_none(d, row):
  for message in _messages(d, row)[1]:
    if isinstance(message, dict):
      message |= {n: None for n in ("name", "tool_calls", "reasoning_content") if n not in message}


def _parts(d, row):
  message = d.choice(_messages(d, row)[1])
  parts = [{"type": "text", "text": d.text()} for _ in range(d.choice((1, 2)))]
  odd = (
    d.text(), {"type": "image", "url": d.text()}, {"type": None, "text": d.text()}, None,
    {"text": d.text()}, {"type": "text", "text": None}, {"text": d.text(), "cache": d.text()},
  )  # fmt: skip
  message["content"] = [*parts, d.choice(odd)] if d.chance(0.4) else d.choice((parts, []))


def _role(d, row):
  message = d.choice(_messages(d, row)[1])
  message["from" if "from" in message else "role"] = d.choice((*ROLES, None, 3))


def _more_keys(d, row):
  names = ("name", "reasoning_content", "thinking", "loss", "value", "tool_calls", "weight")
  message, key = d.choice(_messages(d, row)[1]), d.choice(names)
  values = {"loss": False, "weight": 0.5, "tool_calls": [_call(d)]}
  message[key] = values.get(key, d.text(0))


def _bad_turn(d, row):
  name, messages = _messages(d, row)
  if name:
    odd = (d.text(), None, {}, {"role": "user", "text": d.text()})
    odd += tuple(d.message(role) for role in ("user", "assistant", "system"))
    row[name] = [*messages]
    row[name].insert(d.randrange(len(messages) + 1), d.choice(odd))


def _several(d, row):
  other = d.text() if isinstance(row.get("rejected"), str) else d.turns(1, "assistant")
  name = d.choice(("rejected", "rejected", "chosen"))
  if name in row:
    row[name] = [row[name], other] if d.chance(0.8) else [row[name]]


def _hh_somewhere(d, row):
  name = d.choice(("prompt", "chosen", "rejected", "question", "system"))
  row[name] = d.hh(d.choice((1, 2, 3, 4)))


def _repeat(d, row):
  prompt = next((row[n] for n in FIELDS[:5] if n in row), None)
  for name in ("chosen", "rejected") if d.chance(0.7) else ("chosen",):
    answer = row.get(name)
    if isinstance(answer, str) and isinstance(prompt, str):
      row[name] = prompt + answer
    elif isinstance(prompt, list) and isinstance(answer, (list, dict)):
      row[name] = prompt + (answer if isinstance(answer, list) else [answer])


def _single(d, row):
  names = [n for n in row if isinstance(row[n], list) and len(row[n]) == 1]
  for name in names:
    row[name] = row[name][0]


def _surrogate(d, row):
  name = d.choice(list(row))
  row[name] = f"{d.text(0)}\ud83d"
  if d.chance(0.3):
    row["\udc00"] = row.pop(name)


ACTIONS = (
  _wrong_type, _misspell, _drop, _add_unknown, _add_unknown, _add_known, _add_known, _add_tools,
  _add_variables, _as_text, _nested_none, _parts, _role, _more_keys, _bad_turn, _several,
  _hh_somewhere, _repeat, _single, _surrogate,
)  # fmt: skip


def odd_row(seed, number):
  """The row of a number: always the same."""
  d = Draw(f"{seed}:{number}")
  d.style = d.chance(0.25)
  row = _base(d)
  for _ in range(d.choice((0, 1, 1, 1, 2, 2, 3))):
    if row:
      d.choice(ACTIONS)(d, row)
  return json.loads(json.dumps(row))  # no two places share an object
