"""Health checks for common problems of preference tuning.

A check is `ok`, `watch` or `warning`, or `unknown` if there is too little data. Each reports its
value, its thresholds, how the value is computed, and what to do about it.
"""

import numpy as np

from simpo_jax.report.evidence import (
  MIN_STEPS,
  STATES,
  TOO_FEW,
  Evidence,
  Finding,
  Trend,
  finite_numbers,
  rate,
  trend_of,
)


def check_health(e: Evidence) -> list[Finding]:
  """Runs all checks; returns the worst findings first."""
  found = [
    _not_finite(e),
    _length(e),
    _repetition(e),
    _cut_off(e),
    _empty(e),
    _logprob(e),
    _margin(e),
    _accuracy(e),
    _gradient(e),
    _skips(e),
    _waiting(e),
    _programs(e),
  ]
  return sorted(found, key=lambda finding: STATES.index(finding.state))


def _not_finite(e: Evidence) -> Finding:
  ended = e.failure is not None
  count = len(e.bad_steps) + ended
  if e.failure is not None:
    value = f"step {e.failure.get('step')}: loss {e.failure.get('loss')}; the run ended"
  elif e.bad_steps:
    steps = ", ".join(map(str, e.bad_steps[:5])) + (", …" if len(e.bad_steps) > 5 else "")
    value = f"{count} {'step' if count == 1 else 'steps'} skipped: {steps}"
  else:
    value = "none"
  return Finding(
    "not_finite",
    "Loss not finite",
    "warning" if ended else "watch" if count else "ok",
    value,
    "watch: a step was skipped; warning: one ended the run",
    "Training steps whose loss or gradient was not finite. Their updates are not applied.",
    "Lower train.learning_rate, or remove the pairs that metrics.jsonl or failure.json names.",
  )


def _length(e: Evidence) -> Finding:
  means = [(g["step"], g["mean_tokens"]) for g in e.generations if g["mean_tokens"]]
  growth, value = None, "needs two generations"
  if len(means) >= 2:
    (first, a), (last, b) = means[0], means[-1]
    growth = b / a
    value = f"{a:,.0f} tokens after step {first}, {b:,.0f} after step {last}: × {growth:.2f}"
  return Finding(
    "length_growth",
    "Answers grow longer",
    rate(growth, 1.25, 1.5),
    value,
    "watch: × 1.25; warning: × 1.5",
    "Mean tokens of the last generation's answers over those of the first.",
    "A model that is rewarded for length shows it here first. Compare the lengths of chosen and "
    "rejected responses in the data, lower train.learning_rate, or take an earlier checkpoint.",
  )


def _repetition(e: Evidence) -> Finding:
  shares = [(g["step"], g["repetition"]) for g in e.generations if g["repetition"] is not None]
  value, share = "no answer is long enough", None
  if shares:
    step, share = shares[-1]
    value = f"{share:.0%} after step {step}"
    if len(shares) > 1:
      value += f"; {shares[0][1]:.0%} after step {shares[0][0]}"
  return Finding(
    "repetition",
    "Answers repeat themselves",
    rate(share, 0.2, 0.4),
    value,
    "watch: 20%; warning: 40%",
    "The share of an answer's token 4-grams that occurred in it before, mean over the answers "
    "of the last generation.",
    "Read the most repetitive answers below (sort by repetition). If training causes it, lower "
    "train.learning_rate; greedy decoding causes it, too: try generate.temperature=0.7.",
  )


def _cut_off(e: Evidence) -> Finding:
  share, state, value = None, "unknown", "no generation"
  if e.config.get("generate", {}).get("ignore_eos"):
    state, value = "ok", "end tokens are ignored in this run: every answer is meant to be cut off"
  elif e.generations:
    g = e.generations[-1]
    share, limit = g["cut_share"], e.config.get("generate", {}).get("max_new_tokens", "?")
    state = rate(share, 0.1, 0.3)
    value = f"{share:.0%} of the answers after step {g['step']}, at {limit} tokens"
  return Finding(
    "cut_off",
    "Answers are cut off",
    state,
    value,
    "watch: 10%; warning: 30%",
    "The share of the last generation's answers that were cut off at max_new_tokens.",
    "Raise generate.max_new_tokens if the answers are good; if they ramble, see the checks of "
    "length and repetition.",
  )


def _empty(e: Evidence) -> Finding:
  share, value = None, "no generation"
  if e.generations:
    g = e.generations[-1]
    share = g["empty_share"]
    value = f"{share:.0%} of the answers after step {g['step']}"
  return Finding(
    "empty",
    "Empty answers",
    rate(share, 0.01, 0.05),
    value,
    "watch: 1%; warning: 5%",
    "The share of the last generation's answers that are empty or only whitespace.",
    "Check the prompts and the chat template; after many steps it is a sign of collapse: lower "
    "train.learning_rate.",
  )


