"""The exported folder: the weights bit for bit, and files that transformers reads as we do."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from typing import Any

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors import safe_open

from simpo_jax.checkpoint import saved_run
from simpo_jax.errors import UserError
from simpo_jax.export import folder as folders
from simpo_jax.export import runs
from simpo_jax.export.card import model_card
from simpo_jax.export.hf_configs import to_hf
from simpo_jax.export.runs import export_run
from simpo_jax.models import config as model_config
from simpo_jax.models import hf_weights
from simpo_jax.models.adapter_files import Adapter
from simpo_jax.models.hf_config import from_hf
from simpo_jax.models.llama import tensors
from simpo_jax.models.lora import Lora
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import ModelSettings, Settings
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import byte_tokenizer, encode_with_bos
from support.hf_models import (
  LLAMA3,
  SOURCE_VOCAB,
  hf_logits,
  hf_model,
  load,
  our_logits,
  save_source,
)
from support.hf_tokenizers import save_tokenizer
from support.lora_models import LORA_MODELS, adapters_of_peft, peft_model, save_adapter
from support.real_model import smollm2_gguf
from support.saved_runs import save
from support.tiers import sweep

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

TOLERANCE = 2e-5  # logits have a standard deviation of about 1
MODELS = {
  "llama": ("Llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
  "llama_tied": ("Llama", {"tie_word_embeddings": True}),
  "mistral": ("Mistral", {"sliding_window": 7}),
  "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
  "qwen3": ("Qwen3", {"head_dim": 32}),
}
TEXTS = ("ab cde: 12\n", "<|im_start|>user\nab<|im_end|>", "")
CHAT = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cde"}]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return save_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def workdir(source, tmp_path_factory):
  """Of a run that has left the weights as they were."""
  return save(tmp_path_factory.mktemp("run"), source, load(source)[1])


def stored(folder):
  """{name: (dtype, shape, bytes)} of all files of weights, and the files' names."""
  out, files = {}, sorted(folder.glob("*.safetensors"))
  for file in files:
    with safe_open(file, framework="pt") as f:
      for name in f.keys():
        value = f.get_tensor(name)
        out[name] = str(value.dtype), tuple(value.shape), value.view(torch.uint8).numpy().tobytes()
  return out, [file.name for file in files]


def read_json(path):
  return json.loads(path.read_text())


# --- weights ----------------------------------------------------------------------------------


def _loaded(folder, **how) -> tuple[Any, dict[str, Any]]:
  """A model of transformers, and what its files lack or have too much."""
  load: Any = transformers.AutoModelForCausalLM.from_pretrained  # typed without the second
  return load(folder, output_loading_info=True, **how)


@sweep("name", MODELS, default=2)
def test_an_untrained_model_comes_out_as_it_went_in(name, tmp_path):
  kind, settings = MODELS[name]
  source = save_source(tmp_path / "source", kind, **settings)
  cfg, params = load(source)
  export_run(save(tmp_path / "run", source, params), tmp_path / "out")
  assert stored(tmp_path / "out") == stored(source)
  again, reloaded = load(tmp_path / "out")
  assert again == cfg
  chex.assert_trees_all_equal(reloaded, params)
  net, found = _loaded(tmp_path / "out", attn_implementation="eager", dtype="auto")
  assert not any(found.values()) and net.dtype == torch.float32
  tokens = np.random.default_rng(0).integers(0, SOURCE_VOCAB, (2, 40), np.int32)
  expected = hf_logits(net.eval(), tokens)
  assert expected.std() > 0.5
  ours = our_logits(cfg, params, tokens)
  np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_half_precision_is_that_of_the_source(tmp_path):
  source = save_source(tmp_path / "source", dtype="bfloat16")
  run = save(tmp_path / "run", source, load(source)[1])
  export_run(run, tmp_path / "out", options={"dtype": "bfloat16"})
  assert stored(tmp_path / "out") == stored(source)
  assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
  run = save(tmp_path / "kept", source, load(source, "bfloat16")[1])
  export_run(run, tmp_path / "auto")
  assert stored(tmp_path / "auto") == stored(source)
  export_run(run, tmp_path / "wide", options={"dtype": "float32"})
  widened = {t.dtype for t in torch_weights(tmp_path / "wide").values()}
  assert widened == {torch.float32}


