"""Integer arithmetic that works on ints, numpy and jax arrays alike."""


def ceil_div(a, b):
  """a / b, rounded up."""
  return -(-a // b)


def round_up(a: int, multiple: int) -> int:
  """The smallest multiple that is at least a."""
  return ceil_div(a, multiple) * multiple
