r"""Workdirs of runs that never ran, of any size, for the report.

  python tests/support/example_run.py FOLDER \
    --prompts=1024 --samples=4 --tokens=2048 --at=50,100,150,200

Numbers follow smooth curves with noise; answers are words of a made-up language, of which a
later generation has changed some. The same arguments give the same files.
"""

import json
import pathlib
import sys

import numpy as np
from absl import app, flags

WORDS = 8000
# What a page that is careless with texts would run, build or be broken by.
ATTACKS = (
  "<script>window.attacked=1</script>",
  "</script><script>window.attacked=1</script>",
  "</script ><img src=x onerror=window.attacked=1>",
  "<!--<script>window.attacked=1",
  "--><svg/onload=window.attacked=1>",
  "]]><script>window.attacked=1</script>",
  '"><iframe srcdoc="<script>parent.attacked=1</script>">',
  "<math><mtext></table><img src=x onerror=window.attacked=1>",
  "'-window.attacked=1-'",
  "${window.attacked=1}",
  "{{constructor.constructor('window.attacked=1')()}}",
  "javascript:window.attacked=1//",
  "&lt;script&gt;window.attacked=1&lt;/script&gt;",
  "<style>*{display:none}</style><link rel=stylesheet href=//evil.example/x>",
  "<base href=//evil.example/><meta http-equiv=refresh content=0;url=//evil.example/>",
  "<form action=//evil.example><button id=title>go</button></form>",
  "\u2028\u2029 a line that is none",
  "\u202e turned around \u2066 hidden \u200b",
  "\x00\x1b[31m\x7f\x9b control",
  "\U0001f600 e\u0301 \U0001f468\u200d\U0001f469",
)
START = 1_700_000_000.0  # seconds since 1970