def torch_weights(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def test_sharing_the_work_makes_no_difference(workdir, tmp_path):
  """Three processes, stood for by threads; files of 20 kB, where some tensor has 258 kB."""
  export_run(workdir, tmp_path / "one", options={"shard_gb": 2e-5})
  export_run(workdir, tmp_path / "whole")
  weights, files = stored(tmp_path / "one")
  assert weights == stored(tmp_path / "whole")[0]
  assert stored(tmp_path / "whole")[1] == ["model.safetensors"]
  assert not (tmp_path / "whole" / "model.safetensors.index.json").exists()
  assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
  index = read_json(tmp_path / "one" / "model.safetensors.index.json")
  assert set(index["weight_map"]) == set(weights) and set(index["weight_map"].values()) == set(
    files
  )
  assert index["metadata"]["total_size"] == sum(len(value) for *_, value in weights.values())
  for file in files:
    held = [n for n, f in index["weight_map"].items() if f == file]
    assert len(held) == 1 or sum(len(weights[n][2]) for n in held) <= 20_000
  assert torch_weights(tmp_path / "one").keys() == torch_weights(tmp_path / "whole").keys()

  met, said, written, job = threading.Barrier(3), {}, {}, runs.write_folder

  def shared(export, share):
    def barrier(what, own):
      said[what, share] = own
      met.wait(60)
      return [said[what, i] for i in range(3)]

    written[share] = job(export, share, 3, barrier)

  def in_threads(export):
    threads = [threading.Thread(target=shared, args=(export, i)) for i in range(3)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return written[0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runs, "write_folder", in_threads)
    export_run(workdir, tmp_path / "three", options={"shard_gb": 2e-5})
  assert len(set(written.values())) == 1 and len(written) == 3
  same = {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()}
  assert {p.name: p.read_bytes() for p in (tmp_path / "three").iterdir()} == same


def test_a_layer_lies_by_itself_on_disk(workdir, source):
  """Or reading one of them would take the memory of all."""
  cfg, _ = load(source)
  folder = workdir / "checkpoints" / "step_000003"
  for name in ("q", "down"):
    shape = tensors(cfg)["layers"][name].shape
    array = hf_weights.open_array(folder, ("params", "layers", name))
    assert array.chunk_layout.read_chunk.shape == (1, *shape[1:])


def test_averaged_weights_are_taken_where_there_are_any(source, tmp_path):
  """The embedding is frozen: it has no average."""
  _, params = load(source)
  average = {name: params[name] for name in params if name != "embed"}
  average = jax.tree.map(lambda w: np.asarray(w) + np.float32(1), average)
  run = save(tmp_path / "run", source, params, average, train__ema_decay=0.9)
  export_run(run, tmp_path / "average")
  export_run(run, tmp_path / "last", options={"average": False})
  assert stored(tmp_path / "last")[0] == stored(source)[0]
  found, expected = torch_weights(tmp_path / "average"), torch_weights(source)
  for name, value in expected.items():
    frozen = name == "model.embed_tokens.weight"
    assert torch.equal(found[name], value if frozen else value + 1), name
  assert "moving averages" in (tmp_path / "average" / "README.md").read_text()
  assert "moving averages" not in (tmp_path / "last" / "README.md").read_text()


@sweep("name", LORA_MODELS)
def test_merged_adapters_equal_merge_and_unload(name, tmp_path):
  kind, lora = LORA_MODELS[name]
  source = tmp_path / "source"
  net = hf_model(kind)
  net.save_pretrained(source)
  save_tokenizer(source)
  cfg, params = load(source)
  net = peft_model(kind, lora)
  params = {**jax.device_get(params), "lora": adapters_of_peft(net, cfg, lora)}
  settings = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets}
  settings = {f"train__lora_{name}": value for name, value in settings.items()}
  export_run(save(tmp_path / "run", source, params, **settings), tmp_path / "out")
  found, expected = torch_weights(tmp_path / "out"), net.merge_and_unload().state_dict()
  before = torch_weights(source)
  assert found.keys() == expected.keys() == before.keys()
  for weight, value in expected.items():
    if any(target in weight for target in lora.targets) and "weight" in weight:
      np.testing.assert_allclose(found[weight], value, atol=1e-6)
      assert (found[weight] - before[weight]).abs().max() > 0.1
    else:
      assert torch.equal(found[weight], before[weight]), weight


# --- what lies beside them --------------------------------------------------------------------


def test_the_sources_own_files_are_kept(workdir, source, tmp_path):
  export_run(workdir, tmp_path / "out")
  ours, theirs = (read_json(f / "config.json") for f in (tmp_path / "out", source))
  assert ours == theirs
  for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt"):
    assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
  found = read_json(tmp_path / "out" / "generation_config.json")
  # The tokenizer's own, that of the source's generation config, and the template's turn end.
  assert found["eos_token_id"] == [1001, 1004, 1003] and found["temperature"] == 0.5
  check_same_tokenizer(tmp_path / "out", load_tokenizer(str(source)))


def check_same_tokenizer(exported, ours):
  """As transformers reads it, and as we do."""
  theirs = transformers.AutoTokenizer.from_pretrained(exported)
  again = load_tokenizer(str(exported))
  for text in TEXTS:
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text) == again.encode(text)
  assert theirs.chat_template == ours.chat_template == again.chat_template
  rendered = theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
  assert rendered == ours.render(CHAT, True) == again.render(CHAT, True)
  assert (again.bos_id, again.eos_ids, again.pad_id) == (ours.bos_id, ours.eos_ids, ours.pad_id)


