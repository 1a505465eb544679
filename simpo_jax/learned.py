"""The former name of `python -m simpo_jax.compare`; to be removed in the next release."""

import sys

from simpo_jax.compare.__main__ import run

if __name__ == "__main__":
  print("simpo_jax.learned is now called simpo_jax.compare", file=sys.stderr)
  run()
