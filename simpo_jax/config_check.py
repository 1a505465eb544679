"""Which values the fields of a config take: all that can be checked before anything is read."""

import math
import sys

import ml_collections

from simpo_jax.config import default_config, did_you_mean, flatten
from simpo_jax.data.truncation import HEADERS, RULES
from simpo_jax.errors import UserError, shown
from simpo_jax.fsdp import REMAT
from simpo_jax.kernels import paged_attention, range_attention
from simpo_jax.lora import TARGETS
from simpo_jax.paths import check_path

_CHOICES = {
  "model.param_dtype": ("float32", "bfloat16"),
  "model.compute_dtype": ("auto", "float32", "bfloat16"),
  "data.truncation": RULES,
  "data.header": HEADERS,
  "train.optimizer": ("adamw",),
  "train.schedule": ("cosine", "linear", "constant"),
  "train.attention": range_attention.IMPLEMENTATIONS,
  "train.remat": REMAT,
  "train.mu_dtype": ("float32", "bfloat16"),
  "simpo.loss_type": ("sigmoid", "hinge"),
  "generate.mode": ("host_data_parallel", "global_mesh"),
  "checkpoint.init_what": ("weights", "all"),
  "generate.attention": paged_attention.IMPLEMENTATIONS,
  "export.dtype": ("auto", "float32", "bfloat16", "float16"),
  "tracking.wandb_mode": ("online", "offline"),
}
_RANGES = {  # inclusive
  "seed": (0, 2**32 - 1),
  "generate.seed": (0, 2**32 - 1),
  "data.eval_fraction": (0.0, 0.5),
  "data.max_skip_fraction": (0.0, 1.0),
  "data.max_length": (2, 2**24),
  "data.max_prompt_length": (1, None),
  "data.row_length": (0, 2**25),
  "data.max_pairs_per_row": (1, 65_536),
  "data.embedded_pairs": (1, 100_000),
  "data.workers": (0, 256),
  "train.steps": (1, 10_000_000),
  "train.batch_size": (1, None),
  "data.lookahead": (0, 1000),
  "train.micro_batch_rows": (0, 65_536),
  "train.max_bad_steps": (0, None),
  "train.logits_chunk": (0, None),
  "train.learning_rate": (0.0, 1.0),
  "train.warmup_ratio": (0.0, 1.0),
  "train.ema_decay": (0.0, 0.9999999),
  "train.lora_rank": (0, 65_536),
  "train.lora_alpha": (1e-6, None),
  "train.weight_decay": (0.0, None),
  "train.max_grad_norm": (0.0, None),
  "train.b1": (0.0, 0.9999999),
  "train.b2": (0.0, 0.9999999),
  "train.eps": (0.0, 1.0),
  "simpo.beta": (1e-6, None),
  "simpo.gamma_beta_ratio": (0.0, None),
  "simpo.label_smoothing": (0.0, 0.5),
  "simpo.sft_weight": (0.0, None),
  "generate.every": (0, None),
  "generate.count": (0, 1_000_000),
  "generate.num_samples": (1, 1_000_000),
  "generate.max_new_tokens": (1, None),
  "generate.max_prompt_length": (1, None),
  "generate.temperature": (0.0, None),
  "generate.top_k": (0, None),
  "generate.top_p": (1e-6, 1.0),
  "generate.min_p": (0.0, 1.0),
  "generate.repetition_penalty": (0.01, 100.0),
  "generate.max_slots": (0, None),
  "generate.page_size": (1, None),
  "generate.num_pages": (0, 2**20),
  "generate.prefill_chunk": (0, None),
  "generate.prefill_rows": (0, None),
  "evaluate.every": (0, None),
  "checkpoint.every": (0, None),
  "checkpoint.minutes": (0.0, None),
  "checkpoint.keep": (1, None),
  "checkpoint.keep_every": (0, None),
  "export.shard_gb": (1e-6, 10_000.0),
  "mesh.data": (1, None),
  "mesh.fsdp": (0, None),
  "mesh.tensor": (1, None),
  "watchdog.factor": (0.0, None),
  "watchdog.least_seconds": (0.1, None),
  "watchdog.first_seconds": (0.1, None),
  "log.samples_shown": (0, None),
  "tracking.flush_seconds": (0.0, 3600.0),
  "report.every_seconds": (0.0, None),
  "report.max_mib": (0, 1024),
}


