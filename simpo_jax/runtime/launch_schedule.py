"""Which launches follow a finished training step; pure functions of the config."""

from simpo_jax.program.ledger import Mode
from simpo_jax.settings import Settings

MAX_LAUNCHES = 2  # after one step: a generation and an evaluation


def generates(config: Settings) -> bool:
  """Whether any step of the run generates."""
  at_steps, every = config.generate.at_steps, config.generate.every
  return config.generate.at_start or bool(at_steps) or 0 < every <= config.train.steps


def evaluates(config: Settings) -> bool:
  """Whether any step of the run is followed by an evaluation."""
  evaluate = config.evaluate
  return bool(evaluate.every) or evaluate.at_start or evaluate.at_end


def launches_after(step: int, config: Settings) -> list[Mode]:
  """The modes to launch, in order, once training step `step` (from 1) has finished.

  `generate.at_steps` takes precedence over `generate.every`. Step 0 is the start of the run.
  """
  if step == 0:
    requested = (
      (Mode.GENERATE, config.generate.at_start),
      (Mode.EVALUATE, config.evaluate.at_start),
    )
    return [mode for mode, at_start in requested if at_start]
  last = step == config.train.steps
  modes: list[Mode] = []
  if config.generate.at_steps:
    generate = step in config.generate.at_steps
  else:
    generate = bool(config.generate.every) and step % config.generate.every == 0
  if generate:
    modes.append(Mode.GENERATE)
  every = config.evaluate.every
  if (every and step % every == 0) or (last and config.evaluate.at_end):
    modes.append(Mode.EVALUATE)
  return modes
