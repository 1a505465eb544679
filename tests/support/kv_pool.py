"""What becomes of the KV pool in a compiled program."""

from simpo_jax.program.hlo import copies
from simpo_jax.program.memory import memory_of


def check_in_place(program):
  """The pool is the donated one from launch to launch, and nothing copies it."""
  pool = program.abstract[0]
  text = f"f32[{','.join(map(str, pool.shape))}]"
  assert memory_of(program.call).aliased == pool.size * pool.dtype.itemsize
  hlo = program.call.as_text()
  assert text in hlo
  assert not copies(hlo, text)
