"""Checkpoints whose files say more, or otherwise, than their config: as transformers reads them."""

import json

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from simpo_jax.errors import UserError
from simpo_jax.models import weights
from support.hf_models import VOCAB, hf_logits, load, our_logits

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 40), np.int32)


def change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stored(folder, change):
  """Replaces the tensors of a folder by `change(tensors)`."""
  path = folder / "model.safetensors"
  save_file(change(load_file(path)), path, metadata={"format": "pt"})


def check_logits(folder):
  """Our logits are those of transformers."""
  pytest.importorskip("torch")
  net = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
  np.testing.assert_allclose(
    our_logits(*load(folder), TOKENS), hf_logits(net.float().eval(), TOKENS), atol=2e-5, rtol=0
  )


# --- a head beside a tied embedding ---------------------------------------------------------


@pytest.mark.model
def test_a_head_of_its_own_is_used_whatever_the_config_says(folder):
  change_config(folder, tie_word_embeddings=True)
  opened = weights.open_model(str(folder))
  assert not opened.config.tie_word_embeddings
  assert opened.notes == (
    "its lm_head.weight is not its embedding, and is used; tie_word_embeddings is false",
  )
  check_logits(folder)


def with_head(folder, head):
  change_config(folder, tie_word_embeddings=True)
  stored(folder, lambda t: t | {HEAD: head(t[EMBEDDING].copy())})


def test_a_copy_of_the_embedding_stays_tied(folder):
  with_head(folder, lambda w: w)
  opened = weights.open_model(str(folder))
  assert opened.config.tie_word_embeddings and opened.notes == ()
  assert "lm_head" not in load(folder)[1]


@pytest.mark.parametrize("row,column", ((0, 0), (VOCAB - 1, 63), (VOCAB // 2, 31)))
def test_one_other_value_is_seen_in_every_block(row, column, folder, monkeypatch):
  monkeypatch.setattr("simpo_jax.models.tying._BLOCK", 640)  # 10 rows; the last block has one

  def change(w):
    w[row, column] += 1e-3
    return w

  with_head(folder, change)
  assert not weights.open_model(str(folder)).config.tie_word_embeddings


def test_a_copy_in_another_dtype_stays_tied(folder):
  with_head(folder, lambda w: w)
  stored(folder, lambda t: t | {EMBEDDING: t[EMBEDDING].astype(np.float16)})
  stored(folder, lambda t: t | {HEAD: t[EMBEDDING].astype(np.float32)})
  assert weights.open_model(str(folder)).config.tie_word_embeddings


def test_a_head_of_another_shape_is_refused(folder):
  with_head(folder, lambda w: w[:-1])
  with pytest.raises(UserError, match=rf"{HEAD} has shape \(100, 64\)"):
    weights.open_model(str(folder))


# --- names -----------------------------------------------------------------------------------


def prefixed(prefix):
  return lambda t: {f"{prefix}{name}": w for name, w in t.items()}


def inside(t):
  return {n.replace("model.", "model.language_model.", 1): w for n, w in t.items()}


def compiled_layers(t):
  return {n.replace("mlp.", "_orig_mod.mlp."): w for n, w in t.items()}


@pytest.mark.parametrize(
  "change,note",
  (
    (prefixed("module."), "the prefix module. of its tensors is left out"),
    (prefixed("_orig_mod."), "the prefix _orig_mod. of its tensors is left out"),
    (prefixed("language_model."), "the prefix language_model. of its tensors is left out"),
    (inside, "the prefix language_model. of its tensors is left out"),
    (compiled_layers, "the prefix _orig_mod. of its tensors is left out"),
  ),
)
def test_prefixes_of_wrappers(folder, saved, change, note):
  stored(folder, change)
  opened = weights.open_model(str(folder))
  assert opened.notes == (note,)
  np.testing.assert_array_equal(our_logits(*load(folder), TOKENS), our_logits(*load(saved), TOKENS))


@pytest.mark.model
def test_a_base_model_saved_alone(folder):
  stored(folder, lambda t: {n.removeprefix("model."): w for n, w in t.items() if n != HEAD})
  with pytest.raises(UserError, match="lacks lm_head.weight"):
    weights.open_model(str(folder))
  change_config(folder, tie_word_embeddings=True, architectures=["LlamaModel"])
  assert weights.open_model(str(folder)).notes == (
    "its tensors have no prefix model. and are read as if they had",
  )
  check_logits(folder)


def test_the_same_tensor_twice(folder):
  stored(folder, lambda t: t | {"module.lm_head.weight": t[HEAD].copy()})
  with pytest.raises(UserError, match="both .*lm_head.weight.* the same tensor; remove one"):
    weights.open_model(str(folder))


# --- files -----------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("whole", (True, False))
def test_a_single_file_precedes_an_index_beside_it(folder, whole):
  """The index is of weights that were saved there before; all, or a part, of them remain."""
  tensors = load_file(folder / "model.safetensors")
  old = {name: np.zeros_like(w) for name, w in tensors.items()}
  save_file(old, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
  files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"][: 2 - whole]
  index = {n: files[i % len(files)] for i, n in enumerate(tensors)}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  assert weights.open_model(str(folder)).notes == (
    "model.safetensors is read, model.safetensors.index.json beside it is not",
  )
  check_logits(folder)


def test_a_quantization_that_its_weights_no_longer_have(folder):
  change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
  assert weights.open_model(str(folder)).notes == (
    "its weights are not quantized; its quantization (bitsandbytes) is ignored",
  )
