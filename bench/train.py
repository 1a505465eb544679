"""Benchmarks training against TRL's CPOTrainer: same weights, same pairs, in one run.

  python bench/train.py --model=SmolLM2-135M-Instruct.Q4_1.gguf --data=dpo_en_demo.json
  python bench/train.py ... --max_length=512 --pairs=4 --steps=2 --json=train.json
  python bench/train.py ... --sweep [--sweep_pairs=8 --sweep_pairs=32 --sweep_rows=1]

The figures in docs/performance.md were measured with --dtype=float32 --steps=2 --peer_micro=2,
and with --sweep --sweep_pairs=8 --sweep_pairs=32 --sweep_rows=1.

Ours is the program of configs/m11.py:smollm2 (without generation), launched as in a run; TRL
uses loss_type simpo, cpo_alpha 0, and the same token ids in the same steps. Only pairs that
need no truncation are used, because the two truncate differently. Each side runs in a separate
process with the same number of threads; the first step is not timed. If TRL runs out of memory
with all pairs of a step at once, it accumulates gradients over the largest micro-batch that
fits (`--peer_micro=fastest`: over the fastest that fits). The benchmark fails if the losses of
the first step differ.

`--sweep` runs ours alone, over pairs per step, row length and pair lengths (real; the shortest
third; the longest third), to show how the cost per pair grows.

ours, theirs, floor: seconds per pair, median over steps, including data and metrics; ratio:
theirs over ours. The floor is the time of the model's matmuls alone, forward and backward,
without padding (attention's at the best matmul rate). mfu: model flops per second of our steps
over the rate of the fastest matmul. Both limits are measured in the same run, right after our
steps. peak_bytes: resident memory of the process on CPU, device memory on GPU.
"""

import dataclasses
import importlib.util
import json
import pathlib
import statistics
import tempfile
from typing import Any

import common
from absl import app, flags
from train_jobs import PEER, Options, median, micro_sizes, run_trl, start
from train_ours import WARM, config

from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.row_files import read_rows
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.prepare.__main__ import cores
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.train.batch import row_length

# Relative, for the first step. TRL computes log-probabilities from bfloat16 logits: for 2 pairs
# its loss was 2.4% off the float32 loss, ours 0.3%.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
INSTALL = "TRL is not installed: pip install -e '.[bench]', or skip it with --no_peer"

_MODEL = flags.DEFINE_string("model", None, "folder, .gguf file or hub id", required=True)
_DATA = flags.DEFINE_string("data", None, "file of preference pairs", required=True)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 1024, "tokens of prompt and one response")
_PAIRS = flags.DEFINE_integer("pairs", 8, "pairs per optimizer step")
_STEPS = flags.DEFINE_integer("steps", 0, "timed steps; 0: 5, or 1 per case of the sweep")
_DTYPE = flags.DEFINE_enum(
  "dtype", "auto", ["auto", "float32", "bfloat16"], "compute dtype; weights are float32"
)
_NO_PEER = flags.DEFINE_bool("no_peer", False, "do not run TRL")
_PEER_MICRO = flags.DEFINE_string(
  "peer_micro", "largest", "TRL's pairs per forward pass: largest | fastest, or a number"
)
_PEER_CHECKPOINTING = flags.DEFINE_bool(
  "peer_checkpointing", False, "use gradient checkpointing in TRL, which is its default"
)
_SWEEP = flags.DEFINE_bool("sweep", False, "run ours alone, over several sizes")
_SWEEP_PAIRS = flags.DEFINE_multi_integer("sweep_pairs", [8, 16, 32], "pairs per step; repeatable")
_SWEEP_ROWS = flags.DEFINE_multi_integer(
  "sweep_rows", [1, 2], "row length, times the default; repeatable"
)


def main(_: list[str]) -> None:
  """Runs both sides, or the sweep, and prints the table."""
  options = Options(
    _MODEL.value,
    _DATA.value,
    _MAX_LENGTH.value,
    _PAIRS.value,
    _STEPS.value,
    _DTYPE.value,
    _PEER_MICRO.value,
    _PEER_CHECKPOINTING.value,
  )
  peer = not (_NO_PEER.value or _SWEEP.value)
  if peer and any(importlib.util.find_spec(name) is None for name in ("torch", "trl")):
    raise UserError(INSTALL)
  if any(options.pairs % size for size in micro_sizes(options)):
    raise UserError(f"--peer_micro={options.peer_micro} must divide --pairs={options.pairs}")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    least = max(_SWEEP_PAIRS.value) * 3 if _SWEEP.value else options.pairs
    chosen = _choose_pairs(folder / "pairs.json", options, least)
    if _SWEEP.value:
      result = common.result("training sweep", "seconds per pair", _sweep(folder, options))
    else:
      result = _side_by_side(folder, options, peer)
  result |= {"pairs": chosen, "max_length": options.max_length}
  title = f"training, {chosen['used']} of {chosen['total']} pairs: those of up to max_length "
  common.report(f"{title}{options.max_length}", result)
  for line in result.get("notes", ()):
    print(line)


