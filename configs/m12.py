"""M12, the long run: 200 SimPO steps, 1,024 prompts after steps 50, 100, 150 and 200.

  python -m simpo_jax.main --config=configs/m12.py[:VARIANT]

The variants are those of configs/m11.py: the embedded default (the same tiny model,
up to 256 new tokens per prompt, so that it takes minutes on 2 CPU cores), smollm2,
the pods llama3_8b_v5p32, llama3_70b_v5p256, llama32_1b_v5e16 and llama3_8b_v6e64
(2,048 new tokens), and the phase_a runs (2 steps, generate, 1 step, here with 1,024
prompts). A single compilation; 4 x 1,024 sample rows.
"""

import pathlib
import runpy
import types

from simpo_jax.config import Config

m11 = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("m11.py"))))


def get_config(variant: str = "") -> Config:
  c = m11.get_config(variant)
  c.name = c.name.replace("m11", "m12")
  c.generate.count = 1024
  if variant in ("", "smollm2"):
    c.generate.max_new_tokens = 256
    c.generate.max_slots = 128
  if not variant.startswith("phase_a"):
    c.train.steps = 200
    c.train.warmup_ratio = 0.1
    c.generate.at_steps = (50, 100, 150, 200)
  return c
