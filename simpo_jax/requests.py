"""Prompts to the program's requests, and the program's answers back to rows."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from simpo_jax.arith import ceil_div
from simpo_jax.data.prompts import Prompt
from simpo_jax.errors import UserError
from simpo_jax.generate import FINISH_REASONS, Asked, Generated, GenerateShape, Requests
from simpo_jax.paging import pages_needed
from simpo_jax.sampling import Sampling

_MAX_REQUESTS = 1_000_000


class Request(NamedTuple):
  """One answer asked for: a sample of a prompt, with its settings."""

  prompt: Prompt
  sample: int
  sampling: Sampling  # of numbers
  budget: int  # tokens it may generate


class Place(NamedTuple):
  """Where a request is answered."""

  group: int
  index: int  # in the group's queue
  process: int  # that writes its row


def make_requests(prompts: list[Prompt], config) -> list[Request]:
  """Every sample of every prompt, in prompt order; `config` is `config.generate`.

  Raises:
    UserError: more than anybody waits for, which would take all memory to list.
  """
  if len(prompts) * config.num_samples > _MAX_REQUESTS:
    raise UserError(
      f"{len(prompts)} prompts with --config.generate.num_samples={config.num_samples} ask for "
      f"more than {_MAX_REQUESTS:,} answers; lower num_samples, or --config.generate.count"
    )

  def request(prompt, sample):
    setting = lambda name: prompt.settings.get(name, config[name])  # noqa: E731
    sampling = Sampling(*map(setting, Sampling._fields))
    return Request(prompt, sample, sampling, setting("max_new_tokens"))

  return [request(p, s) for p in prompts for s in range(config.num_samples)]


def deal(requests: list[Request], groups: int, processes: int = 1) -> list[Place]:
  """Deals the requests round-robin, so that the groups' loads match.

  The samples of a prompt stay together, to share its pages, unless there are fewer
  prompts than groups. In the global mesh (one group) every process has every answer
  and each writes its part.
  """
  prompts = list(dict.fromkeys(r.prompt.index for r in requests))
  ordinal = {index: i for i, index in enumerate(prompts)}
  filled, places = [0] * groups, []
  for number, request in enumerate(requests):
    turn = ordinal[request.prompt.index] if len(prompts) >= groups else number
    group = turn % groups
    writer = (group if groups > 1 else number) % processes
    places.append(Place(group, filled[group], writer))
    filled[group] += 1
  return places


def request_pages(request: Request, page_size: int) -> int:
  """KV pages of the request's worst case; its last token is never cached."""
  return pages_needed(len(request.prompt.tokens) + request.budget - 1, page_size)


def worst_pages(requests: list[Request], groups: int, slots: int, page_size: int) -> int:
  """Pages of the `slots` largest requests of a group, the most that it can ever use."""
  needs: list[list[int]] = [[] for _ in range(groups)]
  for request, place in zip(requests, deal(requests, groups), strict=True):
    needs[place.group].append(request_pages(request, page_size))
  return max(sum(sorted(group, reverse=True)[:slots]) for group in needs)