def _choose_pairs(path: pathlib.Path, options: Options, least: int) -> dict[str, int]:
  """Writes the data rows that need no truncation to `path`; returns their number and the total."""
  data = config(options.job(path, options.pairs)).data
  data = dataclasses.replace(data, max_length=2**20, truncation="prompt_first")
  pairs, report = load_pairs(data, load_tokenizer(options.model), (options.data,), 0)

  def fits(p: PairTokens) -> bool:
    return len(p.prompt) + max(len(p.chosen), len(p.rejected)) <= options.max_length

  rows = dict(read_rows(options.data))
  used = [rows[p.id] for p in pairs if fits(p)]
  if len(used) < least:
    raise UserError(
      f"{len(used)} pairs of {options.data} need no truncation to --max_length="
      f"{options.max_length}, and {least} are needed; raise it, or give more pairs"
    )
  path.write_text(json.dumps(used))
  return {"used": len(used), "total": report.total}


def _side_by_side(folder: pathlib.Path, options: Options, peer: bool) -> dict[str, Any]:
  """Runs both sides; returns `common.result` with additional fields for each step."""
  steps, job = WARM + (options.steps or 5), options.job(folder / "pairs.json", options.pairs)
  common.say(f"simpo_jax: {steps} steps of {options.pairs} pairs")
  ours = start(folder, {**job, "side": "ours", "steps": steps})
  sizes = {"tokens": ours["row_tokens"], "targets": ours["logits_chunk"], "dtype": ours["dtype"]}
  limits = {**job, **sizes, "side": "limits"}
  common.say("the machine's matrix products")
  measured = [start(folder, limits)]
  theirs = run_trl(folder, options, ours) if peer else None
  if theirs:
    measured.append(start(folder, limits))
  counted = ours["steps"][WARM:]
  floors = [_floor(s, measured[0]) for s in counted]
  rows = [_our_row(ours, options.pairs)]
  if theirs and theirs["steps"]:
    rows.append(_their_row(ours, theirs, options.pairs))
  rates = [m["rate"] for m in measured]
  result = common.result(
    "training",
    "seconds per pair",
    rows,
    ours=rows[0]["s/pair"],
    theirs=rows[1]["s/pair"] if rows[1:] else None,
    peer=theirs["text"] if theirs else None,
    floor=statistics.median(floors) / options.pairs,
    smaller_is_better=True,
  )
  result |= {
    "fraction_of_floor": median(f / s["seconds"] for f, s in zip(floors, counted, strict=True)),
    "mfu": median(s["flops"] / s["seconds"] for s in counted) / rates[0],
    "matmul_flops_per_second": rates,
    "pairs_per_step": options.pairs,
    "threads": cores(),  # XLA uses one per core that the process may run on
    "peak_bytes": {"ours": ours["peak_bytes"], "theirs": (theirs or {}).get("peak_bytes")},
    "ours_steps": ours["steps"],
    "theirs_steps": theirs["steps"] if theirs else None,
    "theirs_tried": theirs["tried"] if theirs else None,
    "first_step": _same_work(ours, theirs) if theirs and rows[1:] else None,
    **{k: ours[k] for k in ("dtype", "compiled_peak_bytes", "compile_seconds", "compiles")},
  }
  return {**result, "notes": _notes(result)}


def _notes(result: dict[str, Any]) -> list[str]:
  """Lines to print below the table."""
  notes = [f"peer: {result['peer']}"] if result["peer"] else []
  if result["ratio"]:
    differ = result["first_step"]
    notes.append(
      f"{result['ratio']:.2f} times the pairs per second; losses of the first step differ by "
      f"{differ['loss']:.1e}, gradient norms by {differ['grad_norm']:.1e}"
    )
  rates = result["matmul_flops_per_second"]
  later = f" (after TRL's steps {rates[1] / 1e9:,.0f})" if rates[1:] else ""
  notes.append(
    f"ours: {result['fraction_of_floor']:.2f} of the floor ({result['floor']:.3g} s per pair), "
    f"mfu {result['mfu']:.2f} of {rates[0] / 1e9:,.0f} GFLOP/s{later}"
  )
  return notes