def test_the_embedded_models_bytes(tmp_path):
  _, params = load("embedded")
  export_run(save(tmp_path / "run", "embedded", params), tmp_path / "out")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  ours = byte_tokenizer()
  for text in (*TEXTS, "Grüße,\n 你好\x00\t<|end|> <|user|>x", " two  spaces "):
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.encode(text) == [257, *ours.encode(text)]
  assert theirs.encode(ours.render(CHAT, True), add_special_tokens=False) == (
    theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
  )
  assert theirs.decode([72, 195, 188, 258], skip_special_tokens=True) == ours.decode([72, 195, 188])
  net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert net.generation_config.eos_token_id == 258
  cfg, again = load(tmp_path / "out")
  assert cfg == model_config.EMBEDDED
  chex.assert_trees_all_equal(again, params)


@pytest.mark.parametrize("kind", ("llama", "mistral", "qwen2", "qwen3"))
@pytest.mark.parametrize("rope", (None, "linear", "llama3"))
def test_a_config_that_is_made_is_read_back_as_it_was(kind, rope, tmp_path):
  scaling = {
    None: None,
    "linear": model_config.RopeScaling("linear", 4.0, original_max_position_embeddings=8192),
    "llama3": model_config.RopeScaling("llama3", 4.0, 1.0, 3.0, 512),
  }[rope]
  cfg = dataclasses.replace(
    model_config.EMBEDDED,
    model_type=kind,
    head_dim=20,
    rope_theta=5e5,
    rope_scaling=scaling,
    max_position_embeddings=2048,
    tie_word_embeddings=rope is None,
    qkv_bias=kind == "qwen2",
    qk_norm=kind == "qwen3",
    sliding_window=7 if kind == "mistral" and rope else None,
  )
  assert from_hf(to_hf(cfg)) == cfg
  (tmp_path / "config.json").write_text(json.dumps(to_hf(cfg)))
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert from_hf(theirs.to_dict()) == cfg


