"""Prompts to the program's requests, and the program's answers back to rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from simpo_jax.data.prompts import Prompt
from simpo_jax.generate import FINISH_REASONS, Generated, GenerateShape, Requests
from simpo_jax.paging import pages_needed
from simpo_jax.sampling import Sampling


class Request(NamedTuple):
  """One answer asked for: a sample of a prompt."""

  prompt: Prompt
  sample: int


def make_requests(prompts: list[Prompt], num_samples: int) -> list[Request]:
  """Every sample of every prompt, in prompt order."""
  return [Request(p, s) for p in prompts for s in range(num_samples)]


def generate_shape(requests: list[Request], config, groups: int) -> GenerateShape:
  """The fixed sizes that hold these requests; `config` is `config.generate`."""
  per_group = pages_needed(len(requests), groups)
  slots = min(config.max_slots or per_group, per_group)
  longest = max(len(r.prompt.tokens) for r in requests)
  chunk = min(config.prefill_chunk, longest)
  return GenerateShape(
    groups=groups,
    requests=pages_needed(per_group, slots) * slots,
    slots=slots,
    prompt_tokens=pages_needed(longest, chunk) * chunk,
    max_new_tokens=config.max_new_tokens,
    page_size=config.page_size,
    chunk=chunk,
    attention=config.attention,
  )


def place_of(number: int, groups: int) -> tuple[int, int]:
  """Where request `number` goes, (group, index): dealt round-robin, so that loads match."""
  return number % groups, number // groups


def pack_requests(
  requests: list[Request],
  shape: GenerateShape,
  config,
  stop_ids: tuple[int, ...],
  max_stop_ids: int,
) -> Requests:
  """The requests as numpy arrays `[groups, N]`; entries left over are empty."""
  size = (shape.groups, shape.requests)
  out = Requests(
    tokens=np.zeros((*size, shape.prompt_tokens), np.int32),
    length=np.zeros(size, np.int32),
    prompt=np.zeros(size, np.int32),
    sample=np.zeros(size, np.int32),
    sampling=Sampling(
      np.full(size, config.temperature, np.float32),
      np.full(size, config.top_k, np.int32),
      np.full(size, config.top_p, np.float32),
    ),
    stop_ids=np.full(max_stop_ids, -1, np.int32),
    # A seed's raw key, as jax.random.key(seed) would make it on the device.
    seed=np.asarray([0, config.seed], np.uint32),
  )
  for number, (prompt, sample) in enumerate(requests):
    at = place_of(number, shape.groups)
    out.tokens[at][: len(prompt.tokens)] = prompt.tokens
    out.length[at] = len(prompt.tokens)
    out.prompt[at] = prompt.index
    out.sample[at] = sample
  if not config.ignore_eos:
    out.stop_ids[: len(stop_ids)] = stop_ids
  return out


class Summary(NamedTuple):
  """Every request's result, in request order; small, and known to every process."""

  count: np.ndarray  # int32 [requests]
  finish: np.ndarray  # int32 [requests]
  logprob: np.ndarray  # float32 [requests]


def summarize(generated: Generated, total: int, groups: int) -> Summary:
  """Collects the results that all hosts share.

  Raises:
    RuntimeError: a request came back without an answer (a bug in the scheduler).
  """
  at = tuple(np.asarray([place_of(i, groups) for i in range(total)]).T)
  out = Summary(
    *(np.asarray(x)[at] for x in (generated.count, generated.finish, generated.logprob))
  )
  lost = np.flatnonzero((out.count < 1) | ~np.isin(out.finish, list(FINISH_REASONS)))
  if lost.size:
    raise RuntimeError(f"requests {lost[:5].tolist()} came back unanswered; please report this")
  return out


def sample_rows(
  requests: list[Request],
  generated: Generated,
  summary: Summary,
  decode,
  step: int,
  process: int,
  processes: int,
) -> Iterator[dict[str, Any]]:
  """This process's rows of the samples file, in request order.

  In host data parallel mode a process has the tokens of its own group; in the
  global mesh everyone has all and takes every `processes`-th.
  """
  local = local_groups(generated.tokens)
  groups = generated.tokens.shape[0]
  for number, (prompt, sample) in enumerate(requests):
    group, index = place_of(number, groups)
    if number % processes != process or group not in local:
      continue
    ids = local[group][index, : summary.count[number]].tolist()
    yield {
      "step": step,
      "process_index": process,
      "process_count": processes,
      "prompt_index": prompt.index,
      "sample_index": sample,
      "prompt": prompt.text,
      "generated_text": decode(ids),
      "generated_token_ids": ids,
      "generated_token_count": len(ids),
      "finish_reason": FINISH_REASONS[int(summary.finish[number])],
      "logprob_sum": round(float(summary.logprob[number]), 6),
    }


def local_groups(array: jax.Array) -> dict[int, np.ndarray]:
  """The leading-axis entries that this process holds, as numpy."""
  out = {}
  for shard in array.addressable_shards:
    start = shard.index[0].start or 0
    for offset, value in enumerate(np.asarray(shard.data)):
      out.setdefault(start + offset, value)
  return out
