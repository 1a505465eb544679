"""Tiny transformers models, and our own run on their checkpoints.

Where torch is not installed, as by `.[test]`, tests that ask for one of its models are skipped.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE

from simpo_jax.models import llama, sharding, weights
from support.hf_tokenizers import save_tokenizer
from support.real_model import smollm2_gguf

VOCAB = 101
SOURCE_VOCAB = 1008  # of `save_source`: of its tokenizer, and some rows of padding
_SIZES = dict(
  vocab_size=VOCAB,
  hidden_size=64,
  intermediate_size=96,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  max_position_embeddings=64,
)


GEMMA2: dict[str, Any] = (
  dict(  # caps and a window that matter for a model so small; heads wider than D / H
    num_hidden_layers=4,
    head_dim=32,
    query_pre_attn_scalar=24,
    sliding_window=7,
    attn_logit_softcapping=1.5,
    final_logit_softcapping=3.0,
  )
)

LLAMA3 = {  # rotary scaling that matters for rows so short
  "rope_type": "llama3",
  "rope_theta": 10000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}


def hf_model(kind: str, seed: int = 0, **changes):
  """A float32 `transformers` model of `kind` ("Llama", "Qwen2", ...), all weights random.

  Weights are large enough for attention to be far from uniform, and norms and
  biases differ from their trivial initial values, so that each one shows in the logits.
  """
  torch = pytest.importorskip("torch")
  settings = {**_SIZES, **changes}
  if kind == "Qwen2":  # its config has no such field
    del settings["head_dim"]
  config = getattr(transformers, f"{kind}Config")(**settings)
  config._attn_implementation = "eager"
  net = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.float32).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in net.named_parameters():
      p.normal_(std=0.15, generator=generator)
      if "norm" in name and kind != "Gemma2":  # whose norms add it themselves
        p.add_(1.0)
  return net


def save_llama(folder, **changes):
  """A model folder as `hf_model("Llama")` saves one, other weights of that kind; without torch."""
  sizes = {**_SIZES, **changes}
  config = transformers.LlamaConfig(**sizes, architectures=["LlamaForCausalLM"], dtype="float32")
  config.save_pretrained(folder)
  D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
  H, K = (sizes[f"num_{of}_heads"] * sizes["head_dim"] for of in ("attention", "key_value"))
  attention = {"q": (H, D), "k": (K, D), "v": (K, D), "o": (D, H)}
  mlp = {"gate": (F, D), "up": (F, D), "down": (D, F)}
  shapes = {"model.embed_tokens": (V, D), "model.norm": (D,), "lm_head": (V, D)}
  for layer in (f"model.layers.{i}" for i in range(config.num_hidden_layers)):
    shapes |= {f"{layer}.self_attn.{name}_proj": shape for name, shape in attention.items()}
    shapes |= {f"{layer}.mlp.{name}_proj": shape for name, shape in mlp.items()}
    shapes |= {f"{layer}.{name}_layernorm": (D,) for name in ("input", "post_attention")}
  rng = np.random.default_rng(0)
  weights = {f"{n}.weight": rng.normal(n.endswith("norm"), 0.15, s) for n, s in shapes.items()}
  weights = {name: value.astype(np.float32) for name, value in weights.items()}
  save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_hf_folder(folder, template: str | None):
  """A tiny Llama and a tokenizer of single characters, as a hub's repository holds them."""
  chars = [*map(chr, range(32, 127)), "\n"]
  rust = Tokenizer(BPE(vocab={c: i for i, c in enumerate(chars)}, merges=[]))
  rust.decoder = decoders.Fuse()
  names = ["</s>", *(f"<|{i}|>" for i in range(VOCAB - len(chars) - 1))]
  rust.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="</s>")
  tokenizer.chat_template = template
  tokenizer.save_pretrained(folder)
  save_llama(folder)


def save_source(folder, kind="Llama", dtype="float32", **settings):
  """A folder as a model's makers leave it: weights, configs, tokenizer, terms."""
  torch = pytest.importorskip("torch")
  net = hf_model(kind, vocab_size=SOURCE_VOCAB, **settings)
  net.to(getattr(torch, dtype)).save_pretrained(folder)
  save_tokenizer(folder, generation={"eos_token_id": [1004], "temperature": 0.5})
  (folder / "LICENSE.txt").write_text("Be kind.")
  return folder


@functools.cache
def hf_smollm2():
  """The real model as transformers dequantizes it, float32; `.double()` changes it for everyone."""
  torch = pytest.importorskip("torch")
  from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

  path = smollm2_gguf()
  config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
  net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  # from_pretrained(gguf_file=...) does this too, but only where accelerate is installed.
  stored = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=net)["tensors"]
  done = net.load_state_dict(stored, strict=False)
  assert done.missing_keys == ["lm_head.weight"] and not done.unexpected_keys  # it is tied
  return net


def hf_logits(net, tokens: np.ndarray) -> np.ndarray:
  torch = pytest.importorskip("torch")
  with torch.no_grad():
    return net(torch.from_numpy(tokens).long()).logits.float().numpy()


def load(source, dtype="float32"):
  """Our config and weights of a source, on one device."""
  opened = weights.open_model(str(source))
  mesh = sharding.make_mesh(devices=jax.devices()[:1], hosts=1)
  specs = sharding.param_specs(opened.config, mesh, sharding.TRAIN_RULES)
  return opened.config, weights.load_params(opened, sharding.named(mesh, specs), dtype)


def dense_attend(cfg):
  """Causal softmax attention over whole rows; a window of W sees the last W keys."""
  cap = cfg.attn_logit_softcapping

  def attend(q, k, v, window):
    k, v = (jnp.repeat(x, cfg.group, axis=2) for x in (k, v))
    behind = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None, :]
    seen = (behind >= 0) & (behind < window)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * cfg.head_dim**-0.5
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    weights_bhts = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bhts,bshd->bthd", weights_bhts, v), None

  return attend


def our_hidden(cfg, params, tokens: np.ndarray) -> jax.Array:
  """Final hidden states of full rows, float32."""
  length = tokens.shape[1]
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)

  def run(params, tokens, positions):
    x = llama.embed(params, tokens, jnp.float32, cfg)
    windows = jnp.asarray([w or length for w in cfg.windows], jnp.int32)
    attend = dense_attend(cfg)
    return llama.forward(params, x, positions, attend, cfg, lambda p: p, windows=windows)

  return jax.jit(run)(params, tokens, positions)


def our_logits(cfg, params, tokens: np.ndarray) -> np.ndarray:
  logits = jax.jit(functools.partial(llama.unembed, cfg=cfg))
  return np.asarray(logits(params, our_hidden(cfg, params, tokens)))