def test_the_card_tells_the_run_and_not_the_disk(source, tmp_path):
  prepared = tmp_path / "data" / "mine" / "1.0.0"
  prepared.mkdir(parents=True)
  (prepared / "dataset_info.json").write_text("{}")
  record = {"source": {"hub": ["org/pairs:*.jsonl@abc"]}, "shards": {}, "pairs": {}}
  (prepared / "prepared.json").write_text(json.dumps(record))
  data = ("/home/someone/secret/pairs|x.jsonl", "tfds:absent", "tfds:mine")
  settings = {
    "data__dir": str(tmp_path / "data"),
    "name": "mine\n<b>",
    "data__train": data,
    "simpo__beta": 2.5,
    "seed": 7,
  }
  run = save(tmp_path / "run", source, load(source)[1], **settings)
  export_run(run, tmp_path / "out")
  text = (tmp_path / "out" / "README.md").read_text()
  front = huggingface_hub.metadata_load(tmp_path / "out" / "README.md")
  assert front is not None
  assert front["library_name"] == "transformers" and "simpo" in front["tags"]
  assert front["datasets"] == ["org/pairs"]
  assert "base_model" not in front, "a folder's name is no id of the hub"
  assert "/home" not in text and str(tmp_path) not in text and "<b>" not in text
  assert "pairs x.jsonl" in text and source.name in text
  for line in (
    "| metric | training, step 1 | training, step 3 | held out, step 3 |",
    "| `loss` | 1.2500 | 0.7500 | 0.8750 |",
    "| `rewards/accuracies` | 0.5000 | 1.0000 |  |",
    "| `simpo.beta` | `2.5` |",
    "| `seed` | `7` |",
  ):
    assert line in text.splitlines()
  assert "77" not in text, "step 4 is after the checkpoint"


def test_the_card_names_a_model_of_the_hub(tmp_path):
  config = Settings(model=ModelSettings(source="org/name"))
  path = pathlib.Path("/cache/models--org--name/snapshots/abc")
  model = OpenModel("org/name", model_config.EMBEDDED, path, None)
  card = model_card(tmp_path, config, model, False, 3, False, "float32")
  (tmp_path / "README.md").write_text(card)
  front = huggingface_hub.metadata_load(tmp_path / "README.md")
  assert front is not None and front["base_model"] == "org/name"
  assert "(https://huggingface.co/org/name), tuned with SimPO" in card
  assert "No metrics were found" in card and '"role"' not in card


def never_read(name, index):
  raise AssertionError("the card reads no weights")


@pytest.mark.parametrize("name", ("org/tuned", "/secret/adapter"))
def test_the_card_names_the_base_model_of_an_adapter(name, tmp_path):
  base, of_hub = "org/name", name.startswith("org/")
  cache = pathlib.Path("/cache/models--org--tuned/snapshots/def")
  folder = cache if of_hub else pathlib.Path(name)
  adapter = Adapter(folder, base, Lora(1, 1.0, ()), True, 0.0, never_read, never_read)
  path = pathlib.Path("/cache/models--org--name/snapshots/abc")
  model = OpenModel(name, model_config.EMBEDDED, path, None, adapter=adapter)
  config = Settings(model=ModelSettings(source=name))
  card = model_card(tmp_path, config, model, False, 3, False, "float32")
  (tmp_path / "README.md").write_text(card)
  front = huggingface_hub.metadata_load(tmp_path / "README.md")
  assert front is not None and front["base_model"] == base
  shown = "[org/tuned](https://huggingface.co/org/tuned)" if of_hub else "`adapter`"
  start = f"[{base}](https://huggingface.co/{base}) with the adapter {shown}, tuned with SimPO"
  assert f"\n{start}" in card and "secret" not in card


def test_the_card_of_an_adapter_on_a_folder(source, tmp_path):
  folder = save_adapter(tmp_path / "tuned", source)
  run = save(tmp_path / "run", folder, load(folder)[1])
  export_run(run, tmp_path / "out")
  text = (tmp_path / "out" / "README.md").read_text()
  front = huggingface_hub.metadata_load(tmp_path / "out" / "README.md")
  assert front is not None and "base_model" not in front, "a folder's name is no id of the hub"
  assert f"\n`{source.name}` with the adapter `tuned`, tuned with" in text
  assert str(tmp_path) not in text


