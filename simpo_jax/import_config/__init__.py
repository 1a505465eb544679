"""Other trainers' recipes as configs of this project: `python -m simpo_jax.import_config`."""
