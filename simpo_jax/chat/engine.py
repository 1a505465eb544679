"""Answers token by token: launches of one compiled program over a conversation's cache."""

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
from simpo_jax.generate.results import check_finite
from simpo_jax.generate.sampling import Sampling
from simpo_jax.generate.sizing import prefill_chunk, select_paged_attention
from simpo_jax.generate.types import FINISH_REASONS, RUNNING, GenerateShape, RequestArrays, Requests
from simpo_jax.loaded_model.model import MODE, LoadedModel
from simpo_jax.loaded_model.steps import compile_steps, load, put, room_for_pool
from simpo_jax.runtime.console import human_bytes
from simpo_jax.runtime.resolve import stops_of
from simpo_jax.settings import GenerateSettings

LEAST_CONTEXT = 32  # tokens, in which no conversation has much room
_LAUNCH_SECONDS = 0.06  # of a launch: short enough for the eye, long enough to be worth it
_MAX_STEPS = 32
_CHUNKS = 4  # of the conversation that one launch caches, so that ^C need not wait for all of it


class ChatEngine:
  """A model that answers conversations of up to `context` tokens, one after another.

  Attributes:
    context: tokens of a conversation, its newest answer included.
    notes: what to tell of it.
    cached: the tokens whose keys and values are in the cache, in their places.
    computed: tokens of the last conversation that were not there, and had to be cached.
    count: tokens of its answer.
    speed: tokens per second, after the first few; None if there are no others.
    finish: why it ended, one of FINISH_REASONS; None if it has not.
  """

  def __init__(self, loaded: LoadedModel, context: int):
    self._loaded, config = loaded, loaded.config.generate
    stops = stops_of(config, loaded.model, loaded.tokenizer)
    self._stops = _host(stops, stops.dtype)
    self.context, self.notes = _context(loaded, context)
    shape = _shape(loaded, self.context, len(stops))
    attention, note = select_paged_attention(
      config.attention, loaded.model.config, loaded.mesh, MODE, shape, loaded.dtype
    )
    self.notes += [note] if note else []
    self._feed = _CHUNKS * shape.chunk
    inputs = (self._requests([0], config, 0, 1), _turn(0, 0, False, 0))
    shape = shape._replace(attention=attention)
    self._program = compile_steps(loaded, shape, chat_step, inputs)
    self.notes.append(f"compiled in {self._program.seconds:.1f} s")
    self._params, *self._state = load(loaded, self._program)
    self._stops = put(loaded, self._stops)
    self._steps = 1
    self.cached: list[int] = []
    self._clear()

  def _clear(self) -> None:
    self.computed, self.count, self.speed, self.finish = 0, 0, None, None

  def answer(
    self, tokens: list[int], settings: GenerateSettings, sample: int = 0
  ) -> Iterator[list[int]]:
    """Yields the answer's tokens, a few at a time; may be left at any time.

    Args:
      tokens: the conversation, fewer than `context`.
      settings: how to sample; the answer has `max_new_tokens` at most, and what
        the context holds.
      sample: numbers different answers to the same conversation.

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
    while last - done > self._feed:
      self._launch(requests, _turn(done, done + self._feed, False, 0))
      done += self._feed
      self.cached = tokens[:done]
    answer, begins, timed, seconds = [], True, 0, 0.0
    while begins or self.finish is None:
      start = time.perf_counter()
      out = self._launch(requests, _turn(done, last, begins, self._steps))
      took = time.perf_counter() - start
      check_finite(out.logprob)
      new = out.tokens[0, self.count : int(out.count[0])].tolist()
      if not begins:  # the first launch has had other work as well
        timed, seconds = timed + len(new), seconds + took
        self.speed = timed / seconds
        self._steps = min(_MAX_STEPS, 2 * len(new), max(1, int(len(new) * _LAUNCH_SECONDS / took)))
      answer += new
      self.count, begins, done = len(answer), False, last
      self.finish = None if out.finish[0] == RUNNING else FINISH_REASONS[int(out.finish[0])]
      self.cached = [*tokens, *answer[:-1]]  # the newest is not in the cache yet
      yield new

  def _launch(self, requests: Requests, turn: ChatStep):
    self._state = self._program.call(self._params, *self._state, requests, put(self._loaded, turn))
    return jax.tree.map(np.asarray, self._state[1].out)

  def _requests(
    self, tokens: list[int], settings: GenerateSettings, sample: int, budget: int
  ) -> Requests:
    padded = np.zeros((1, self.context), np.int32)
    padded[0, : len(tokens)] = tokens
    kinds = {name: np.int32 if name == "top_k" else np.float32 for name in Sampling._fields}
    requested = RequestArrays(
      _host(padded, np.int32),
      length=_host([len(tokens)], np.int32),
      budget=_host([budget], np.int32),
      prompt=_host([0], np.int32),
      sample=_host([sample], np.int32),
      sampling=Sampling(**{n: _host([getattr(settings, n)], kind) for n, kind in kinds.items()}),
    )
    return Requests(requested, self._stops, _host([0, settings.seed], np.uint32))


def _turn(cached: int, until: int, begins: bool, steps: int) -> ChatStep:
  return ChatStep(
    cached=_host(cached, np.int32),
    until=_host(until, np.int32),
    begins=_host(begins, np.bool_),
    steps=_host(steps, np.int32),
  )


def _host(value: ArrayLike, dtype: DTypeLike) -> Any:
  """A numpy array, in place of the device's Array that `put` makes of it."""
  return np.asarray(value, dtype)


def _context(loaded: LoadedModel, requested: int) -> tuple[int, list[str]]:
  """Tokens of a conversation: what was asked for, or what the model and memory allow."""
  most, page = loaded.model.config.max_position_embeddings, loaded.config.generate.page_size
  each = page_bytes(loaded.model.config, loaded.mesh, MODE, page, loaded.dtype)
  room = room_for_pool(loaded)
  fits = most if room is None else max(0, room // each) * page
  context = min(requested, most, fits)
  if context < LEAST_CONTEXT:
    raise UserError(
      f"--context={requested}: there is memory for {fits} tokens of a conversation, the model "
      f"takes {most}, and less than {LEAST_CONTEXT} are no conversation; use a machine with more "
      "memory, or a larger --context"
    )
  why = "" if context == requested else ", all that the model takes"
  why = ", what memory allows" if context < min(requested, most) else why
  bytes_ = human_bytes(ceil_div(context, page) * each)
  return context, [f"context of {context:,} tokens{why} ({bytes_})"]


def _shape(loaded: LoadedModel, context: int, stop_states: int) -> GenerateShape:
  """One slot, whose sequence may be as long as the context; every setting can be changed."""
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
    sampled=True,
  )
