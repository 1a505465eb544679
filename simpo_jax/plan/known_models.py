"""Architectures of well-known models by hub id, for planning without a local copy.

The values are those of the models' config.json files.
"""

from typing import Any

from simpo_jax.models.config import ModelConfig
from simpo_jax.models.hf_config import from_hf


def _config(
  kind: str,
  vocab: int,
  hidden: int,
  ffn: int,
  layers: int,
  heads: int,
  kv_heads: int,
  **more: Any,
) -> dict[str, Any]:
  return dict(
    model_type=kind,
    vocab_size=vocab,
    hidden_size=hidden,
    intermediate_size=ffn,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    **{"rms_norm_eps": 1e-5, **more},
  )


def _llama3(hidden: int, ffn: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
  more = {"rope_theta": 500000.0, "max_position_embeddings": 131072, **more}
  return _config("llama", 128256, hidden, ffn, layers, heads, kv_heads=8, **more)


def _scaled(factor: float) -> dict[str, Any]:
  return dict(
    rope_type="llama3",
    factor=factor,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
  )


def _mistral(vocab: int = 32000, **more: Any) -> dict[str, Any]:
  return _config("mistral", vocab, 4096, 14336, 32, 32, 8, max_position_embeddings=32768, **more)


def _gemma2(*sizes: int, **more: Any) -> dict[str, Any]:
  more = {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, **more}
  return _config("gemma2", 256000, *sizes, **more)


def _qwen25(*sizes: int, tied: bool, positions: int = 32768) -> dict[str, Any]:
  return _config(
    "qwen2",
    *sizes,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    max_position_embeddings=positions,
    tie_word_embeddings=tied,
    use_sliding_window=False,
  )


def _smollm2(*sizes: int, theta: float = 100000.0) -> dict[str, Any]:
  return _config(
    "llama",
    49152,
    *sizes,
    rope_theta=theta,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
  )


_LLAMA_3_8B = _llama3(4096, 14336, 32, 32, max_position_embeddings=8192)
_LLAMA_31_8B = _llama3(4096, 14336, 32, 32, rope_scaling=_scaled(8.0))
_LLAMA_31_70B = _llama3(8192, 28672, 80, 64, rope_scaling=_scaled(8.0))
_LLAMA_32_1B = _llama3(
  2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True, rope_scaling=_scaled(32.0)
)
_LLAMA_32_3B = _llama3(
  3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True, rope_scaling=_scaled(32.0)
)
_MISTRAL_V1 = _mistral(rope_theta=10000.0, sliding_window=4096)
_GEMMA_2_2B = _gemma2(2304, 9216, 26, 8, 4)
_GEMMA_2_9B = _gemma2(3584, 14336, 42, 16, 8)
_GEMMA_2_27B = _gemma2(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144)
_CONFIGS = {
  "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
  "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
  "meta-llama/Llama-3.1-8B": _LLAMA_31_8B,
  "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_31_8B,
  "meta-llama/Llama-3.1-70B": _LLAMA_31_70B,
  "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_31_70B,
  "meta-llama/Llama-3.2-1B": _LLAMA_32_1B,
  "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_32_1B,
  "meta-llama/Llama-3.2-3B": _LLAMA_32_3B,
  "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_32_3B,
  "princeton-nlp/Llama-3-Base-8B-SFT": _LLAMA_3_8B,
  "mistralai/Mistral-7B-v0.1": _MISTRAL_V1,
  "alignment-handbook/zephyr-7b-sft-full": _MISTRAL_V1,
  "mistralai/Mistral-7B-Instruct-v0.2": _mistral(rope_theta=1000000.0, sliding_window=None),
  "mistralai/Mistral-7B-Instruct-v0.3": _mistral(32768, rope_theta=1000000.0, sliding_window=None),
  "google/gemma-2-2b": _GEMMA_2_2B,
  "google/gemma-2-2b-it": _GEMMA_2_2B,
  "google/gemma-2-9b": _GEMMA_2_9B,
  "google/gemma-2-9b-it": _GEMMA_2_9B,
  "google/gemma-2-27b": _GEMMA_2_27B,
  "google/gemma-2-27b-it": _GEMMA_2_27B,
  "Qwen/Qwen2.5-0.5B": _qwen25(151936, 896, 4864, 24, 14, 2, tied=True),
  "Qwen/Qwen2.5-0.5B-Instruct": _qwen25(151936, 896, 4864, 24, 14, 2, tied=True),
  "Qwen/Qwen2.5-1.5B": _qwen25(151936, 1536, 8960, 28, 12, 2, tied=True, positions=131072),
  "Qwen/Qwen2.5-1.5B-Instruct": _qwen25(151936, 1536, 8960, 28, 12, 2, tied=True),
  "Qwen/Qwen2.5-7B": _qwen25(152064, 3584, 18944, 28, 28, 4, tied=False, positions=131072),
  "Qwen/Qwen2.5-7B-Instruct": _qwen25(152064, 3584, 18944, 28, 28, 4, tied=False),
  "HuggingFaceTB/SmolLM2-135M": _smollm2(576, 1536, 30, 9, 3),
  "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 1536, 30, 9, 3),
  "HuggingFaceTB/SmolLM2-360M": _smollm2(960, 2560, 32, 15, 5),
  "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(960, 2560, 32, 15, 5),
  "HuggingFaceTB/SmolLM2-1.7B": _smollm2(2048, 8192, 24, 32, 32, theta=130000.0),
  "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 8192, 24, 32, 32, theta=130000.0),
}
NAMES = tuple(_CONFIGS)


def known_model(source: str) -> ModelConfig | None:
  """Returns the architecture of a hub id (case-insensitive), or None if it is not in `NAMES`."""
  by_name = {name.lower(): config for name, config in _CONFIGS.items()}
  config = by_name.get(source.lower())
  return from_hf(config, source) if config else None