# --- a real model -----------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_out_of_a_gguf_chats_in_transformers(tmp_path, monkeypatch):
  source = smollm2_gguf()
  cfg, params = load(source)
  run = save(tmp_path / "run", source, params, identity={})
  ours = load_tokenizer(str(source))
  monkeypatch.setattr(saved_run, "tokenizer_of", lambda *_: ours)  # it takes seconds
  export_run(run, tmp_path / "out", options={"shard_gb": 0.2})
  shutil.rmtree(run)
  assert len(list((tmp_path / "out").glob("model-*-of-00003.safetensors"))) == 3
  net, found = _loaded(tmp_path / "out")
  assert not any(found.values())
  again, reloaded = load(tmp_path / "out")
  assert again == cfg
  chex.assert_trees_all_equal(reloaded, params)
  assert ours.chat_template is not None
  check_same_tokenizer(tmp_path / "out", ours)

  chat = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  messages = [{"role": "user", "content": "What is the capital of France?"}]
  prompt = chat.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
  assert prompt == encode_with_bos(ours, ours.render(messages, True))
  answer = net.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
  assert answer[-1] == 2, "it ends its turn"
  assert "Paris" in chat.decode(answer[len(prompt) :])
  tokens = np.asarray([answer], np.int32)
  logits = our_logits(cfg, params, tokens)
  np.testing.assert_allclose(logits, hf_logits(net, tokens), atol=2e-4, rtol=0)
  assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer[len(prompt) :]


# --- the command and its mistakes -------------------------------------------------------------


