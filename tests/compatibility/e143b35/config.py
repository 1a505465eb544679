"""The config of the runs beside it, as a user would keep it: `--config=config.py:lora`."""

from simpo_jax.config import default_config
from simpo_jax.errors import UserError


def get_config(run: str):
  """The config of one of the runs: stopped, lora, average, prepared or hosts."""
  c = default_config()
  c.name = run
  c.model.source = "random:llama"
  c.data.train = ("pairs.jsonl",)
  c.data.eval_fraction = 0.2
  c.data.max_length, c.data.max_prompt_length, c.data.row_length = 64, 40, 128
  c.data.lookahead = 2
  c.train.steps, c.train.batch_size, c.train.learning_rate = 6, 2, 1e-2
  c.simpo.sft_weight = 0.5
  c.generate.at_steps = (3, 6)
  c.generate.prompt_list = ("What is 2 + 3?", "Name a colour.", "Why?")
  c.generate.max_new_tokens, c.generate.page_size = 8, 16
  c.evaluate.every = 3
  c.checkpoint.keep = 1
  c.report.write = False
  if run == "lora":
    c.model.source = "random:gemma2"
    c.train.lora_rank = 2
  elif run == "average":
    c.train.ema_decay = 0.5
    c.train.max_bad_steps = 1
  elif run == "prepared":
    c.data.train = ("tfds:pairs",)
    c.data.dir = "data"
    c.data.max_skip_fraction = 0.5
  elif run not in ("stopped", "hosts"):
    raise UserError(f"there is no run {run!r}")
  return c
