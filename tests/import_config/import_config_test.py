"""Other trainers' recipes: each field is translated, passed over for a reason, or refused."""

import collections
import dataclasses
import os
import pathlib
import runpy
import shlex
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_jax.config import default_config, flatten
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import (
  COMBINED,
  FIELD_TYPES,
  IGNORED_FIELDS,
  KNOWN,
  MISTRAL_TEMPLATE,
  NOT_OF_TRANSFORMERS,
  RENAMED,
  SUPPORTED_VALUES,
)
from simpo_jax.import_config.forms import FORMS, detect_form
from simpo_jax.import_config.parts import RunFacts
from simpo_jax.import_config.reading import MAX_BYTES, MAX_DEPTH, read_yaml
from simpo_jax.import_config.translate import (
  IGNORED,
  MAPPED,
  UNSUPPORTED,
  make_config,
  translate,
)
from simpo_jax.import_config.writing import config_text
from simpo_jax.tokenizer.chat_template import render
from simpo_jax.train.optimizer import make_schedule
from support.folders import ROOT
from support.modules import load_module

ASKED = RunFacts(devices=4, pairs=6400)
TRL = {"model_name_or_path": "org/model", "loss_type": "simpo", "dataset_name": "org/pairs"}
PRINCETON = {
  "model_name_or_path": "org/model",
  "dataset_mixer": {"org/pairs": 1.0},
  "gamma_beta_ratio": 0.5,
}


def translated(fields, facts=ASKED):
  return translate(fields, detect_form(fields, "r.yaml"), facts, "r.yaml")


def config_of(fields, facts=ASKED):
  return validate(make_config(translated(fields, facts).settings))


def statuses(translation):
  return {row.field: row.status for row in translation.rows}


def texts(translation):
  return {row.field: row.text for row in translation.rows}


# --- what becomes of the fields --------------------------------------------------------------


def test_trl_leaves_a_recipe_that_says_nothing_far_from_simpo():
  c = config_of(TRL)
  assert (c.simpo.beta, c.simpo.gamma_beta_ratio, c.simpo.sft_weight) == (0.1, 5.0, 1.0)
  assert (c.train.learning_rate, c.train.schedule, c.train.warmup_ratio) == (1e-6, "linear", 0.0)
  assert (c.train.batch_size, c.train.steps) == (32, 600)  # 8 x 4 devices; 3 epochs
  assert (c.data.max_length, c.data.max_prompt_length) == (1024, 1023)
  assert (c.data.header, c.data.truncation) == ("prompt", "prompt_first")
  assert (c.seed, c.model.compute_dtype, c.train.remat) == (42, "bfloat16", "full")
  assert not c.evaluate.at_end and c.data.eval == ()


def test_trl_gamma_is_absolute():
  c = config_of({**TRL, "beta": 2.5, "simpo_gamma": 1.375, "cpo_alpha": 0, "label_smoothing": 0.1})
  assert c.simpo.gamma_beta_ratio == 0.55 and c.simpo.sft_weight == 0
  assert c.simpo.label_smoothing == 0.1 and c.simpo.loss_type == "sigmoid"
  assert config_of({**TRL, "loss_type": "alphapo"}).simpo.sft_weight == 0  # and alpha 0


def test_princeton_defaults_are_its_own():
  c = config_of(PRINCETON)
  assert (c.simpo.beta, c.simpo.gamma_beta_ratio, c.simpo.sft_weight) == (2.0, 0.5, 0.0)
  assert (c.train.learning_rate, c.data.max_length, c.data.max_prompt_length) == (5e-5, 512, 128)
  assert (c.data.header, c.data.truncation) == ("response", "princeton")
  assert c.data.empty_system and c.model.compute_dtype == "float32"


