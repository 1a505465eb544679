"""Config files and their check: every variant is valid, and every wrong field is named."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from simpo_jax.config import default_config, flatten
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.plan.known_models import known_model
from simpo_jax.program.ledger import Mode
from simpo_jax.runtime.launch_schedule import generates, launches_after
from simpo_jax.settings import FIELDS
from support.folders import DOCS, ROOT
from support.modules import load_module

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
LONG = (50, 100, 150, 200)
EXPECTED = {  # file, variant: steps, at_steps, prompts, new tokens, mode of generation
  ("m11", ""): (7, (2,), 128, 2048, "host_data_parallel"),
  ("m11", "smollm2"): (7, (2,), 128, 2048, "host_data_parallel"),
  ("m11", "llama3_8b_v5p32"): (7, (2,), 128, 2048, "host_data_parallel"),
  ("m11", "phase_a"): (3, (2,), 128, 2048, "host_data_parallel"),
  ("m11", "phase_a_train2"): (2, (2,), 128, 2048, "host_data_parallel"),
  ("m11", "phase_a_global"): (3, (2,), 128, 2048, "global_mesh"),
  ("m12", ""): (200, LONG, 1024, 256, "host_data_parallel"),
  ("m12", "smollm2"): (200, LONG, 1024, 256, "host_data_parallel"),
  ("m12", "llama3_8b_v5p32"): (200, LONG, 1024, 2048, "host_data_parallel"),
  ("m12", "phase_a"): (3, (2,), 1024, 2048, "host_data_parallel"),
  ("m12", "phase_a_train2"): (2, (2,), 1024, 2048, "host_data_parallel"),
  ("m12", "phase_a_global"): (3, (2,), 1024, 2048, "global_mesh"),
}
for pod in ("llama3_70b_v5p256", "llama32_1b_v5e16", "llama3_8b_v6e64"):
  EXPECTED["m11", pod] = EXPECTED["m11", "llama3_8b_v5p32"]
  EXPECTED["m12", pod] = EXPECTED["m12", "llama3_8b_v5p32"]


def load(name):
  return load_module(ROOT / "configs" / f"{name}.py")


def variants(module):
  return getattr(module, "VARIANTS", None) or getattr(module, "m11", module).VARIANTS


ALL = [(p.stem, v) for p in CONFIGS for v in variants(load(p.stem))]


def changed(name, value):
  c = default_config()
  *groups, field = name.split(".")
  section = c
  for group in groups:
    section = section[group]
  with section.ignore_type():
    section[field] = value
  if name == "data.max_length":
    c.data.max_prompt_length = 1  # has to be below
  return c


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_variant_is_valid_and_can_be_written_down(name, variant):
  c = load(name).get_config(variant)
  validate(c)
  assert json.loads(c.to_json()) == json.loads(json.dumps(c.to_dict()))
  assert flatten(c).keys() == flatten(default_config()).keys()
  assert not [k for k, v in flatten(c).items() if isinstance(v, list)], "no flag overrides a list"


@pytest.mark.parametrize(("name", "variant"), EXPECTED)
def test_acceptance_runs(name, variant):
  c = load(name).get_config(variant)
  g = c.generate
  assert (c.train.steps, g.at_steps, g.count, g.max_new_tokens, g.mode) == EXPECTED[name, variant]
  assert c.name == name + (f"-{variant}" if variant else "")
  assert generates(c)
  # The debugging shapes show nothing but training and generation.
  assert (Mode.EVALUATE in launches_after(c.train.steps, c)) == (not variant.startswith("phase_a"))


def test_all_variants_of_the_acceptance_runs_are_expected():
  assert {key for key in ALL if key[0] in ("m11", "m12")} == set(EXPECTED)


@pytest.mark.parametrize(
  ("variant", "beta", "ratio", "rate"),
  [  # as princeton-nlp/SimPO's README has them
    ("mistral_7b_base", 2.0, 0.8, 3e-7),
    ("mistral_7b_instruct", 2.5, 0.1, 5e-7),
    ("llama3_8b_base", 2.0, 0.5, 6e-7),
    ("llama3_8b_instruct", 2.5, 0.55, 1e-6),
    ("llama3_8b_instruct_v02", 10.0, 0.3, 1e-6),
    ("gemma2_9b", 10.0, 0.5, 8e-7),
  ],
)
def test_published_recipes(variant, beta, ratio, rate):
  c = load("simpo").get_config(variant)
  assert (c.simpo.beta, c.simpo.gamma_beta_ratio, c.train.learning_rate) == (beta, ratio, rate)
  assert (c.train.batch_size, c.train.schedule, c.train.warmup_ratio) == (128, "cosine", 0.1)
  assert (c.simpo.sft_weight, c.train.weight_decay, c.train.max_grad_norm) == (0, 0, 1)
  lengths = (1024, 512) if variant == "mistral_7b_base" else (2048, 1800)
  assert (c.data.max_length, c.data.max_prompt_length) == lengths


@pytest.mark.parametrize("variant", load("simpo").VARIANTS)
def test_recipes_can_be_planned_without_their_model(variant):
  c = load("simpo").get_config(variant)
  model = known_model(c.model.source)
  assert model and model.max_position_embeddings >= c.data.max_length


def test_the_real_target():
  c = load("m11").get_config("llama3_8b_v5p32")
  assert c.model.source == "meta-llama/Meta-Llama-3-8B-Instruct"
  assert (c.data.max_length, c.train.batch_size) == (4096, 128)
  assert (c.model.param_dtype, c.model.compute_dtype) == ("float32", "auto")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_docstring_names_the_command_and_every_variant(path):
  module = load(path.stem)
  doc = module.__doc__ or ""
  assert f"python -m simpo_jax.main --config=configs/{path.name}" in doc
  for variant in variants(module):
    # m12 refers to m11 for the shapes of its debugging variants.
    name = "phase_a" if path.stem == "m12" and variant.startswith("phase_a") else variant
    assert re.search(rf"\b{name}\b", doc), variant


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_unknown_variant(path):
  with pytest.raises(UserError, match="'smolm2'.*did you mean 'smollm2'"):
    load(path.stem).get_config("smolm2")


def test_the_default_is_valid():
  validate(default_config())


def test_every_field_that_can_be_wrong_is_checked():
  for name, field in FIELDS.items():
    assert name.count(".") == 1 or name in ("name", "seed"), name
    assert field.meaning or field.choices, f"{name} has no meaning"
    if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
      assert field.low is not None, f"{name} has no limits"
    if isinstance(field.default, tuple):
      assert field.element and field.example, f"{name} does not say what its elements are"


@pytest.mark.parametrize(
  ("name", "choice"), [(n, c) for n, field in FIELDS.items() for c in field.choices]
)
def test_choices(name, choice):
  c = changed(name, choice)
  if name == "model.param_dtype":  # bfloat16 for frozen weights alone
    c.train.lora_rank = 16
  validate(c)
  with pytest.raises(UserError, match=f"--config.{name}=.*{choice}.*did you mean"):
    validate(changed(name, choice[:-1] + "_"))


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.low is not None])
def test_ranges(name):
  low, high = FIELDS[name].low, FIELDS[name].high
  assert low is not None
  validate(changed(name, low))
  bad = [low - 1, float("nan"), float("inf"), 10**400 if isinstance(low, int) else 1e308 * 10]
  if high is not None:
    validate(changed(name, high))
    bad.append(high + 1)
  for value in bad:
    with pytest.raises(UserError, match=f"--config.{name}=.* must be "):
      validate(changed(name, value))


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.element])
def test_elements_of_tuples(name):
  wrong = 2 if FIELDS[name].element is str else "two"
  for value in ((wrong,), (True,), (None,)):
    with pytest.raises(UserError, match=f"--config.{name}=.*write it like"):
      validate(changed(name, value))


@pytest.mark.parametrize("at_steps", [(0,), (8,), (2, 8), (-1,)])
def test_at_steps_lie_within_the_run(at_steps):
  with pytest.raises(UserError, match=r"--config.generate.at_steps=.*1\.\.7 "):
    validate(changed("generate.at_steps", at_steps))
  validate(changed("generate.at_steps", (1, 7)))


def test_bfloat16_weights_are_not_trained():
  with pytest.raises(UserError, match="almost nothing.*compute_dtype=bfloat16.*lora_rank=16"):
    validate(changed("model.param_dtype", "bfloat16"))


def test_label_smoothing_needs_the_sigmoid_loss():
  c = changed("simpo.label_smoothing", 0.1)
  validate(c)
  c.simpo.loss_type = "hinge"
  with pytest.raises(UserError, match="label_smoothing=0.1 has no effect .*loss_type=hinge"):
    validate(c)


def test_a_run_too_short_for_its_file_names_the_flag_that_helps():
  c = load("m11").get_config()
  c.train.steps = 1
  clears = re.escape('--config.generate.at_steps="()"')
  with pytest.raises(UserError, match=f"step 2 .*train.steps=1.*the config file .*{clears} clears"):
    validate(c)


def test_a_field_too_many_or_too_few():
  c = default_config()
  c.train.stepz = 3
  with pytest.raises(UserError, match="train.stepz.*did you mean 'train.steps'"):
    validate(c)
  c = default_config()
  del c.simpo.beta
  with pytest.raises(UserError, match="simpo.beta.*default_config"):
    validate(c)


# --- a field is declared once ------------------------------------------------------------------


_ONE_EDIT = """
import runpy, sys
from absl import flags
from simpo_jax.cli import help_text
from simpo_jax.config import default_config
from simpo_jax.config_check import validate
from simpo_jax.loaded_model.flags import define_field
from simpo_jax.settings import FIELDS

