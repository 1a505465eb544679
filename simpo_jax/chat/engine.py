"""Streams answers by repeated launches of one compiled program over a conversation's KV cache."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from simpo_jax.arith import ceil_div, common_prefix
from simpo_jax.errors import UserError
from simpo_jax.generate.chat_step import ChatStep, chat_step
from simpo_jax.generate.on_mesh import page_bytes
from simpo_jax.generate.results import not_finite
from simpo_jax.generate.sampling.settings import Sampling, Switches
from simpo_jax.generate.sizing import prefill_chunk, select_paged_attention
from simpo_jax.generate.suppression import suppresses
from simpo_jax.generate.types import (
  FINISH_REASONS,
  NONFINITE,
  RUNNING,
  GenerateShape,
  RequestArrays,
  Requests,
)
from simpo_jax.loaded_model.model import MODE, LoadedModel
from simpo_jax.loaded_model.steps import compile_steps, load, put, room_for_pool
from simpo_jax.runtime.console import human_bytes
from simpo_jax.runtime.resolve import stops_of, suppression_of
from simpo_jax.settings import GenerateSettings

MIN_CONTEXT = 32  # tokens
_LAUNCH_SECONDS = 0.06  # target: text streams smoothly, and launch overhead stays small
_MAX_STEPS = 32  # decode steps per launch
_CHUNKS_PER_LAUNCH = 4  # prefill chunks, so that ^C does not wait for a long prompt


class ChatEngine:
  """A compiled model that answers one conversation at a time.

  The cache persists between answers: only tokens after the common prefix are prefilled.

  Attributes:
    context: maximum tokens of a conversation, including its newest answer.
    notes: lines about the setup to show the user.
    cached: tokens whose keys and values are in the cache, by position.
    computed: prompt tokens of the last answer that were not in the cache.
    count: tokens of the last answer.
    speed: tokens per second of the last answer after its first launch, if there were others.
    finish: why the last answer ended, one of FINISH_REASONS; None if it was interrupted.
  """

  def __init__(self, loaded: LoadedModel, context: int):
    self._loaded, config = loaded, loaded.config.generate
    stops = stops_of(config, loaded.model, loaded.tokenizer)
    self._stops = _host_array(stops, stops.dtype)
    self._suppression = suppression_of(config, loaded.model, loaded.tokenizer)
    self.context, self.notes = _choose_context(loaded, context)
    shape = _shape(loaded, self.context, len(stops))
    attention, note = select_paged_attention(
      config.attention, loaded.model.config, loaded.mesh, MODE, shape, loaded.dtype
    )
    self.notes += [note] if note else []
    self._prefill_tokens = _CHUNKS_PER_LAUNCH * shape.chunk
    inputs = (self._requests([0], config, 0, 1), _step_inputs(0, 0, False, 0))
    shape = shape._replace(attention=attention)
    self._program = compile_steps(loaded, shape, chat_step, inputs)
    self.notes.append(f"compiled in {self._program.seconds:.1f} s")
    self._params, *self._state = load(loaded, self._program)
    self._stops, self._suppression = put(loaded, (self._stops, self._suppression))
    self._steps = 1
    self.cached: list[int] = []
    self._clear()

  def _clear(self) -> None:
    self.computed, self.count, self.speed, self.finish = 0, 0, None, None

  def answer(
    self, tokens: list[int], settings: GenerateSettings, sample: int = 0
  ) -> Iterator[list[int]]:
    """Yields the answer's tokens, a few at a time; the caller may stop iterating at any time.

    Args:
      tokens: token ids of the conversation, fewer than `context`.
      settings: sampling settings; the answer is limited by `max_new_tokens` and by the context.
      sample: distinguishes several answers to the same conversation.

    Raises:
      UserError: the logits are not finite.
    """
    self._clear()
    budget = min(settings.max_new_tokens, self.context - len(tokens))
    assert budget > 0, "the conversation leaves no room for an answer"
    requests = put(self._loaded, self._requests(tokens, settings, sample, budget))
    last = len(tokens) - 1
    done = common_prefix(self.cached, tokens[:last])
    self.computed, self.cached = last - done, tokens[:done]
    while last - done > self._prefill_tokens:
      self._launch(requests, _step_inputs(done, done + self._prefill_tokens, False, 0))
      done += self._prefill_tokens
      self.cached = tokens[:done]
    answer, begins, timed, seconds = [], True, 0, 0.0
    while begins or self.finish is None:
      start = time.perf_counter()
      out = self._launch(requests, _step_inputs(done, last, begins, self._steps))
      took = time.perf_counter() - start
      new = out.tokens[0, self.count : int(out.count[0])].tolist()
      if new and not begins:  # the first launch also prefills
        timed, seconds = timed + len(new), seconds + took
        self.speed = timed / seconds
        self._steps = min(_MAX_STEPS, 2 * len(new), max(1, int(len(new) * _LAUNCH_SECONDS / took)))
      answer += new
      self.count, begins, done = len(answer), False, last
      self.finish = None if out.finish[0] == RUNNING else FINISH_REASONS[int(out.finish[0])]
      self.cached = [*tokens, *answer[:-1]]  # the newest token is cached by the next step
      yield new
      if out.finish[0] == NONFINITE:
        raise not_finite(f"this answer, after {self.count} tokens,")

  def _launch(self, requests: Requests, inputs: ChatStep):
    self._state = self._program.call(
      self._params, *self._state, requests, put(self._loaded, inputs)
    )
    return jax.tree.map(np.asarray, self._state[1].out)

  def _requests(
    self, tokens: list[int], settings: GenerateSettings, sample: int, budget: int
  ) -> Requests:
    padded = np.zeros((1, self.context), np.int32)
    padded[0, : len(tokens)] = tokens
    kinds = {name: np.int32 if name == "top_k" else np.float32 for name in Sampling._fields}
    requested = RequestArrays(
      _host_array(padded, np.int32),
      length=_host_array([len(tokens)], np.int32),
      budget=_host_array([budget], np.int32),
      prompt=_host_array([0], np.int32),
      sample=_host_array([sample], np.int32),
      sampling=Sampling(
        **{n: _host_array([getattr(settings, n)], kind) for n, kind in kinds.items()}
      ),
    )
    seed = _host_array([0, settings.seed], np.uint32)
    return Requests(requested, self._stops, seed, self._suppression)


def _step_inputs(cached: int, until: int, begins: bool, steps: int) -> ChatStep:
  return ChatStep(
    cached=_host_array(cached, np.int32),
    until=_host_array(until, np.int32),
    begins=_host_array(begins, np.bool_),
    steps=_host_array(steps, np.int32),
  )


def _host_array(value: ArrayLike, dtype: DTypeLike) -> Any:
  """Returns a numpy array, in place of the jax.Array that `put` will make from it."""
  return np.asarray(value, dtype)


def _choose_context(loaded: LoadedModel, requested: int) -> tuple[int, list[str]]:
  """Returns the requested context, limited by the model and the free memory, and a note."""
  limit, page_size = loaded.model.config.context, loaded.config.generate.page_size
  bytes_per_page = page_bytes(loaded.model.config, loaded.mesh, MODE, page_size, loaded.dtype)
  room = room_for_pool(loaded)
  fits = limit if room is None else max(0, room // bytes_per_page) * page_size
  context = min(requested, limit, fits)
  if fits < MIN_CONTEXT:
    raise UserError(
      f"there is memory for {fits} tokens of a conversation, and at least {MIN_CONTEXT} are "
      "needed; use a machine with more memory"
    )
  if context < MIN_CONTEXT:
    raise UserError(
      f"--context={requested}: at least {MIN_CONTEXT} tokens are needed, and the model supports "
      f"{limit}; raise it, or use another model"
    )
  reason = "" if context == requested else ", the model's maximum"
  reason = ", limited by memory" if context < min(requested, limit) else reason
  bytes_ = human_bytes(ceil_div(context, page_size) * bytes_per_page)
  return context, [f"context of {context:,} tokens{reason} ({bytes_})"]


def _shape(loaded: LoadedModel, context: int, stop_states: int) -> GenerateShape:
  """One slot of the full context length, compiled so that all sampling settings can change."""
  config = loaded.config.generate
  return GenerateShape(
    groups=1,
    requests=1,
    slots=1,
    widths=(1,),
    prompt_tokens=1,
    max_new_tokens=context - 1,
    page_size=config.page_size,
    num_pages=ceil_div(context, config.page_size),
    chunk=min(context, prefill_chunk(config, loaded.mesh.devices.flat[0].platform)),
    prefill_rows=1,
    stop_states=stop_states,
    attention="xla",
    shared_prompts=False,
    repetition_penalty=True,
    sampling=Switches(True, loaded.model.config.vocab_size, True),
    suppression=suppresses(config),
  )
