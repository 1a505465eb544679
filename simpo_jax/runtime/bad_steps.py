"""Handles training steps with a non-finite loss or gradient."""

from simpo_jax.errors import UserError
from simpo_jax.runtime.context import RunContext
from simpo_jax.runtime.progress import Progress
from simpo_jax.train.step import Metrics, TrainState
from simpo_jax.workdir import files


def handle_bad_step(
  context: RunContext,
  step: int,
  progress: Progress,
  state: TrainState,
  metrics: Metrics,
  bad: list[str],
  seconds: float,
) -> tuple[int, ...]:
  """Records a bad step, whose update was not applied, or ends the run if there are too many.

  Args:
    progress: before the step.
    state: after the step, with the same values as before it.
    bad: ids of the pairs with non-finite values.
    seconds: duration of the launch.

  Returns:
    All bad steps so far, including this one.

  Raises:
    UserError: there are more than `train.max_bad_steps`. A checkpoint and failure.json are
      written first.
  """
  loss, norm = float(metrics.loss), float(metrics.grad_norm)
  bad_steps, allowed = (*progress.bad_steps, step), context.config.train.max_bad_steps
  if len(bad_steps) <= allowed:
    row = {"step": step, "mode": "bad_step", "pairs": bad, "bad_steps": len(bad_steps)}
    context.track({**row, "step_seconds": round(seconds, 4)})
    context.display.say(f"step {step}: loss {loss}, left out ({len(bad_steps)} of {allowed})")
    return bad_steps
  context.saver.save(progress, state)
  context.saver.wait()
  checkpoint = context.saver.last
  if context.writes:
    evidence = {"step": step, "loss": str(loss), "grad_norm": str(norm), "pairs": bad}
    files.write_json(context.folder / "failure.json", {**evidence, "checkpoint": checkpoint})
  saved = f" (the state before it is in checkpoints/{checkpoint})" if checkpoint else ""
  raise UserError(
    f"step {step}: loss {loss}, gradient norm {norm}: not finite, no update was applied{saved}; "
    f"pairs: {', '.join(bad)}; lower --config.train.learning_rate, remove these rows, or allow "
    f"such steps with --config.train.max_bad_steps={allowed + 1}"
  )