config = default_config()
print(config.generate.novelty, validate(config).generate.novelty)
print(*(line for line in help_text().splitlines() if "novelty" in line))
reference = runpy.run_path(sys.argv[1])["reference"]()
print(*(line for line in reference.splitlines() if "novelty" in line))
define_field("novelty", FIELDS["generate.novelty"])
flags.FLAGS(["program", "--novelty=4"])
print(flags.FLAGS.novelty, flags.FLAGS["novelty"].help)
config.generate.novelty = 10
validate(config)
"""


def test_a_new_field_is_one_edit(tmp_path):
  """It has a default, a line of --help and of the reference, can be a flag, and is checked."""
  shutil.copytree(ROOT / "simpo_jax", tmp_path / "simpo_jax", symlinks=True)
  (tmp_path / "simpo_jax" / "kernels").unlink(missing_ok=True)
  (tmp_path / "simpo_jax" / "kernels").symlink_to(ROOT / "kernels")
  table = tmp_path / "simpo_jax" / "settings" / "generate.py"
  last = "\n\n\n@dataclasses.dataclass(frozen=True)\nclass EvaluateSettings"
  before, after = table.read_text().split(last)
  line = '\n  novelty: int = integer(3, "How new an answer must be.", 1, 9)'
  table.write_text(before + line + last + after)
  done = subprocess.run(
    [sys.executable, "-c", _ONE_EDIT, str(DOCS / "make_reference.py")],
    env={**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  defaults, help_line, row, flag = done.stdout.splitlines()
  assert defaults == "3 3" and help_line.endswith("How new an answer must be.")
  assert row == "| `generate.novelty` | `3` | How new an answer must be. | integer, from 1 to 9 |"
  assert flag == "4 How new an answer must be."
  assert "--config.generate.novelty=10 must be between 1 and 9" in done.stderr
