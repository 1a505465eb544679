"""The processes that bench/train.py starts, one after the other."""

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
  """A job that the system or its own allocator has ended for want of memory."""


class Options(NamedTuple):
  """The flags of bench/train.py that say what is trained."""

  model: str
  data: str
  max_length: int
  pairs: int
  steps: int
  dtype: str
  peer_micro: str
  peer_checkpointing: bool

  def job(self, data: pathlib.Path, pairs: int, row_length: int = 0) -> dict[str, Any]:
    """What `train_ours.config` reads."""
    return {
      "model": self.model,
      "dtype": self.dtype,
      "max_length": self.max_length,
      "data": str(data),
      "pairs": pairs,
      "row_length": row_length,
    }


def run_trl(folder: pathlib.Path, options: Options, ours: dict) -> dict:
  """TRL with the micro-batch that `--peer_micro` asks for; its `text` says what was tried."""
  model = options.model
  if model.endswith(".gguf"):
    common.say("transformers writes the GGUF as a folder")
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
  lived: list[dict[str, Any]] = []
  for micro in micro_sizes(options):
    common.say(f"TRL: {len(ours['tokens'])} steps of {options.pairs} pairs, {micro} at once")
    sizes = {"micro": micro, "accumulate": options.pairs // micro}
    try:
      done = start(folder, {**job, **sizes}, "train_trl.py")
    except OutOfMemory:
      tried[micro] = None
      continue
    lived.append({**done, **sizes})
    tried[micro] = median(s["seconds"] for s in done["steps"][WARM:]) / options.pairs
    if options.peer_micro != "fastest":
      break
  took = {m: seconds for m, seconds in tried.items() if seconds is not None}
  dead = [str(m) for m in tried if m not in took]
  killed = f"; out of memory with {', '.join(dead)} at once" if dead else ""
  if not lived:
    return {"steps": None, "tried": tried, "text": f"{PEER}{killed}: no step done"}
  best = min(lived, key=lambda d: took[d["micro"]])
  others = [f"{m} at once: {s:.3g} s" for m, s in took.items() if m != best["micro"]]
  text = (
    f"{PEER}, {best['micro']} pairs at once x {best['accumulate']} accumulated, "
    f"{best['attention']} attention, checkpointing {'on' if options.peer_checkpointing else 'off'}"
    f"{killed}" + (f" ({', '.join(others)} per pair)" if others else "")
  )
  return {**best, "tried": tried, "text": text}


def micro_sizes(options: Options) -> list[int]:
  """TRL's micro-batches to try, the largest first; all divide the pairs of a step."""
  if options.peer_micro.isdigit():
    return [max(1, int(options.peer_micro))]
  if options.peer_micro not in ("largest", "fastest"):
    raise UserError(f"--peer_micro={options.peer_micro} is not largest, fastest or a number")
  sizes = [options.pairs]
  while sizes[-1] % 2 == 0:
    sizes.append(sizes[-1] // 2)
  return sizes if sizes[-1] == 1 else [*sizes, 1]


def start(folder: pathlib.Path, job: dict, script: str = "train_ours.py") -> dict[str, Any]:
  """Runs a job in a process of its own and returns its result.

  Raises:
    OutOfMemory: it was killed, or says that memory did not suffice.
    UserError: it failed otherwise.
  """
  paths = {name: folder / name for name in ("job.json", "out.json", "log.txt")}
  paths["out.json"].unlink(missing_ok=True)
  paths["job.json"].write_text(json.dumps({**job, "out": str(paths["out.json"])}))
  command = [sys.executable, str(HERE / script), str(paths["job.json"])]
  # One GPU each, however many there are: the first.
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
  """Of any iterable."""
  return statistics.median(list(values))
