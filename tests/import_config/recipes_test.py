"""Recipes like those that the trainers publish, with config values computed by hand."""

import json
import shlex

import pytest

from simpo_jax.config import flatten
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.import_config.forms import FORMS, detect_form
from simpo_jax.import_config.parts import RunFacts
from simpo_jax.import_config.reading import MAX_JSON_BYTES, read_yaml
from simpo_jax.import_config.translate import (
  DIFFERS,
  IGNORED,
  MAPPED,
  UNSUPPORTED,
  make_config,
  translate,
)
from simpo_jax.import_config.writing import config_text
from simpo_jax.settings import FIELDS

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"

PRINCETON = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
torch_dtype: null
use_flash_attention_2: true
dataset_mixer:
  princeton-nlp/llama3-ultrafeedback: 1.0
dataset_splits: [train, test]
preprocessing_num_workers: 12
bf16: true
beta: 2.5
gamma_beta_ratio: 0.55
do_eval: true
evaluation_strategy: steps
eval_steps: 400
gradient_accumulation_steps: 16
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
hub_model_id: simpo-exps
learning_rate: 1.0e-6
log_level: info
logging_steps: 5
lr_scheduler_type: cosine
max_length: 2048
max_prompt_length: 1800
num_train_epochs: 1
optim: adamw_torch
output_dir: outputs/llama-3-8b-instruct-simpo
run_name: llama-3-8b-instruct-simpo
per_device_train_batch_size: 2
per_device_eval_batch_size: 4
push_to_hub: false
save_strategy: "steps"
save_steps: 1000000
report_to:
- wandb
save_total_limit: 20
seed: 42
warmup_ratio: 0.1
"""
PRINCETON_CONFIG = {
  "name": "llama-3-8b-instruct-simpo",
  "seed": 42,
  "model.source": LLAMA,
  "model.compute_dtype": "bfloat16",
  "data.train": ("tfds:princeton_nlp_llama3_ultrafeedback_train:train",),
  "data.eval": ("tfds:princeton_nlp_llama3_ultrafeedback_test:train",),
  "data.max_length": 2048,
  "data.max_prompt_length": 1800,
  "data.truncation": "princeton",
  "data.header": "response",
  "data.empty_system": True,
  "train.batch_size": 128,
  "train.steps": 467,  # 59876 pairs: 29938 batches, 7485 on a device, and 7485 // 16
  "train.learning_rate": 1e-6,
  "train.schedule": "cosine",
  "train.warmup_ratio": 0.1,
  "train.max_grad_norm": 1.0,
  "train.weight_decay": 0.0,
  "train.remat": "full",
  "simpo.beta": 2.5,
  "simpo.gamma_beta_ratio": 0.55,
  "simpo.sft_weight": 0.0,
  "simpo.loss_type": "sigmoid",
  "evaluate.every": 400,
  "evaluate.at_end": True,
  "checkpoint.every": 1_000_000,
  "checkpoint.keep": 20,
}

TRL = """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dtype: bfloat16
dataset_name: trl-lib/ultrafeedback_binarized
loss_type: simpo
cpo_alpha: 0.0
beta: 2.0
simpo_gamma: 1.0
learning_rate: 8.0e-7
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
num_train_epochs: 2
warmup_steps: 0.1
lr_scheduler_type: cosine
eval_strategy: steps
output_dir: Qwen-SimPO
"""
TRL_CONFIG = {
  "name": "recipe",
  "seed": 42,
  "model.source": "Qwen/Qwen2.5-0.5B-Instruct",
  "model.compute_dtype": "bfloat16",
  "model.param_dtype": "float32",
  "data.train": ("tfds:trl_lib_ultrafeedback_binarized_train:train",),
  "data.eval": ("tfds:trl_lib_ultrafeedback_binarized_test:train",),
  "data.max_length": 1024,
  "data.header": "prompt",
  "data.truncation": "prompt_first",
  "train.batch_size": 4 * 8 * 2,
  "train.steps": 196,  # 6250 pairs: 1563 batches, 782 on a device, 98 steps, twice
  "train.learning_rate": 8e-7,
  "train.warmup_ratio": 19.5 / 196,  # ceil(19.6) = 20 steps, half a step less
  "train.remat": "full",
  "simpo.beta": 2.0,
  "simpo.gamma_beta_ratio": 0.5,
  "simpo.sft_weight": 0.0,
  "evaluate.every": 10,  # TRL's logging_steps
  "checkpoint.every": 500,
}

HANDBOOK = """
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
dataset_mixture:
  datasets:
    - id: HuggingFaceH4/ultrafeedback_binarized
      config: default
      split: train_prefs
      columns: [chosen, rejected]
      weight: 1.0
    - id: HuggingFaceH4/orca_dpo_pairs
      split: train_prefs
      columns: [chosen, rejected]
      weight: 0.25
  test_split_size: 2000
  seed: 0
