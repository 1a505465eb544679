"""What is left to the slow tests: `-m ''` runs them, too, the default leaves them out.

Every part keeps a test by default that would notice if it broke as a whole.
"""

import pytest

everything = False  # whether the slow ones run, too; conftest knows


def sweep(names, values, default=1, **options):
  """`pytest.mark.parametrize`, of whose values all but the first `default` are slow."""
  values, single = list(values), isinstance(names, str) and "," not in names
  late = [
    pytest.param(*([value] if single else value), marks=pytest.mark.slow)
    for value in values[default:]
  ]
  return pytest.mark.parametrize(names, [*values[:default], *late], **options)


def size(whole):
  """How much of what is drawn at random: a tenth of `whole` without the slow ones."""
  return whole if everything else -(-whole // 10)
