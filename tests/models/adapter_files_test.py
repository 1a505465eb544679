"""An adapter's folder as a model: the base model and the adapter, as the peft package adds them."""

import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from simpo_jax.errors import UserError
from simpo_jax.export.adapter import export_adapter
from simpo_jax.export.runs import export_run
from simpo_jax.loaded_model.model import load_model
from simpo_jax.models import lora as adapters
from simpo_jax.models.adapter_files import adapter_notes
from simpo_jax.models.lora import Lora
from simpo_jax.models.sharding import make_mesh, named
from simpo_jax.models.weights import load_params, open_model
from simpo_jax.runtime.fingerprint import data_fields
from simpo_jax.settings import Settings
from simpo_jax.settings.train import LORA_TARGETS
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.of_model import tokenizer_of
from support.hf_models import SOURCE_VOCAB, hf_logits, load, our_logits, save_llama
from support.hf_tokenizers import CHATML, save_tokenizer
from support.lora_models import save_adapter
from support.saved_runs import save

TOKENS = np.random.default_rng(0).integers(0, SOURCE_VOCAB, (2, 40), np.int32)
SOME = Lora(3, 8.0, ("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp("base")
  save_llama(folder, vocab_size=SOURCE_VOCAB)
  save_tokenizer(folder, generation={"eos_token_id": [1004]})
  return folder


def check_logits(folder, base):
  """Our logits with the adapters merged are those of peft with them beside the weights."""
  peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
  pytest.importorskip("torch")
  net = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
  plain = hf_logits(net.float().eval(), TOKENS)
  expected = hf_logits(peft.PeftModel.from_pretrained(net, folder).eval(), TOKENS)
  assert np.abs(expected - plain).max() > 0.5
  np.testing.assert_allclose(our_logits(*load(folder), TOKENS), expected, atol=1e-4, rtol=0)


@pytest.mark.model
@pytest.mark.parametrize(
  "how",
  (
    {},
    {"use_rslora": True},
    {"lora": SOME},
    {"lora": SOME, "layers": (1,), "layers_to_transform": [1]},
    {"target_modules": "all-linear"},
  ),
  ids=("all", "rslora", "some", "one layer", "all-linear"),
)
def test_logits_are_those_of_peft(how, base, tmp_path):
  check_logits(save_adapter(tmp_path / "adapter", base, **how), base)


@pytest.mark.model
def test_what_peft_writes(base, tmp_path):
  torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
  from transformers import AutoModelForCausalLM

  net = AutoModelForCausalLM.from_pretrained(base)
  settings = peft.LoraConfig(
    r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"
  )
  net = peft.get_peft_model(net, settings)
  with torch.no_grad():
    for name, p in net.named_parameters():
      if "lora_" in name:
        p.normal_(std=0.3)
  net.save_pretrained(tmp_path / "adapter")
  check_logits(tmp_path / "adapter", base)


@pytest.mark.model
def test_our_own_adapter_is_read_back(base, tmp_path):
  opened = open_model(str(base))
  rng = np.random.default_rng(2)
  table = adapters.all_tensors(opened.config, SOME)["lora"]
  made = {name: jax.device_put(rng.normal(size=t.shape).astype("f4")) for name, t in table.items()}
  export_adapter(tmp_path / "adapter", made, opened.config, SOME, str(base))
  again = open_model(str(tmp_path / "adapter")).adapter
  assert again and again.lora == SOME
  check_logits(tmp_path / "adapter", base)


def params_of(model, lora):
  mesh = make_mesh(devices=jax.devices()[:1], hosts=1)
  shardings = jax.tree.map(
    lambda _: named(mesh, jax.sharding.PartitionSpec()), adapters.all_tensors(model.config, lora)
  )
  return load_params(model, shardings, "float32", 0, lora)


def test_training_goes_on_from_the_file(base, tmp_path):
  """The weights are the base model's, and the factors those of the file."""
  folder = save_adapter(tmp_path / "adapter", base, SOME)
  model = open_model(str(folder))
  assert model.adapter and adapter_notes(model.adapter, SOME) == ("its adapters go on training",)
  params, plain = params_of(model, SOME), params_of(open_model(str(base)), None)
  jax.tree.map(np.testing.assert_array_equal, {**params, "lora": 0}, {**plain, "lora": 0})
  stored = load_file(folder / "adapter_model.safetensors")
  for name, tensor in adapters.all_tensors(model.config, SOME)["lora"].items():
    for layer in range(2):
      expected = stored[tensor.hf_name.format(layer)].T
      np.testing.assert_array_equal(params["lora"][name][layer], expected)


def test_settings_must_be_those_of_the_file(base, tmp_path):
  def adapter(**how):
    found = open_model(str(save_adapter(tmp_path / "adapter", base, **how))).adapter
    assert found
    return found

  merged = ("its adapters are merged into the weights, all of which train",)
  assert adapter_notes(adapter(lora=SOME), None) == merged
  flags = (
    r"--config.train.lora_rank=3 --config.train.lora_alpha=8.0 "
    r"--config.train.lora_targets=\"\('q_proj','down_proj'\)\"; or --config.train.lora_rank=0"
  )
  for other in (
    SOME._replace(rank=4),
    SOME._replace(alpha=9.0),
    SOME._replace(targets=("q_proj",)),
  ):
    with pytest.raises(UserError, match=flags):
      adapter_notes(adapter(lora=SOME), other)
  rslora = adapter(lora=Lora(4, 6.0, LORA_TARGETS), use_rslora=True)
  assert adapter_notes(rslora, Lora(4, 12.0, LORA_TARGETS))  # 12 / 4 = 6 / sqrt(4)
  dropped = adapter(lora=SOME, lora_dropout=0.1)
  assert "lora_dropout=0.1 is not applied" in adapter_notes(dropped, SOME)[0]
  with pytest.raises(UserError, match="adapters for some layers only"):
    adapter_notes(adapter(lora=SOME, layers=(0,)), SOME)


@pytest.mark.parametrize(
  "changes,message",
  (
    ({"use_dora": True}, "use_dora=True is not supported"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern=.*is not supported"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern=.*is not supported"),
    ({"lora_bias": True}, "lora_bias=True is not supported"),
    ({"bias": "all"}, "bias=all is not supported"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa is not supported"),
    ({"peft_type": "IA3"}, "peft_type=IA3 is not supported"),
    ({"task_type": "SEQ_CLS"}, "task_type=SEQ_CLS is not supported"),
    ({"revision": "abc"}, "revision=abc is not supported"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices=.*is not supported"),
    ({"of_a_later_peft": {"a": 1}}, "of_a_later_peft=.*is not supported"),
    ({"r": 5}, r"has shape \(4, \d+\), but the base model and r=5 ask for \(5,"),
    ({"r": 0}, "r=0 must be a whole number"),
    ({"lora_alpha": "8"}, "lora_alpha=8 must be a number"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "target_modules lists embed_tokens"),
    ({"target_modules": ["q_proj"]}, "target_modules lacks model.layers.0.mlp.down_proj"),
    ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
    ({"base_model_name_or_path": "/nowhere"}, "base model cannot be opened .*/nowhere does not"),
    ({"base_model_name_or_path": "x" * 999}, "cannot be opened .*cannot be a path"),
    ({"base_model_name_or_path": "a\0b"}, "cannot be opened .*cannot be a path"),
    ({"base_model_name_or_path": "embedded"}, "cannot be opened .embedded has random weights"),
  ),
)
def test_what_is_refused(changes, message, base, tmp_path):
  folder = save_adapter(tmp_path / "adapter", base, **changes)
  with pytest.raises(UserError, match=message) as e:
    open_model(str(folder))
  assert str(folder) in str(e.value)


def test_damaged_and_doubtful_folders(base, tmp_path):
  folder = save_adapter(tmp_path / "adapter", base)

  def refused(message):
    with pytest.raises(UserError, match=message):
      open_model(str(folder))

  chained = save_adapter(tmp_path / "chained", base, base_model_name_or_path=str(folder))
  with pytest.raises(UserError, match="is an adapter itself"):
    open_model(str(chained))
  tensors = load_file(folder / "adapter_model.safetensors")
  q = "base_model.model.model.layers.0.self_attn.q_proj"
  weights = folder / "adapter_model.safetensors"
  save_file(tensors | {f"{q}.lora_magnitude_vector": np.zeros(64, np.float32)}, weights)
  refused("holds .*lora_magnitude_vector; only LoRA's A and B")
  save_file({n: w for n, w in tensors.items() if n != f"{q}.lora_B.weight"}, weights)
  refused(f"lacks {q}.lora_B.weight")
  head = {f"base_model.model.lm_head.lora_{f}.weight": np.zeros((4, 4), np.float32) for f in "AB"}
  save_file(tensors | head, weights)
  refused("holds base_model.model.lm_head.lora_A.weight, for which the base model has no such")
  weights.write_bytes(weights.read_bytes()[:100])
  refused("adapter_model.safetensors is damaged or cut short")
  weights.unlink()
  refused("holds adapter_config.json and no adapter_model.safetensors")
  (folder / "adapter_config.json").write_text("[]")
  refused("is not an adapter's config")
  both = save_adapter(tmp_path / "both", base)
  shutil.copy(base / "model.safetensors", both)
  with pytest.raises(UserError, match="holds both a model .* and an adapter"):
    open_model(str(both))


# --- what depends on it ----------------------------------------------------------------------


def test_the_tokenizer_is_the_adapters_own_or_that_of_the_base(base, tmp_path):
  folder = save_adapter(tmp_path / "adapter", base)
  model, config = open_model(str(folder)), Settings()
  assert tokenizer_of(model, config).chat_template == CHATML
  assert 1004 in tokenizer_of(model, config).eos_ids
  save_tokenizer(folder, template="{{ messages[0].content }}")
  own = tokenizer_of(model, config)
  assert own.chat_template == "{{ messages[0].content }}"
  assert 1004 in own.eos_ids, "of the base model's generation_config.json"


@pytest.mark.parametrize(("rows", "special"), ((SOURCE_VOCAB, ()), (1005, ("[PAD]",))))
def test_an_end_of_the_base_that_cannot_come_is_refused(rows, special, tmp_path):
  """Its id is beyond the adapter's tokenizer, or beyond the embedding."""
  base = tmp_path / "base"
  base.mkdir()
  save_llama(base, vocab_size=rows)
  (base / "generation_config.json").write_text('{"eos_token_id": [1004, 1005]}')
  folder = save_adapter(tmp_path / "adapter", base)
  save_tokenizer(folder)
  path = folder / "tokenizer.json"
  rust = Tokenizer.from_file(str(path))
  rust.add_special_tokens(list(special))
  rust.save(str(path))
  message = f"^the end token 1005 of {base} is beyond its vocabulary of 1005 tokens; correct "
  with pytest.raises(UserError, match=message):
    tokenizer_of(open_model(str(folder)), Settings())


def test_sample_tells_of_the_adapter(base, tmp_path):
  folder = save_adapter(tmp_path / "adapter", base, SOME)
  loaded = load_model(str(folder), {})
  assert f"adapters of rank 3, alpha 8, on {base}" in loaded.notes
  assert loaded.model.name == str(folder)


def test_hosts_compare_the_adapters_files(base, tmp_path):
  def fields():
    model = open_model(str(folder))
    shared = dict(train_pairs=[], eval_pairs=[], packed=None, pool=None)
    run: Any = types.SimpleNamespace(model=model, tokenizer=load_tokenizer(str(base)), **shared)
    return data_fields(run)

  folder = save_adapter(tmp_path / "adapter", base, SOME)
  before = fields()
  assert fields() == before
  save_adapter(folder, base, SOME._replace(alpha=9.0))
  assert [n for n, v in fields().items() if v != before[n]] == ["model's files"]
  save_adapter(folder, base, SOME)
  assert fields() == before
  weights = folder / "adapter_model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
  assert [n for n, v in fields().items() if v != before[n]] == ["model's files"]


@pytest.mark.model
def test_an_export_of_a_run_on_an_adapter(base, tmp_path):
  """Whose adapters are those of the file: the exported weights are the merged ones."""
  folder = save_adapter(tmp_path / "adapter", base, SOME)
  save_tokenizer(folder, template="{{ messages[0].content }}")
  (folder / "LICENSE").write_text("Be kind.")
  model = open_model(str(folder))
  params = params_of(model, SOME)
  settings = {"rank": SOME.rank, "alpha": SOME.alpha, "targets": SOME.targets}
  run = save(
    tmp_path / "run",
    folder,
    params,
    identity={},
    **{f"train__lora_{name}": value for name, value in settings.items()},
  )
  export_run(run, tmp_path / "out")
  ours = our_logits(*load(tmp_path / "out"), TOKENS)
  np.testing.assert_allclose(ours, our_logits(*load(folder), TOKENS), atol=1e-5, rtol=0)
  assert load_tokenizer(str(tmp_path / "out")).chat_template == "{{ messages[0].content }}"
  assert not (tmp_path / "out" / "adapter_config.json").exists()
