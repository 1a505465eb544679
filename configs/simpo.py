"""SimPO's published settings for each model, with the published results.

  python -m simpo_jax.main --config=configs/simpo.py:VARIANT --config.data.dir=data --workdir=...

First prepare the pairs, once (python -m simpo_jax.prepare --out=data --source=... --name=...):

  SOURCE                                                        NAME
  HuggingFaceH4/ultrafeedback_binarized:data/train_prefs-*      ultrafeedback
  HuggingFaceH4/ultrafeedback_binarized:data/test_prefs-*       ultrafeedback_held
  princeton-nlp/mistral-instruct-ultrafeedback:data/train-*     mistral_ultrafeedback
  princeton-nlp/llama3-ultrafeedback:data/train-*               llama3_ultrafeedback
  princeton-nlp/llama3-ultrafeedback-armorm:data/train-*        llama3_armorm
  princeton-nlp/gemma2-ultrafeedback-armorm:data/train-*        gemma2_armorm

and those of princeton-nlp again, with :data/test-* as SOURCE and _held appended to NAME. A variant
trains on NAME and evaluates on NAME_held.

Published results are from the tables "Released Models" of github.com/princeton-nlp/SimPO (paper:
arXiv:2405.14734). AE2 LC and AE2 WR are the length-controlled and the raw win rate on AlpacaEval 2,
AH the win rate on Arena-Hard, all in percent; in parentheses, the value before SimPO. No model
trained by this project has been evaluated on these benchmarks yet.

  VARIANT                  AE2 LC        AE2 WR        AH            pairs
  mistral_7b_base          21.4 (8.4)    20.8 (6.2)    16.6 (1.3)    61.1k
  mistral_7b_instruct      32.1 (17.1)   34.8 (14.7)   21.0 (12.6)   59.7k
  llama3_8b_base           22.0 (6.2)    20.3 (4.6)    23.4 (3.3)    61.1k
  llama3_8b_instruct       44.7 (26.0)   40.5 (25.3)   33.8 (22.3)   59.9k
  llama3_8b_instruct_v02   53.7 (26.0)   47.5 (25.3)   36.5 (22.3)   59.9k
  gemma2_9b                72.4 (51.1)   65.9 (38.1)   59.1 (40.8)   59.6k
  qwen2_5_7b               none: SimPO's authors published no settings for it. It uses the loss of
                           gemma2_9b with a smaller learning rate, as a starting point
  smollm2                  none, as above: SmolLM2-135M-Instruct, small enough for one accelerator

Common settings: 128 pairs per step for one epoch, AdamW without weight decay, gradient norm clipped
at 1, 10% warm-up and cosine decay to 0, float32 weights and bfloat16 compute, seed 42, and two
conventions of princeton's code: the assistant's header counts as part of the response, and its rule
of truncation. Differences from that code: the order of the pairs, and that a response has one end
token, where the code appends the tokenizer's EOS to the template's end token.

Hardware: the authors trained on 4 H100 GPUs. docs/plans.md has the memory and time of gemma2_9b and
qwen2_5_7b on TPUs; any slice works that fits according to `python -m simpo_jax.plan`.
"""

from simpo_jax.config import Config, default_config, did_you_mean
from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import MISTRAL_TEMPLATE


def get_config(variant: str = "") -> Config:
  if variant not in VARIANTS:
    raise UserError(
      f"--config has no variant {variant!r}; there are {', '.join(VARIANTS)}"
      + did_you_mean(variant, VARIANTS)
    )
  c = default_config()
  c.name = f"simpo-{variant}"
  published(c)
  _RECIPES[variant](c)
  return c


def published(c: Config) -> None:
  """Sets what all released models have in common."""
  c.seed = 42
  c.data.max_length = 2048
  c.data.max_prompt_length = 1800
  c.data.header = "response"
  c.data.truncation = "princeton"
  c.train.batch_size = 128
  c.train.schedule = "cosine"
  c.train.warmup_ratio = 0.1
  c.train.max_grad_norm = 1.0
  c.generate.every = 100  # to inspect answers during training
  c.generate.count = 32
  c.generate.max_new_tokens = 512
  c.evaluate.every = 400


def pairs(c: Config, name: str, steps: int):
  """Sets one epoch of a prepared dataset, and its held-out pairs for evaluation."""
  c.data.train = (f"tfds:{name}:train",)
  c.data.eval = (f"tfds:{name}_held:train",)
  c.train.steps = steps


def mistral_7b_base(c: Config) -> None:
  c.model.source = "alignment-handbook/zephyr-7b-sft-full"
  pairs(c, "ultrafeedback", 477)
  c.data.max_length = 1024
  c.data.max_prompt_length = 512
  c.data.empty_system = True
  c.simpo.beta = 2.0
  c.simpo.gamma_beta_ratio = 0.8
  c.train.learning_rate = 3e-7


def mistral_7b_instruct(c: Config) -> None:
  c.model.source = "mistralai/Mistral-7B-Instruct-v0.2"
  pairs(c, "mistral_ultrafeedback", 466)
  c.data.chat_template = MISTRAL_TEMPLATE
  c.simpo.beta = 2.5
  c.simpo.gamma_beta_ratio = 0.1
  c.train.learning_rate = 5e-7


def llama3_8b_base(c: Config) -> None:
  c.model.source = "princeton-nlp/Llama-3-Base-8B-SFT"
  pairs(c, "ultrafeedback", 477)
  c.data.empty_system = True
  c.simpo.beta = 2.0
  c.simpo.gamma_beta_ratio = 0.5
  c.train.learning_rate = 6e-7


def llama3_8b_instruct(c: Config) -> None:
  c.model.source = "meta-llama/Meta-Llama-3-8B-Instruct"
  pairs(c, "llama3_ultrafeedback", 467)
  c.data.empty_system = True
  c.simpo.beta = 2.5
  c.simpo.gamma_beta_ratio = 0.55
  c.train.learning_rate = 1e-6


def llama3_8b_instruct_v02(c: Config) -> None:
  llama3_8b_instruct(c)
  pairs(c, "llama3_armorm", 467)
  c.simpo.beta = 10.0
  c.simpo.gamma_beta_ratio = 0.3


def gemma2_9b(c: Config) -> None:
  c.model.source = "google/gemma-2-9b-it"
  pairs(c, "gemma2_armorm", 465)
  c.simpo.beta = 10.0
  c.simpo.gamma_beta_ratio = 0.5
  c.train.learning_rate = 8e-7


def qwen2_5_7b(c: Config) -> None:
  c.model.source = "Qwen/Qwen2.5-7B-Instruct"
  pairs(c, "ultrafeedback", 477)
  c.data.header = "prompt"
  c.data.truncation = "prompt_first"
  c.simpo.beta = 10.0
  c.simpo.gamma_beta_ratio = 0.5
  c.train.learning_rate = 5e-7


def smollm2(c: Config) -> None:
  qwen2_5_7b(c)
  c.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.data.max_length = 1024
  c.data.max_prompt_length = 512
  c.train.learning_rate = 1e-6


_RECIPES = {
  f.__name__: f
  for f in (
    mistral_7b_base,
    mistral_7b_instruct,
    llama3_8b_base,
    llama3_8b_instruct,
    llama3_8b_instruct_v02,
    gemma2_9b,
    qwen2_5_7b,
    smollm2,
  )
}
VARIANTS = tuple(_RECIPES)
