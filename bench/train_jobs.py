"""Starts the processes of bench/train.py, one after the other."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import common
from train_ours import WARM

from simpo_jax.errors import UserError
from simpo_jax.prepare.__main__ import cores

HERE = pathlib.Path(__file__).resolve().parent
PEER = "CPOTrainer"


class OutOfMemory(UserError):
  """A job was killed or failed because memory ran out."""


class Options(NamedTuple):
  """The flags of bench/train.py that define what is trained."""

  model: str
  data: str
  max_length: int
  pairs: int
  steps: int
  dtype: str
  peer_micro: str
  peer_checkpointing: bool

  def job(self, data: pathlib.Path, pairs: int, row_length: int = 0) -> dict[str, Any]:
    """Returns the fields that `train_ours.config` reads."""
    return {
      "model": self.model,
      "dtype": self.dtype,
      "max_length": self.max_length,
      "data": str(data),
      "pairs": pairs,
      "row_length": row_length,
    }


def run_trl(folder: pathlib.Path, options: Options, ours: dict) -> dict:
  """Runs TRL with the micro-batch sizes of `--peer_micro`; `text` of the result describes them."""
  model = options.model
  if model.endswith(".gguf"):
    common.say("converting the GGUF file to a Hugging Face folder")
    model = str(folder / "model")
    convert = {"work": "convert", "model": str(pathlib.Path(options.model).resolve())}
    start(folder, {**convert, "folder": model}, "train_trl.py")
  job = {
    "work": "train",
    "model": model,
    "steps": ours["tokens"],
    "threads": cores(),
    "dtype": ours["dtype"],
    "max_length": options.max_length,
    "checkpointing": options.peer_checkpointing,
    "folder": str(folder / "trl"),
    **ours["settings"],
  }
  tried: dict[int, float | None] = {}
  succeeded: list[dict[str, Any]] = []
  for micro in micro_sizes(options):
    common.say(f"TRL: {len(ours['tokens'])} steps of {options.pairs} pairs, {micro} at once")
    sizes = {"micro": micro, "accumulate": options.pairs // micro}
    try:
      done = start(folder, {**job, **sizes}, "train_trl.py")
    except OutOfMemory:
      tried[micro] = None
      continue
    succeeded.append({**done, **sizes})
    tried[micro] = median(s["seconds"] for s in done["steps"][WARM:]) / options.pairs
    if options.peer_micro != "fastest":
      break
  took = {m: seconds for m, seconds in tried.items() if seconds is not None}
  failed = [str(m) for m in tried if m not in took]
  out_of_memory = f"; out of memory with {', '.join(failed)} at once" if failed else ""
  if not succeeded:
    return {"steps": None, "tried": tried, "text": f"{PEER}{out_of_memory}: no step done"}
  best = min(succeeded, key=lambda d: took[d["micro"]])
  others = [f"{m} at once: {s:.3g} s" for m, s in took.items() if m != best["micro"]]
  text = (
    f"{PEER}, {best['micro']} pairs at once x {best['accumulate']} accumulated, "
    f"{best['attention']} attention, checkpointing {'on' if options.peer_checkpointing else 'off'}"
    f"{out_of_memory}" + (f" ({', '.join(others)} per pair)" if others else "")
  )
  return {**best, "tried": tried, "text": text}


def micro_sizes(options: Options) -> list[int]:
  """Returns the micro-batch sizes to try with TRL, largest first."""
  if options.peer_micro.isdigit():
    return [max(1, int(options.peer_micro))]
  if options.peer_micro not in ("largest", "fastest"):
    raise UserError(f"--peer_micro={options.peer_micro} is not largest, fastest or a number")
  sizes = [options.pairs]
  while sizes[-1] % 2 == 0:
    sizes.append(sizes[-1] // 2)
  return sizes if sizes[-1] == 1 else [*sizes, 1]


def start(folder: pathlib.Path, job: dict, script: str = "train_ours.py") -> dict[str, Any]:
  """Runs a job in a new process and returns its result.

  Raises:
    OutOfMemory: the job was killed, or reported that memory ran out.
    UserError: it failed for another reason.
  """
  paths = {name: folder / name for name in ("job.json", "out.json", "log.txt")}
  paths["out.json"].unlink(missing_ok=True)
  paths["job.json"].write_text(json.dumps({**job, "out": str(paths["out.json"])}))
  command = [sys.executable, str(HERE / script), str(paths["job.json"])]
  # Both sides use only the first GPU.
  gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
  env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
  with open(paths["log.txt"], "w") as log:
    code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env).returncode
  if code in (-9, 137):
    raise OutOfMemory(f"{script} {job.get('side', '')} ran out of memory")
  if code:
    print(*paths["log.txt"].read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
    raise UserError(
      f"{script} {job.get('side', '')} ended with code {code}; its last lines are above"
    )
  return json.loads(paths["out.json"].read_text())


def median(values: Iterable[float]) -> float:
  """Returns the median of any iterable."""
  return statistics.median(list(values))