dataset_num_proc: 12
bf16: true
beta: 2.0
simpo_gamma: 1.6
loss_type: simpo
cpo_alpha: 0
do_eval: true
eval_strategy: epoch
gradient_accumulation_steps: 2
gradient_checkpointing: true
learning_rate: 3.0e-7
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: paged_adamw_32bit
output_dir: data/zephyr-7b-simpo
per_device_train_batch_size: 8
save_strategy: "no"
warmup_ratio: 0.1
"""
HANDBOOK_CONFIG = {
  "model.source": "alignment-handbook/zephyr-7b-sft-full",
  "data.train": (
    "tfds:huggingfaceh4_ultrafeedback_binarized_train_prefs:train",
    "tfds:huggingfaceh4_orca_dpo_pairs_train_prefs:train[:25%]",
  ),
  "data.eval": (
    "tfds:huggingfaceh4_ultrafeedback_binarized_train_prefs:test",
    "tfds:huggingfaceh4_orca_dpo_pairs_train_prefs:test",
  ),
  "data.max_length": 1024,
  "data.max_prompt_length": 512,
  "data.header": "prompt",
  "data.truncation": "prompt_first",
  "train.optimizer": "adamw",
  "train.batch_size": 128,
  "train.steps": 493,  # 63000 pairs: 7875 batches, 985 on a device, 492.5 steps
  "simpo.gamma_beta_ratio": 0.8,
  "evaluate.every": 493,
  "evaluate.at_end": True,
  "checkpoint.every": 0,
}

OLD_HANDBOOK = """
model_name_or_path: org/model
dataset_mixer:
  org/pairs: 1.0
