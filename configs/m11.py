"""M11, the acceptance run: 2 SimPO steps, generate for 128 prompts, 5 more steps.

  python -m simpo_jax.main --config=configs/m11.py[:VARIANT]

One process, one compilation, one executable; 128 samples of up to 2,048 new tokens in
samples/step_000002/. Variants:

  (none)           A tiny Llama with random weights, a byte tokenizer and synthetic
                   pairs: nothing to download. Exactly 128 x 2,048 tokens (end tokens
                   are ignored). About a minute on 2 CPU cores.
  smollm2          SmolLM2-135M-Instruct and 300 real pairs, float32, on CPU; set
                   --config.model.source (folder, .gguf or hub id) and
                   --config.data.train. Answers stop at an end token, mostly long
                   before 2,048. Time and memory: docs/performance.md.
  llama3_8b_v5p32  The main target: Llama-3-8B-Instruct on a TPU v5p-32 (4 hosts x 4
                   chips), 128 pairs per step, max_length 4,096, float32 weights and
                   bfloat16 compute.
  llama3_70b_v5p256  Llama-3.1-70B-Instruct on a v5p-256 (32 hosts x 4 chips).
  llama32_1b_v5e16   Llama-3.2-1B-Instruct on a v5e-16 (4 hosts x 4 chips).
  llama3_8b_v6e64    Llama-3-8B-Instruct on a v6e-64 (16 hosts x 4 chips). These three use
                   max_length 2,048, as in the paper. Memory and time: docs/plans.md.
  phase_a          Short run for debugging: 2 steps, generate, 1 step.
  phase_a_train2   phase_a without the step after generating.
  phase_a_global   phase_a with every prompt on the entire mesh (global_mesh).
"""

from simpo_jax.config import Config, default_config, did_you_mean
from simpo_jax.errors import UserError


def get_config(variant: str = "") -> Config:
  if variant not in VARIANTS:
    raise UserError(
      f"--config has no variant {variant!r}; there are {', '.join(VARIANTS[1:])}"
      + did_you_mean(variant, VARIANTS[1:])
    )
  c = default_config()
  c.name = "m11" + (f"-{variant}" if variant else "")
  c.train.steps = 7
  c.generate.at_steps = (2,)
  c.generate.count = 128
  c.generate.max_new_tokens = 2048
  if variant == "smollm2":
    smollm2(c)
  elif variant in PODS:
    PODS[variant](c)
  else:
    embedded(c)
  if variant.startswith("phase_a"):
    c.evaluate.at_end = False
    c.train.steps = 2 if variant == "phase_a_train2" else 3
  if variant == "phase_a_global":
    c.generate.mode = "global_mesh"
  return c


def embedded(c: Config) -> None:
  """The tiny model that needs no download."""
  c.data.max_length = 256
  c.data.max_prompt_length = 128
  c.data.row_length = 256
  c.train.learning_rate = 1e-3
  c.train.warmup_ratio = 0.0
  c.train.remat = "none"
  c.generate.ignore_eos = True
  c.generate.page_size = 64


def smollm2(c: Config) -> None:
  """SmolLM2-135M-Instruct on a laptop."""
  c.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.data.train = ("dpo_en_demo.json",)  # from hiyouga/LLaMA-Factory, data/; or your own
  c.data.max_length = 1024
  c.data.max_prompt_length = 512
  c.train.batch_size = 8
  c.train.learning_rate = 1e-6
  c.train.warmup_ratio = 0.0  # with seven steps, a warm-up would waste the first
  c.train.remat = "dots"  # faster than "none" on a CPU, due to less memory traffic
  c.generate.page_size = 64
  c.generate.max_slots = 64  # 128 slots would need a KV cache of 13 GiB in float32
  c.generate.template = "In one sentence: what is special about the number {index}?"


def llama3_8b_v5p32(c: Config) -> None:
  """Llama-3-8B-Instruct on TPU v5p-32, with the paper's v0.1 settings."""
  c.model.source = "meta-llama/Meta-Llama-3-8B-Instruct"
  c.data.train = ("data/train.jsonl",)
  c.data.max_length = 4096
  c.data.max_prompt_length = 2048
  c.data.row_length = 8192
  c.train.batch_size = 128
  c.train.learning_rate = 1e-6
  c.train.warmup_ratio = 0.0
  c.simpo.beta = 2.5
  c.simpo.gamma_beta_ratio = 0.55
  c.generate.ignore_eos = True


def llama3_70b_v5p256(c: Config) -> None:
  """Llama-3.1-70B-Instruct on TPU v5p-256; the four chips of a host share each row."""
  _paper(c, "meta-llama/Llama-3.1-70B-Instruct")
  c.mesh.tensor = 4


def llama32_1b_v5e16(c: Config) -> None:
  """Llama-3.2-1B-Instruct on TPU v5e-16."""
  _paper(c, "meta-llama/Llama-3.2-1B-Instruct")


def llama3_8b_v6e64(c: Config) -> None:
  """Llama-3-8B-Instruct on TPU v6e-64; two chips share a row, for lack of rows."""
  _paper(c, "meta-llama/Meta-Llama-3-8B-Instruct")
  c.mesh.tensor = 2


def _paper(c: Config, source: str) -> None:
  """Sets the lengths and the loss of the paper's v0.1 models."""
  llama3_8b_v5p32(c)
  c.model.source = source
  c.data.max_length = 2048
  c.data.max_prompt_length = 1800
  c.data.row_length = 4096


PODS = {
  f.__name__: f for f in (llama3_8b_v5p32, llama3_70b_v5p256, llama32_1b_v5e16, llama3_8b_v6e64)
}
VARIANTS = ("", "smollm2", *PODS, "phase_a", "phase_a_train2", "phase_a_global")
