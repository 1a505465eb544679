"""A generation's sample files: figures of every answer, and the texts, compressed in parts.

A part holds the texts of some neighboring prompts, so that a reader of the report unpacks
what is looked at and not tens of megabytes.
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
_PART_BYTES = 2**20  # of texts, about, at the longest that answers may be
_TOKEN_BYTES = 4  # of text, about
_HEAD = 160  # characters of a prompt in the list


class Answers(NamedTuple):
  """Figures of a generation's answers, in order of prompt and sample; arrays [answers]."""

  prompt: np.ndarray  # int, as the run counts them
  sample: np.ndarray  # int
  tokens: np.ndarray  # int
  finish: np.ndarray  # int, of FINISH
  logprob: np.ndarray  # per token; NaN where it is not known
  repetition: np.ndarray  # NaN for short answers
  empty: np.ndarray  # bool: no text but white space


class Generation(NamedTuple):
  """What one folder samples/step_* holds.

  Attributes:
    prompts: the head and the hash of every prompt.
    parts: the answers' texts by part, {"prompt index": {"sample index": text}}, packed.
    prompt_parts: the prompts' texts by part, {"prompt index": text}, packed.
    hosts: whose files are there, and how many there should be.
    unreadable: lines that are no sample.
  """

  step: int
  answers: Answers
  prompts: dict[int, tuple[str, str]]
  parts: dict[int, bytes]
  prompt_parts: dict[int, bytes]
  hosts: tuple[int, int]
  unreadable: int


def part_size(config: dict[str, Any]) -> int:
  """Prompts per part, a power of two; the same for all generations of a run."""
  settings = config.get("generate", {})
  samples, tokens = settings.get("num_samples", 1), settings.get("max_new_tokens", 2048)
  per_prompt = max(1, samples * tokens * _TOKEN_BYTES)
  return 1 << max(0, (_PART_BYTES // per_prompt).bit_length() - 1)


def read_generation(folder: storage.Path, size: int, most_parts: int) -> Generation:
  """Reads all hosts' files of a generation, in whatever state they are.

  Args:
    folder: samples/step_*.
    size: prompts per part.
    most_parts: texts of later parts are not kept.
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
        text, asked = str(row["generated_text"]), str(row["prompt"])
        answers[prompt, sample] = _figures(row, text)
        expected = max(expected, int(row["process_count"]))
      except (KeyError, TypeError, ValueError, OverflowError):
        unreadable += 1
        continue
      if prompt not in prompts:
        # Not for safety: which prompts of two runs are the same.
        prompts[prompt] = (asked[:_HEAD], f"{zlib.crc32(asked.encode(errors='replace')):08x}")
      part = prompt // size
      if part < most_parts:
        texts.setdefault(part, {}).setdefault(prompt, {})[sample] = text
        full.setdefault(part, {})[prompt] = asked
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
  """A sample's fields of `Answers`, but for its place."""
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
  """The share of an answer's n-grams of tokens that stood in it before; NaN if it is short.

  0 where no n-gram comes twice; near 1 where one phrase is repeated over and over.

  Args:
    ids: int [T].
  """
  count = len(ids) - NGRAM + 1
  if count < NGRAM:
    return math.nan
  grams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM)
  # One number per n-gram: wrapping arithmetic with an odd factor, whose collisions are rare.
  factors = np.int64(6364136223846793005) ** np.arange(NGRAM, dtype=np.int64)
  with np.errstate(over="ignore"):
    keys = grams @ factors
  return 1.0 - len(np.unique(keys)) / count


def read_lines(path: storage.Path, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
  """The objects of a JSONL file; a last line that is still being written is left out.

  Args:
    problems: gets a note if other lines are no objects, or the file cannot be read.
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
    problems.append(f"{path.name}: {bad} lines are no JSON objects and are left out")


def look(path: storage.Path) -> tuple[int, float]:
  """Size and time of a file, which a bucket's path gives under other names."""
  found = path.stat()
  if isinstance(found, os.stat_result):
    return found.st_size, found.st_mtime
  return found.length, found.mtime


def pack(value: Any) -> bytes:
  """JSON, compressed, in base64: letters that HTML leaves alone."""
  text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
  return base64.b64encode(zlib.compress(text.encode(errors="replace"), 6))


def kept_parts(sizes: dict[int, dict[int, int]], most: int) -> dict[int, set[int]]:
  """Which parts' texts a report of at most so many bytes keeps, by generation.

  The same parts of every generation, so that they can be compared: as many as fit. If not
  even one of each does, the first part of the last generation, the first, the one before
  the last, and so on.

  Args:
    sizes: bytes by step and part.
    most: bytes in all.
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
