"""Statistics of all generations of a run, and the texts that fit into the report.

A generation is all answers sampled after one step. Its texts are compressed in parts of
`part_size` consecutive prompts each.
"""

from typing import Any

import numpy as np

from simpo_jax import storage
from simpo_jax.report import least_times
from simpo_jax.report.samples import (
  FINISH,
  Answers,
  Generation,
  kept_parts,
  part_size,
  read_generation,
  size_and_mtime,
)

_BINS = 24  # of the histogram of answer lengths


def read_generations(
  folder: storage.Path,
  config: dict[str, Any],
  max_bytes: int,
  known: dict[Any, Generation],
  notes: list[str],
) -> list[Generation]:
  """Reads all generations in step order; those whose files have not changed come from `known`.

  Args:
    folder: the workdir.
    config: contents of config.json.
    max_bytes: limit for the compressed texts, in bytes.
    known: cache of generations between calls; updated in place.
    notes: a list to which problems are appended.
  """
  folders = sorted(p for p in (folder / "samples").glob("step_*") if p.name[5:].isdigit())
  size, max_parts, out = part_size(config), 2**31, []
  still_known: dict[Any, Generation] = {}
  sizes: dict[int, dict[int, int]] = {}
  for path in folders:
    try:
      files = tuple((f.name, *size_and_mtime(f)) for f in sorted(path.glob("host_*.jsonl")))
    except OSError as e:  # a resumed run removes samples that it will write again
      notes.append(f"samples/{path.name} cannot be read ({e.strerror or e})")
      continue
    key = (str(path), size, max_bytes, files)
    generation = known.get(key) or read_generation(path, size, max_parts)
    if not len(generation.answers.prompt):
      continue
    still_known[key] = generation
    out.append(generation)
    # The more generations there are, the fewer parts of each fit: from here on, parts numbered
    # `max_parts` and above need not be compressed.
    sizes[generation.step] = {part: len(text) for part, text in generation.parts.items()}
    max_parts = max(
      (1 + max(parts, default=0) for parts in kept_parts(sizes, max_bytes).values()), default=1
    )
  known.clear()
  for key, g in still_known.items():
    texts = {part: text for part, text in g.parts.items() if part < max_parts}
    known[key] = g._replace(parts=texts)
  for g in out:
    if g.hosts[0] < g.hosts[1]:
      notes.append(
        f"samples of step {g.step}: files of {g.hosts[0]} of {g.hosts[1]} hosts are in this folder"
      )
    if g.unreadable:
      notes.append(f"samples of step {g.step}: {g.unreadable} lines are not samples")
  return out


def generation_figures(
  g: Generation, row: dict[str, Any], record: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
  """Returns statistics of a generation.

  Args:
    g: the generation.
    row: its row of metrics.jsonl; {} if there is none.
    record: contents of run.json.
    config: contents of config.json.
  """
  a: Answers = g.answers
  top = max(int(a.tokens.max()), config.get("generate", {}).get("max_new_tokens", 1))
  scored = np.isfinite(a.logprob)
  known = np.isfinite(a.repetition)
  return {
    "step": g.step,
    "answers": len(a.tokens),
    "prompts": len(g.prompts),
    "tokens": int(a.tokens.sum()),
    "mean_tokens": float(a.tokens.mean()),
    "longest": int(a.tokens.max()),
    "histogram": np.histogram(a.tokens, _BINS, (0, top))[0].tolist(),
    "histogram_to": top,
    "cut_share": float(np.mean(a.finish == FINISH.index("length"))),
    "empty_share": float(a.empty.mean()),
    "repetition": _mean(a.repetition[known]),
    "logprob": _mean(a.logprob[scored], a.tokens[scored]),
    "seconds": row.get("step_seconds"),
    "tokens_per_second": row.get("tokens_per_second"),
    "floor_seconds": least_times.generate_seconds(record, config, a.tokens),
  }


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float | None:
  return float(np.average(values, weights=weights)) if len(values) else None


def answer_columns(generations: list[Generation]) -> dict[str, Any]:
  """Returns, per generation and statistic, a list over all (prompt, sample) pairs of the run.

  An entry is None where the generation has no such answer.
  """
  prompts: dict[int, tuple[str, str]] = {}
  for g in generations:
    prompts.update(g.prompts)
  order = sorted(prompts)
  samples = 1 + max((int(g.answers.sample.max()) for g in generations), default=0)
  rows = []
  for g in generations:
    a = g.answers
    at = np.searchsorted(order, a.prompt) * samples + a.sample

    def by_position(
      values: np.ndarray, digits: int | None = None, at: np.ndarray = at
    ) -> list[Any]:
      out: list[Any] = [None] * (len(order) * samples)
      for i, value in zip(at.tolist(), values.tolist(), strict=True):
        out[i] = value if digits is None else round(value, digits)
      return out

    rows.append(
      {
        "tokens": by_position(a.tokens),
        "finish": by_position(a.finish),
        "logprob": by_position(a.logprob, 3),
        "repetition": by_position(a.repetition, 3),
        "empty": by_position(a.empty.astype(int)),
      }
    )
  return {
    "prompts": [[index, *prompts[index]] for index in order],
    "samples": samples,
    "generations": rows,
  }


def select_texts(
  generations: list[Generation], size: int, max_bytes: int
) -> tuple[dict[tuple[int, int], bytes], dict[int, bytes], dict[str, Any]]:
  """Selects the compressed texts of answers and prompts that fit, and describes the selection."""
  sizes = {g.step: {part: len(text) for part, text in g.parts.items()} for g in generations}
  prompts = {part: text for g in reversed(generations) for part, text in g.prompt_parts.items()}
  kept = kept_parts(sizes, max_bytes - sum(map(len, prompts.values())))
  parts = {
    (number, part): g.parts[part]
    for number, g in enumerate(generations)
    for part in sorted(kept[g.step])
  }
  shown = set().union(*kept.values()) if kept else set()
  everything = {p // size for g in generations for p in g.prompts}
  return (
    parts,
    {part: prompts[part] for part in sorted(shown & prompts.keys())},
    {
      "part_size": size,
      "parts": [sorted(kept[g.step]) for g in generations],
      "complete": all(each == everything for each in kept.values()),
      "max_bytes": max_bytes,
      "files": [f"samples/step_{g.step:06d}/" for g in generations],
      "finish": FINISH,
    },
  )
