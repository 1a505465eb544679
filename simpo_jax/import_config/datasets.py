"""Translates a recipe's datasets to data.train and data.eval, and the commands to prepare them."""

import re
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from simpo_jax.data.readers.compressed import PAIRS
from simpo_jax.errors import UserError
from simpo_jax.import_config.axolotl import axolotl_sources
from simpo_jax.import_config.llamafactory import llamafactory_sources
from simpo_jax.import_config.parts import Part, Recipe, printable, strategy_name
from simpo_jax.import_config.sources import (
  COLUMNS,
  ROW,
  Source,
  Sources,
  mixer_sources,
  mixture_sources,
  trl_sources,
)
from simpo_jax.settings import FIELDS

FOLDER = "data"  # of the prepared datasets
_SOURCES: dict[str, Callable[[Recipe], Sources]] = {
  "trl": trl_sources,
  "handbook": mixture_sources,
  "handbook_old": mixer_sources,
  "princeton": mixer_sources,
  "llamafactory": llamafactory_sources,
  "axolotl": axolotl_sources,
}
_REPLACED: tuple[str, ...] = (
  "dataset_mixer", "dataset_splits", "dataset_mixture", "dataset_name", "datasets",
  "dataset_train_split", "dataset_test_split", "dataset", "dataset_dir", "eval_dataset",
  "test_datasets",
)  # fmt: skip
_SIZES = ("test_split_size", "val_size", "val_set_size")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT = re.compile(r"\w+")


class _Entry(NamedTuple):
  """An entry of data.train or data.eval, and how it is prepared."""

  entry: str
  slug: str = ""  # of a prepared dataset
  command: str = ""


def datasets(r: Recipe, evaluates: bool) -> Part:
  """Translates the training data and, if the run `evaluates`, the held-out data.

  Raises:
    UserError: the recipe has no dataset, or not in its trainer's format.
  """
  if r.facts.data is not None:
    return _replaced(r, r.facts.data, evaluates)
  sources, size, size_field = _SOURCES[r.form.name](r)
  problems = {s.field: s.problem for s in sources if s.problem}
  differs = {s.field: s.differs for s in sources if s.differs}
  fraction, problem = _fraction(r, size)
  if problem:
    problems[size_field] = problem
  train, held_out = [], []
  for source in sources:
    if source.problem or not (source.is_train or evaluates):
      continue
    found = _entry(source, fraction)
    if isinstance(found, str):
      problems[source.field] = found
    elif found:
      (train if source.is_train else held_out).append(found)
  if not train and not problems:
    raise UserError(f"{r.where} names no dataset; name one with --data=FILE or --data=tfds:NAME")
  settings: dict[str, Any] = {"data.dir": FOLDER, "data.train": tuple(e.entry for e in train)}
  if fraction and evaluates:
    problem = _hold_out(train, held_out, fraction, settings)
    problems |= {size_field: problem} if problem else {}
  settings["data.eval"] = tuple(e.entry for e in held_out)
  columns, problem = _columns(sources, evaluates)
  settings |= {COLUMNS: columns} if columns and not problem else {}
  problems |= {sources[0].field: problem} if problem else {}
  if evaluates and not held_out and not settings.get("data.eval_fraction") and not problems:
    problems[_strategy(r)] = "evaluates, and names no held-out pairs: switch it off"
  commands = tuple(dict.fromkeys(e.command for e in (*train, *held_out) if e.command))
  mapped = _texts(sources, settings, size_field, evaluates)
  return Part(settings, mapped, problems, _with_entries(differs, mapped), commands)


def _replaced(r: Recipe, data: str, evaluates: bool) -> Part:
  """The translation with --data, of which a part is held out if the run evaluates."""
  settings: dict[str, Any] = {"data.train": (data,), "data.eval": ()}
  mixture = r.values.get("dataset_mixture")
  sizes = [mixture.get("test_split_size")] if isinstance(mixture, dict) else []
  sizes += [r.values.get(name) for name in _SIZES]
  fraction, problem = _fraction(r, next((size for size in sizes if size), 0))
  text = "replaced by --data"
  if evaluates:
    settings["data.eval_fraction"] = fraction or FIELDS["data.eval_fraction"].default
    text += (
      f", of which a part is held out: data.eval_fraction = {settings['data.eval_fraction']:g}"
    )
  problems = {_strategy(r): problem} if problem and evaluates else {}
  return Part(settings, dict.fromkeys((*_REPLACED, *_SIZES), text), problems)


def _strategy(r: Recipe) -> str:
  """Returns the field that makes the run evaluate."""
  name = strategy_name(r)
  return name if r.values[name] != "no" else "do_eval"