_ELEMENTS = {  # of tuples: their type, and an example
  "data.train": (str, "('a.json','b.json')"),
  "data.eval": (str, "('a.json',)"),
  "data.weights": (float, "(0.7,0.3)"),
  "generate.at_steps": (int, "(2,50)"),
  "profile.steps": (int, "(3,6)"),
  "train.lora_targets": (str, "('q_proj','v_proj')"),
  "generate.prompt_list": (str, "('Tell me a joke.',)"),
  "generate.stop": (str, "('User:',)"),
}
_MAX_INT = 2**31 - 1  # counts are int32 on the devices
_PATHS = (
  "model.source",
  "data.train",
  "data.eval",
  "data.dir",
  "generate.prompts",
  "checkpoint.init_from",
)
_KINDS = {  # of fields, by their defaults: what else may stand there, and its name
  bool: ((bool,), "True or False"),
  int: ((int,), "a whole number"),
  float: ((int, float), "a finite number"),
  tuple: ((tuple,), "a tuple"),
  str: ((str,), "a string"),
}


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every field that can be checked before anything is read.

  Raises:
    UserError: names the field as it is written on the command line, and the values
      that it takes.
  """
  fields, known = flatten(config), flatten(default_config())
  for name in fields:
    if name not in known:
      raise UserError(f"config.{name}: there is no such field{did_you_mean(name, known)}")
  for name in known:
    if name not in fields:
      raise UserError(f"the config has no field {name}; start it from default_config()")
  for name, value in fields.items():
    if problem := kind_problem(name, known[name], value):
      raise UserError(f"--config.{name}={shown(value)} {problem}")
  if not config.model.source:
    raise UserError("--config.model.source is empty; name a folder, a .gguf file, or embedded")
  for name, choices in _CHOICES.items():
    if (value := fields[name]) not in choices:
      raise UserError(
        f"--config.{name}={shown(value)!r} is not one of {', '.join(choices)}"
        + did_you_mean(value, choices)
      )
  for name in _RANGES:
    if problem := range_problem(name, fields[name]):
      raise UserError(f"--config.{name}={shown(fields[name])} {problem}")
  for name, (kind, example) in _ELEMENTS.items():
    for element in fields[name]:
      if kind_problem(name, kind(), element):
        raise UserError(
          f"--config.{name}={shown(fields[name])}: {shown(element)!r} is not {_KINDS[kind][1]}; "
          f"write it like {example}"
        )
  for name in _PATHS:
    for path in (fields[name],) if isinstance(fields[name], str) else fields[name]:
      check_path(f"--config.{name}", path.removeprefix("tfds:").removeprefix("random:"))
  check_path("--config.name", f"runs/{'0' * 15}-{config.name}")
  for target in config.train.lora_targets:
    if target not in TARGETS:
      raise UserError(
        f"--config.train.lora_targets: {shown(target)!r} is not one of {', '.join(TARGETS)}"
        + did_you_mean(target, TARGETS)
      )
  if config.train.lora_rank and not config.train.lora_targets:
    raise UserError(
      f"--config.train.lora_rank={config.train.lora_rank} with no --config.train.lora_targets "
      f"would train nothing; name some of {', '.join(TARGETS)}, or set lora_rank=0"
    )
  if config.export.at_end and not config.checkpoint.at_end:
    raise UserError(
      "--config.export.at_end=True reads the last checkpoint, which "
      "--config.checkpoint.at_end=False leaves out; switch one of them"
    )
  profiled = config.profile.steps
  if profiled and not (
    len(profiled) == 2 and 1 <= profiled[0] <= profiled[1] <= config.train.steps
  ):
    raise UserError(
      f"--config.profile.steps={shown(profiled)} is not (first, last) with "
      f"1 <= first <= last <= {config.train.steps} (--config.train.steps); write it like (3,6)"
    )
  late = [step for step in config.generate.at_steps if not 1 <= step <= config.train.steps]
  if late:
    raise UserError(
      f"--config.generate.at_steps={shown(config.generate.at_steps)}: step {shown(late[0])} is not "
      f"in 1..{config.train.steps} (--config.train.steps)"
    )


def kind_problem(name: str, default, value) -> str | None:
  """What is wrong with the type of a field's value ("must be a whole number, ..."), or None."""
  kinds, what = _KINDS[type(default)]
  good = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
  if good and (float not in kinds or abs(value) <= sys.float_info.max):  # false for NaN, too
    return None
  return f"must be {what}, such as {_ELEMENTS[name][1] if name in _ELEMENTS else repr(default)}"


def range_problem(name: str, value: float) -> str | None:
  """What is wrong with the value of a numeric field ("must be at least 1"), or None."""
  low, high = _RANGES[name]
  if isinstance(value, int) and abs(value) > (high if isinstance(high, int) else _MAX_INT):
    return f"must be between {low} and {_MAX_INT if high is None else high}"
  top = high if high is not None else _MAX_INT if isinstance(value, int) else math.inf
  if not (low <= value <= top and math.isfinite(value)):
    if high is None and (value < low or isinstance(low, float)):
      return f"must be at least {low}" + ("" if math.isfinite(value) else ", and finite")
    return f"must be between {low} and {top}"
  if name == "generate.temperature" and 0 < value < 0.01:
    return "must be 0 (greedy) or at least 0.01"
  return None
