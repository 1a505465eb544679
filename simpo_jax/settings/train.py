"""Settings of a training step."""

from simpo_jax.kernels import range_attention
from simpo_jax.models.lora import TARGETS
from simpo_jax.settings.field import choice, flag, integer, items, number
from simpo_jax.train.fsdp import REMAT

GROUPS = {
  "train": "the optimizer and the training step",
  "simpo": "the SimPO objective, with the names and defaults of princeton-nlp/SimPO",
}
# fmt: off
FIELDS = (
  # train
  integer("train.steps", 7, "Optimizer steps of the whole run, counted from 1.", 1, 10_000_000),
  integer("train.batch_size", 8, "Pairs per optimizer step, summed over all hosts.", 1),
  integer(
    "train.micro_batch_rows", 0,
    "Packed rows per forward pass over all hosts; 0: one per data shard.",
    0, 65_536,
  ),
  choice("train.optimizer", "adamw", "Optimizer; only AdamW so far.", ("adamw",)),
  number("train.learning_rate", 1e-06, "Peak learning rate, reached after the warmup.", 0.0, 1.0),
  choice(
    "train.schedule", "cosine",
    "Learning-rate schedule after the warmup.",
    ("cosine", "linear", "constant"),
  ),
  number(
    "train.warmup_ratio", 0.1,
    "Fraction of the steps for the linear warmup from 0.",
    0.0, 1.0,
  ),
  number("train.weight_decay", 0.0, "Decoupled weight decay, as in AdamW.", 0.0),
  number("train.b1", 0.9, "Decay rate of AdamW's first moment.", 0.0, 0.9999999),
  number("train.b2", 0.999, "Decay rate of AdamW's second moment.", 0.0, 0.9999999),
  number("train.eps", 1e-08, "Term added to the denominator of AdamW's update.", 0.0, 1.0),
  number(
    "train.max_grad_norm", 1.0,
    "Clip the global gradient norm to this value; 0: no clipping.",
    0.0,
  ),
  choice(
    "train.attention", "auto",
    "Attention kernel for packed rows; auto: the platform's own.",
    range_attention.IMPLEMENTATIONS,
  ),
  integer(
    "train.logits_chunk", 0,
    "Response tokens per row whose logits are materialized at once; 0: 1,024, on CPU 256.",
    0,
  ),
  choice(
    "train.remat", "full",
    "What the backward pass recomputes: full (each layer from its input), dots (all but matrix "
    "products and attention), or none.",
    REMAT,
  ),
  choice(
    "train.mu_dtype", "float32",
    "Dtype of AdamW's first moment; bfloat16 halves its memory.",
    ("float32", "bfloat16"),
  ),
  integer(
    "train.max_bad_steps", 0,
    "How many steps with a non-finite loss or gradient may be skipped before the run fails.",
    0, resumable=True,
  ),
  flag(
    "train.freeze_embeddings", False,
    "Freeze the embeddings and the output head; they get no optimizer state.",
  ),
  number(
    "train.ema_decay", 0.0,
    "Decay of an exponential moving average of the weights, which evaluation and generation "
    "use; 0: off.",
    0.0, 0.9999999,
  ),
  integer(
    "train.lora_rank", 0,
    "Rank of LoRA adapters W + (alpha / rank) A B, trained in place of the weights; 0: full "
    "fine-tuning.",
    0, 65_536,
  ),
  number("train.lora_alpha", 16.0, "LoRA's alpha; see lora_rank.", 1e-06),
  items(
    "train.lora_targets", TARGETS,
    "Matrices that get LoRA adapters, by PEFT's names.",
    str, "('q_proj','v_proj')",
  ),

  # simpo
  number(
    "simpo.beta", 2.0,
    "Reward scale: a response's reward is beta times its average log-probability.",
    1e-06,
  ),
  number("simpo.gamma_beta_ratio", 0.25, "Target reward margin divided by beta.", 0.0),
  choice("simpo.loss_type", "sigmoid", "Loss on the reward margin.", ("sigmoid", "hinge")),
  number(
    "simpo.label_smoothing", 0.0,
    "Assumed fraction of flipped preference labels; not available with hinge.",
    0.0, 0.5,
  ),
  number(
    "simpo.sft_weight", 0.0,
    "Weight of the SFT (cross-entropy) loss on chosen responses.",
    0.0,
  ),
)
# fmt: on
