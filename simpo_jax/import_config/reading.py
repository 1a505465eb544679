"""Reads a recipe's YAML safely: limited size and depth, no aliases, objects or duplicate fields."""

import json
import pathlib
from typing import Any

import yaml

from simpo_jax.errors import UserError, one_line

MAX_BYTES = 2**18
MAX_JSON_BYTES = 2**22
MAX_DEPTH = 20  # of nesting


def read_yaml(path: pathlib.Path) -> dict[str, Any]:
  """Reads the fields of a YAML file in order, without those that are null.

  Raises:
    UserError: it is not a file, too large, or not a mapping of names to plain values.
  """
  if not path.is_file():
    raise UserError(f"{path} is not a file; name a trainer's YAML file")
  with path.open("rb") as file:
    data = file.read(MAX_BYTES + 1)
  if len(data) > MAX_BYTES:
    raise UserError(f"{path} is larger than {MAX_BYTES >> 10} KiB, too large for a recipe")
  try:
    fields = yaml.load(data, _Loader)
  except yaml.YAMLError as e:
    mark = getattr(e, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    raise UserError(f"{path}{line}: {getattr(e, 'problem', None) or one_line(e)}") from e
  except ValueError as e:  # a number with too many digits, an invalid date
    raise UserError(f"{path}: {one_line(e)}; fix the YAML") from e
  if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
    raise UserError(f"{path} is not a mapping of field names to values, as a trainer's YAML is")
  return {name: value for name, value in fields.items() if value is not None}


class _Loader(yaml.SafeLoader):
  """Loads plain values only; nested aliases could expand to more than the memory."""

  depth = 0

  def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
    event = self.peek_event()
    if isinstance(event, yaml.AliasEvent):
      raise _error("aliases (*name) are not read; write the value out", event)
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise _error(f"nested more than {MAX_DEPTH} deep", event)
    node = super().compose_node(parent, index)
    self.depth -= 1
    return node

  def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in names:
      if names.count(name) > 1:
        raise _error(f"{name!r} occurs twice; keep one of them", node)
    return super().construct_mapping(node, deep)


def _error(problem: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
  return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file of one object.

  Raises:
    UserError: it is too large, or something else.
  """
  with path.open("rb") as file:
    data = file.read(MAX_JSON_BYTES + 1)
  if len(data) > MAX_JSON_BYTES:
    raise UserError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; name the pairs with --data")
  try:
    value = json.loads(data.decode("utf-8-sig"))
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is not valid JSON ({one_line(e)}); name the pairs with --data") from e
  if not isinstance(value, dict):
    raise UserError(f"{path} is not one JSON object; name the pairs with --data")
  return value