dataset_splits: [train_prefs, test_prefs]
loss_type: simpo
beta: 2.0
simpo_gamma: 1.0
eval_strategy: steps
per_device_train_batch_size: 1
gradient_accumulation_steps: 3
max_length: 512
"""
OLD_HANDBOOK_CONFIG = {
  "data.train": ("tfds:org_pairs_train_prefs:train",),
  "data.max_prompt_length": 128,
  "data.header": "response",
  "data.truncation": "princeton",
  "train.batch_size": 3,
  "train.steps": 9,  # 11 pairs: 3 whole steps an epoch, 3 epochs
  "train.learning_rate": 5e-5,
  "train.remat": "none",
  "simpo.gamma_beta_ratio": 0.5,
  "simpo.sft_weight": 1.0,
  "evaluate.every": 500,  # transformers' logging_steps
  "model.compute_dtype": "float32",
}

LLAMAFACTORY = """
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
### method
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 2.5
simpo_gamma: 1.375
pref_loss: simpo  # choices: [sigmoid (dpo), orpo, simpo]
### dataset
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
max_samples: 100000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
### output
output_dir: saves/llama3-8b/lora/simpo
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
"""
LLAMAFACTORY_CONFIG = {
  "name": "recipe",
  "model.source": LLAMA,
  "model.param_dtype": "bfloat16",  # frozen; adapters are float32
  "model.compute_dtype": "bfloat16",
  "data.train": ("data/dpo_en_demo.json",),
  "data.eval": (),
  "data.eval_fraction": 0.1,
  "data.max_length": 2048,
  "data.max_prompt_length": 1024,
  "data.header": "prompt",
  "data.chat_template": "",
  "train.batch_size": 16,
  "train.steps": 171,  # 900 pairs: 450 on a device, 56.25 steps, thrice
  "train.learning_rate": 5e-6,
  "train.warmup_ratio": 0.1,
  "train.lora_rank": 8,
  "train.lora_alpha": 16.0,  # twice the rank
  "train.lora_targets": FIELDS["train.lora_targets"].default,
  "simpo.beta": 2.5,
  "simpo.gamma_beta_ratio": 0.55,
  "simpo.sft_weight": 0.0,  # pref_ftx
  "evaluate.every": 10,  # logging_steps
  "checkpoint.every": 500,
}

AXOLOTL = """
base_model: meta-llama/Meta-Llama-3-8B-Instruct
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: false
strict: false
chat_template: llama3
rl: simpo
rl_beta: 2.0
cpo_alpha: 0.0
simpo_gamma: 1.0
datasets:
  - path: argilla/dpo-mix-7k
    type: chat_template.argilla_chat
    split: train
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: false
pad_to_sequence_len: false
adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0
lora_target_linear: true
wandb_project:
wandb_name:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: <|end_of_text|>
"""
AXOLOTL_CONFIG = {
  "name": "recipe",
  "seed": 42,
  "model.source": LLAMA,
  "model.compute_dtype": "bfloat16",
  "model.param_dtype": "bfloat16",
  "data.train": ("tfds:argilla_dpo_mix_7k_train:train",),
  "data.eval": ("tfds:argilla_dpo_mix_7k_train:test",),
  "data.max_length": 4096,
  "data.header": "prompt",
  "data.chat_template": "",
  "train.batch_size": 8,
  "train.steps": 3207,  # 6413 pairs x 4 / 8 = 3206.5
  "train.warmup_ratio": 95.5 / 3207,  # int(0.03 * 3207) = 96, half a step less
  "train.schedule": "cosine",
  "train.learning_rate": 2e-4,
  "train.lora_rank": 32,
  "train.lora_alpha": 16.0,
  "train.lora_targets": FIELDS["train.lora_targets"].default,
  "train.remat": "full",
  "simpo.beta": 2.0,
  "simpo.gamma_beta_ratio": 0.5,
  "simpo.sft_weight": 0.0,
  "evaluate.every": 201,  # ceil(3207 / 16)
  "evaluate.at_start": True,
  "checkpoint.every": 802,  # ceil(3207 / 4)
  "checkpoint.keep": 4,
}
# DIFFERS: what each does otherwise; UNSUPPORTED: nothing.
RECIPES = {
  "princeton": (PRINCETON, PRINCETON_CONFIG, RunFacts(4, 59876), set()),
  "trl": (TRL, TRL_CONFIG, RunFacts(2, 6250), set()),
  "handbook": (HANDBOOK, HANDBOOK_CONFIG, RunFacts(8, 63000), {"dataset_mixture"}),
  "handbook_old": (OLD_HANDBOOK, OLD_HANDBOOK_CONFIG, RunFacts(1, 11), set()),
  "llamafactory": (
    LLAMAFACTORY,
    LLAMAFACTORY_CONFIG,
    RunFacts(2, 900),
    {"template", "cutoff_len"},
  ),
  "axolotl": (
    AXOLOTL,
    AXOLOTL_CONFIG,
    RunFacts(1, 6413),
    {"optimizer", "chat_template", "sequence_len", "excess_length_strategy"},
  ),
}
DEMO = {
  "dpo_en_demo": {
    "file_name": "dpo_en_demo.json",
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
  },
  "alpaca": {
    "file_name": "a.json",
    "ranking": True,
    "columns": {"prompt": "ask", "query": "input", "chosen": "c", "rejected": "r"},
  },
  "openai": {"file_name": "o.json", "ranking": True, "formatting": "openai"},
  "sft": {"file_name": "s.json", "formatting": "sharegpt"},
  "other": {
    "hf_hub_url": "org/pairs",
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "turns", "chosen": "good", "rejected": "bad", "system": "sys"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"},
  },
  "tools": {
    "file_name": "t.json",
    "ranking": True,
    "formatting": "sharegpt",
    "tags": {"user_tag": "me"},
  },
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """A current folder with the data of LLaMA-Factory's recipes."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DEMO))
  return tmp_path


def fields_of(text, folder):
  (folder / "recipe.yaml").write_text(text)
  return read_yaml(folder / "recipe.yaml")


def translated(fields, facts, form=None):
  return translate(fields, form or detect_form(fields, "recipe.yaml"), facts, "recipe.yaml")


