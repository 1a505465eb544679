"""Which files of a folder or of a dataset on the hub belong together, by their names.

A file or a folder whose name has a word such as "train" or "test" belongs to a split of that name:
data/train-00000-of-00002.parquet, test.jsonl, train/a.jsonl. Shards and numbered parts of a name
are one split. Different names are different splits: train_prefs-*, train_sft-*.
"""

import fnmatch
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from simpo_jax.data.readers.compressed import PAIRS, Kinds
from simpo_jax.errors import UserError

TRAIN, HELD_OUT = "train", "test"  # also those that `prepare` writes
_KINDS = {
  **dict.fromkeys(("train", "training"), TRAIN),
  **dict.fromkeys(
    ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev", "heldout"),
    HELD_OUT,
  ),
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")
_PART = re.compile(r"\d+(?=(\.\w+)+$)")
# What `datasets` writes beside the rows.
_METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_MAX_LISTED = 12


class Split(NamedTuple):
  """Files that belong together.

  Attributes:
    label: a pattern that selects them.
    kind: TRAIN or HELD_OUT, if their name says so, else "".
    names: of the files, in order.
  """

  label: str
  kind: str
  names: tuple[str, ...]


class Named(NamedTuple):
  """The files of a folder or of a dataset on the hub: those that can be read, and the others."""

  data: tuple[str, ...]
  others: tuple[str, ...]


def data_files(names: Sequence[str], kinds: Kinds = PAIRS) -> Named:
  """Separates the files of rows from others. Hidden files, as downloads leave them, are neither."""
  seen = [n for n in names if not any(part.startswith(".") for part in n.split("/"))]
  data = [n for n in seen if kinds.has(n) and not is_metadata(n, names)]
  read = set(data)
  return Named(tuple(data), tuple(n for n in seen if n not in read))


def is_metadata(name: str, names: Sequence[str]) -> bool:
  """Whether `datasets` wrote a file of a folder beside the rows; `names` are all its files."""
  path = pathlib.PurePosixPath(name)
  if path.name not in _METADATA:
    return False
  beside = [n for n in names if pathlib.PurePosixPath(n).parent == path.parent]
  return path.name != "state.json" or any(n.endswith(".arrow") for n in beside)


def group(names: Sequence[str], top_folders: bool = False, merge: bool = True) -> list[Split]:
  """Groups files into splits, sorted by label.

  Args:
    top_folders: each top folder is a split, as in a dictionary of datasets.
    merge: if no name says anything, all files are one split; False: each is one.
  """
  found: dict[tuple[str, str], list[str]] = {}
  split_of = {name: _split_of(name) for name in names}
  # Beside named splits no pattern would select the others alone.
  merge = merge and not any(kind for _, kind in split_of.values())
  for name, (label, kind) in split_of.items():
    if top_folders:
      top = name.split("/")[0]
      label, kind = f"{top}/*", _kind(top)
    elif merge:
      label = "*"
    found.setdefault((label, kind), []).append(name)
  return sorted(Split(label, kind, tuple(members)) for (label, kind), members in found.items())


def _split_of(name: str) -> tuple[str, str]:
  """(label, kind) of a file by its own name, else by the innermost of its folders that says so."""
  *folders, own = name.split("/")
  kind = _kind(own.split(".")[0])
  if kind or not any(map(_kind, folders)):
    label = _SHARD.sub("-*", own) if _SHARD.search(own) else _PART.sub("[0-9]*", own)
    return "/".join([*folders, label]), kind
  last = max(i for i, folder in enumerate(folders) if _kind(folder))
  return "/".join([*folders[: last + 1], "*"]), _kind(folders[last])


def _kind(name: str) -> str:
  words = re.split(r"[^a-z]+", name.lower())
  return next((_KINDS[word] for word in words if word in _KINDS), "")


def choose(source: str, splits: Sequence[Split], kind: str = "") -> Split:
  """Returns the only split, or else the only one of a kind.

  Args:
    source: for messages.
    kind: TRAIN or HELD_OUT; "": there must be only one split.

  Raises:
    UserError: there are several.
  """
  of_kind = [split for split in splits if kind and split.kind == kind]
  if len(splits) == 1 or len(of_kind) == 1:
    return of_kind[0] if of_kind else splits[0]
  labels = [split.label for split in splits]
  more = " ..." if len(labels) > _MAX_LISTED else ""
  raise UserError(
    f"{source} has several splits; choose one, such as {source}:{labels[-1]} "
    f"(of {', '.join(labels[:_MAX_LISTED])}{more})"
  )


def matching(source: str, names: Sequence[str], pattern: str) -> list[str]:
  """Returns the names that match a pattern of `fnmatch`; raises a UserError if none does."""
  chosen = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
  if not chosen:
    raise UserError(f"{source}: no file matches; there are {listed(names)}")
  return chosen


def listed(names: Sequence[str]) -> str:
  """Returns names for a message, the first of many."""
  more = f" and {len(names) - _MAX_LISTED:,} more" if len(names) > _MAX_LISTED else ""
  return f"{', '.join(names[:_MAX_LISTED])}{more}" or "no file of a known kind"


def saved_files(names: Sequence[str], read: Callable[[str], dict[str, object]]) -> list[str]:
  """Leaves out .arrow files that a folder's state.json does not list, such as caches of `map`.

  Args:
    names: the files of rows, and state.json files.
    read: returns the content of a .json file; raises a UserError.

  Raises:
    UserError: a state.json lists rows in another way than as files in full.
  """
  states = {n.rpartition("/")[0]: n for n in names if n.rpartition("/")[2] == "state.json"}
  kept: dict[str, set[str]] = {}
  for folder, name in states.items():
    state = read(name)
    files = state.get("_data_files")
    if not isinstance(files, list) or state.get("_indices_files"):
      raise UserError(
        f"{name} is not as this version knows it; load the dataset with `datasets`, and save it "
        "as parquet (to_parquet)"
      )
    kept[folder] = {str(f.get("filename")) for f in files if isinstance(f, dict)}
  out = []
  for name in names:
    folder, _, own = name.rpartition("/")
    if own != "state.json" and (not own.endswith(".arrow") or own in kept.get(folder, {own})):
      out.append(name)
  return out
