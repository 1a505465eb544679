"""Attention kernels, one folder each; installed as `simpo_jax.kernels`."""