def by_status(translation, status):
  return {row.field: row.text for row in translation.rows if row.status == status}


@pytest.mark.parametrize("form", RECIPES)
def test_a_recipe_like_the_published_one(form, folder):
  text, expected, facts, differs = RECIPES[form]
  fields = fields_of(text, folder)
  assert detect_form(fields, "recipe.yaml") == form
  t = translated(fields, facts)
  assert by_status(t, UNSUPPORTED) == {}
  assert {*by_status(t, DIFFERS)} == differs
  assert {*fields} <= {row.field for row in t.rows}, "each field is told"
  assert all(row.text and row.status in (MAPPED, IGNORED, DIFFERS) for row in t.rows)
  found = flatten(validate(make_config(t.settings)))
  assert {name: found[name] for name in expected} == expected
  if form == "llamafactory":
    assert "train.lora_alpha = 16: twice the rank" in by_status(t, MAPPED)["lora_rank"]
  if form == "handbook":  # 2,000 of 65,000
    assert all(c.endswith(" --eval_fraction=0.0307692") for c in t.prepare) and len(t.prepare) == 2
  if differs:
    assert "# Fields of the recipe that are done otherwise:\n" in config_text(t, "x", "mine.py")


def test_whose_recipe_it_is():
  simpo = {"simpo_gamma": 0.5}
  for fields, form in (
    ({**simpo, "rl": "simpo", "base_model": "m"}, "axolotl"),
    ({**simpo, "stage": "dpo"}, "llamafactory"),
    ({**simpo, "dataset_mixture": {}}, "handbook"),
    ({**simpo, "dataset_mixer": {}}, "handbook_old"),
    ({"loss_type": "simpo", "dataset_splits": []}, "handbook_old"),
    ({"sft_weight": 0, "dataset_mixer": {}}, "princeton"),
    (simpo, "trl"),
  ):
    assert detect_form(fields, "") == form
  for fields, names in (
    ({"base_model": "m", "cutoff_len": 5}, "base_model of axolotl and cutoff_len of LLaMA-Factory"),
    ({"dataset_mixer": {}, "dataset_mixture": {}}, "dataset_mixture of the alignment handbook"),
    ({"dataset_mixture": {}, "sft_weight": 0}, "--form=handbook or --form=princeton"),
  ):
    with pytest.raises(UserError, match=names):
      detect_form(fields, "")
  with pytest.raises(UserError, match="--form=princeton or --form=handbook_old"):
    detect_form({"dataset_mixer": {}, "beta": 0.01}, "a DPO recipe of the handbook")


@pytest.mark.parametrize("form", RECIPES)
def test_a_field_of_another_trainer_is_not_supported(form, folder):
  text, _, facts, _ = RECIPES[form]
  fields = fields_of(text, folder)
  for other in RECIPES:
    foreign = {name: 1 for name in FORMS[other].markers if name not in FORMS[form].known}
    rows = by_status(translated({**fields, **foreign}, facts, form), UNSUPPORTED)
    assert {*rows} == {*foreign}
    assert all(FORMS[form].trainer in text for text in rows.values())
  typo = {"gradient_acumulation_steps": 1}
  rows = by_status(translated({**fields, **typo}, facts, form), UNSUPPORTED)
  assert "did you mean 'gradient_accumulation_steps'" in rows["gradient_acumulation_steps"]


def test_another_objective_is_refused(folder):
  for form, change, message in (
    ("trl", {"loss_type": "sigmoid"}, "loss_type sigmoid is another loss"),
    ("handbook", {"loss_type": "sigmoid"}, "loss_type sigmoid is another loss"),
    ("llamafactory", {"pref_loss": "orpo"}, "pref_loss orpo is another loss"),
    ("llamafactory", {"pref_loss": "alphapo"}, "pref_loss alphapo is another loss"),
    ("llamafactory", {"stage": "sft"}, "stage sft is another training"),
    ("axolotl", {"rl": "dpo"}, "rl dpo is another loss"),
    ("axolotl", {"rl_beta": 0}, "rl_beta is 0, and must be positive"),
  ):
    text, _, facts, _ = RECIPES[form]
    with pytest.raises(UserError, match=message):
      translated({**fields_of(text, folder), **change}, facts, form)