@pytest.mark.parametrize(
  "variant, fields",
  [
    (
      "llama3_8b_base",
      dict(
        model_name_or_path="princeton-nlp/Llama-3-Base-8B-SFT",
        dataset_mixer={"HuggingFaceH4/ultrafeedback_binarized": 1.0},
        dataset_splits=["train_prefs", "test_prefs"],
        beta=2.0,
        learning_rate="6e-7",
      ),
    ),
    (
      "mistral_7b_instruct",
      dict(
        model_name_or_path="mistralai/Mistral-7B-Instruct-v0.2",
        dataset_mixer={"princeton-nlp/mistral-instruct-ultrafeedback": 1},
        beta=2.5,
        gamma_beta_ratio=0.1,
        learning_rate=5.0e-7,
        auto_insert_empty_system_msg=False,
      ),
    ),
  ],
)
def test_a_published_recipe_is_the_config_of_that_name(variant, fields):
  common = dict(
    bf16=True,
    gradient_checkpointing=True,
    gradient_accumulation_steps=16,
    per_device_train_batch_size=2,
    lr_scheduler_type="cosine",
    warmup_ratio=0.1,
    max_length=2048,
    max_prompt_length=1800,
    num_train_epochs=1,
    optim="adamw_torch",
    evaluation_strategy="steps",
    eval_steps=400,
    seed=42,
  )
  ours = load_module(ROOT / "configs" / "simpo.py").get_config(variant)
  pairs = 128 * ours.train.steps + 17
  c = config_of({**PRINCETON, **common, **fields}, RunFacts(devices=4, pairs=pairs))
  expected, found = flatten(ours), flatten(c)
  free = ("name", "data.train", "data.eval", "data.dir", "model.compute_dtype")
  differ = [
    name
    for name in found
    if found[name] != expected[name]
    and name not in free
    and not name.startswith(("generate.", "checkpoint."))
  ]
  assert not differ


def test_steps_and_batch():
  fields = {**TRL, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}
  c = config_of({**fields, "num_train_epochs": 1.5}, RunFacts(devices=2, pairs=100))
  assert (c.train.batch_size, c.train.steps) == (30, 6)  # 4 steps an epoch
  assert config_of({**fields, "max_steps": 7}, RunFacts(devices=1)).train.steps == 7
  with pytest.raises(UserError, match="3 x 5 pairs a step.*--devices=N"):
    translated(fields, RunFacts(pairs=1))
  with pytest.raises(UserError, match="trains for 3 epochs.*--pairs=N"):
    translated(fields, RunFacts(devices=1))


@pytest.mark.parametrize("warmup", [0, 1, 7, 33, 100, 0.031])
def test_warmup_steps_are_those_that_are_asked_for(warmup):
  fields = {
    **TRL,
    "max_steps": 100,
    "warmup_steps": warmup,
    "warmup_ratio": 0.5,
    "learning_rate": 1,
  }
  schedule = make_schedule(config_of(fields).train)
  # 0: warmup_ratio decides; below 1: a share.
  steps = 50 if not warmup else 4 if warmup < 1 else warmup
  assert np.asarray(schedule(steps)) == 1 and np.asarray(schedule(steps - 1)) < 1


