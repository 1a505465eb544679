"""Learning that shows: SimPO moves held-out preferences, and what the model says.

  python -m simpo_jax.main --config=configs/demo.py:smollm2
  python -m simpo_jax.demo

Variants:

  smollm2  SmolLM2-135M-Instruct on 300 real pairs, 100 of them held out and measured
           before the first step and after every tenth; set --config.model.source
           (folder, .gguf or hub id) and --config.data.train.
"""

from simpo_jax.config import default_config, did_you_mean
from simpo_jax.errors import UserError


def get_config(variant: str = ""):
  if variant not in VARIANTS:
    raise UserError(
      f"--config has no variant {variant!r}; there are {', '.join(VARIANTS)}"
      + did_you_mean(variant, VARIANTS)
    )
  c = default_config()
  c.name = f"demo-{variant}"
  VARIANTS[variant](c)
  return c


def fit(c):
  """The tiny model learns the language; the preference term is as good as switched off."""
  _tiny(c)
  c.simpo.beta = 1e-6
  c.simpo.sft_weight = 1.0
  c.train.steps = 400
  c.train.learning_rate = 3e-3
  c.train.warmup_ratio = 0.05


def prefer(c):
  """The same model learns to prefer one of the styles."""
  _tiny(c)
  c.simpo.beta = 10.0
  c.simpo.gamma_beta_ratio = 0.1
  c.train.steps = 60
  c.train.learning_rate = 3e-4
  c.train.warmup_ratio = 0.1
  c.evaluate.at_start = True
  c.evaluate.every = 5
  c.generate.at_start = True
  c.generate.at_steps = (30, 60)


def _tiny(c):
  c.data.max_length = 128
  c.data.max_prompt_length = 64
  c.data.row_length = 512
  c.train.batch_size = 16
  c.train.remat = "none"
  c.generate.count = 0  # all
  c.generate.max_new_tokens = 72
  c.generate.temperature = 1.0
  c.generate.page_size = 16


def smollm2(c):
  """Two epochs of real pairs, on a laptop."""
  c.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.data.train = ("dpo_en_demo.json",)  # of hiyouga/LLaMA-Factory, data/; or your own
  c.data.eval_fraction = 1 / 3
  c.data.max_length = 1024
  c.data.max_prompt_length = 512
  c.train.steps = 50
  c.train.batch_size = 8
  c.train.learning_rate = 5e-6
  c.train.warmup_ratio = 0.1
  c.train.remat = "dots"
  c.simpo.beta = 2.5
  c.simpo.gamma_beta_ratio = 0.5
  c.evaluate.at_start = True
  c.evaluate.every = 10
  c.checkpoint.every = 5
  c.checkpoint.keep = 1


VARIANTS = {f.__name__: f for f in (fit, prefer, smollm2)}
