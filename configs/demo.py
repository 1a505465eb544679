"""Learning that shows: SimPO moves held-out preferences, and what the model says.

  python -m simpo_jax.demo
  python -m simpo_jax.main --config=configs/demo.py:smollm2

The demo runs the variants fit and prefer one after the other, a minute or two on 2 CPU
cores in all, and says what it starts them with. docs/demo.md has before and after. Variants:

  fit      The embedded model learns the language of simpo_jax/demo/text.py. Held-out
           preference accuracy ends at about 50%: its two styles are equally likely.
  prefer   Begins with fit's weights (--config.checkpoint.init_from) and learns to prefer
           one of the styles: accuracy over 90%, and most answers begin in that style.
  smollm2  SmolLM2-135M-Instruct on 300 real pairs, 100 of them held out and measured
           before the first step and after every tenth; set --config.model.source
           (folder, .gguf or hub id) and --config.data.train. A quarter of an hour on
           2 CPU cores that have nothing else to do.
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
  """The language alone: the preference term has next to no weight beside the SFT term."""
  _tiny(c)
  c.simpo.beta = 1e-6
  c.simpo.sft_weight = 1.0
  c.train.steps = 800
  c.train.batch_size = 32
  c.train.learning_rate = 5e-3
  c.train.b2 = 0.95
  c.train.warmup_ratio = 0.05


def prefer(c: Config) -> None:
  """One of the styles, by the preference term alone."""
  _tiny(c)
  # What differs is a choice or two of the 45 bytes that are averaged over: a change that makes
  # an answer e times as likely moves the average by 1/45, and with it the margin by 4.
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
  """One and a half epochs of real pairs."""
  c.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.data.train = ("dpo_en_demo.json",)  # of hiyouga/LLaMA-Factory, data/; or your own
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