def make(
  folder,
  prompts=6,
  samples=2,
  tokens=60,
  at=(2, 5),
  steps=24,
  hosts=1,
  texts=(),
  seed=0,
  status="done",
  learning_rate=1e-6,
  full=False,
):
  """Writes a workdir.

  Args:
    tokens: the longest answer, about four letters each.
    at: the steps after which something is generated.
    full: every answer is as long as it may be.
    texts: what the first prompts and answers say in place of made-up words.
  """
  rng = np.random.default_rng(seed)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  config = {
    "name": "made",
    "seed": seed,
    "model": {"source": "made/model", "param_dtype": "float32"},
    "data": {"train": ["pairs.jsonl"], "eval": []},
    "train": {"steps": steps, "batch_size": 8, "learning_rate": learning_rate},
    "simpo": {"beta": 2.0, "gamma_beta_ratio": 0.25, "loss_type": "sigmoid"},
    "generate": {
      "at_steps": list(at),
      "num_samples": samples,
      "max_new_tokens": tokens,
      "mode": "host_data_parallel",
      "ignore_eos": False,
    },
  }  # fmt: skip
  _write(folder / "config.json", config)
  rows, launches, saves = [], [], []
  clock, tokens_before = START + 41.0, None
  for step in range(1, steps + 1):
    part = step / steps
    noise = lambda size: float(rng.normal(0, size))  # noqa: E731
    margin, chosen = 0.9 * part + noise(0.1), -1.2 - 0.1 * part + noise(0.02)
    took = 2.0 + abs(noise(0.1))
    rows.append(
      {
        "step": step,
        "mode": "train",
        "loss": 1.0 - 0.4 * part + noise(0.03),
        "nll_loss": -chosen,
        "rewards/chosen": 2 * chosen,
        "rewards/rejected": 2 * chosen - margin,
        "rewards/margins": margin,
        "rewards/accuracies": float(np.clip(0.5 + 0.4 * part + noise(0.1), 0, 1)),
        "rewards/accuracies_gamma": float(np.clip(0.4 + 0.4 * part + noise(0.1), 0, 1)),
        "logps/chosen": chosen,
        "logps/rejected": chosen - margin / 2,
        "length/chosen": 310 + noise(20),
        "length/rejected": 340 + noise(20),
        "grad_norm": 2.0 + abs(noise(0.5)),
        "learning_rate": learning_rate * (1 - part),
        "tokens_per_second": 4000 / took,
        "step_seconds": took,
        "data_wait_seconds": 0.01,
        "rows": 4,
        "row_fill": 0.9,
      }
    )
    launches.append({"mode": "train", "seconds": took, "start": clock})
    clock += took + 0.05
    if step in at:
      tokens_before = _generate(
        folder, rng, step, prompts, samples, tokens, hosts, texts, tokens_before, full
      )
      counts = [len(t) for t in tokens_before.values()]
      rows.append(
        {
          "step": step,
          "mode": "generate",
          "requests": len(counts),
          "generated_tokens": sum(counts),
          "step_seconds": 30.0,
          "tokens_per_second": sum(counts) / 30,
          "finish_reasons": {"stop": len(counts)},
          "mean_tokens": sum(counts) / len(counts),
          "mean_logprob_per_token": -0.9,
        }
      )
      launches.append({"mode": "generate", "seconds": 30.0, "start": clock})
      clock += 30.1
      rows.append({**rows[-2], "mode": "evaluate", "pairs": 13, "step_seconds": 1.0})
      launches.append({"mode": "evaluate", "seconds": 1.0, "start": clock})
      clock += 1.1
      saves.append({"step": step, "seconds": 0.7, "start": clock})
      clock += 0.8
  (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  _write(folder / "run.json", record(launches, saves, clock, status, hosts))
  return folder


def record(launches, saves, end, status, hosts=1):
  """A run.json."""
  kept = {"total": 300, "kept": 298, "skipped": {"identical": 2}, "truncated": {"prompt": 91}}
  return {
    "status": status,
    "error": None,
    "compiles": 1,
    "executables": 1,
    "launches": [entry["mode"] for entry in launches],
    "devices": {"kind": "TPU v5p", "count": 4 * hosts, "mesh": {"host": hosts, "fsdp": 4}},
    "processes": hosts,
    "started": START,
    "model": {
      "name": "made-model",
      "type": "llama",
      "params": 134_515_008,
      "layer_weights": 106_168_320,
      "output_weights": 28_311_552,
      "cache_bytes_per_token": 23_040,
      "item_bytes": 2,
      "param_dtype": "float32",
      "compute_dtype": "bfloat16",
    },
    "versions": {"jax": "0.10.2", "python": "3.11.7"},
    "data": {"train": {**kept, "examples": {"identical": ["pairs.jsonl:12"]}}},
    "pairs": {"train": 285, "held_out": 13},
    "timings": {
      "compile": 40.0,
      "total": end - START,
      "launches": launches,
      "checkpoint_seconds": saves,
    },
    "resumes": [],
    "program": "0123456789abcdef",
    "peak_bytes": {"program": 9 * 2**30, "train": 9 * 2**30, "generate": 5 * 2**30, "abort": 2**30},
    "memory": {"arguments": 2**31, "aliased": 2**31, "temporaries": 2**32},
    "peak_rss_bytes": 2**31,
  }


def _generate(folder, rng, step, prompts, samples, tokens, hosts, texts, before, full):
  """One generation's files; answers are lists of word numbers, by (prompt, sample)."""
  vocabulary = _vocabulary()
  out = {}
  target = folder / "samples" / f"step_{step:06d}"
  target.mkdir(parents=True, exist_ok=True)
  files = [open(target / f"host_{h:04d}_of_{hosts:04d}.jsonl", "w") for h in range(hosts)]
  for prompt in range(prompts):
    for sample in range(samples):
      length = max(1, int(tokens * (1 if full else rng.beta(6, 2))))
      ids = np.minimum(rng.zipf(1.25, length), WORDS) - 1
      if before is not None:
        old = before[prompt, sample]
        ids = np.concatenate([old, ids])[:length]
        changed = rng.random(len(ids)) < 0.1
        ids[changed] = rng.integers(0, WORDS, changed.sum())
      out[prompt, sample] = ids
      text = " ".join(vocabulary[ids])
      asked = f"Question {prompt}: what is a {vocabulary[prompt % WORDS]}?"
      if prompt < len(texts):
        text, asked = f"{texts[prompt]} {text}", f"{texts[prompt]} {asked}"
      row = {
        "step": step,
        "process_index": prompt % hosts,
        "process_count": hosts,
        "prompt_index": prompt,
        "sample_index": sample,
        "prompt": asked,
        "generated_text": text,
        "generated_token_ids": ids.tolist(),
        "generated_token_count": len(ids),
        "finish_reason": "length" if length > 0.93 * tokens else "stop",
        "logprob_sum": -0.9 * len(ids) + float(rng.normal(0, 0.5)),
      }
      files[prompt % hosts].write(json.dumps(row, ensure_ascii=False) + "\n")
  for f in files:
    f.close()
  return out


def _vocabulary():
  rng = np.random.default_rng(1)
  lengths = rng.integers(1, 7, WORDS)
  return np.array(["".join(map(chr, rng.integers(97, 123, n))) for n in lengths])


def _write(path, value):
  path.write_text(json.dumps(value, indent=2))


def _main(argv):
  values = flags.FLAGS
  if len(argv) != 2:
    sys.exit("name one folder")
  at = tuple(map(int, values.at))
  make(argv[1], values.prompts, values.samples, values.tokens, at, max(at), values.hosts, full=True)


if __name__ == "__main__":
  flags.DEFINE_integer("prompts", 1024, "prompts")
  flags.DEFINE_integer("samples", 4, "answers of each")
  flags.DEFINE_integer("tokens", 2048, "of the longest answer")
  flags.DEFINE_list("at", "50,100,150,200", "steps that generate")
  flags.DEFINE_integer("hosts", 4, "hosts")
  flags.FLAGS.set_gnu_getopt()
  app.run(_main)
