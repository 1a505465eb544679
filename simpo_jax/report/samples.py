"""Reads the sample files of a generation: statistics per answer, and texts compressed in parts.

A part has the texts of neighboring prompts, so that the report page decompresses only what is
shown and not tens of megabytes.
"""

import base64
import json
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from simpo_jax import storage

NGRAM = 4  # tokens; see `repetition`
FINISH = ("stop", "length", "other")
_PART_BYTES = 2**20  # approximate size of the texts of a part, if all answers have full length
_TOKEN_BYTES = 4  # approximate
_HEAD = 160  # characters of a prompt in the list of prompts


class Answers(NamedTuple):
  """Statistics of a generation's answers, sorted by prompt and sample; arrays [answers]."""

  prompt: np.ndarray  # int, prompt_index
  sample: np.ndarray  # int
  tokens: np.ndarray  # int
  finish: np.ndarray  # int, an index into FINISH
  logprob: np.ndarray  # mean per token; NaN if not known
  repetition: np.ndarray  # NaN for short answers
  empty: np.ndarray  # bool: only whitespace


class Generation(NamedTuple):
  """Contents of a folder samples/step_*.

  Attributes:
    prompts: the first characters and the CRC-32 of each prompt, by prompt index.
    parts: answers by part, as packed {"prompt index": {"sample index": text}}.
    prompt_parts: prompts by part, as packed {"prompt index": text}.
    hosts: number of hosts whose files exist, and number of hosts of the run.
    unreadable: number of lines that are not samples.
  """

  step: int
  answers: Answers
  prompts: dict[int, tuple[str, str]]
  parts: dict[int, bytes]
  prompt_parts: dict[int, bytes]
  hosts: tuple[int, int]
  unreadable: int


def part_size(config: dict[str, Any]) -> int:
  """Returns the prompts per part, a power of two; the same for all generations of a run."""
  settings = config.get("generate", {})
  samples, tokens = settings.get("num_samples", 1), settings.get("max_new_tokens", 2048)
  per_prompt = max(1, samples * tokens * _TOKEN_BYTES)
  return 1 << max(0, (_PART_BYTES // per_prompt).bit_length() - 1)


def read_generation(folder: storage.Path, size: int, max_parts: int) -> Generation:
  """Reads all hosts' files of a generation; skips lines that are incomplete or damaged.

  Args:
    folder: samples/step_*.
    size: prompts per part.
    max_parts: texts of parts from this number on are not kept.
  """
  answers: dict[tuple[int, int], tuple] = {}
  prompts, hosts, expected, unreadable = {}, 0, 1, 0
  texts: dict[int, dict[int, dict[int, str]]] = {}
  full: dict[int, dict[int, str]] = {}
  for path in sorted(folder.glob("host_*.jsonl")):
    hosts += 1
    for row in read_lines(path):
      try:
        prompt, sample = int(row["prompt_index"]), int(row["sample_index"])
        text, question = str(row["generated_text"]), str(row["prompt"])
        answers[prompt, sample] = _figures(row, text)
        expected = max(expected, int(row["process_count"]))
      except (KeyError, TypeError, ValueError, OverflowError):
        unreadable += 1
        continue
      if prompt not in prompts:
        # Identifies equal prompts of two runs; not a security feature.
        prompts[prompt] = (question[:_HEAD], f"{zlib.crc32(question.encode(errors='replace')):08x}")
      part = prompt // size
      if part < max_parts:
        texts.setdefault(part, {}).setdefault(prompt, {})[sample] = text
        full.setdefault(part, {})[prompt] = question
  rows = [(*key, *answers[key]) for key in sorted(answers)]
  columns = zip(*rows, strict=True) if rows else [()] * len(Answers._fields)
  return Generation(
    step=int(folder.name.removeprefix("step_")),
    answers=Answers(*map(np.asarray, columns)),
    prompts=prompts,
    parts={part: pack(each) for part, each in texts.items()},
    prompt_parts={part: pack(each) for part, each in full.items()},
    hosts=(hosts, expected),
    unreadable=unreadable,
  )


def _figures(row: dict[str, Any], text: str) -> tuple[int, int, float, float, bool]:
  """Returns the fields of `Answers` after `prompt` and `sample`."""
  tokens, total = int(row["generated_token_count"]), row.get("logprob_sum")
  finish = row["finish_reason"]
  return (
    tokens,
    FINISH.index(finish) if finish in FINISH else len(FINISH) - 1,
    float(total) / tokens if total is not None and tokens else math.nan,
    repetition(np.asarray(row.get("generated_token_ids") or (), np.int64)),
    not text.strip(),
  )


def repetition(ids: np.ndarray) -> float:
  """Returns the share of token n-grams that occurred earlier in the answer; NaN if it is short.

  0: no n-gram occurs twice; near 1: a phrase is repeated over and over.

  Args:
    ids: int [T], tokens of the answer.
  """
  count = len(ids) - NGRAM + 1
  if count < NGRAM:
    return math.nan
  grams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM)
  # A polynomial hash of each n-gram, modulo 2**64: collisions are rare.
  factors = np.int64(6364136223846793005) ** np.arange(NGRAM, dtype=np.int64)
  with np.errstate(over="ignore"):
    keys = grams @ factors
  return 1.0 - len(np.unique(keys)) / count


def read_lines(path: storage.Path, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
  """Yields the objects of a JSONL file; ignores an incomplete last line.

  Args:
    path: the file.
    problems: a list for notes, if other lines are not objects or the file cannot be read.
  """
  bad = 0
  try:
    with path.open("rb") as f:
      for line in f:
        try:
          row = json.loads(line)
        except ValueError:
          bad += line.endswith(b"\n")
          continue
        if isinstance(row, dict):
          yield row
        else:
          bad += 1
  except OSError as e:
    if problems is not None:
      problems.append(f"{path.name} cannot be read ({e.strerror or e})")
  if bad and problems is not None:
    problems.append(f"{path.name}: {bad} lines are not JSON objects and are left out")


def size_and_mtime(path: storage.Path) -> tuple[int, float]:
  """Returns the size in bytes and the modification time of a local file or bucket object."""
  found = path.stat()
  if isinstance(found, os.stat_result):
    return found.st_size, found.st_mtime
  return found.length, found.mtime


def pack(value: Any) -> bytes:
  """Returns zlib-compressed JSON in base64, which needs no escaping in HTML."""
  text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
  return base64.b64encode(zlib.compress(text.encode(errors="replace"), 6))


def kept_parts(sizes: dict[int, dict[int, int]], most: int) -> dict[int, set[int]]:
  """Selects the parts whose texts fit into `most` bytes, by step.

  Keeps the same parts of all generations, so that they can be compared. If not even one part
  of each fits, keeps the first part of as many generations as possible: the last one, the first,
  the second to last, and so on.

  Args:
    sizes: bytes by step and part.
    most: limit in bytes.
  """
  kept: dict[int, set[int]] = {step: set() for step in sizes}
  left = most
  for part in sorted({part for each in sizes.values() for part in each}):
    here = {step: each[part] for step, each in sizes.items() if part in each}
    if sum(here.values()) > left:
      break
    left -= sum(here.values())
    for step in here:
      kept[step].add(part)
  if any(kept.values()):
    return kept
  steps = sorted(sizes)
  for step in [*steps[-1:], *steps[:1], *reversed(steps[1:-1])]:
    first = min(sizes[step], default=None)
    if first is not None and sizes[step][first] <= left:
      left -= sizes[step][first]
      kept[step].add(first)
  return kept
