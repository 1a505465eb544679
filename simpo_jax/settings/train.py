"""Settings of training: optimizer, training step and SimPO loss."""

import dataclasses

from simpo_jax.kernels import range_attention
from simpo_jax.settings.field import choice, flag, integer, items, number

REMAT = ("full", "dots", "none")
# Matrices that LoRA can adapt, by the last part of their Hugging Face names.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """The optimizer and the training step."""

  steps: int = integer(7, "Total number of optimizer steps; the first is step 1.", 1, 10_000_000)
  batch_size: int = integer(8, "Pairs per optimizer step, summed over all hosts.", 1)
  micro_batch_rows: int = integer(
    0,
    "Packed rows per forward pass over all hosts; 0: one per data shard.",
    0,
    65_536,
  )
  optimizer: str = choice("adamw", "Optimizer; only AdamW so far.", ("adamw",))
  learning_rate: float = number(1e-06, "Peak learning rate, reached after the warmup.", 0.0, 1.0)
  schedule: str = choice(
    "cosine",
    "Learning-rate schedule after the warmup.",
    ("cosine", "linear", "constant"),
  )
  warmup_ratio: float = number(
    0.1,
    "Fraction of the steps for the linear warmup from 0.",
    0.0,
    1.0,
  )
  weight_decay: float = number(0.0, "Decoupled weight decay, as in AdamW.", 0.0)
  b1: float = number(0.9, "Decay rate of AdamW's first moment.", 0.0, 0.9999999)
  b2: float = number(0.999, "Decay rate of AdamW's second moment.", 0.0, 0.9999999)
  eps: float = number(1e-08, "Term added to the denominator of AdamW's update.", 0.0, 1.0)
  max_grad_norm: float = number(
    1.0,
    "Clip the global gradient norm to this value; 0: no clipping.",
    0.0,
  )
  attention: str = choice(
    "auto",
    "Attention kernel for packed rows; auto: the platform's default.",
    range_attention.IMPLEMENTATIONS,
  )
  logits_chunk: int = integer(
    0,
    "Response tokens per row whose logits are materialized at once; 0: 1,024, on CPU 256.",
    0,
  )
  remat: str = choice(
    "full",
    "What the backward pass recomputes: full (each layer from its input), dots (all but matrix "
    "products and attention), or none.",
    REMAT,
  )
  mu_dtype: str = choice(
    "float32",
    "Dtype of AdamW's first moment; bfloat16 halves its memory.",
    ("float32", "bfloat16"),
  )
  max_bad_steps: int = integer(
    0,
    "How many steps with a non-finite loss or gradient may be skipped before the run fails.",
    0,
    resumable=True,
  )
  freeze_embeddings: bool = flag(
    False,
    "Freeze the embeddings and the output head; they get no optimizer state.",
  )
  ema_decay: float = number(
    0.0,
    "Decay of an exponential moving average of the weights, which evaluation and generation "
    "use; 0: off.",
    0.0,
    0.9999999,
  )
  lora_rank: int = integer(
    0,
    "Rank of LoRA adapters W + (alpha / rank) A B, trained in place of the weights; 0: full "
    "fine-tuning.",
    0,
    65_536,
  )
  lora_alpha: float = number(16.0, "LoRA's alpha; see lora_rank.", 1e-06)
  lora_targets: tuple[str, ...] = items(
    LORA_TARGETS,
    "Matrices that get LoRA adapters, by PEFT's names.",
    str,
    "('q_proj','v_proj')",
  )


@dataclasses.dataclass(frozen=True)
class SimPOSettings:
  """The SimPO objective, with the names and defaults of princeton-nlp/SimPO."""

  beta: float = number(
    2.0,
    "Reward scale: a response's reward is beta times its average log-probability.",
    1e-06,
  )
  gamma_beta_ratio: float = number(0.25, "Target reward margin divided by beta.", 0.0)
  loss_type: str = choice("sigmoid", "Loss on the reward margin.", ("sigmoid", "hinge"))
  label_smoothing: float = number(
    0.0,
    "Assumed fraction of flipped preference labels; not available with hinge.",
    0.0,
    0.5,
  )
  sft_weight: float = number(
    0.0,
    "Weight of the SFT (cross-entropy) loss on chosen responses.",
    0.0,
  )