def test_schedules():
  constant = config_of({**TRL, "lr_scheduler_type": "constant", "warmup_ratio": 0.5}).train
  assert (constant.schedule, constant.warmup_ratio) == ("constant", 0.0), "as transformers does"
  warm = {**TRL, "lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5}
  assert config_of(warm).train.warmup_ratio == 0.5
  assert statuses(translated({**TRL, "lr_scheduler_type": "polynomial"}))["lr_scheduler_type"] == (
    UNSUPPORTED
  )


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_weights_that_train_stay_float32(name):
  recipe = {**TRL, name: "bfloat16", "bf16": False}
  c = config_of(recipe)
  assert (c.model.param_dtype, c.model.compute_dtype) == ("float32", "bfloat16")
  assert "trained weights are float32" in texts(translated(recipe))[name]


def test_lora():
  lora = {**TRL, "use_peft": True, "lora_dropout": 0, "dtype": "bfloat16"}
  c = config_of(lora)
  assert (c.train.lora_rank, c.train.lora_alpha) == (16, 32.0)
  assert c.train.lora_targets == ("q_proj", "v_proj") and c.model.param_dtype == "bfloat16"
  more = {"lora_r": 64, "lora_alpha": 16, "use_rslora": True, "lora_target_modules": "all-linear"}
  c = config_of({**lora, **more})
  assert c.train.lora_alpha / c.train.lora_rank == 16 / 64**0.5 and len(c.train.lora_targets) == 7
  for fields in ({"lora_dropout": 0.05}, {"lora_target_modules": ["embed_tokens"]}):
    assert statuses(translated({**lora, **fields}))[next(iter(fields))] == UNSUPPORTED
  assert statuses(translated({**TRL, "use_peft": True}))["lora_dropout"] == UNSUPPORTED, "0.05"
  assert config_of({**TRL, "lora_r": 64}).train.lora_rank == 0


def test_datasets():
  mixer = {"org/a": 1.0, "org/B.b": 0.25, "org/none": 0, "local.jsonl": 1}
  t = translated({**PRINCETON, "dataset_mixer": mixer, "do_eval": True})
  assert t.settings["data.train"] == (
    "tfds:org_a_train:train",
    "tfds:org_b_b_train:train[:25%]",
    "local.jsonl",
  )
  held = t.settings["data.eval"]
  assert held[:2] == ("tfds:org_a_test:train", "tfds:org_b_b_test:train"), "whole"
  assert (
    "python -m simpo_jax.prepare --source='org/B.b:data/train-*' --name=org_b_b_train --out=data"
  ) in t.prepare
  for share in (0.333, 1.5, -1, "half"):
    t = translated({**PRINCETON, "dataset_mixer": {"org/a": share}})
    assert statuses(t)["dataset_mixer"] == UNSUPPORTED
  trl = {**TRL, "dataset_train_split": "train_prefs", "eval_strategy": "epoch"}
  t = translated(trl)
  assert t.settings["data.train"] == ("tfds:org_pairs_train_prefs:train",)
  assert t.settings["data.eval"] == ("tfds:org_pairs_test:train",)
  assert (t.settings["train.steps"], t.settings["evaluate.every"]) == (600, 200)
  listed = {**TRL, "datasets": [{"path": "org/x"}, {"path": "org/y", "split": "all"}]}
  assert translated(listed).settings["data.train"] == (
    "tfds:org_x_train:train",
    "tfds:org_y_all:train",
  )
  mine = ASKED._replace(data="mine.jsonl")
  assert config_of(trl, mine).data.train == ("mine.jsonl",)
  with pytest.raises(UserError, match="names no dataset.*--data"):
    translated({k: v for k, v in TRL.items() if k != "dataset_name"})


def test_evaluation_and_saving():
  fields = {"eval_strategy": "steps", "eval_steps": 0.1, "generate_during_eval": True}
  c = config_of({**TRL, **fields, "save_strategy": "epoch", "save_total_limit": 3})
  assert (c.evaluate.every, c.evaluate.at_end, c.generate.every) == (60, True, 60)
  assert (c.checkpoint.every, c.checkpoint.keep) == (200, 3)
  assert config_of({**TRL, "save_strategy": "no"}).checkpoint.every == 0
  unquoted = yaml.safe_load("save_strategy: no\neval_strategy: no")
  assert not config_of({**TRL, **unquoted}).evaluate.at_end


def test_whose_it_is():
  assert detect_form(TRL, "") == "trl" and detect_form(PRINCETON, "") == "princeton"
  with pytest.raises(UserError, match="simpo_gamma of TRL and gamma_beta_ratio.*--form"):
    detect_form({"simpo_gamma": 1, "gamma_beta_ratio": 1}, "r.yaml")
  with pytest.raises(UserError, match="could be TRL's or princeton"):
    detect_form({"beta": 2.0}, "r.yaml")


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_another_loss_is_refused(kind):
  with pytest.raises(UserError, match=f"loss_type {kind} .*only simpo"):
    translated({**TRL, "simpo_gamma": 1, "loss_type": kind})
  if kind == "hinge":
    smoothed = {**PRINCETON, "loss_type": kind, "label_smoothing": 0.1}
    c = config_of(smoothed)
    assert c.simpo.loss_type == "hinge" and c.simpo.label_smoothing == 0, "as princeton's code"
    assert "hinge has none" in texts(translated(smoothed))["label_smoothing"]


@pytest.mark.parametrize(
  "fields",
  [
    {"alpha": 0.1},
    {"fp16": True},
    {"load_in_4bit": True},
    {"use_dora": True},
    {"optim": "adafactor"},
    {"optim_args": "betas=1"},
    {"neftune_noise_alpha": 5},
    {"model_revision": "v2"},
    {"dtype": "auto"},
    {"truncation_mode": "keep_start"},
    {"lr_scheduler_kwargs": {"num_cycles": 2}},
    {"lora_modules_to_save": ["lm_head"]},
    {"dataset_config": "other"},
    {"precompute_ref_log_probs": True},
    {"save_strategy": "best"},
  ],
  ids=lambda x: next(iter(x)),
)
def test_what_would_train_otherwise_is_refused(fields):
  t = translated({**TRL, **fields})
  assert [row.field for row in t.rows if row.status == UNSUPPORTED] == list(fields)


def test_harmless_fields_pass_with_a_reason():
  fields = {"logging_steps": 5, "fp16": False, "model_revision": "main", "fsdp": "full_shard"}
  t = translated({**TRL, **fields})
  rows = {row.field: row for row in t.rows}
  assert all(rows[name].status == IGNORED and rows[name].text for name in fields)
  assert rows["beta"].value.endswith("(default)") and rows["beta"].status == MAPPED


def test_a_typo_names_the_nearest_field():
  rows = {row.field: row for row in translated({**TRL, "gradient_acumulation_steps": 2}).rows}
  row = rows["gradient_acumulation_steps"]
  assert row.status == UNSUPPORTED and "'gradient_accumulation_steps'" in row.text


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"beta": "much"}, "beta is much, and must be a finite number"),
    ({"beta": float("nan")}, "beta is nan"),
    ({"beta": 0}, "beta is 0, and must be positive"),
    ({"learning_rate": 5}, "--config.train.learning_rate=5"),
    ({"per_device_train_batch_size": 1.5}, "must be a whole number"),
    ({"bf16": "yes"}, "bf16 is yes, and must be true or false"),
    ({"max_length": 100, "max_prompt_length": 100}, "must be at least 1 and below"),
    ({"model_name_or_path": ["a"]}, "must be text"),
    ({"datasets": "org/a"}, "datasets must be a list"),
    ({"datasets": [{"path": "org/a", "columns": ["x"]}]}, "columns in datasets"),
    ({"num_train_epochs": 1e300}, "train.steps"),
    ({"num_train_epochs": 0}, "must be positive"),
    ({"use_peft": True, "lora_r": 0}, "lora_r is 0, and must be at least 1"),
  ],
  ids=lambda x: str(x)[:20],
)
def test_values_that_make_no_sense(fields, message):
  with pytest.raises(UserError, match="r.yaml: .*") as e:
    translated({**TRL, **fields})
  assert message in str(e.value) and "\n" not in str(e.value)