@pytest.mark.parametrize(
  "form, change",
  [
    ("llamafactory", {"lora_dropout": 0.1}),
    ("llamafactory", {"quantization_bit": 4}),
    ("llamafactory", {"finetuning_type": "freeze"}),
    ("llamafactory", {"dpo_label_smoothing": 0.1}),
    ("llamafactory", {"use_badam": True}),
    ("llamafactory", {"do_train": False}),
    ("llamafactory", {"mix_strategy": "interleave_under"}),
    ("llamafactory", {"enable_thinking": False}),
    ("llamafactory", {"neftune_noise_alpha": 5}),
    ("llamafactory", {"max_samples": 100}),  # of a file
    ("llamafactory", {"dataset": "openai"}),
    ("llamafactory", {"dataset": "sft"}),
    ("llamafactory", {"dataset": "tools"}),
    ("llamafactory", {"dataset": "absent"}),
    ("llamafactory", {"dataset": "dpo_en_demo,other"}),  # other columns
    ("axolotl", {"load_in_4bit": True}),
    ("axolotl", {"adapter": "qlora"}),
    ("axolotl", {"sample_packing": True}),
    ("axolotl", {"special_tokens": {"eos_token": "x"}}),
    ("axolotl", {"optimizer": "lion_8bit"}),
    ("axolotl", {"lr_scheduler": "rex"}),
    ("axolotl", {"peft_use_dora": True}),
    ("axolotl", {"warmup_steps": 4000}),
    ("axolotl", {"datasets": [{"path": "org/x", "type": "chatml.nectar"}]}),
    ("axolotl", {"datasets": [{"path": "org/x", "field": "y"}]}),
    ("axolotl", {"datasets": [{"path": "org/x", "revision": "v2"}]}),
    ("handbook", {"dataset_mixture": {"datasets": [{"id": "a/b", "config": "en"}]}}),
    ("handbook", {"dataset_mixture": {"datasets": [{"id": "a/b", "weights": 1}]}}),
    ("handbook", {"dataset_mixture": {"datasets": [{"id": "a/b"}], "test_split_size": 0.9}}),
    ("trl", {"datasets": [{"path": "a/b", "fraction": 0.5}]}),
    ("trl", {"datasets": [{"path": "a/b"}]}),  # evaluates, and holds nothing out
  ],
  ids=str,
)
def test_what_would_train_otherwise_is_refused(form, change, folder):
  text, _, facts, _ = RECIPES[form]
  rows = by_status(translated({**fields_of(text, folder), **change}, facts, form), UNSUPPORTED)
  if change == {"max_samples": 100}:  # only whole files are read
    change = {"dataset": "the first 100 rows"}
  if change == {"datasets": [{"path": "a/b"}]}:
    change = {"eval_strategy": "steps"}
  assert {*change} <= {*rows} <= {*change, "val_size"}


