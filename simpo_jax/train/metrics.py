"""Metrics of a step or an evaluation under TRL's names, computed from the program's report."""

from collections.abc import Iterator, Sequence

import numpy as np

from simpo_jax.settings import SimPOSettings
from simpo_jax.train.types import Metrics, PairStats


def pair_values(stats: PairStats, simpo: SimPOSettings) -> dict[str, np.ndarray]:
  """Returns the values for histograms, one per present pair; margins exclude gamma."""
  p = np.asarray(stats.present)
  chosen, rejected = (np.asarray(x, np.float64)[p] for x in (stats.chosen, stats.rejected))
  return {
    "pairs/margins": simpo.beta * (chosen - rejected),
    "pairs/chosen_tokens": np.asarray(stats.chosen_tokens)[p],
    "pairs/rejected_tokens": np.asarray(stats.rejected_tokens)[p],
  }


def pair_metrics(stats: PairStats, simpo: SimPOSettings) -> dict[str, float]:
  """Returns means over the present pairs.

  Rewards are beta times the average log-probability; accuracy and margin exclude gamma, as
  in TRL and princeton-nlp/SimPO. `logps/*` are averages per token.
  """
  p = np.asarray(stats.present)
  chosen, rejected = (np.asarray(x, np.float64)[p] for x in (stats.chosen, stats.rejected))
  values = pair_values(stats, simpo)
  margin = values["pairs/margins"]
  return {
    "rewards/chosen": float(np.mean(simpo.beta * chosen)),
    "rewards/rejected": float(np.mean(simpo.beta * rejected)),
    "rewards/margins": float(np.mean(margin)),
    "rewards/accuracies": float(np.mean(margin > 0)),
    "rewards/accuracies_gamma": float(np.mean(margin > simpo.beta * simpo.gamma_beta_ratio)),
    "logps/chosen": float(np.mean(chosen)),
    "logps/rejected": float(np.mean(rejected)),
    "length/chosen": float(np.mean(values["pairs/chosen_tokens"])),
    "length/rejected": float(np.mean(values["pairs/rejected_tokens"])),
  }


def train_metrics(metrics: Metrics, simpo: SimPOSettings) -> dict[str, float]:
  """Returns the metrics of one training step."""
  return {
    "loss": float(metrics.loss),
    "nll_loss": float(metrics.sft_loss),
    **pair_metrics(metrics.pairs, simpo),
    "grad_norm": float(metrics.grad_norm),
    "learning_rate": float(metrics.learning_rate),
  }


def all_pairs(batches: list[Metrics]) -> PairStats:
  """Concatenates the pair statistics of several batches."""
  return PairStats(
    *(
      np.concatenate([np.asarray(x) for x in xs])
      for xs in zip(*(b.pairs for b in batches), strict=True)
    )
  )


def evaluation_metrics(batches: list[Metrics], simpo: SimPOSettings) -> dict[str, float]:
  """Returns the metrics of an entire held-out set, weighted by pair (the SFT term by token)."""
  stats = all_pairs(batches)
  tokens = np.asarray([np.sum(b.pairs.chosen_tokens) for b in batches], np.float64)
  nll = float(np.average([float(b.sft_loss) for b in batches], weights=tokens))
  simpo_loss = float(np.mean(np.asarray(stats.loss)[np.asarray(stats.present)]))
  return {
    "loss": simpo_loss + simpo.sft_weight * nll,
    "nll_loss": nll,
    **pair_metrics(stats, simpo),
    "pairs": int(np.sum(stats.present)),
  }


def held_out_rows(
  ids: Sequence[str], batches: list[Metrics], simpo: SimPOSettings
) -> Iterator[dict[str, str | float]]:
  """Yields the values that `evaluation_metrics` averages, one row per pair in order of `ids`."""
  stats = all_pairs(batches)
  present = PairStats(*(x[stats.present] for x in stats))
  for i, name in enumerate(ids):
    chosen, rejected = float(present.chosen[i]), float(present.rejected[i])
    yield {
      "pair": name,
      "logps/chosen": chosen,
      "logps/rejected": rejected,
      "rewards/margins": simpo.beta * (chosen - rejected),
      "length/chosen": int(present.chosen_tokens[i]),
      "length/rejected": int(present.rejected_tokens[i]),
    }
