"""What becomes of a training step whose loss or gradient is not finite."""

from simpo_jax import workdir as files
from simpo_jax.errors import UserError
from simpo_jax.train import Metrics, TrainState


def leave_out(
  loop, step: int, state: TrainState, metrics: Metrics, bad: list[str], seconds: float
) -> None:
  """Leaves out a training step that was not finite, if that is allowed.

  Args:
    loop: a `modes.Loop`.
    state: after the step, which has changed nothing of it.
    bad: ids of the pairs.

  Raises:
    UserError: it is not allowed, or too often already. The evidence is saved.
  """
  loss, norm = float(metrics.loss), float(metrics.grad_norm)
  skipped, allowed = loop.saver.bad_steps, loop.config.train.max_bad_steps
  if len(skipped) < allowed:
    skipped.append(step)
    row = {"step": step, "mode": "bad_step", "pairs": bad, "bad_steps": len(skipped)}
    loop.track({**row, "step_seconds": round(seconds, 4)})
    loop.display.say(f"step {step}: loss {loss}, left out ({len(skipped)} of {allowed})")
    return
  loop.saver.save(state)  # of the step before: this one changed nothing
  loop.saver.wait()
  kept = loop.saver.last
  if loop.writes:
    evidence = {"step": step, "loss": str(loss), "grad_norm": str(norm), "pairs": bad}
    files.write_json(loop.folder / "failure.json", {**evidence, "checkpoint": kept})
  onward = f" (the state before it is in checkpoints/{kept})" if kept else ""
  raise UserError(
    f"step {step}: loss {loss}, gradient norm {norm}: not finite, no update was applied{onward}; "
    f"pairs: {', '.join(bad)}; lower --config.train.learning_rate, remove these rows, or allow "
    f"such steps with --config.train.max_bad_steps={allowed + 1}"
  )
