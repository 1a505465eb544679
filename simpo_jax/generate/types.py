"""Types of generation: requests, shapes and answers."""

from typing import NamedTuple

import jax

from simpo_jax.data.types import Prompt
from simpo_jax.generate.kv_pages import pages_needed
from simpo_jax.generate.sampling import Sampling

RUNNING, STOP, LENGTH = 0, 1, 2
FINISH_REASONS = {STOP: "stop", LENGTH: "length"}


class GenerateShape(NamedTuple):
  """The fixed sizes and choices of generation; part of the compiled program."""

  groups: int  # independent prompt groups: hosts, or 1 for the global mesh
  requests: int  # N requests per group
  slots: int  # sequences decoded at once, per group
  widths: tuple[int, ...]  # batch sizes of a decode step, falling from `slots`
  prompt_tokens: int  # of the longest prompt
  max_new_tokens: int
  page_size: int
  num_pages: int  # P, per group and layer
  chunk: int  # T, prompt tokens of a row of a prefill pass
  prefill_rows: int  # rows of a prefill pass
  stop_states: int  # of the stop automaton
  attention: str  # implementation of paged attention
  shared_prompts: bool  # several requests have the same prompt
  repetition_penalty: bool  # some request has one
  sampled: bool  # some request has a temperature

  @property
  def pages_per_seq(self) -> int:
    return pages_needed(self.prompt_tokens + self.max_new_tokens, self.page_size)


class Request(NamedTuple):
  """A request for one sample of a prompt, with its settings."""

  prompt: Prompt
  sample: int
  sampling: Sampling  # of numbers
  budget: int  # tokens it may generate


class Assignment(NamedTuple):
  """The group, queue position and process of a request."""

  group: int
  index: int  # in the group's queue
  process: int  # that writes its row


class RequestArrays(NamedTuple):
  """What each request asks for: arrays `[groups, N]`, N requests per group."""

  tokens: jax.Array  # int32 [groups, N, T], the prompt, padded on the right
  length: jax.Array  # int32, prompt tokens; 0 for an unused entry, which come last
  budget: jax.Array  # int32, tokens it may generate, at most `max_new_tokens`
  prompt: jax.Array  # int32, global prompt index
  sample: jax.Array  # int32, sample index of that prompt
  sampling: Sampling


class Requests(NamedTuple):
  """What to generate."""

  each: RequestArrays
  stops: jax.Array  # int16 [states, V], the stop automaton (`stop_automaton.py`)
  seed: jax.Array  # uint32 [2], key data


class Generated(NamedTuple):
  """The answers, in request order: `[groups, N]`, or `[groups, N, max_new_tokens]`."""

  tokens: jax.Array  # int32, a stop token included; -1 past the end
  logprobs: jax.Array  # float32, the model's log-probability of each token; 0 past the end
  count: jax.Array  # int32, tokens generated
  finish: jax.Array  # int32: STOP, LENGTH, or RUNNING for an unused entry
  logprob: jax.Array  # float32, sum of `logprobs`
