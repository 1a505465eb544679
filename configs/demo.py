"""Demo: SimPO visibly changes held-out preferences and the model's answers.

  python -m simpo_jax.demo
  python -m simpo_jax.main --config=configs/demo.py:smollm2

simpo_jax.demo runs the variants fit and prefer one after the other, in a minute or two
on 2 CPU cores, and prints their commands. docs/demo.md shows the results. Variants:

  fit      The embedded model learns the language of simpo_jax/demo/text.py. Held-out
           preference accuracy ends at about 50%: the two styles are equally likely.
  prefer   Starts from fit's weights (--config.checkpoint.init_from) and learns to prefer
           one of the styles: accuracy over 90%, and most answers begin in that style.
  smollm2  SmolLM2-135M-Instruct on 300 real pairs, 100 of them held out and evaluated
           before the first step and after every tenth; set --config.model.source
           (folder, .gguf or hub id) and --config.data.train. Takes 15 minutes on
           2 otherwise idle CPU cores.
"""

from simpo_jax.config import Config, default_config, did_you_mean
from simpo_jax.errors import UserError


def get_config(variant: str = "") -> Config:
  if variant not in VARIANTS:
    raise UserError(
      f"--config has no variant {variant!r}; there are {', '.join(VARIANTS)}"
      + did_you_mean(variant, VARIANTS)
    )
  c = default_config()
  c.name = f"demo-{variant}"
  VARIANTS[variant](c)
  return c


def fit(c: Config) -> None:
  """Learns the language alone: the preference term is negligible next to the SFT term."""
  _tiny(c)
  c.simpo.beta = 1e-6
  c.simpo.sft_weight = 1.0
  c.train.steps = 800
  c.train.batch_size = 32
  c.train.learning_rate = 5e-3
  c.train.b2 = 0.95
  c.train.warmup_ratio = 0.05


def prefer(c: Config) -> None:
  """Learns to prefer one style, with the preference term alone."""
  _tiny(c)
  # The styles differ in one or two of about 45 bytes per answer, and the margin uses the average
  # log-probability: an answer e times as likely raises the margin only by beta / 45, about 4.
  c.simpo.beta = 200.0
  c.simpo.gamma_beta_ratio = 0.02
  c.train.steps = 80
  c.train.batch_size = 16
  c.train.learning_rate = 2e-4
  c.evaluate.at_start = True
  c.evaluate.every = 10
  c.generate.at_start = True
  c.generate.at_steps = (40, 80)
  c.generate.num_samples = 4


def _tiny(c: Config) -> None:
  c.data.max_length = 128
  c.data.max_prompt_length = 64
  c.data.row_length = 512
  c.train.remat = "none"
  c.generate.count = 0  # all prompts of the file
  c.generate.max_new_tokens = 72
  c.generate.temperature = 1.0
  c.generate.page_size = 16


def smollm2(c: Config) -> None:
  """Trains one and a half epochs on real pairs."""
  c.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.data.train = ("dpo_en_demo.json",)  # from hiyouga/LLaMA-Factory, data/; or your own
  c.data.eval_fraction = 1 / 3
  c.data.max_length = 512
  c.data.max_prompt_length = 256
  c.train.steps = 40
  c.train.batch_size = 8
  c.train.learning_rate = 5e-5
  c.train.remat = "dots"
  c.simpo.beta = 2.5
  c.simpo.gamma_beta_ratio = 0.5
  c.evaluate.at_start = True
  c.evaluate.every = 10
  c.checkpoint.every = 5
  c.checkpoint.keep = 1


VARIANTS = {f.__name__: f for f in (fit, prefer, smollm2)}