@pytest.mark.parametrize(
  "form, change, expected",
  [
    ("llamafactory", {"finetuning_type": "full"}, {"train.lora_rank": 0}),
    ("llamafactory", {"finetuning_type": "full"}, {"model.param_dtype": "float32"}),
    (
      "llamafactory",
      {"lora_target": "q_proj, o_proj"},
      {"train.lora_targets": ("q_proj", "o_proj")},
    ),
    ("llamafactory", {"lora_alpha": 4, "use_rslora": True}, {"train.lora_alpha": 4 * 8**0.5}),
    ("llamafactory", {"disable_gradient_checkpointing": True}, {"train.remat": "none"}),
    ("llamafactory", {"pref_ftx": 0.5}, {"simpo.sft_weight": 0.5}),
    ("llamafactory", {"val_size": 100}, {"data.eval_fraction": 0.1}),
    ("llamafactory", {"do_eval": True, "eval_strategy": "no"}, {"evaluate.at_end": True}),
    ("axolotl", {"val_set_size": 0}, {"evaluate.every": 0, "evaluate.at_end": False}),
    ("axolotl", {"evals_per_epoch": None, "eval_steps": 50}, {"evaluate.every": 50}),
    ("axolotl", {"evals_per_epoch": None, "eval_strategy": "epoch"}, {"evaluate.every": 802}),
    (
      "axolotl",
      {"evals_per_epoch": None, "eval_strategy": "steps", "logging_steps": None},
      {"evaluate.every": 10},  # min(int(0.005 * 3207), 10)
    ),
    (
      "axolotl",
      {"evals_per_epoch": None, "evaluation_strategy": "steps", "val_set_size": None},
      {"evaluate.every": 0, "evaluate.at_end": False},
    ),
    ("axolotl", {"saves_per_epoch": None}, {"checkpoint.every": 802}),
    ("axolotl", {"saves_per_epoch": None, "save_steps": 9}, {"checkpoint.every": 9}),
    # 802 steps: evaluations at quarters, rounded up, and a checkpoint at the end of the epoch.
    ("axolotl", {"num_epochs": 1}, {"evaluate.every": 201, "checkpoint.every": 802}),
    ("axolotl", {"max_steps": 10}, {"train.steps": 10, "train.warmup_ratio": 0.0}),
    ("axolotl", {"max_steps": 50}, {"train.warmup_ratio": 1.5 / 50}),  # 1 becomes 2
    ("axolotl", {"warmup_ratio": 0.01}, {"train.warmup_ratio": 31.5 / 3207}),  # int(32.07)
    ("axolotl", {"warmup_steps": 20}, {"train.warmup_ratio": 19.5 / 3207}),
    ("axolotl", {"bf16": False}, {"model.compute_dtype": "float32"}),
    ("axolotl", {"excess_length_strategy": "truncate"}, {"data.max_prompt_length": 4095}),
    (
      "axolotl",
      {"chat_template": "jinja", "chat_template_jinja": "{{ x }}"},
      {"data.chat_template": "{{ x }}"},
    ),
    (
      "axolotl",
      {"gradient_accumulation_steps": None, "batch_size": 16},
      {"train.batch_size": 16},
    ),
    (
      "axolotl",
      {"datasets": [{"path": "json", "data_files": ["a.json", "b.jsonl"]}]},
      {"data.train": ("a.json", "b.jsonl"), "data.eval_fraction": 0.05},
    ),
    (
      "axolotl",
      {"val_set_size": 0, "test_datasets": [{"path": "org/held", "split": "test"}]},
      {"data.eval": ("tfds:org_held_test:train",)},
    ),
    (
      "handbook",
      {"dataset_mixture": {"datasets": [{"id": "a.jsonl"}], "test_split_size": 0.2}},
      {"data.train": ("a.jsonl",), "data.eval": (), "data.eval_fraction": 0.2},
    ),
  ],
  ids=str,
)
def test_one_change_to_a_recipe(form, change, expected, folder):
  text, _, facts, _ = RECIPES[form]
  fields = {**fields_of(text, folder), **change}
  fields = {name: value for name, value in fields.items() if value is not None}
  t = translated(fields, facts, form)
  assert by_status(t, UNSUPPORTED) == {}
  found = flatten(validate(make_config(t.settings)))
  assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
  "form, change, columns",
  [
    (
      "axolotl",
      {"datasets": [{"path": "a/b", "type": "chat_template.default", "field_chosen": "good"}]},
      ("chosen=good",),
    ),
    (
      "axolotl",
      {"datasets": [{"path": "a/b", "type": "chat_template", "field_messages": "turns"}]},
      ("messages=turns",),
    ),
    (
      "axolotl",
      {"datasets": [{"path": "a/b", "type": "chatml.intel"}]},
      ("instruction=question",),
    ),
    ("llamafactory", {"dataset": "alpaca"}, ("chosen=c", "rejected=r", "instruction=ask")),
    (
      "axolotl",
      {"datasets": [{"path": "a/b", "type": {"field_prompt": "q", "prompt_format": "{prompt}"}}]},
      ("prompt=q",),
    ),
    (
      "handbook",
      {
        "dataset_mixture": {
          "datasets": [{"id": "a/b", "columns": {"rejected": "bad"}}],
          "test_split_size": 0.1,
        }
      },
      ("rejected=bad",),
    ),
    (
      "trl",
      {"datasets": [{"path": "a/b", "columns": {"prompt": "q"}}], "eval_strategy": "no"},
      ("prompt=q",),
    ),
    (
      "llamafactory",
      {"dataset": "other"},
      ("chosen=good", "rejected=bad", "conversations=turns", "system=sys"),
    ),
  ],
  ids=str,
)
def test_columns(form, change, columns, folder):
  text, _, facts, _ = RECIPES[form]
  t = translated({**fields_of(text, folder), **change}, facts, form)
  assert t.settings["data.columns"] == columns and by_status(t, UNSUPPORTED) == {}
  for command in t.prepare:
    flags = [word for word in shlex.split(command) if word.startswith("--columns=")]
    assert sorted(flags) == sorted(f"--columns={column}" for column in columns)


