"""The datasets that a recipe names, in the formats of TRL and the alignment handbook."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from simpo_jax.config import did_you_mean
from simpo_jax.errors import UserError
from simpo_jax.import_config.parts import Recipe, printable

COLUMNS = "data.columns"
ROW = ("prompt", "chosen", "rejected")  # fields of a row that datasets rename


class Source(NamedTuple):
  """One dataset.

  Attributes:
    field: the recipe's field that names it.
    name, split: a hub dataset's id and split, or a file.
    share: the fraction of its rows that is used.
    limit: number of rows, from the first, that is used; None: all.
    is_train: whether it is trained on, or held out.
    columns: {field of a row: column}, without those of equal names.
    problem: why it is not supported.
    differs: what its trainer does otherwise.
  """

  field: str
  name: Any
  split: Any = "train"
  share: Any = 1.0
  limit: int | None = None
  is_train: bool = True
  columns: Mapping[str, str] = {}
  problem: str | None = None
  differs: str | None = None


class Sources(NamedTuple):
  """The datasets, and the part of them that is held out.

  Attributes:
    sources: the datasets.
    held_out: a fraction below 1, or a number of pairs, for evaluation; 0: none.
    field: the recipe's field that says so.
  """

  sources: Sequence[Source]
  held_out: float = 0.0
  field: str = ""


def mixer_sources(r: Recipe) -> Sources:
  """Returns the datasets of the old alignment handbook's dataset_mixer."""
  mixer, splits = r.values.get("dataset_mixer", {}), r.values["dataset_splits"]
  if not isinstance(mixer, dict) or not isinstance(splits, list):
    raise UserError(
      f"{r.where}: dataset_mixer must be like {{ORG/NAME: 1.0}}, dataset_splits like [train, test]"
    )
  found = []
  for name, share in mixer.items():
    for split in splits:
      is_train = "train" in str(split)  # shares are of the training split
      share_of = share if is_train else 1.0
      found.append(Source("dataset_mixer", name, split, share_of, is_train=is_train))
  return Sources(found)


def trl_sources(r: Recipe) -> Sources:
  """Returns the datasets of TRL's scripts; `datasets`, a list, overrides `dataset_name`."""
  v, listed = r.values, r.values.get("datasets")
  if listed is None:
    if not v.get("dataset_name"):
      return Sources([])
    splits = (v["dataset_train_split"], v["dataset_test_split"])
    name = v["dataset_name"]
    return Sources([Source("dataset_name", name, s, is_train=i == 0) for i, s in enumerate(splits)])
  entries = entries_of(listed, "datasets", "path", r.where)
  found = [_trl_source(entry, r.where) for entry in entries]
  return Sources(found, v.get("test_split_size") or 0, "test_split_size")


def _trl_source(entry: Mapping[str, Any], where: str) -> Source:
  known = ("path", "split", "columns", "name", "data_dir", "data_files", "fraction")
  problem = unknown_key(entry, "datasets", known) or _subset(entry, "name")
  for key in ("data_dir", "data_files", "fraction"):
    if entry.get(key) is not None and not problem:
      problem = (
        f"{key} in datasets cannot be translated; prepare the files that it selects, and name them "
        "with --data"
      )
  return _selected("datasets", entry, "path", problem, where)


def mixture_sources(r: Recipe) -> Sources:
  """Returns the datasets of the alignment handbook's dataset_mixture, else TRL's."""
  mixture = r.values.get("dataset_mixture")
  if mixture is None:
    return trl_sources(r)
  field, known = "dataset_mixture", ("id", "config", "split", "columns", "weight")
  if not isinstance(mixture, dict) or "datasets" not in mixture:
    raise UserError(f"{r.where}: dataset_mixture must have datasets, a list of entries with an id")
  more = sorted(map(str, {*mixture} - {"datasets", "seed", "test_split_size"}))
  if more:
    raise UserError(f"{r.where}: dataset_mixture has no field {printable(more[0])}; remove it")
  found = []
  for entry in entries_of(mixture["datasets"], field, "id", r.where):
    problem = unknown_key(entry, field, known) or _subset(entry, "config")
    weight = 1.0 if entry.get("weight") is None else entry["weight"]
    source = _selected(field, entry, "id", problem, r.where)._replace(share=weight)
    if weight != 1:
      source = source._replace(differs="the handbook draws a dataset's part; here it is the first")
    found.append(source)
  return Sources(found, mixture.get("test_split_size") or 0, field)


def entries_of(value: Any, field: str, key: str, where: str) -> list[dict[str, Any]]:
  """Returns a list of entries that each have the `key`.

  Raises:
    UserError: it is something else.
  """
  if not isinstance(value, list) or not all(isinstance(d, dict) and key in d for d in value):
    raise UserError(f"{where}: {field} must be a list of entries, each with a {key}")
  return value


def unknown_key(entry: Mapping[Any, Any], field: str, known: Sequence[str]) -> str | None:
  """Returns the problem with the first key of an entry that its trainer does not have."""
  more = [str(key) for key in entry if key not in known]
  if not more:
    return None
  return f"{field} has no field {printable(more[0])}{did_you_mean(more[0], known)}"


def _subset(entry: Mapping[str, Any], key: str) -> str | None:
  if entry.get(key) in (None, "default"):
    return None
  return f"{key}: {printable(entry[key])}: prepare the files of that subset; name them with --data"


def _selected(
  field: str, entry: Mapping[str, Any], key: str, problem: str | None, where: str
) -> Source:
  """A dataset with `columns`: a list of those that are kept, or a mapping of fields to columns."""
  columns, renamed = entry.get("columns"), {}
  if isinstance(columns, dict):
    unknown = unknown_key(columns, f"columns in {field}", ROW)
    if unknown or not all(isinstance(c, str) for c in columns.values()):
      problem = problem or unknown or f"columns in {field} must be texts"
    renamed = {str(k): str(c) for k, c in columns.items() if k != c}
  elif columns is not None:
    listed = columns if isinstance(columns, list) else []
    if not {"chosen", "rejected"} <= {*map(str, listed)}:
      raise UserError(
        f"{where}: columns in {field} must have chosen and rejected; prepare a file with columns "
        "of these names, and name it with --data"
      )
  return Source(field, entry[key], entry.get("split", "train"), columns=renamed, problem=problem)
