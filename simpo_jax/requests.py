"""Prompts to the program's requests, and the program's answers back to rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from simpo_jax.arith import ceil_div, round_up
from simpo_jax.data.prompts import Prompt
from simpo_jax.errors import UserError
from simpo_jax.generate import FINISH_REASONS, Asked, Generated, GenerateShape, Requests
from simpo_jax.sampling import Sampling

MAX_STOP_IDS = 16


class Request(NamedTuple):
  """One answer asked for: a sample of a prompt."""

  prompt: Prompt
  sample: int


def make_requests(prompts: list[Prompt], num_samples: int) -> list[Request]:
  """Every sample of every prompt, in prompt order."""
  return [Request(p, s) for p in prompts for s in range(num_samples)]


def generate_shape(requests: list[Request], config, groups: int) -> GenerateShape:
  """The fixed sizes that hold these requests; `config` is `config.generate`."""
  per_group = ceil_div(len(requests), groups)
  slots = min(config.max_slots or per_group, per_group)
  longest = max(len(r.prompt.tokens) for r in requests)
  chunk = min(config.prefill_chunk, longest)
  return GenerateShape(
    groups=groups,
    requests=round_up(per_group, slots),
    slots=slots,
    prompt_tokens=round_up(longest, chunk),
    max_new_tokens=config.max_new_tokens,
    page_size=config.page_size,
    chunk=chunk,
    attention=config.attention,
  )


def place_of(number: int, groups: int) -> tuple[int, int]:
  """Where request `number` goes, (group, index): dealt round-robin, so that loads match."""
  return number % groups, number // groups


def empty_requests(shape: GenerateShape) -> Requests:
  """Numpy arrays of the right sizes that ask for nothing."""
  size = (shape.groups, shape.requests)
  zeros = lambda dtype: np.zeros(size, dtype)  # noqa: E731
  asked = Asked(
    tokens=np.zeros((*size, shape.prompt_tokens), np.int32),
    length=zeros(np.int32),
    prompt=zeros(np.int32),
    sample=zeros(np.int32),
    sampling=Sampling(zeros(np.float32), zeros(np.int32), zeros(np.float32)),
  )
  return Requests(asked, np.full(MAX_STOP_IDS, -1, np.int32), np.zeros(2, np.uint32))


def pack_requests(
  requests: list[Request], shape: GenerateShape, config, stop_ids: tuple[int, ...]
) -> Requests:
  """The requests as numpy arrays `[groups, N]`; `config` is `config.generate`."""
  out = empty_requests(shape)
  asked = out.each
  asked.sampling.temperature[:] = config.temperature
  asked.sampling.top_k[:] = config.top_k
  asked.sampling.top_p[:] = config.top_p
  for number, (prompt, sample) in enumerate(requests):
    at = place_of(number, shape.groups)
    asked.tokens[at][: len(prompt.tokens)] = prompt.tokens
    asked.length[at] = len(prompt.tokens)
    asked.prompt[at] = prompt.index
    asked.sample[at] = sample
  if not config.ignore_eos:
    out.stop_ids[: len(stop_ids)] = stop_ids
  out.seed[1] = config.seed  # a seed's raw key, as jax.random.key(seed) makes it
  return out


class Summary(NamedTuple):
  """Every request's result, in request order; small, and known to every process."""

  count: np.ndarray  # int32 [requests]
  finish: np.ndarray  # int32 [requests]
  logprob: np.ndarray  # float32 [requests]


def summarize(generated: Generated, total: int, groups: int) -> Summary:
  """Collects the results that all hosts share.

  Raises:
    UserError: the model's logits are not finite for some prompt.
    RuntimeError: a request came back without an answer (a bug in the scheduler).
  """
  at = tuple(np.asarray([place_of(i, groups) for i in range(total)]).T)
  out = Summary(
    *(np.asarray(x)[at] for x in (generated.count, generated.finish, generated.logprob))
  )
  lost = np.flatnonzero((out.count < 1) | ~np.isin(out.finish, list(FINISH_REASONS)))
  if lost.size:
    raise RuntimeError(f"requests {lost[:5].tolist()} came back unanswered; please report this")
  bad = np.flatnonzero(~np.isfinite(out.logprob))
  if bad.size:
    raise UserError(
      f"generation: the logits of requests {bad[:5].tolist()} ({bad.size} in all) are not finite; "
      "check the weights, or lower --config.train.learning_rate if training did this"
    )
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