def _our_row(ours: dict, pairs: int) -> dict[str, Any]:
  counted = ours["steps"][WARM:]
  per_pair = median(s["seconds"] for s in counted) / pairs
  useful = median(s["tokens"] / s["seconds"] for s in counted)
  computed = median(s["rows"] * ours["row_tokens"] for s in counted)
  return _row("simpo_jax", per_pair, useful, computed, ours)


def _their_row(ours: dict, theirs: dict, pairs: int) -> dict[str, Any]:
  timed = theirs["steps"][WARM:]
  per_pair = median(s["seconds"] for s in timed) / pairs
  together = zip(ours["steps"][WARM:], timed, strict=True)
  useful = median(s["tokens"] / t["seconds"] for s, t in together)
  computed = median(_padded(pairs, theirs["micro"]) for pairs in ours["tokens"][WARM:])
  return _row(PEER, per_pair, useful, computed, theirs)


def _row(
  case: str, per_pair: float, useful: float, computed: float, side: dict[str, Any]
) -> dict[str, Any]:
  """A row of the table: medians over steps; loss and gradient norm of the first step.

  Args:
    useful: tokens per second without padding, each prompt counted once.
    computed: tokens per step, including padding and repeated prompts.
  """
  return {
    "case": case,
    "s/pair": per_pair,
    "tokens/s": useful,
    "computed": computed,
    "peak_GiB": side["peak_bytes"] / 2**30,
    "loss": f"{side['steps'][0]['loss']:.6f}",
    "grad_norm": f"{side['steps'][0]['grad_norm']:.4f}",
  }


def _same_work(ours: dict, theirs: dict) -> dict[str, float]:
  """Relative differences of loss and gradient norm in the first step, before any update.

  Raises:
    UserError: the losses differ by more than `LOSS_TOLERANCE`.
  """
  a, b = ours["steps"][0], theirs["steps"][0]
  out = {k: abs(a[k] - b[k]) / abs(b[k]) for k in ("loss", "grad_norm")}
  if not out["loss"] <= LOSS_TOLERANCE[ours["dtype"]]:
    raise UserError(
      f"not the same work: the loss of the first step is {a['loss']} here and {b['loss']} in TRL"
    )
  return out


def _padded(pairs: list, micro: int) -> int:
  """Tokens that TRL computes in a step: two sequences per pair, padded within a micro-batch."""
  longest = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
  return sum(2 * micro * max(longest[i : i + micro]) for i in range(0, len(longest), micro))


def _floor(step: dict, limits: dict) -> float:
  """Seconds of a step's matmuls alone."""
  products = limits["token_seconds"] * step["tokens"] + limits["target_seconds"] * step["targets"]
  return products + step["attention_flops"] / limits["rate"]


def _sweep(folder: pathlib.Path, options: Options) -> list[dict]:
  rows, rate = [], None
  for pairs in _SWEEP_PAIRS.value:
    for factor in _SWEEP_ROWS.value:
      length = factor * row_length(config(options.job(folder, pairs)).data)
      common.say(f"{pairs} pairs per step, rows of {length}")
      job = options.job(folder / "pairs.json", pairs, length)
      done = start(folder, {**job, "side": "sweep", "steps": options.steps or 1})
      if rate is None:
        sizes = {"tokens": done["row_tokens"], "targets": done["logits_chunk"]}
        rate = start(folder, {**job, **sizes, "side": "limits", "dtype": done["dtype"]})["rate"]
      rows += [_sweep_row(name, steps, done, rate) for name, steps in done["cases"].items()]
  return rows


def _sweep_row(name: str, steps: list[dict], done: dict, rate: float) -> dict:
  pairs, length = done["pairs"], done["row_tokens"]
  tokens = sum(s["tokens"] for s in steps)
  return {
    "case": name,
    "pairs": pairs,
    "row": length,
    "tokens/pair": tokens / len(steps) / pairs,
    "s/pair": median(s["seconds"] for s in steps) / pairs,
    "tokens/s": median(s["tokens"] / s["seconds"] for s in steps),
    "packing": tokens / sum(s["rows"] * length for s in steps),
    "mfu": median(s["flops"] / s["seconds"] for s in steps) / rate,
    "peak_GiB": done["peak_bytes"] / 2**30,
  }


if __name__ == "__main__":
  app.run(common.with_user_errors(main))