def _fraction(r: Recipe, size: Any) -> tuple[float, str | None]:
  """Returns the held-out fraction of all pairs, and what is wrong with the size."""
  if type(size) not in (int, float) or size < 0 or (size > 1 and size != int(size)):
    return 0.0, f"must be a fraction or a number of pairs, not {printable(size)}"
  if size >= 1:
    if r.facts.pairs is None:
      return 0.0, f"{size:g} is a number of pairs; say with --pairs=N how many remain to train on"
    size = size / (r.facts.pairs + size)
  return (size, None) if size <= 0.5 else (0.0, "at most half of the pairs can be held out")


def _entry(source: Source, fraction: float) -> _Entry | str | None:
  """Returns an entry, a problem, or None for a share of 0."""
  name, split, share = str(source.name), str(source.split), source.share
  if type(share) not in (int, float) or not 0 <= share <= 1:
    return f"the share of {printable(name)} must be from 0 to 1, not {printable(share)}"
  percent = round(share * 100)
  if abs(share * 100 - percent) > 1e-9:
    return f"the share of {printable(name)} must be a whole percentage, not {printable(share)}"
  if not percent:
    return None
  if PAIRS.has(name):
    if percent < 100 or source.limit is not None:
      part = f"{percent}%" if percent < 100 else f"the first {source.limit} rows"
      return f"files are used in full, not {part} of {printable(name)}: prepare it first"
    return _Entry(name)
  if not _HUB.fullmatch(name) or not _SPLIT.fullmatch(split):
    return f"{printable(name)}, {printable(split)}: neither a file nor a hub dataset and split"
  slug = re.sub(r"[^a-z0-9]+", "_", f"{name}_{split}".lower()).strip("_")
  slug = slug if slug[:1].isalpha() else f"pairs_{slug}"
  options = [f" --eval_fraction={fraction:.6g}"] if fraction and source.is_train else []
  options += [f" --columns={shlex.quote(f'{k}={v}')}" for k, v in source.columns.items()]
  command = (
    f"python -m simpo_jax.prepare --source={shlex.quote(f'{name}:data/{split}-*')} --name={slug} "
    f"--out={FOLDER}{''.join(options)}"
  )
  part = "train" if percent == 100 else f"train[:{percent}%]"
  part = part if source.limit is None else f"train[:{source.limit}]"
  return _Entry(f"tfds:{slug}:{part}", slug, command)


def _hold_out(
  train: list[_Entry], held_out: list[_Entry], fraction: float, settings: dict[str, Any]
) -> str | None:
  """Adds the held-out part of the training data; returns a problem."""
  prepared = [e for e in train if e.slug]
  if prepared and len(prepared) < len(train):
    return "files and hub datasets are held out differently: prepare the files, too"
  held_out += [_Entry(f"tfds:{e.slug}:test", e.slug) for e in prepared]
  if not prepared:
    settings["data.eval_fraction"] = fraction
  return None


def _columns(sources: list[Source] | Any, evaluates: bool) -> tuple[tuple[str, ...], str | None]:
  """Returns data.columns, one mapping for all datasets, and what is wrong with it."""
  used = [s.columns for s in sources if s.is_train or evaluates]
  if not any(used):
    return (), None
  if any(columns != used[0] for columns in used):
    return (), "datasets with different columns: prepare files with the same ones"
  order = [*ROW, *(field for field in used[0] if field not in ROW)]
  columns = tuple(f"{field}={used[0][field]}" for field in order if field in used[0])
  return columns, None


def _texts(
  sources: Any, settings: dict[str, Any], size_field: str, evaluates: bool
) -> dict[str, str]:
  """Returns the texts on the fields that name data."""
  train, held_out = (", ".join(settings[f"data.{part}"]) for part in ("train", "eval"))
  text = f"data.train = {train}" + (f", data.eval = {held_out}" if held_out else "")
  if COLUMNS in settings:
    text += f", {COLUMNS} = {', '.join(settings[COLUMNS])}"
  mapped = {
    "dataset_splits": "in data.train and data.eval",
    "dataset_train_split": train,
    "dataset_test_split": held_out or "no evaluation",
    "dataset_dir": "in data.train and data.eval",
  }
  if size_field in _SIZES:
    nothing = "nothing is evaluated, so nothing is held out of files"
    held = settings.get("data.eval_fraction") or held_out or "nothing"
    mapped[size_field] = f"held out: {held}" if evaluates else nothing
  return mapped | {source.field: text for source in sources}


def _with_entries(differs: dict[str, str], mapped: dict[str, str]) -> dict[str, str]:
  return {field: f"{mapped[field]}; {text}" for field, text in differs.items()}
