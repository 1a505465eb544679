"""Translates a recipe's datasets to data.train and data.eval, and the commands to prepare them."""

import re
import shlex
from typing import Any

from simpo_jax.data.readers.compressed import EXTENSIONS
from simpo_jax.errors import UserError
from simpo_jax.import_config.parts import Part, RunFacts, printable

FOLDER = "data"  # of the prepared datasets
_FIELDS: tuple[str, ...] = (
  "dataset_mixer", "dataset_splits", "dataset_name", "datasets", "dataset_train_split",
  "dataset_test_split",
)  # fmt: skip
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT = re.compile(r"\w+")


def datasets(v: dict[str, Any], form: str, facts: RunFacts, evaluates: bool, where: str) -> Part:
  """Translates the training data and, if the run `evaluates`, the held-out data.

  Raises:
    UserError: the recipe has no dataset, or not in its trainer's format.
  """
  if facts.data is not None:
    mapped = dict.fromkeys(_FIELDS, "replaced by --data")
    return Part({"data.train": (facts.data,), "data.eval": ()}, mapped)
  if form == "princeton":
    sources = _mixer_sources(v, where)
  else:
    sources = _trl_sources(v, where)
  train, held_out, mapped, problems, commands = [], [], {}, {}, []
  for field, name, split, share, is_train in sources:
    if not is_train and not evaluates:
      continue
    entry, command, problem = _entry(name, split, share)
    if problem:
      problems[field] = problem
    elif entry:
      (train if is_train else held_out).append(entry)
      commands += [command] if command else []
  if not train and not problems:
    raise UserError(f"{where} names no dataset; name one with --data=FILE or --data=tfds:NAME")
  for field in dict.fromkeys(field for field, *_ in sources):
    mapped[field] = f"data.train = {', '.join(train)}" + (
      f", data.eval = {', '.join(held_out)}" if held_out else ""
    )
  for field, entries in (("dataset_train_split", train), ("dataset_test_split", held_out)):
    mapped[field] = ", ".join(entries) or "no evaluation"
  mapped["dataset_splits"] = "in data.train and data.eval"
  settings = {"data.train": tuple(train), "data.eval": tuple(held_out), "data.dir": FOLDER}
  if "test_split_size" in v:
    settings["data.eval_fraction"] = v["test_split_size"]
    mapped["test_split_size"] = "data.eval_fraction"
  return Part(settings, mapped, problems, tuple(dict.fromkeys(commands)))


def _mixer_sources(v: dict[str, Any], where: str) -> list[tuple[str, Any, Any, Any, bool]]:
  """Returns (field, dataset, split, share, is_train) entries of the alignment handbook's mixer."""
  mixer, splits = v.get("dataset_mixer", {}), v["dataset_splits"]
  if not isinstance(mixer, dict) or not isinstance(splits, list):
    raise UserError(
      f"{where}: dataset_mixer must be like {{ORG/NAME: 1.0}}, dataset_splits like [train, test]"
    )
  return [
    ("dataset_mixer", name, split, share if "train" in str(split) else 1.0, "train" in str(split))
    for name, share in mixer.items()
    for split in splits
  ]


def _trl_sources(v: dict[str, Any], where: str) -> list[tuple[str, Any, Any, Any, bool]]:
  """Returns the same for TRL's scripts; `datasets`, a list, overrides `dataset_name`."""
  mixture = v.get("datasets")
  if mixture is None:
    if not v.get("dataset_name"):
      return []
    name, splits = v["dataset_name"], (v["dataset_train_split"], v["dataset_test_split"])
    return [("dataset_name", name, split, 1.0, i == 0) for i, split in enumerate(splits)]
  if not isinstance(mixture, list) or not all(isinstance(d, dict) and "path" in d for d in mixture):
    raise UserError(f"{where}: datasets must be a list of entries, each with a path")
  more = sorted({str(key) for d in mixture for key in d} - {"path", "split"})
  if more:
    raise UserError(
      f"{where}: {printable(', '.join(more))} in datasets cannot be translated; prepare the files "
      "that it selects, and name them with --data"
    )
  return [("datasets", d["path"], d.get("split", "train"), 1.0, True) for d in mixture]


def _entry(name: Any, split: Any, share: Any) -> tuple[str | None, str | None, str | None]:
  """Returns (entry of data.train, command that prepares it, problem); each may be None."""
  name, split = str(name), str(split)
  if type(share) not in (int, float) or not 0 <= share <= 1:
    return None, None, f"the share of {printable(name)} must be from 0 to 1, not {printable(share)}"
  percent = round(share * 100)
  if abs(share * 100 - percent) > 1e-9:
    return (
      None,
      None,
      f"the share of {printable(name)} must be a whole percentage, not {printable(share)}",
    )
  if not percent:
    return None, None, None
  if name.lower().endswith(EXTENSIONS):
    if percent < 100:
      return (
        None,
        None,
        f"files are used in full, not {percent}% of {printable(name)}: prepare it first",
      )
    return name, None, None
  if not _HUB.fullmatch(name) or not _SPLIT.fullmatch(split):
    return (
      None,
      None,
      f"{printable(name)}, {printable(split)}: neither a file nor a hub dataset and split",
    )
  slug = re.sub(r"[^a-z0-9]+", "_", f"{name}_{split}".lower()).strip("_")
  slug = slug if slug[:1].isalpha() else f"pairs_{slug}"
  source = shlex.quote(f"{name}:data/{split}-*")
  command = f"python -m simpo_jax.prepare --source={source} --name={slug} --out={FOLDER}"
  part = "train" if percent == 100 else f"train[:{percent}%]"
  return f"tfds:{slug}:{part}", command, None
