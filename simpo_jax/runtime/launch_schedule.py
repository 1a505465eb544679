"""Which launches follow a finished training step; pure functions of the config."""

from simpo_jax.program.ledger import Mode
from simpo_jax.settings import Settings

MAX_LAUNCHES = 2  # that can follow a step: a generation and an evaluation


def generates(config: Settings) -> bool:
  """Whether any step of the run generates."""
  at_steps, every = config.generate.at_steps, config.generate.every
  return config.generate.at_start or bool(at_steps) or 0 < every <= config.train.steps


def evaluates(config: Settings) -> bool:
  """Whether the run is to evaluate at all."""
  evaluate = config.evaluate
  return bool(evaluate.every) or evaluate.at_start or evaluate.at_end


def launches_after(step: int, config: Settings) -> list[Mode]:
  """The modes to launch once training step `step` (from 1) has finished, in order.

  `generate.at_steps` wins over `generate.every`; both count finished steps. Step 0 stands
  for the start of the run, before any step.
  """
  if step == 0:
    asked = (Mode.GENERATE, config.generate.at_start), (Mode.EVALUATE, config.evaluate.at_start)
    return [mode for mode, wanted in asked if wanted]
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
