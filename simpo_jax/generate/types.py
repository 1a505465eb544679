"""Types of generation: requests, shapes and answers.

Trees of arrays are annotated with their types inside the program. The same trees also hold
numpy arrays on the host, and shardings or PartitionSpecs in place of arrays.
"""

# The fields `count` and `index` hide methods of tuple, which are not used here.
# pyright: reportIncompatibleMethodOverride=false

from typing import NamedTuple

from jaxtyping import Array, Float32, Int16, Int32, UInt32

from simpo_jax.data.types import Prompt
from simpo_jax.generate.kv_pages import pages_needed
from simpo_jax.generate.sampling.settings import Sampling, Switches
from simpo_jax.generate.suppression import Suppression

RUNNING, STOP, LENGTH, NONFINITE = 0, 1, 2, 3
FINISH_REASONS = {STOP: "stop", LENGTH: "length", NONFINITE: "nonfinite"}


class GenerateShape(NamedTuple):
  """The static sizes and choices of generation, compiled into the program."""

  groups: int  # independent prompt groups: hosts, or 1 for the global mesh
  requests: int  # N, per group
  slots: int  # sequences decoded at once, per group
  widths: tuple[int, ...]  # batch sizes of decode steps, descending from `slots`
  prompt_tokens: int  # tokens of the longest prompt
  max_new_tokens: int
  page_size: int
  num_pages: int  # P, per group and layer
  chunk: int  # T of a prefill pass: prompt tokens per row
  prefill_rows: int  # rows of a prefill pass
  stop_states: int  # states of the stop automaton
  attention: str  # implementation of paged attention
  shared_prompts: bool  # whether several requests have the same prompt
  repetition_penalty: bool  # whether any request has one
  sampling: Switches
  suppression: bool  # whether some tokens are suppressed, always or early in an answer

  @property
  def pages_per_seq(self) -> int:
    return pages_needed(self.prompt_tokens + self.max_new_tokens, self.page_size)


class Request(NamedTuple):
  """A request for one sample of a prompt, with its settings."""

  prompt: Prompt
  sample: int
  sampling: Sampling  # Python numbers, not arrays
  budget: int  # tokens it may generate


class Assignment(NamedTuple):
  """The group, queue position and process of a request."""

  group: int
  index: int  # position in the group's queue
  process: int  # the process that writes its samples row


class RequestArrays(NamedTuple):
  """The requests' arrays, N per group; without a leading axis, those of one group."""

  tokens: Int32[Array, "*groups N prompt_tokens"]  # the prompt, padded on the right
  length: Int32[Array, "*groups N"]  # prompt tokens; 0 for unused entries, which come last
  budget: Int32[Array, "*groups N"]  # tokens it may generate, at most `max_new_tokens`
  prompt: Int32[Array, "*groups N"]  # index of the prompt, over all groups
  sample: Int32[Array, "*groups N"]  # index among the samples of that prompt
  sampling: Sampling


class Requests(NamedTuple):
  """The generation input of the program."""

  each: RequestArrays  # per request
  stops: Int16[Array, "stop_states V"]  # the stop automaton (`stop_automaton.py`)
  seed: UInt32[Array, "2"]  # key data
  suppression: Suppression | None  # None if nothing is suppressed


class Generated(NamedTuple):
  """The answers, in request order; without a leading axis, those of one group.

  Log-probabilities are natural logarithms, under the model itself (see `sampling.choose.choose`).
  """

  tokens: Int32[Array, "*groups N max_new_tokens"]  # including a stop token; -1 past the end
  logprobs: Float32[Array, "*groups N max_new_tokens"]  # of each token; 0 past the end
  count: Int32[Array, "*groups N"]  # tokens generated
  finish: Int32[Array, "*groups N"]  # a finish reason, or RUNNING for an unused entry
  logprob: Float32[Array, "*groups N"]  # sum of `logprobs`
