"""Sizes and lengths that divide unevenly over a mesh, and which exchanges it may have."""

from simpo_jax.program.hlo import collectives
from support.simpo_reference import gradient_program

DEVICES = 8
SIZES = dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  rms_norm_eps=1e-5,
)
LENGTHS = ((5, 7, 3), (1, 1, 9), (12, 4, 4), (3, 10, 1), (8, 2, 6), (20, 30, 25), (4, 4, 4)) * 3


def check_exchanges(step, params, batch, tensor):
  """Tensor parallelism adds up activations; it never gathers a weight or a gradient."""
  run, init = gradient_program(step)
  found = collectives(run.lower(init(params), batch).compile().as_text() or "")
  neighbors = [list(range(i, i + tensor)) for i in range(0, DEVICES, tensor)]
  between = {c.kind for c in found if c.groups() == neighbors}
  assert "all-reduce" in between and "all-gather" not in between, between
