"""Runs of one process that share what takes most of a run's time: tracing and compiling."""

import json

import jax

from simpo_jax import run as loop
from simpo_jax.config import flatten

_lowered = {}  # by config and precision of products
_compiled = {}  # by their texts' fingerprint


def share_programs():
  """Has runs lower what no run of an equal config has, and compile what none has; returns an undo.

  What is said of checkpoints is not in the program.
  """
  before = loop.run, loop.lower_program, loop.compile_program
  run, lower, compile_program = before
  config_now = None

  def run_noted(config, *where):
    nonlocal config_now
    fields = {k: v for k, v in flatten(config).items() if not k.startswith("checkpoint.")}
    config_now = json.dumps([fields, jax.default_matmul_precision.value], sort_keys=True)
    return run(config, *where)

  def lower_once(program):
    if config_now not in _lowered:
      _lowered[config_now] = lower(program)
    return _lowered[config_now]

  def compile_once(program, lowered):
    if lowered.fingerprint not in _compiled:
      _compiled[lowered.fingerprint] = compile_program(program, lowered)
    return _compiled[lowered.fingerprint]

  def undo():
    loop.run, loop.lower_program, loop.compile_program = before

  loop.run, loop.lower_program, loop.compile_program = run_noted, lower_once, compile_once
  return undo
