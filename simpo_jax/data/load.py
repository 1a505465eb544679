"""Loads the data of a config: files into memory, prepared datasets lazily."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from simpo_jax.data.mixture import Mixture
from simpo_jax.data.pairs import Entry, find_repeats, load_each, load_pairs, open_entry
from simpo_jax.data.prepared.dataset import (
  Prepared,
  has_split,
  is_prepared,
  open_prepared,
  split_spec,
)
from simpo_jax.data.readers import splits
from simpo_jax.data.shuffle import held_out_prompts, prompt_key, split_by_row
from simpo_jax.data.skip_report import SkipReport, empty_report
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings, Settings
from simpo_jax.tokenizer.tokenizer import Tokenizer

BY_PROMPT, BY_ROW = "prompt", "row"  # how held-out pairs are chosen


class LoadedData(NamedTuple):
  """The data of a run.

  Attributes:
    train: training pairs.
    held_out: held-out pairs, in memory.
    skips: {source: report on its rows}.
    notes: what else the user should know, a line each.
  """

  train: list[PairTokens] | Mixture
  held_out: list[PairTokens]
  skips: dict[str, SkipReport]
  notes: list[str]


def load_data(
  config: Settings, tokenizer: Tokenizer, evaluates: bool, split_by: str = BY_PROMPT
) -> LoadedData:
  """Loads or opens the data of a config.

  Args:
    evaluates: whether the run needs held-out pairs.
    split_by: BY_PROMPT: the pairs of a prompt are either all held out or all trained; BY_ROW: as a
      run of an earlier version began.

  Raises:
    UserError: data is unusable or too small, or settings contradict each other.
  """
  data = config.data
  loaded = _training(config, tokenizer, evaluates and not data.eval, split_by)
  if data.eval:
    pairs, report = load_pairs(data, tokenizer, data.eval, config.seed + 1, loaded.notes)
    loaded = loaded._replace(held_out=pairs, skips={**loaded.skips, "eval": report})
  if len(loaded.train) < config.train.batch_size:
    held = f" after holding out {len(loaded.held_out)} (data.eval_fraction)"
    raise UserError(
      f"--config.train.batch_size={config.train.batch_size} needs at least that many training "
      f"pairs, and there are {len(loaded.train)}{held if loaded.held_out else ''}; lower it or add "
      "data"
    )
  if evaluates and not loaded.held_out:
    raise UserError(
      "evaluation needs held-out pairs: set --config.data.eval or "
      "--config.data.eval_fraction (the pairs of a prompt stay together, so there must be two "
      "prompts), prepare datasets with --eval_fraction, or switch it off with "
      "--config.evaluate.every=0 --config.evaluate.at_end=False"
    )
  return loaded._replace(notes=[*loaded.notes, *_notes_on_repeats(loaded)])


def _training(config: Settings, tokenizer: Tokenizer, split_off: bool, split_by: str) -> LoadedData:
  """The training data, and what `split_off` takes from it as held-out pairs."""
  data, weights, notes = config.data, _weights(config.data), []
  entries = [open_entry(name, splits.TRAIN) for name in data.train]
  mixed = bool(weights) or any(is_prepared(entry.name) for entry in entries)
  trained: list[list[PairTokens] | Prepared] = []
  held: list[list[PairTokens]] = [[] for _ in entries]
  skips = {"train": empty_report()}
  if mixed:
    for entry in entries:
      if is_prepared(entry.name):
        trained.append(open_prepared(entry.name, data.dir))
      else:
        pairs, skips[entry.name] = load_pairs(data, tokenizer, (entry,), config.seed, notes)
        trained.append(pairs)
  else:
    parts, skips["train"] = load_each(data, tokenizer, entries, config.seed, notes)
    trained += parts
  to_split: dict[int, list[PairTokens]] = {}
  for i, (entry, part) in enumerate(zip(entries, trained, strict=True)):
    if split_off and (own := _own_held_out(entry, data.dir)):
      held[i], skips[f"eval {entry.name}"] = load_pairs(data, tokenizer, (own,), config.seed, notes)
    elif isinstance(part, list):
      to_split[i] = part
  fraction = data.eval_fraction if split_off else 0.0
  is_held = _chooser(list(to_split.values()), fraction, config.seed, split_by, mixed)
  for i, part in to_split.items():
    trained[i] = [pair for pair in part if not is_held(pair)]
    held[i] = [pair for pair in part if is_held(pair)]
  in_memory = [part for part in trained if isinstance(part, list)]
  train = Mixture(tuple(trained), weights) if mixed else [p for part in in_memory for p in part]
  return LoadedData(train, [pair for part in held for pair in part], skips, notes)


def _own_held_out(entry: Entry, data_dir: str) -> Entry | None:
  """The held-out pairs that an entry of data.train brings along; raises UserError if ambiguous."""
  if entry.source is None:
    whole = is_prepared(entry.name) and split_spec(entry.name)[1] is None
    return entry if whole and has_split(entry.name, data_dir, splits.HELD_OUT) else None
  if len(entry.source.splits) < 2 or not any(
    split.kind == splits.HELD_OUT for split in entry.source.splits
  ):
    return None
  splits.choose(entry.name, entry.source.splits, splits.HELD_OUT)
  return entry._replace(kind=splits.HELD_OUT)


def _chooser(
  parts: Sequence[list[PairTokens]], fraction: float, seed: int, split_by: str, each: bool
) -> Callable[[PairTokens], bool]:
  """Returns the function that says whether a pair is held out.

  Args:
    each: by row, each part is split; False: all of them together.
  """
  joined = [pair for part in parts for pair in part]
  if split_by == BY_ROW:
    groups = parts if each else [joined]
    held = {id(pair) for group in groups for pair in split_by_row(group, fraction, seed)[1]}
    return lambda pair: id(pair) in held
  prompts = held_out_prompts(joined, fraction, seed)
  return lambda pair: bool(prompts) and prompt_key(pair) in prompts


def _in_memory(train: list[PairTokens] | Mixture) -> list[PairTokens]:
  if isinstance(train, list):
    return train
  return [pair for source in train.sources if isinstance(source, list) for pair in source]


def _notes_on_repeats(loaded: LoadedData) -> list[str]:
  """Notes on pairs that repeat, and on prompts on both sides; of pairs in memory."""
  train, notes = _in_memory(loaded.train), []
  repeats = find_repeats(train)
  if repeats.same:
    notes.append(
      f"{len(repeats.same)} of {len(train)} training pairs repeat an earlier one token by token "
      f"(first: {repeats.same[0]}); all are trained"
    )
  if repeats.reversed:
    notes.append(
      f"{len(repeats.reversed)} of {len(train)} training pairs prefer what an earlier one rejects "
      f"(first: {repeats.reversed[0]}); all are trained"
    )
  trained = {prompt_key(pair) for pair in train} if loaded.held_out else set()
  shared = [pair for pair in loaded.held_out if prompt_key(pair) in trained]
  if shared:
    notes.append(
      f"{len(shared)} of {len(loaded.held_out)} held-out pairs ask what training pairs ask, too: "
      f"{len(set(map(prompt_key, shared)))} prompts (first: {shared[0].id}); evaluation may be too "
      "favorable"
    )
  return notes


def _weights(data: DataSettings) -> tuple[float, ...]:
  entries, weights = data.train, tuple(map(float, data.weights))
  if weights and (
    len(weights) != len(entries) or not all(w > 0 and math.isfinite(w) for w in weights)
  ):
    raise UserError(
      f"--config.data.weights={weights} must be one positive number for each of the "
      f"{len(entries)} entries of data.train, such as (0.7,0.3)"
    )
  return weights
