"""Generation requests, and their arrays as inputs of the program."""

from typing import Any

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int16

from simpo_jax.data.types import Prompt
from simpo_jax.errors import UserError
from simpo_jax.generate.sampling.settings import Sampling
from simpo_jax.generate.suppression import Suppression, empty_suppression
from simpo_jax.generate.types import (
  Assignment,
  GenerateShape,
  Request,
  RequestArrays,
  Requests,
)
from simpo_jax.program.ledger import Contents, contents
from simpo_jax.settings import GenerateSettings

_MAX_REQUESTS = 1_000_000


def make_requests(prompts: list[Prompt], settings: GenerateSettings) -> list[Request]:
  """Returns a request for each sample of each prompt, in prompt order.

  A prompt's own settings (`Prompt.settings`) take precedence over `settings`.

  Raises:
    UserError: more than a million requests, too many to hold in memory.
  """
  if len(prompts) * settings.num_samples > _MAX_REQUESTS:
    raise UserError(
      f"{len(prompts)} prompts with --config.generate.num_samples={settings.num_samples} ask for "
      f"more than {_MAX_REQUESTS:,} answers; lower num_samples, or --config.generate.count"
    )

  def request(prompt: Prompt, sample: int) -> Request:
    def setting(name: str) -> Any:
      return prompt.settings.get(name, getattr(settings, name))

    sampling = Sampling(*map(setting, Sampling._fields))
    return Request(prompt, sample, sampling, setting("max_new_tokens"))

  return [request(p, s) for p in prompts for s in range(settings.num_samples)]


def empty_requests(shape: GenerateShape, vocab_size: int) -> Requests:
  """Returns numpy arrays of the sizes in `shape`, without any request."""

  def zeros(dtype: DTypeLike, *sizes: int) -> Any:  # numpy, where the fields say Array
    return np.zeros(sizes, dtype)

  size = (shape.groups, shape.requests)
  each = RequestArrays(
    tokens=zeros(np.int32, *size, shape.prompt_tokens),
    length=zeros(np.int32, *size),
    budget=zeros(np.int32, *size),
    prompt=zeros(np.int32, *size),
    sample=zeros(np.int32, *size),
    sampling=Sampling(
      temperature=zeros(np.float32, *size),
      top_k=zeros(np.int32, *size),
      top_p=zeros(np.float32, *size),
      min_p=zeros(np.float32, *size),
      repetition_penalty=zeros(np.float32, *size),
    ),
  )
  stops = zeros(np.int16, shape.stop_states, vocab_size)
  suppression = empty_suppression(vocab_size) if shape.suppression else None
  return Requests(each, stops, zeros(np.uint32, 2), suppression)


def pack_requests(
  requests: list[Request],
  assignments: list[Assignment],
  shape: GenerateShape,
  stops: Int16[np.ndarray, "stop_states V"],
  seed: int,
  suppression: Suppression | None = None,
) -> Requests:
  """Packs the requests of all groups into numpy arrays.

  Args:
    assignments: one per request, from `round_robin`.
    shape: large enough for all requests; from `shape_for`.
    stops: the transition table of the stop automaton (`stop_automaton.py`).
    seed: sampling seed, below 2**32.
    suppression: numpy arrays, as `shape.suppression` says; None if nothing is suppressed.
  """
  assert shape.suppression == (suppression is not None)
  out = empty_requests(shape, stops.shape[1])
  arrays = out.each
  for request, assignment in zip(requests, assignments, strict=True):
    at = assignment.group, assignment.index
    tokens = request.prompt.tokens
    arrays.tokens[at][: len(tokens)] = tokens
    arrays.length[at] = len(tokens)
    arrays.budget[at] = request.budget
    arrays.prompt[at] = request.prompt.index
    arrays.sample[at] = request.sample
    for array, value in zip(arrays.sampling, request.sampling, strict=True):
      array[at] = value
  out.stops[:] = stops
  out.seed[1] = seed  # the key data of jax.random.key(seed)
  return out._replace(suppression=suppression)


def request_contents(requests: Requests) -> Contents:
  """Returns the contents of a generation for the ledger, one item per request in queue order.

  Args:
    requests: numpy arrays of all groups.
  """
  arrays, stops = requests.each, [requests.stops, requests.seed, *(requests.suppression or ())]

  def item(at: tuple[int, ...]) -> tuple[str, list[np.ndarray]]:
    tokens = arrays.tokens[at][: arrays.length[at]]
    numbers = [np.asarray(x[at]) for x in (arrays.budget, arrays.prompt, arrays.sample)]
    name = f"prompt {arrays.prompt[at]}, sample {arrays.sample[at]}"
    return name, [np.asarray(tokens), *numbers, *(np.asarray(x[at]) for x in arrays.sampling)]

  filled = [at for at in np.ndindex(arrays.length.shape) if arrays.length[at]]
  return contents([("stop tokens and seed", stops), *map(item, filled)])
