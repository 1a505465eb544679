"""Makes what tests/compatibility_test.py reads: runs that ended half way, as older code left them.

  python tests/compatibility/make.py tests/compatibility/NAME

NAME holds a config.py, which names the runs. Beside it come the models and the pairs that they
read, and of each run RUN/workdir, stopped as `RUNS` says, and RUN/expected.json, what the same
run leaves that nobody stops. The folder e143b35 was made so by the code of that commit, on CPU
with Python 3.11 and jax 0.10.2; SHA256SUMS has what came out. What was made is never made again:
it stands for the workdirs that people have.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

RUNS = {  # a SIGTERM comes during the launch of this mode and number; a step that is not finite
  "stopped": ("TRAIN", 2, None),  # so it ends between step 3 and its generation
  "lora": ("GENERATE", 0, None),  # before the evaluation of step 3
  "average": ("TRAIN", 2, 2),
  "prepared": ("EVALUATE", 1, None),  # of step 3, which has more launches
  "hosts": ("TRAIN", 2, None),
}
PROCESSES = {"hosts": 2}
SHARED = dict(
  vocab_size=101,
  hidden_size=32,
  intermediate_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=16,
  rms_norm_eps=1e-5,
  max_position_embeddings=128,
)
MODELS = {
  "llama": dict(
    model_type="llama",
    tie_word_embeddings=True,
    rope_theta=10000.0,
    rope_scaling={
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    },
  ),
  "gemma2": dict(model_type="gemma2", query_pre_attn_scalar=24, sliding_window=16),
}


def write_inputs(folder):
  """The models, the pairs and the prepared dataset."""
  import model_files
  from simpo_jax.prepare import prepare

  for name, fields in MODELS.items():
    (folder / name).mkdir()
    files = {"config.json": {**SHARED, **fields}, **model_files.TOKENIZER_VALUES}
    for file, value in files.items():
      (folder / name / file).write_text(json.dumps(value, indent=1) + "\n")
  write_pairs(folder / "pairs.jsonl", 13)
  write_pairs(folder / "skipped.jsonl", 4)
  prepare(["skipped.jsonl"], pathlib.Path("data"), "pairs", eval_fraction=0.2)


def write_pairs(path, every):
  """Pairs, of which one in so many has answers that are the same once they are cut."""
  draw, lines = random.Random(0), []
  for i in range(40):
    a, b = draw.randrange(10), draw.randrange(10)
    right, wrong = str(a + b), str(a + b + 1 + draw.randrange(3))
    row = {"prompt": f"What is {a} + {b}?", "chosen": f"It is {right}.", "rejected": wrong}
    if i % every == 3:
      row["chosen"], row["rejected"] = (f"Well, {'well, ' * 10}{n}." for n in (right, wrong))
    elif i % 11 == 5:
      row["prompt"] = f"{'Think about it. ' * 4}{row['prompt']}"
    if i % 2:
      row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    lines.append(json.dumps(row) + "\n")
  path.write_text("".join(lines))


def work(run, whole):
  """One process of a run: as nobody stops it, then stopped by a SIGTERM to the last of them."""
  socket.gethostname = lambda: "host"  # workdirs tell it
  import jax
  import numpy as np
  from config import get_config
  from simpo_jax.launch import Launcher
  from simpo_jax.ledger import Mode

  from shared_programs import share_programs
  from simpo_jax import distributed
  from simpo_jax.errors import Stopped

  distributed.start(distributed.Options())
  share_programs()
  from simpo_jax import run as loop

  mode, number, bad_step = RUNS[run]
  launch, stops = Launcher.__call__, False

  def put(like, values):
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])

  def wrapped(self, state, asked, *args, **kwargs):
    done = [entry["mode"] for entry in self.log].count(asked.name.lower())
    last = jax.process_index() == jax.process_count() - 1
    if stops and last and (asked.name, done) == (mode, number):
      os.kill(os.getpid(), signal.SIGTERM)  # the next launch is the first to ask for it
    if (asked, done + 1) != (Mode.TRAIN, bad_step):
      return launch(self, state, asked, *args, **kwargs)
    norm = state.params["final_norm"]
    good = np.array(norm)
    bad = put(norm, np.full_like(good, np.nan))
    state = state._replace(params={**state.params, "final_norm": bad})
    state, report, seconds = launch(self, state, asked, *args, **kwargs)
    params = {**state.params, "final_norm": put(norm, good)}
    return state._replace(params=params), report, seconds

  Launcher.__call__ = wrapped
  loop.run(get_config(run), whole)
  stops = True
  try:
    loop.run(get_config(run), f"{run}/workdir")
    raise AssertionError("it was not stopped")
  except Stopped as e:
    print(e)
  distributed.finish()


def expected(workdir):
  """What a resumed run must leave, too."""
  from run_outcome import rows

  files = sorted(workdir.glob("samples/*/host_*.jsonl")) + sorted(workdir.glob("evaluations/*/*"))
  return {
    "metrics": rows(workdir / "metrics.jsonl"),
    "files": {str(path.relative_to(workdir)): rows(path) for path in files},
  }


def start(folder, arguments, count):
  """Runs as many processes as a run has hosts; each must end with 0."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    address = f"127.0.0.1:{free.getsockname()[1]}"
  processes = []
  for index in range(count):
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    if count > 1:
      env.update(
        JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(index)
      )
    command = [sys.executable, str(TESTS / "compatibility" / "make.py"), "work", *arguments]
    processes.append(subprocess.Popen(command, env=env, cwd=folder))
  assert [process.wait() for process in processes] == [0] * count


def main(folder):
  """Makes all of it."""
  os.chdir(folder)
  write_inputs(folder)
  for run in RUNS:
    (folder / run).mkdir()
    with tempfile.TemporaryDirectory() as scratch:
      whole = pathlib.Path(scratch) / "whole"
      start(folder, [run, str(whole)], PROCESSES.get(run, 1))
      text = json.dumps(expected(whole), indent=1)
    (folder / run / "expected.json").write_text(text + "\n")
    for path in (folder / run).rglob("commit_success.txt"):  # where it was is nobody's business
      path.write_text(path.read_text().replace(f"{folder}/", ""))


if __name__ == "__main__":
  if sys.argv[1] == "work":
    sys.path.insert(0, os.getcwd())
    work(*sys.argv[2:])
  else:
    main(pathlib.Path(sys.argv[1]).absolute())
