"""Answers to a set of prompts, launch by launch, written as they are done."""

import time
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np

from simpo_jax import monitor
from simpo_jax.capacity import pool_size
from simpo_jax.data.prompts import Prompt, load_prompts
from simpo_jax.display import human_bytes
from simpo_jax.errors import UserError
from simpo_jax.generate import FINISH_REASONS, RUNNING, generate_some
from simpo_jax.inference import page_bytes
from simpo_jax.requests import (
  Summary,
  check_finite,
  deal,
  generate_shape,
  make_requests,
  pack_requests,
  request_pages,
  sample_rows,
  summarize,
)
from simpo_jax.resolve import decode_attention, stops_of
from simpo_jax.speaker import MODE, Speaker, compile_steps, load, own_words, put, room_for_pool
from simpo_jax.workdir import row_text

_LAUNCH_SECONDS = 1.0  # of a launch, after which the progress is shown
_MAX_STEPS = 4096
_EXAMPLES = 3  # skipped prompts that are shown


def sample(
  speaker: Speaker,
  prompts: list[Prompt],
  out: Callable[[str], object],
  say: Callable[[str], None],
  show: Callable[[str], None],
) -> str:
  """Answers all prompts, writes a row for each answer in order, and returns a summary.

  Args:
    speaker: whose `config.generate` has the settings.
    prompts: at least one.
    out: takes the text of a row, as soon as it and those before it are done.
    say, show: take a line to tell, and the progress.

  Raises:
    UserError: the prompts do not fit into memory, or the logits are not finite.
  """
  config, model, mesh = speaker.config.generate, speaker.model, speaker.mesh
  requests = make_requests(prompts, config)
  stops = stops_of(config, model, speaker.tokenizer)
  shape = generate_shape(requests, config, 1, mesh.devices.flat[0].platform, len(stops))
  bytes_each = page_bytes(model.config, mesh, MODE, shape.page_size, speaker.dtype)
  pool = pool_size(
    config.num_pages,
    worst=shape.num_pages,
    largest=max(request_pages(r, shape.page_size) for r in requests),
    page_bytes=bytes_each,
    room=room_for_pool(speaker),
  )
  shape = shape._replace(num_pages=pool.pages)
  attention, note = decode_attention(
    config.attention, model.config, mesh, MODE, shape, speaker.dtype
  )
  shape = shape._replace(attention=attention)
  say(
    f"{len(requests)} answers of up to {shape.max_new_tokens} tokens, {shape.slots} at once; KV "
    f"pool {human_bytes(pool.pages * bytes_each)}: {pool.reason}" + (f"; {note}" if note else "")
  )
  packed = pack_requests(requests, shape, stops, config.seed)
  packed = packed._replace(each=jax.tree.map(lambda x: x[0], packed.each))
  first, steps = np.True_, np.int32(8)
  show("compiling")
  program = compile_steps(speaker, shape, generate_some, (packed, first, steps))
  show("loading weights")
  params, *state = load(speaker, program)
  packed = put(speaker, packed)
  say(f"compiled in {program.seconds:.1f} s")

  places, written, begun = deal(requests, 1), 0, time.perf_counter()
  while written < len(requests):
    start = time.perf_counter()
    state = program.call(params, *state, packed, *put(speaker, (first, steps)))
    # A copy: the next launch takes the state's memory.
    generated = jax.tree.map(lambda x: np.array(x)[None], state[1].out)
    first, took = np.False_, time.perf_counter() - start
    steps = np.int32(min(max(1, steps * min(4.0, _LAUNCH_SECONDS / took)), _MAX_STEPS))
    finish, tokens = generated.finish[0], int(generated.count.sum())
    summary = Summary(generated.count[0], finish, generated.logprob[0])
    check_finite(summary.logprob)
    waiting = [*np.flatnonzero(finish == RUNNING), len(requests)]
    done = range(written, int(waiting[0]))
    for row in sample_rows(
      done,
      requests,
      places,
      generated,
      summary,
      speaker.tokenizer.decode,
      speaker.step,
      1,
      config.logprobs,
    ):
      out(row_text(row))
    written = done.stop
    seconds = time.perf_counter() - begun
    show(
      f"{len(requests) + 1 - len(waiting)}/{len(requests)} answers, {tokens:,} tokens, "
      f"{tokens / seconds:,.1f} tokens/s"
    )
  summarize(generated, places)
  reasons = Counter(FINISH_REASONS[int(f)] for f in finish)
  return (
    f"{len(requests)} answers, {tokens:,} tokens in {seconds:.1f} s "
    f"({tokens / seconds:,.1f} tokens/s): {reasons['stop']} ended by themselves, "
    f"{reasons['length']} at their limit; {monitor.compile_count()} compile"
  )


def usable_prompts(speaker: Speaker, say: Callable[[str], None]) -> list[Prompt]:
  """The prompts that the settings name; those that cannot be used are left out and told of.

  Raises:
    UserError: none is left.
  """
  config, limit = speaker.config.generate, speaker.model.config.max_position_embeddings
  skipped, prompts = [], []
  for prompt in load_prompts(config, speaker.tokenizer, skipped):
    [budget] = {request.budget for request in make_requests([prompt], config)}
    if len(prompt.tokens) + budget > limit:
      skipped.append(
        f"prompt {prompt.index} has {len(prompt.tokens)} tokens, and with max_new_tokens={budget} "
        f"exceeds the model's context of {limit}"
      )
    else:
      prompts.append(prompt)
  examples = [own_words(reason) for reason in skipped[:_EXAMPLES]]
  if not prompts:
    raise UserError(f"no prompt can be used: {'; '.join(examples) or 'there is none'}")
  if skipped:
    more = f" and {len(skipped) - _EXAMPLES} more" if len(skipped) > _EXAMPLES else ""
    say(
      f"{len(prompts)} of {len(prompts) + len(skipped)} prompts kept; skipped: "
      f"{'; '.join(examples)}{more}"
    )
  return prompts