def command(*arguments):
  env = dict(
    os.environ,
    JAX_PLATFORMS="none_at_all",  # asking for a device would fail
    PYTHONPATH=os.pathsep.join(sys.path),
  )
  return subprocess.run(
    [sys.executable, "-m", "simpo_jax.export", *arguments],
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_the_command_needs_no_device(workdir, source, tmp_path):
  out = tmp_path / "deep" / "out"
  done = command(f"--workdir={workdir}", f"--out={out}", "--step=3", "--dtype=float32")
  assert done.returncode == 0, done.stderr[-3000:]
  assert "exported step 3: 0.2M float32 weights" in done.stdout and str(out) in done.stdout
  assert stored(out) == stored(source)
  assert not [p for p in out.parent.iterdir() if p != out]
  assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_a_mistake_on_the_command_line_is_one_line(tmp_path):
  done = command(f"--workdir={tmp_path}", "--otu=x")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "--otu: there is no such flag; did you mean 'out'?" in done.stderr


def test_checkpoints_that_are_not_there(workdir, tmp_path):
  out = tmp_path / "out"
  with pytest.raises(UserError, match="is not a folder; name the folder of a run"):
    export_run(tmp_path / "absent", out)
  with pytest.raises(UserError, match="holds no checkpoint; a run saves one at its end"):
    export_run(tmp_path, out)
  with pytest.raises(UserError, match="--step=2: .* it has those of 3$"):
    export_run(workdir, out, step=2)
  assert not out.exists()


def test_a_damaged_checkpoint_is_not_exported(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / "run")
  for path in (tmp_path / "run" / "checkpoints").rglob("params.*/[0-9]*"):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  with pytest.raises(UserError, match="step_000003 is damaged .* other content"):
    export_run(tmp_path / "run", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_only_exports_are_replaced(workdir, source, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  export_run(workdir, out, options={"shard_gb": 1e-4})
  export_run(workdir, out)
  assert stored(out) == stored(source) and [p.name for p in tmp_path.iterdir()] == ["out"]
  (out / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="holds notes.txt, which no export has written"):
    export_run(workdir, out)
  assert (out / "notes.txt").read_text() == "mine"
  with pytest.raises(UserError, match="which no export has written"):
    export_run(workdir, workdir)
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="is a file"):
    export_run(workdir, tmp_path / "file")


def test_a_full_disk_leaves_nothing_new(workdir, tmp_path, monkeypatch):
  out = tmp_path / "out"
  export_run(workdir, out)
  before = {p.name: p.read_bytes() for p in out.iterdir()}

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(folders, "save_file", full)
  with pytest.raises(UserError, match="cannot be written .*No space left on device.*; free space"):
    export_run(workdir, out, options={"dtype": "bfloat16"})
  assert {p.name: p.read_bytes() for p in out.iterdir()} == before
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_model_is_noticed(workdir, source, tmp_path):
  moved = tmp_path / "moved"
  shutil.copytree(source, moved)
  export_run(workdir, tmp_path / "out", source=str(moved))
  with pytest.raises(
    UserError,
    match="does not exist.*give the current location of the run's base model with --source",
  ):
    export_run(workdir, tmp_path / "out", source=str(tmp_path / "absent"))
  config = read_json(moved / "config.json")
  config["rms_norm_eps"] = 0.5
  (moved / "config.json").write_text(json.dumps(config))
  with pytest.raises(
    UserError, match="is not what .* began with: its model's config differ.*--force"
  ):
    export_run(workdir, tmp_path / "out", source=str(moved))
  export_run(workdir, tmp_path / "out", source=str(moved), force=True)
  assert read_json(tmp_path / "out" / "config.json")["rms_norm_eps"] == 0.5
  other = save_source(tmp_path / "other", num_hidden_layers=1)
  with pytest.raises(
    UserError, match=r"layers.attn_norm is \[2, 64\] there, .* asks for \[1, 64\]"
  ):
    export_run(workdir, tmp_path / "new", source=str(other), force=True)
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ("chat.jinja", "/chat.jinja"))
def test_a_template_that_is_gone_is_to_be_put_back(name, source, tmp_path, monkeypatch):
  home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
  home.mkdir()
  elsewhere.mkdir()
  template, is_relative = home / "chat.jinja", not name.startswith("/")
  template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
  monkeypatch.chdir(home)
  setting = name if is_relative else str(template)
  run = save(tmp_path / "run", source, load(source)[1], data__chat_template=setting)
  assert saved_run.open_run(run).tokenizer.render([{"role": "user", "content": "a"}], True) == "[a]"

  def remedy(message):
    with pytest.raises(UserError, match=rf"chat_template=\S*chat.jinja {message}") as error:
      saved_run.open_run(run)
    assert "--source" not in str(error.value), "the base model is where it was"
    place, _, other = str(error.value).partition("put the file back as ")[2].partition(", ")
    assert other == "or start this command in the folder that the run was started in" * is_relative
    return pathlib.Path(place)

  if is_relative:
    monkeypatch.chdir(elsewhere)
    assert remedy("is neither a file nor") == elsewhere / "chat.jinja"
    monkeypatch.chdir(home)
  text = template.read_text()
  template.write_text("hello")
  assert remedy("is not a chat template") == template
  template.write_text("{{ 'hello' }}")
  assert remedy("does not show the content") == template
  template.unlink()
  place = remedy("is neither a file nor")
  place.write_text(text)
  assert saved_run.open_run(run).step == 3


@pytest.mark.parametrize(
  ("value", "dtype", "message"),
  (
    (1e5, "float16", "down_proj.weight has values beyond float16; export in bfloat16"),
    (np.nan, "auto", "down_proj.weight is not finite in this checkpoint"),
  ),
)
def test_nothing_that_is_not_finite_comes_out(source, tmp_path, value, dtype, message):
  _, params = load(source)
  down = np.array(params["layers"]["down"])
  down[1, 2, 3] = value
  params["layers"]["down"] = jnp.asarray(down)
  run = save(tmp_path / "run", source, params)
  with pytest.raises(UserError, match=f"model.layers.1.mlp.{message}"):
    export_run(run, tmp_path / "out", options={"dtype": dtype})
  assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_options_are_those_of_the_run_unless_given(source, tmp_path):
  settings = {"export__dtype": "bfloat16", "export__shard_gb": 1e-4}
  run = save(tmp_path / "run", source, load(source)[1], **settings)
  export_run(run, tmp_path / "out")
  weights, files = stored(tmp_path / "out")
  assert {dtype for dtype, *_ in weights.values()} == {"torch.bfloat16"} and len(files) > 1
  export_run(run, tmp_path / "out", options={"dtype": "float32"})
  assert {dtype for dtype, *_ in stored(tmp_path / "out")[0].values()} == {"torch.float32"}
  with pytest.raises(UserError, match=r"--shard_gb=0.0 must be between"):
    export_run(run, tmp_path / "out", options={"shard_gb": 0.0})
