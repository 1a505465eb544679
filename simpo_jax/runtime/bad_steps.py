"""What becomes of a training step whose loss or gradient is not finite."""

from simpo_jax.errors import UserError
from simpo_jax.runtime.context import RunContext
from simpo_jax.runtime.progress import Progress
from simpo_jax.train.step import Metrics, TrainState
from simpo_jax.workdir import files


def leave_out(
  context: RunContext,
  step: int,
  progress: Progress,
  state: TrainState,
  metrics: Metrics,
  bad: list[str],
  seconds: float,
) -> tuple[int, ...]:
  """Leaves out a training step that was not finite, if that is allowed.

  Args:
    progress: before the step.
    state: after the step, which has changed nothing of it.
    bad: ids of the pairs.

  Returns:
    The steps that were left out so far, this one among them.

  Raises:
    UserError: it is not allowed, or too often already. The evidence is saved.
  """
  loss, norm = float(metrics.loss), float(metrics.grad_norm)
  left_out, allowed = (*progress.bad_steps, step), context.config.train.max_bad_steps
  if len(left_out) <= allowed:
    row = {"step": step, "mode": "bad_step", "pairs": bad, "bad_steps": len(left_out)}
    context.track({**row, "step_seconds": round(seconds, 4)})
    context.display.say(f"step {step}: loss {loss}, left out ({len(left_out)} of {allowed})")
    return left_out
  context.saver.save(progress, state)
  context.saver.wait()
  kept = context.saver.last
  if context.writes:
    evidence = {"step": step, "loss": str(loss), "grad_norm": str(norm), "pairs": bad}
    files.write_json(context.folder / "failure.json", {**evidence, "checkpoint": kept})
  onward = f" (the state before it is in checkpoints/{kept})" if kept else ""
  raise UserError(
    f"step {step}: loss {loss}, gradient norm {norm}: not finite, no update was applied{onward}; "
    f"pairs: {', '.join(bad)}; lower --config.train.learning_rate, remove these rows, or allow "
    f"such steps with --config.train.max_bad_steps={allowed + 1}"
  )
