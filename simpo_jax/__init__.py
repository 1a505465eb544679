"""SimPO preference tuning in JAX: training and generation in one compiled program."""

__version__ = "0.1.0"