def test_without_dataset_info(folder):
  text, _, facts, _ = RECIPES["llamafactory"]
  fields = fields_of(text, folder)
  info = folder / "data" / "dataset_info.json"
  for content, message in (
    ("[]", "not one JSON object"),
    ("{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    (" " * (MAX_JSON_BYTES + 1), "larger than 4 MiB"),
  ):
    info.write_text(content)
    with pytest.raises(UserError, match=message):
      translated(fields, facts)
  info.unlink()
  rows = by_status(translated(fields, facts), UNSUPPORTED)
  assert "there is no data/dataset_info.json" in rows["dataset"] and "--data" in rows["dataset"]
  t = translated(fields, facts._replace(data="mine.jsonl"))
  assert by_status(t, UNSUPPORTED) == {} and t.settings["data.train"] == ("mine.jsonl",)
  assert t.settings["data.eval_fraction"] == 0.1, "val_size"


def test_required_facts_and_fields(folder):
  def fails(form, change, facts, message):
    fields = {**fields_of(RECIPES[form][0], folder), **change}
    with pytest.raises(UserError, match=message):
      translated({k: v for k, v in fields.items() if v is not None}, facts, form)

  given = RunFacts(1, 100)
  fails("axolotl", {"simpo_gamma": None}, given, "has no simpo_gamma, and axolotl has no default")
  fails("axolotl", {"learning_rate": None}, given, "no learning_rate, which axolotl requires")
  fails("axolotl", {"lora_r": None}, given, "no lora_r, which axolotl requires")
  fails("axolotl", {"base_model": None}, given, "names no model; add base_model")
  fails("axolotl", {"micro_batch_size": 0}, given, "micro_batch_size is 0, and must be at least 1")
  fails("llamafactory", {"lora_rank": 0}, given, "lora_rank is 0, and must be at least 1")
  fails("axolotl", {"num_epochs": 0}, given, "num_epochs is 0, and must be positive")
  fails("trl", {"eval_steps": 2.5}, given, "eval_steps is 2.5, and must be a whole number")
  fails("trl", {"max_steps": 0}, given, "max_steps is 0, which trains nothing")
  fails("trl", {"logging_steps": 0}, given, "say how often with eval_steps")
  epochs = {"max_steps": 5, "save_strategy": "epoch"}
  fails("trl", epochs, RunFacts(1), "save_strategy is epoch.*--pairs=N")


OPTIMIZERS = {
  "adamw_torch": (MAPPED, "the same update"),
  "paged_adamw": (MAPPED, "the same update; paging"),
  "paged_adamw_32bit": (MAPPED, "the same update; paging"),
  "paged_adamw_8bit": (DIFFERS, "keeps the moments in 8 bits"),
  "adamw_bnb_8bit": (DIFFERS, "keeps the moments in 8 bits"),
  "adamw_hf": (DIFFERS, "epsilon before the bias correction"),
  "adafactor": (UNSUPPORTED, "factors the second moment"),
  "paged_lion_32bit": (UNSUPPORTED, "sign"),
  "galore_adafactor": (UNSUPPORTED, "low-rank projection"),
  "paged_ademamix_8bit": (UNSUPPORTED, "slower moment"),
  "adamw_trch": (UNSUPPORTED, "unknown; did you mean 'adamw_torch'?"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_told_with_their_arithmetic(name, folder):
  t = translated({**fields_of(TRL, folder), "optim": name}, RunFacts(2, 6250))
  row = next(row for row in t.rows if row.field == "optim")
  status, text = OPTIMIZERS[name]
  assert row.status == status and text in row.text
  assert t.settings["train.optimizer"] == "adamw"
