"""Converts generated answers to rows of the samples files."""

# The field `count` hides the method of tuple, which is not used here.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from simpo_jax.errors import UserError
from simpo_jax.generate.stop_automaton import before_stop
from simpo_jax.generate.types import (
  FINISH_REASONS,
  NONFINITE,
  STOP,
  Assignment,
  Generated,
  Request,
)

_MAX_NAMED = 5  # requests named in a message


class Summary(NamedTuple):
  """Results of all requests, in request order; replicated to every process."""

  count: Int32[np.ndarray, " requests"]  # tokens generated
  finish: Int32[np.ndarray, " requests"]  # a key of `FINISH_REASONS`
  logprob: Float32[np.ndarray, " requests"]  # sum of the tokens' log-probabilities


def summarize(generated: Generated, assignments: list[Assignment]) -> Summary:
  """Collects the results that every process has.

  Raises:
    RuntimeError: a request has no answer (a bug in the scheduler).
  """
  at = tuple(np.asarray([a[:2] for a in assignments]).T)
  out = Summary(
    *(np.asarray(x)[at] for x in (generated.count, generated.finish, generated.logprob))
  )
  empty = (out.count < 1) & (out.finish != NONFINITE)
  unanswered = np.flatnonzero(empty | ~np.isin(out.finish, list(FINISH_REASONS)))
  if unanswered.size:
    raise RuntimeError(
      f"requests {unanswered[:5].tolist()} came back unanswered; please report this"
    )
  return out


def check_finite(requests: list[Request], summary: Summary) -> None:
  """Raises a UserError that names the requests with non-finite logits.

  Call it once the other answers are written.

  Args:
    requests, summary: of all requests.
  """
  bad = np.flatnonzero(summary.finish == NONFINITE).tolist()
  if not bad:
    return
  named = "; ".join(
    f"prompt {requests[i].prompt.index}, sample {requests[i].sample}, after {summary.count[i]} "
    "tokens"
    for i in bad[:_MAX_NAMED]
  )
  more = f"; and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
  raise not_finite(f"{len(bad)} of {len(requests)} requests ({named}{more})")


def not_finite(what: str) -> UserError:
  """Returns the error that the logits of `what` are not finite."""
  return UserError(
    f"generation: the logits of {what} are not finite; check the weights, or lower "
    "--config.train.learning_rate if training did this"
  )


def sample_rows(
  numbers: Iterable[int],
  requests: list[Request],
  assignments: list[Assignment],
  generated: Generated,
  summary: Summary,
  decode: Callable[[list[int]], str],
  step: int,
  processes: int,
  logprobs: bool,
  strip: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
  """Yields rows of the samples files.

  Args:
    numbers: indices of the requests to yield rows for; without `logprobs`, any process can
      yield the row of any request.
    requests, assignments, summary: of all requests.
    decode: converts token ids to text.
    step: the training step after which the answers were generated.
    processes: number of processes of the run.
    logprobs: whether to include the log-probability of every token, which only the process
      that answered the request has.
    strip: stop strings to leave out of the texts, as `generate.strip_stop` says.
  """
  tokens, each = np.asarray(generated.tokens), local_groups(generated.logprobs)
  for number in numbers:
    request, assignment, count = requests[number], assignments[number], summary.count[number]
    ids = tokens[assignment.group, assignment.index, :count].tolist()
    text, finish = decode(ids), int(summary.finish[number])
    row: dict[str, Any] = {
      "step": step,
      "process_index": assignment.process,
      "process_count": processes,
      "prompt_index": request.prompt.index,
      "sample_index": request.sample,
      "prompt": request.prompt.text,
      "generated_text": before_stop(text, strip) if finish == STOP else text,
      "generated_token_ids": ids,
      "generated_token_count": len(ids),
      "finish_reason": FINISH_REASONS[finish],
      "logprob_sum": round(float(summary.logprob[number]), 6),
    }
    if logprobs:
      values = each[assignment.group][assignment.index, :count].tolist()
      row["generated_token_logprobs"] = [round(x, 5) for x in values]
    yield row


def local_groups(array: jax.Array | np.ndarray) -> dict[int, np.ndarray]:
  """Returns the leading-axis entries stored on this process's devices, as numpy arrays."""
  if isinstance(array, np.ndarray):
    return dict(enumerate(array))
  out: dict[int, np.ndarray] = {}
  for shard in array.addressable_shards:
    start = shard.index[0].start or 0
    values: np.ndarray = np.asarray(shard.data)
    for offset, value in enumerate(values):
      out.setdefault(start + offset, value)
  return out
