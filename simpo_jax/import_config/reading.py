"""A recipe's YAML, read within bounds: a small file, no aliases, no objects, no field twice."""

import pathlib
from typing import Any

import yaml

from simpo_jax.errors import UserError, one_line

MAX_BYTES = 2**18
MAX_DEPTH = 20


def read_yaml(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a YAML file, in their order; those that are null are left out.

  Raises:
    UserError: not a file, too large, or not one mapping of names to plain values.
  """
  if not path.is_file():
    raise UserError(f"{path} is not a file; name a trainer's YAML")
  with path.open("rb") as file:
    data = file.read(MAX_BYTES + 1)
  if len(data) > MAX_BYTES:
    raise UserError(f"{path} is larger than {MAX_BYTES >> 10} KiB, which no recipe is")
  try:
    fields = yaml.load(data, _Loader)
  except yaml.YAMLError as e:
    mark = getattr(e, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    raise UserError(f"{path}{line}: {getattr(e, 'problem', None) or one_line(e)}") from e
  except ValueError as e:  # a number of too many digits, a date that is none
    raise UserError(f"{path}: {one_line(e)}; fix the YAML") from e
  if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
    raise UserError(f"{path} is not a mapping of field names to values, as a trainer's YAML is")
  return {name: value for name, value in fields.items() if value is not None}


class _Loader(yaml.SafeLoader):
  """Plain values only. What aliases stand for can be larger than any memory."""

  depth = 0

  def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
    event = self.peek_event()
    if isinstance(event, yaml.AliasEvent):
      raise _refused("aliases (*name) are not read; write the value out", event)
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise _refused(f"nested more than {MAX_DEPTH} deep", event)
    node = super().compose_node(parent, index)
    self.depth -= 1
    return node

  def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in names:
      if names.count(name) > 1:
        raise _refused(f"{name!r} is there twice; keep the one that is meant", node)
    return super().construct_mapping(node, deep)


def _refused(problem: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
  return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