def test_every_field_of_the_trainers_is_known_once():
  tables = [
    *RENAMED,
    *SUPPORTED_VALUES,
    *COMBINED,
    *(n for names in IGNORED_FIELDS.values() for n in names),
  ]
  assert not [name for name, n in collections.Counter(tables).items() if n > 1]
  ours = [name for names in FIELD_TYPES.values() for name in names]
  assert set(ours) <= KNOWN and len(ours) == len(set(ours))
  trainer = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
  assert trainer <= KNOWN and NOT_OF_TRANSFORMERS <= KNOWN
  assert not trainer & NOT_OF_TRANSFORMERS and trainer <= FORMS["llamafactory"].known
  for form in FORMS.values():
    tables = [n for t in (form.ignored, form.refused) for names in t.values() for n in names]
    tables += [n for n in (*form.own, *form.common) if n not in KNOWN or form.own]
    assert not [name for name, n in collections.Counter(tables).items() if n > 1], form.name
    assert {*tables, *map(form.own_name, form.defaults), *form.markers} <= form.known, form.name
    typed = [name for names in form.types.values() for name in names]
    assert {*typed} <= {*form.own} and len(typed) == len({*typed}), form.name


def test_the_template_for_mistral():
  def text(*messages):
    roles = [dict(zip(("role", "content"), m, strict=True)) for m in messages]
    return render(MISTRAL_TEMPLATE, {"messages": roles, "eos_token": "</s>"}, "test", "2026-11-24")

  turns = (("user", " a\n"), ("assistant", "b "), ("user", "c"))
  expected = "[INST] a [/INST] b </s>[INST] c [/INST]"
  assert text(*turns) == text(("system", ""), *turns) == expected
  assert text(("system", " s "), *turns) == expected.replace("[INST] a", "[INST] s\n\n a", 1)


# --- the file ----------------------------------------------------------------------------------


def read(tmp_path, text):
  path = tmp_path / "r.yaml"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return read_yaml(path)


def test_numbers_without_a_point_and_nulls(tmp_path):
  fields = read(tmp_path, "learning_rate: 5e-7\ntorch_dtype: null\nsplits:\n- a\n- b\n")
  assert fields == {"learning_rate": "5e-7", "splits": ["a", "b"]}
  assert config_of({**TRL, "learning_rate": "5e-7"}).train.learning_rate == 5e-7


BOMB = "a: &a [x, x]\n" + "".join(
  f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abc", "bcd", strict=True)
)