def generate_shape(
  requests: list[Request],
  config,
  groups: int,
  platform: str = "cpu",
  stop_states: int = 1,
) -> GenerateShape:
  """The fixed sizes that hold these requests: a pool for the worst case, attention in plain XLA.

  Args:
    config: `config.generate`.
    platform: of the devices; decides what makes a good batch.
  """
  places = deal(requests, groups)
  per_group = 1 + max(p.index for p in places)
  slots = min(config.max_slots or per_group, per_group)
  longest = max(len(r.prompt.tokens) for r in requests)
  on_cpu = platform == "cpu"
  chunk = min(config.prefill_chunk or (32 if on_cpu else 128), longest)
  rows = config.prefill_rows or max(1, (256 if on_cpu else 512) // chunk)
  return GenerateShape(
    groups=groups,
    requests=per_group,
    slots=slots,
    widths=_widths(slots, on_cpu),
    prompt_tokens=longest,
    max_new_tokens=max(r.budget for r in requests),
    page_size=config.page_size,
    num_pages=worst_pages(requests, groups, slots, config.page_size),
    chunk=chunk,
    prefill_rows=min(rows, slots * ceil_div(longest, chunk)),
    stop_states=stop_states,
    attention="xla",
    shared_prompts=any(r.sample for r in requests),
    repetition_penalty=any(r.sampling.repetition_penalty != 1.0 for r in requests),
    sampled=any(r.sampling.temperature > 0 for r in requests),
  )


def _widths(slots: int, on_cpu: bool) -> tuple[int, ...]:
  """Batch sizes of a decode step: a step of few sequences should cost less than one of many.

  On a CPU it does from 4 on; an accelerator reads all weights for any small batch.
  """
  least, widths = 4 if on_cpu else 64, [slots]
  while widths[-1] // 4 >= least:
    widths.append(widths[-1] // 4)
  return tuple(widths)


def empty_requests(shape: GenerateShape, vocab_size: int) -> Requests:
  """Numpy arrays of the right sizes that ask for nothing."""
  size = (shape.groups, shape.requests)
  ints, floats = np.zeros(size, np.int32), np.zeros(size, np.float32)
  asked = Asked(
    tokens=np.zeros((*size, shape.prompt_tokens), np.int32),
    length=ints,
    budget=ints,
    prompt=ints,
    sample=ints,
    sampling=Sampling(floats, ints, floats, floats, floats),
  )
  asked = jax.tree.map(np.copy, asked)
  stops = np.zeros((shape.stop_states, vocab_size), np.int16)
  return Requests(asked, stops, np.zeros(2, np.uint32))


def pack_requests(
  requests: list[Request], shape: GenerateShape, stops: np.ndarray, seed: int
) -> Requests:
  """The requests as numpy arrays `[groups, N]`; `stops` is the stop automaton."""
  out = empty_requests(shape, stops.shape[1])
  asked = out.each
  for request, place in zip(requests, deal(requests, shape.groups), strict=True):
    at = place.group, place.index
    tokens = request.prompt.tokens
    asked.tokens[at][: len(tokens)] = tokens
    asked.length[at] = len(tokens)
    asked.budget[at] = request.budget
    asked.prompt[at] = request.prompt.index
    asked.sample[at] = request.sample
    for array, value in zip(asked.sampling, request.sampling, strict=True):
      array[at] = value
  out.stops[:] = stops
  out.seed[1] = seed  # a seed's raw key, as jax.random.key(seed) makes it
  return out


class Summary(NamedTuple):
  """Every request's result, in request order; small, and known to every process."""

  count: np.ndarray  # int32 [requests]
  finish: np.ndarray  # int32 [requests]
  logprob: np.ndarray  # float32 [requests]


def summarize(generated: Generated, places: list[Place]) -> Summary:
  """Collects the results that all hosts share.

  Raises:
    UserError: the model's logits are not finite for some prompt.
    RuntimeError: a request came back without an answer (a bug in the scheduler).
  """
  at = tuple(np.asarray([place[:2] for place in places]).T)
  out = Summary(
    *(np.asarray(x)[at] for x in (generated.count, generated.finish, generated.logprob))
  )
  lost = np.flatnonzero((out.count < 1) | ~np.isin(out.finish, list(FINISH_REASONS)))
  if lost.size:
    raise RuntimeError(f"requests {lost[:5].tolist()} came back unanswered; please report this")
  check_finite(out.logprob)
  return out


def check_finite(logprob: np.ndarray) -> None:
  """Raises a UserError if the model's logits were not finite for some request."""
  bad = np.flatnonzero(~np.isfinite(logprob))
  if bad.size:
    raise UserError(
      f"generation: the logits of requests {bad[:5].tolist()} ({bad.size} in all, some perhaps "
      "for what was decoded beside them) are not finite; "
      "check the weights, or lower --config.train.learning_rate if training did this"
    )


def sample_rows(
  numbers: Iterable[int],
  requests: list[Request],
  places: list[Place],
  generated: Generated,
  summary: Summary,
  decode,
  step: int,
  processes: int,
  logprobs: bool,
) -> Iterator[dict[str, Any]]:
  """Rows of the samples files; any process can make those of any request.

  Args:
    numbers: of the wanted requests.
    places: of all requests, from `deal`.
    decode: ids -> text.
    logprobs: also the log-probability of every token, which only the process that
      answers the request has.
  """
  tokens, each = np.asarray(generated.tokens), local_groups(generated.logprobs)
  for number in numbers:
    request, place, count = requests[number], places[number], summary.count[number]
    ids = tokens[place.group, place.index, :count].tolist()
    row = {
      "step": step,
      "process_index": place.process,
      "process_count": processes,
      "prompt_index": request.prompt.index,
      "sample_index": request.sample,
      "prompt": request.prompt.text,
      "generated_text": decode(ids),
      "generated_token_ids": ids,
      "generated_token_count": len(ids),
      "finish_reason": FINISH_REASONS[int(summary.finish[number])],
      "logprob_sum": round(float(summary.logprob[number]), 6),
    }
    if logprobs:
      values = each[place.group][place.index, :count].tolist()
      row["generated_token_logprobs"] = [round(x, 5) for x in values]
    yield row


def local_groups(array: jax.Array | np.ndarray) -> dict[int, np.ndarray]:
  """The leading-axis entries that this process holds, as numpy."""
  if isinstance(array, np.ndarray):
    return dict(enumerate(array))
  out = {}
  for shard in array.addressable_shards:
    start = shard.index[0].start or 0
    for offset, value in enumerate(np.asarray(shard.data)):
      out.setdefault(start + offset, value)
  return out
