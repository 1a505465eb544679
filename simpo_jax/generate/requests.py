"""Generation requests, and their arrays for the program."""

import jax
import numpy as np

from simpo_jax.data.types import Prompt
from simpo_jax.errors import UserError
from simpo_jax.generate.sampling import Sampling
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
  """Every sample of every prompt, in prompt order; `config` is `settings.generate`.

  Raises:
    UserError: too many requests to hold in memory.
  """
  if len(prompts) * settings.num_samples > _MAX_REQUESTS:
    raise UserError(
      f"{len(prompts)} prompts with --config.generate.num_samples={settings.num_samples} ask for "
      f"more than {_MAX_REQUESTS:,} answers; lower num_samples, or --config.generate.count"
    )

  def request(prompt, sample):
    setting = lambda name: prompt.settings.get(name, getattr(settings, name))  # noqa: E731
    sampling = Sampling(*map(setting, Sampling._fields))
    return Request(prompt, sample, sampling, setting("max_new_tokens"))

  return [request(p, s) for p in prompts for s in range(settings.num_samples)]


def empty_requests(shape: GenerateShape, vocab_size: int) -> Requests:
  """Numpy arrays of the right sizes, with no request in them."""
  size = (shape.groups, shape.requests)
  ints, floats = np.zeros(size, np.int32), np.zeros(size, np.float32)
  arrays = RequestArrays(
    tokens=np.zeros((*size, shape.prompt_tokens), np.int32),
    length=ints,
    budget=ints,
    prompt=ints,
    sample=ints,
    sampling=Sampling(floats, ints, floats, floats, floats),
  )
  arrays = jax.tree.map(np.copy, arrays)
  stops = np.zeros((shape.stop_states, vocab_size), np.int16)
  return Requests(arrays, stops, np.zeros(2, np.uint32))


def pack_requests(
  requests: list[Request],
  assignments: list[Assignment],
  shape: GenerateShape,
  stops: np.ndarray,
  seed: int,
) -> Requests:
  """The requests as numpy arrays `[groups, N]`; `stops` is the stop automaton."""
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
  out.seed[1] = seed  # a seed's raw key, as jax.random.key(seed) makes it
  return out


def request_contents(requests: Requests) -> Contents:
  """The contents of a generation for the ledger, request by request in queue order.

  Args:
    requests: numpy, of all groups.
  """
  arrays, stops = requests.each, [requests.stops, requests.seed]

  def item(at):
    tokens = arrays.tokens[at][: arrays.length[at]]
    numbers = [np.asarray(x[at]) for x in (arrays.budget, arrays.prompt, arrays.sample)]
    name = f"prompt {arrays.prompt[at]}, sample {arrays.sample[at]}"
    return name, [tokens, *numbers, *(np.asarray(x[at]) for x in arrays.sampling)]

  filled = [at for at in np.ndindex(arrays.length.shape) if arrays.length[at]]
  return contents([("stop tokens and seed", stops), *map(item, filled)])