@pytest.mark.parametrize(
  "text, message",
  [
    (BOMB, "line 2: aliases"),
    ("a: &a [*a]", "aliases"),
    ("a: !!python/object/apply:os.system ['false']", "could not determine a constructor"),
    ("beta: 1\nbeta: 2", "'beta' occurs twice"),
    ("a:\n  b: 1\n  b: 2", "'b' occurs twice"),
    ("[" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
    ("{a: " * 10_000, f"nested more than {MAX_DEPTH} deep"),
    ("- a\n- b", "not a mapping"),
    ("", "not a mapping"),
    ("1: 2", "not a mapping"),
    ("a: 1\n---\nb: 2", "but found another document"),
    ("a: [1", "line 1"),
    ("a: b: c", "line 1"),
    ("? [a, b]\n: c", "unhashable"),
    (f"a: {'9' * 5000}", "digits"),
    ("a: 2024-99-99", "month"),
    (b"a: \xff\xfe\x00", "r.yaml"),
    (b"a: \x00", "special characters"),
    ("a: " + "b" * MAX_BYTES, "larger than 256 KiB"),
  ],
  ids=lambda x: str(x)[:20],
)
def test_malformed_files_are_one_line(tmp_path, text, message):
  with pytest.raises(UserError, match="r.yaml") as e:
    read(tmp_path, text)
  assert message in str(e.value)


def test_not_a_file(tmp_path):
  for path in (tmp_path, tmp_path / "absent.yaml", pathlib.Path("/dev/zero")):
    with pytest.raises(UserError, match="not a file"):
      read_yaml(path)


# --- what is written ---------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_text_of_a_recipe_becomes_code(name, folder, field, value):
  fields = {
    **TRL,
    "run_name": name,
    "output_dir": folder,
    "chat_template": value,
    f"x{field}": value,
  }
  t = translated(fields)
  text = config_text(t, f"trl's {name}", "configs/mine.py")
  with tempfile.TemporaryDirectory() as place:
    mine = pathlib.Path(place) / "mine.py"
    mine.write_text(text, encoding="utf-8")
    names = runpy.run_path(str(mine))  # the very file that a run would execute
  assert {n for n in names if not n.startswith("__")} == {"default_config", "get_config"}
  c = names["get_config"]()
  assert flatten(c) == flatten(make_config(t.settings))
  assert c.data.chat_template == value
  validate(c)


def test_commands_can_be_pasted_into_a_shell():
  mixer = {"org/a;touch b": 1.0, "org/c$(touch d)": 1.0, "org/fine": 1.0}
  t = translated({**PRINCETON, "dataset_mixer": mixer, "output_dir": "x; touch y"})
  text = config_text(t, "r.yaml", "configs/my recipes.py")
  commands = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# python")]
  assert [shlex.split(c)[3:] for c in commands] == [
    ["--source=org/fine:data/train-*", "--name=org_fine_train", "--out=data"],
    ["--config=configs/my recipes.py", "--workdir=x; touch y"],
  ]


def command(*arguments):
  done = subprocess.run(
    [sys.executable, "-m", "simpo_jax.import_config", *map(str, arguments)],
    cwd=ROOT,
    env=dict(os.environ, COLUMNS="200"),
    text=True,
    capture_output=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path):
  recipe, out = tmp_path / "simpo.yaml", tmp_path / "mine.py"
  fields = {**PRINCETON, "beta": 10, "use_dora": True, "run_name": "[red]mine"}
  recipe.write_text(yaml.safe_dump(fields))
  facts = (recipe, "--devices=4", "--pairs=61135", f"--out={out}")
  code, table, error = command(*facts)
  assert code == 2 and not out.exists()
  assert "use_dora" in error and "--allow_unsupported" in error and len(error.splitlines()) == 1
  assert "NOT SUPPORTED" in table and "[red]mine" in table
  code, table, error = command(*facts, "--allow_unsupported")
  assert code == 0, error
  assert f"python -m simpo_jax.main --config={out}" in table
  assert "use_dora: True (adapters are plain LoRA)" in out.read_text()
  c = runpy.run_path(str(out))["get_config"]()
  validate(c)
  assert (c.name, c.simpo.beta, c.train.steps) == ("red-mine", 10.0, 3 * 1911)  # ceil(7642 / 4)
  assert flatten(c).keys() == flatten(default_config()).keys()
  code, _, error = command(*facts, "--allow_unsupported")
  assert code == 2 and "already exists" in error and "--force" in error


def test_mistakes_on_the_command_line(tmp_path):
  code, _, error = command("--device=4", tmp_path / "r.yaml")
  assert code == 2 and "did you mean 'devices'" in error
  code, _, error = command()
  assert code == 2 and "name one YAML" in error