def _logprob(e: Evidence) -> Finding:
  trend, fall, value = trend_of(e, "logps/chosen"), None, TOO_FEW
  if trend:
    fall = _significant(trend.first - trend.last, trend)
    value = f"{trend.first:.3f} to {trend.last:.3f} nats a token ({trend.what})"
  return Finding(
    "chosen_logprob",
    "Chosen answers become unlikely",
    rate(fall, 0.25, 0.5),
    value,
    "watch: a fall of 0.25; warning: of 0.5",
    "The fall of the average log-probability per token of the chosen responses.",
    "SimPO lowers it slightly; a large fall means that the model loses its language ability. Lower "
    "train.learning_rate, or set simpo.sft_weight.",
  )


def _margin(e: Evidence) -> Finding:
  trend, fall, value = trend_of(e, "rewards/margins"), None, TOO_FEW
  if trend:
    fall = _significant(trend.best - trend.last, trend) / max(abs(trend.best), 1e-6)
    value = f"{trend.first:+.3f} to {trend.last:+.3f}, at best {trend.best:+.3f} ({trend.what})"
  return Finding(
    "margin",
    "The margin collapses",
    rate(fall, 0.25, 0.5),
    value,
    "watch: a quarter below its best; warning: half",
    "How far the reward margin, chosen minus rejected, is below its best, relative to the best.",
    "Lower train.learning_rate, check the newest data, or take the checkpoint before the fall.",
  )


def _accuracy(e: Evidence) -> Finding:
  trend, fall, value = trend_of(e, "rewards/accuracies"), None, TOO_FEW
  if trend:
    fall = _significant(trend.best - trend.last, trend)
    value = f"{trend.first:.0%} to {trend.last:.0%}, at best {trend.best:.0%} ({trend.what})"
  return Finding(
    "accuracy",
    "The accuracy collapses",
    rate(fall, 0.1, 0.2),
    value,
    "watch: 10 points below its best; warning: 20",
    "How far the share of pairs whose chosen response has the higher reward is below its best.",
    "Lower train.learning_rate, check the newest data, or take the checkpoint before the fall.",
  )


def _significant(fall: float, trend: Trend) -> float:
  """Returns the fall, or 0 if it is within the noise."""
  return fall if fall > trend.noise else 0.0


def _gradient(e: Evidence) -> Finding:
  values, ratio, value = finite_numbers(e.train.get("grad_norm", ())), None, TOO_FEW.split(",")[0]
  if len(values) >= MIN_STEPS:
    middle = float(np.median(values))
    ratio = max(values) / middle if middle else None
    value = f"at most {max(values):.3g}, median {middle:.3g}"
  return Finding(
    "gradient",
    "Gradient spikes",
    rate(ratio, 10, 100),
    value,
    "watch: 10 times the median; warning: 100 times",
    "The largest gradient norm, before clipping, over the median.",
    "Inspect the pairs of that step; keep train.max_grad_norm enabled; a longer "
    "train.warmup_ratio helps against early spikes.",
  )


def _skips(e: Evidence) -> Finding:
  reports = e.record.get("data") or {}
  total = sum(r.get("total", 0) for r in reports.values())
  skipped = sum(sum(r.get("skipped", {}).values()) for r in reports.values())
  share = skipped / total if total else None
  return Finding(
    "skips",
    "Data is left out",
    rate(share, 0.01, 0.05),
    f"{skipped:,} of {total:,} rows ({share:.1%})" if total else "no rows were counted",
    "watch: 1%; warning: 5%",
    "Rows of the data that cannot be used: malformed, empty, identical responses, and so on.",
    "See the reasons under Data, and fix the rows or their format.",
  )


def _waiting(e: Evidence) -> Finding:
  waited = sum(finite_numbers(e.train.get("data_wait_seconds", ())))
  busy = sum(finite_numbers(e.train.get("step_seconds", ())))
  share = waited / (waited + busy) if waited + busy else None
  return Finding(
    "waiting",
    "Training waits for data",
    rate(share, 0.1, 0.3),
    f"{share:.1%} of the time of training steps" if share is not None else "no training step",
    "watch: 10%; warning: 30%",
    "The share of training time that steps waited for their batches.",
    "Raise data.workers, prepare the data once (simpo_jax.prepare), or put it on a faster disk.",
  )


def _programs(e: Evidence) -> Finding:
  compiles = e.record.get("compiles")
  state = "unknown" if not compiles else "ok" if compiles == 1 else "warning"
  return Finding(
    "compiles",
    "More than one program",
    state,
    f"{compiles} compiled" if compiles else "nothing compiled yet",
    "warning: more than 1",
    "XLA compilations in the process since the run began. A run compiles a single program.",
    "Something else compiled in this process: it costs time and can make hosts drift apart. "
    "Please report it.",
  )
