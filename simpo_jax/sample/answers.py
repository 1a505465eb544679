"""Generates answers to a set of prompts, and writes each as soon as it is complete."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from simpo_jax.data.prompts import load_prompts
from simpo_jax.data.types import Prompt
from simpo_jax.errors import UserError
from simpo_jax.generate.assignment import round_robin
from simpo_jax.generate.engine import generate_some
from simpo_jax.generate.on_mesh import page_bytes
from simpo_jax.generate.requests import make_requests, pack_requests
from simpo_jax.generate.results import Summary, sample_rows, summarize
from simpo_jax.generate.sizing import fit, shape_for
from simpo_jax.generate.types import FINISH_REASONS, RUNNING, Generated, Request, Requests
from simpo_jax.loaded_model.messages import flag_names
from simpo_jax.loaded_model.model import MODE, LoadedModel
from simpo_jax.loaded_model.steps import Program, compile_steps, load, put, room_for_pool
from simpo_jax.program import compile_count
from simpo_jax.runtime.console import human_bytes
from simpo_jax.runtime.resolve import stops_of, suppression_of
from simpo_jax.workdir.files import row_text

_LAUNCH_SECONDS = 1.0  # target, so that progress is reported often
_MAX_STEPS = 4096  # decode steps per launch
_FIRST_LAUNCH = np.True_, np.int32(8)  # whether it is the first, and its decode steps
_MAX_EXAMPLES = 3  # skipped prompts named in a message


class Outcome(NamedTuple):
  """The results of `sample`, for `check_finite`, and a line that sums them up."""

  requests: list[Request]
  summary: Summary
  text: str


def sample(
  loaded: LoadedModel,
  prompts: list[Prompt],
  out: Callable[[str], object],
  say: Callable[[str], None],
  show: Callable[[str], None],
) -> Outcome:
  """Answers all prompts, and writes one row per answer in order.

  Args:
    loaded: the model; its `config.generate` has the settings.
    prompts: at least one.
    out: writes the text of one row; called once the row and all before it are complete.
    say: reports a line to the user.
    show: updates the progress display.

  Raises:
    UserError: the prompts do not fit into memory.
  """
  config, model, mesh = loaded.config.generate, loaded.model, loaded.mesh
  requests = make_requests(prompts, config)
  stops = stops_of(config, model, loaded.tokenizer)
  assignments, platform = round_robin(requests, 1), mesh.devices.flat[0].platform
  shape = shape_for(requests, assignments, config, 1, platform, len(stops))
  room, dtype = room_for_pool(loaded), loaded.dtype
  shape, pool, note = fit(shape, requests, config, model.config, mesh, MODE, dtype, room)
  bytes_each = page_bytes(model.config, mesh, MODE, shape.page_size, dtype)
  say(
    f"{len(requests)} answers of up to {shape.max_new_tokens} tokens, {shape.slots} at once; KV "
    f"pool {human_bytes(pool.pages * bytes_each)}: {pool.reason}" + (f"; {note}" if note else "")
  )
  suppression = suppression_of(config, model, loaded.tokenizer)
  packed = pack_requests(requests, assignments, shape, stops, config.seed, suppression)
  packed = packed._replace(each=jax.tree.map(lambda x: x[0], packed.each))
  show("compiling")
  program = compile_steps(loaded, shape, generate_some, (packed, *_FIRST_LAUNCH))
  say(f"compiled in {program.seconds:.1f} s")
  show("loading weights")

  written = 0
  for generated, seconds in _launches(loaded, program, packed):
    each = (generated.count, generated.finish, generated.logprob)
    summary = Summary(*(np.asarray(x[0]) for x in each))
    finish, tokens = summary.finish, int(summary.count.sum())
    waiting = [*np.flatnonzero(finish == RUNNING), len(requests)]
    done = range(written, int(waiting[0]))
    decode, step = loaded.tokenizer.decode, loaded.step
    results = requests, assignments, generated, summary
    for row in sample_rows(done, *results, decode, step, 1, config.logprobs, config.stripped):
      out(row_text(row))
    written = done.stop
    show(
      f"{len(requests) + 1 - len(waiting)}/{len(requests)} answers, {tokens:,} tokens, "
      f"{tokens / seconds:,.1f} tokens/s"
    )
    if written == len(requests):
      break
  summary = summarize(generated, assignments)
  return Outcome(requests, summary, _summary_line(summary, seconds))


def _summary_line(summary: Summary, seconds: float) -> str:
  tokens = int(summary.count.sum())
  reasons = Counter(FINISH_REASONS[int(f)] for f in summary.finish)
  failed = f", {reasons['nonfinite']} failed" if reasons["nonfinite"] else ""
  return (
    f"{len(summary.finish)} answers, {tokens:,} tokens in {seconds:.1f} s "
    f"({tokens / seconds:,.1f} tokens/s): {reasons['stop']} finished, {reasons['length']} cut off "
    f"at their limit{failed}; {compile_count.compile_count()} compile"
  )


def _launches(
  loaded: LoadedModel, program: Program, packed: Requests
) -> Iterator[tuple[Generated, float]]:
  """Yields the results after each launch, and the seconds since the first launch started.

  The results are numpy arrays of a single group, thus with a leading axis of 1.
  """
  params, *state = load(loaded, program)
  packed, started = put(loaded, packed), time.perf_counter()
  first, steps = _FIRST_LAUNCH
  while True:
    start = time.perf_counter()
    state = program.call(params, *state, packed, *put(loaded, (first, steps)))
    # Copy: the next launch donates the state's buffers.
    generated = jax.tree.map(lambda x: np.array(x)[None], state[1].out)
    first, took = np.False_, time.perf_counter() - start
    steps = np.int32(min(max(1, steps * min(4.0, _LAUNCH_SECONDS / took)), _MAX_STEPS))
    yield generated, time.perf_counter() - started


def usable_prompts(
  loaded: LoadedModel, say: Callable[[str], None], check_columns: bool = False
) -> list[Prompt]:
  """Loads the prompts of `config.generate`; reports the unusable ones and leaves them out.

  Args:
    check_columns: whether all of `data.columns` must be there.

  Raises:
    UserError: no prompt is usable, or a column is not there.
  """
  config, limit = loaded.config.generate, loaded.model.config.context
  columns = loaded.config.data.columns
  found = load_prompts(config, loaded.tokenizer, columns, True, check_columns)
  skipped, prompts = list(found.skipped), []
  for prompt in found.prompts:
    [budget] = {request.budget for request in make_requests([prompt], config)}
    if len(prompt.tokens) + budget > limit:
      skipped.append(
        f"prompt {prompt.index} has {len(prompt.tokens)} tokens, and with max_new_tokens={budget} "
        f"exceeds the model's context of {limit}"
      )
    else:
      prompts.append(prompt)
  examples = [flag_names(reason) for reason in skipped[:_MAX_EXAMPLES]]
  if not prompts:
    raise UserError(f"no prompt can be used: {'; '.join(examples) or 'there are none'}")
  if skipped:
    more = f" and {len(skipped) - _MAX_EXAMPLES} more" if len(skipped) > _MAX_EXAMPLES else ""
    say(
      f"{len(prompts)} of {len(prompts) + len(skipped)} prompts kept; skipped: "
      f"{'; '.join(examples)}{more}"
    )
  for line in found.left_out:
    say(line)
  for note, count in found.notes.items():
    say(flag_names(f"{count} prompts {note}"))
  return prompts
