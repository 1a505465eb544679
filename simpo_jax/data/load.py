"""Loads the data of a config: files into memory, prepared datasets lazily."""

import math

from simpo_jax.data.mixture import Mixture
from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.prepared.dataset import (
  has_split,
  is_prepared,
  open_prepared,
  split_spec,
)
from simpo_jax.data.prepared.records import HELD_OUT
from simpo_jax.data.shuffle import split_pairs
from simpo_jax.data.skip_report import SkipReport, empty_report
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings, Settings
from simpo_jax.tokenizer.tokenizer import Tokenizer


def load_data(
  config: Settings, tokenizer: Tokenizer, evaluates: bool
) -> tuple[list[PairTokens] | Mixture, list[PairTokens], dict[str, SkipReport]]:
  """Returns (training pairs, held-out pairs, {source: skip report}).

  Args:
    evaluates: whether the run needs held-out pairs.

  Raises:
    UserError: data is unusable or too small, or settings contradict each other.
  """
  data = config.data
  pairs, held_out, skips = _training(config, tokenizer, evaluates and not data.eval)
  if data.eval:
    held_out, skips["eval"] = load_pairs(data, tokenizer, data.eval, config.seed + 1)
  if len(pairs) < config.train.batch_size:
    held = f" after holding out {len(held_out)} (data.eval_fraction)" if held_out else ""
    raise UserError(
      f"--config.train.batch_size={config.train.batch_size} needs at least that many "
      f"training pairs, and there are {len(pairs)}{held}; lower it or add data"
    )
  if evaluates and not held_out:
    raise UserError(
      "evaluation needs held-out pairs: set --config.data.eval or "
      "--config.data.eval_fraction, prepare datasets with --eval_fraction, or switch it off with "
      "--config.evaluate.every=0 --config.evaluate.at_end=False"
    )
  return pairs, held_out, skips


def _training(
  config: Settings, tokenizer: Tokenizer, split_off: bool
) -> tuple[list[PairTokens] | Mixture, list[PairTokens], dict[str, SkipReport]]:
  data = config.data
  entries, weights = data.train, _weights(data)
  fraction = data.eval_fraction if split_off else 0.0
  if not weights and not any(map(is_prepared, entries)):
    pairs, report = load_pairs(data, tokenizer, entries, config.seed)
    return *split_pairs(pairs, fraction, config.seed), {"train": report}
  sources, held_out, skips = [], [], {"train": empty_report()}
  for entry in entries:
    if is_prepared(entry):
      sources.append(open_prepared(entry, data.dir))
      if split_off and split_spec(entry)[1] is None and has_split(entry, data.dir, HELD_OUT):
        found, skips[f"eval {entry}"] = load_pairs(data, tokenizer, (entry,), config.seed)
        held_out += found
      continue
    pairs, skips[entry] = load_pairs(data, tokenizer, (entry,), config.seed)
    kept, held = split_pairs(pairs, fraction, config.seed)
    sources.append(kept)
    held_out += held
  return Mixture(tuple(sources), weights), held_out, skips


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
