"""Converts recipes of other trainers to configs: `python -m simpo_jax.import_config`."""
