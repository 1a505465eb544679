"""Tables of the fields that recipes on transformers' `TrainingArguments` have.

They are those of TRL's CPO script (`CPOConfig`, `ModelConfig` and `ScriptArguments` of TRL 1.16),
of the alignment handbook, and of `run_simpo.py` of princeton-nlp/SimPO, which has the format of
the old handbook. A field of another trainer with the same meaning is translated under its name
here, its common name (see `forms.py`).
"""

from typing import Any

# Why fields of several trainers are not supported.
FROZEN_DTYPES = "frozen weights are bfloat16 or float32: model.param_dtype"
ROWS_GIVE_ARGUMENTS = "only rows give arguments to the chat template: chat_template_kwargs"
# run_simpo.py overrides the chat template of models with "mistral" in their names. This one
# produces the same text; only the first message may be a system message.
MISTRAL_TEMPLATE = (
  "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
  "{% for m in messages[0 if system is none else 1:] %}"
  "{% set text = m.content if system is none or not loop.first else "
  "system.strip() + '\\n\\n' + m.content %}"
  "{% if m.role == 'user' %}{{ '[INST] ' + text.strip() + ' [/INST]' }}"
  "{% elif m.role == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
  "{% endfor %}"
)

# Values of fields that a recipe omits: transformers' defaults, and PEFT's in TRL's ModelConfig.
SHARED_DEFAULTS: dict[str, Any] = {
  "adam_beta1": 0.9,
  "adam_beta2": 0.999,
  "adam_epsilon": 1e-8,
  "bf16": False,
  "eval_strategy": "no",
  "gradient_accumulation_steps": 1,
  "gradient_checkpointing": False,
  "label_smoothing": 0.0,
  "learning_rate": 5e-5,
  "logging_steps": 500,
  "lora_alpha": 32,
  "lora_dropout": 0.05,
  "lora_r": 16,
  "loss_type": "sigmoid",
  "lr_scheduler_type": "linear",
  "max_grad_norm": 1.0,
  "max_steps": -1,
  "num_train_epochs": 3.0,
  "optim": "adamw_torch",
  "per_device_train_batch_size": 8,
  "save_steps": 500,
  "save_strategy": "steps",
  "seed": 42,
  "use_peft": False,
  "warmup_ratio": 0.0,
  "warmup_steps": 0,
  "weight_decay": 0.0,
}
_CPO = {"beta": 0.1, "cpo_alpha": 1.0, "simpo_gamma": 0.5}
TRL_DEFAULTS: dict[str, Any] = {
  **SHARED_DEFAULTS,
  **_CPO,
  "bf16": True,
  "dataset_test_split": "test",
  "dataset_train_split": "train",
  "gradient_checkpointing": True,
  "learning_rate": 1e-6,
  "logging_steps": 10,
  "max_length": 1024,
}
_OLD_HANDBOOK: dict[str, Any] = {  # its data, and the lengths of the TRL of its time
  **SHARED_DEFAULTS,
  "auto_insert_empty_system_msg": True,
  "dataset_splits": ["train", "test"],
  "max_length": 512,
  "max_prompt_length": 128,
}
OLD_HANDBOOK_DEFAULTS = {**_OLD_HANDBOOK, **_CPO}
PRINCETON_DEFAULTS = {**_OLD_HANDBOOK, "beta": 2.0, "gamma_beta_ratio": 0.25, "sft_weight": 0.0}

# Fields with the same meaning and another name in a config.
RENAMED = {
  "chat_template": "data.chat_template",
  "adam_beta1": "train.b1",
  "adam_beta2": "train.b2",
  "adam_epsilon": "train.eps",
  "beta": "simpo.beta",
  "gamma_beta_ratio": "simpo.gamma_beta_ratio",
  "label_smoothing": "simpo.label_smoothing",
  "learning_rate": "train.learning_rate",
  "max_grad_norm": "train.max_grad_norm",
  "max_length": "data.max_length",
  "model_name_or_path": "model.source",
  "seed": "seed",
  "sft_weight": "simpo.sft_weight",
  "weight_decay": "train.weight_decay",
}

FIELD_TYPES = {
  float: (
    "adam_beta1", "adam_beta2", "adam_epsilon", "beta", "cpo_alpha", "eval_steps",
    "gamma_beta_ratio", "label_smoothing", "learning_rate", "logging_steps", "lora_alpha",
    "lora_dropout", "max_grad_norm", "num_train_epochs", "save_steps", "sft_weight", "simpo_gamma",
    "test_split_size", "warmup_ratio", "warmup_steps", "weight_decay",
  ),
  int: (
    "gradient_accumulation_steps", "lora_r", "max_length", "max_prompt_length", "max_steps",
    "per_device_train_batch_size", "save_total_limit", "seed",
  ),
  bool: (
    "auto_insert_empty_system_msg", "bf16", "dataloader_drop_last", "do_eval", "eval_on_start",
    "generate_during_eval", "gradient_checkpointing", "use_peft", "use_rslora",
  ),
  str: (
    "chat_template", "dataset_name", "dataset_test_split", "dataset_train_split", "dtype",
    "eval_strategy", "evaluation_strategy", "hub_model_id", "loss_type", "lr_scheduler_type",
    "model_name_or_path", "optim", "output_dir", "run_name", "save_strategy", "torch_dtype",
  ),
}  # fmt: skip

# Fields that do not affect the trained weights, by the reason shown to the user.
IGNORED_FIELDS = {
  "execution and sharding are configured by train.attention, mesh.* and train.remat": (
    "accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs",
    "attn_implementation", "average_tokens_across_devices", "ddp_backend", "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout",
    "deepspeed", "dispatch_batches", "fp16_backend", "fp16_opt_level", "fsdp", "fsdp_config",
    "gradient_checkpointing_kwargs", "half_precision_backend", "jit_mode_eval",
    "liger_kernel_config", "local_rank", "mp_parameters", "no_cuda", "parallelism_config",
    "ray_scope", "split_batches", "tf32", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "torch_empty_cache_steps", "tpu_num_cores", "use_cache", "use_cpu",
    "use_flash_attention_2", "use_ipex", "use_liger_kernel", "use_mps_device",
  ),
  "data loading is configured by data.workers and data.lookahead": (
    "data_seed", "dataloader_in_order",
    "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "dataset_num_proc", "dataset_streaming",
    "group_by_length", "label_pad_token_id", "length_column_name", "padding_value",
    "preprocessing_num_workers", "remove_unused_columns", "streaming", "text_column",
    "train_sampling_strategy", "truncation_side",
  ),
  "every step is logged to metrics.jsonl": (
    "disable_tqdm", "include_num_input_tokens_seen", "include_tokens_per_second", "log_level",
    "log_level_replica", "log_on_each_node", "logging_dir", "logging_first_step",
    "logging_nan_inf_filter", "logging_steps", "logging_strategy", "project", "report_to",
    "skip_memory_metrics", "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id",
  ),
  "evaluation always computes the loss and its metrics over all held-out pairs": (
    "batch_eval_metrics", "bf16_full_eval", "eval_accumulation_steps", "eval_delay",
    "eval_do_concat_batches", "eval_use_gather_object", "fp16_full_eval",
    "include_for_metrics", "include_inputs_for_metrics", "label_names",
    "per_device_eval_batch_size", "prediction_loss_only",
  ),
  "a run writes a fixed set of files, see docs/results.md": (
    "enable_jit_checkpoint", "greater_is_better", "hub_always_push", "hub_model_revision",
    "hub_private_repo", "hub_revision", "hub_strategy", "hub_token", "ignore_data_skip",
    "metric_for_best_model", "overwrite_output_dir", "push_to_hub",
    "restore_callback_states_from_checkpoint", "resume_from_checkpoint", "save_on_each_node",
    "save_only_model", "save_safetensors",
  ),
  "the models have neither dropout nor an encoder": (
    "disable_dropout", "max_completion_length", "max_target_length",
  ),
  "label smoothing of another loss; see label_smoothing": ("label_smoothing_factor",),
  "code in model repositories is never run": ("trust_remote_code", "model_code_revision"),
  "does not affect the training": (
    "base_model_revision", "bnb_4bit_quant_storage", "bnb_4bit_quant_type", "debug", "do_predict",
    "do_train", "env", "full_determinism", "ignore_bias_buffers", "lora_task_type",
    "use_bnb_nested_quant",
  ),
}  # fmt: skip

# Fields that affect the trained weights: the supported values, and why others are unsupported.
SUPPORTED_VALUES: dict[str, tuple[tuple, str]] = {
  "adafactor": ((False,), "only AdamW is supported"),
  "alpha": ((0, 0.0), "AlphaPO's reward is not supported"),
  "auto_find_batch_size": ((False,), "the batch size is set by the config"),
  "dataset_config": (("default",), "prepare the files of that subset, and name them with --data"),
  "dataset_configs": ((), "prepare the files of that subset, and name them with --data"),
  "fp16": ((False,), "only bfloat16 and float32 are supported"),
  "is_encoder_decoder": ((False,), "only decoder models are supported"),
  "load_best_model_at_end": (
    (False,),
    "the last weights are the result; checkpoint.keep keeps more",
  ),
  "load_in_4bit": ((False,), FROZEN_DTYPES),
  "load_in_8bit": ((False,), FROZEN_DTYPES),
  "lora_modules_to_save": (([],), "only the adapters are trained"),
  "lora_target_parameters": (([],), "only matrices of the layers can have adapters"),
  "lr_scheduler_kwargs": (({},), "schedules decay to 0, cosine in half a period"),
  "model_init_kwargs": (({},), "set the same with --config.model.*"),
  "model_revision": (("main",), "download that revision, and name its folder"),
  "neftune_noise_alpha": ((), "no noise is added to embeddings"),
  "optim_args": (("",), "only the options adam_* of AdamW are supported"),
  "optim_target_modules": ((), "AdamW updates all weights"),
  "tokenizer_name_or_path": ((), "the tokenizer is the model's; put it into the model's folder"),
  "truncation_mode": (("keep_end",), "a prompt that is too long is truncated on the left"),
  "use_dora": ((False,), "adapters are plain LoRA"),
}

# Fields that the other modules translate, some of them together.
COMBINED = (
  "auto_insert_empty_system_msg", "bf16", "cpo_alpha", "dataloader_drop_last", "dataset_mixer",
  "dataset_mixture", "dataset_name", "dataset_splits", "dataset_test_split", "dataset_train_split",
  "datasets", "do_eval", "dtype", "eval_on_start", "eval_steps", "eval_strategy",
  "evaluation_strategy", "generate_during_eval", "gradient_accumulation_steps",
  "gradient_checkpointing", "hub_model_id", "lora_alpha", "lora_dropout", "lora_r",
  "lora_target_modules", "loss_type", "lr_scheduler_type", "max_prompt_length", "max_steps",
  "num_train_epochs", "optim", "output_dir", "per_device_train_batch_size", "run_name",
  "save_steps", "save_strategy", "save_total_limit", "simpo_gamma", "test_split_size",
  "torch_dtype", "use_peft", "use_rslora", "warmup_ratio", "warmup_steps",
)  # fmt: skip
# Fields of TRL, the handbook and princeton-nlp/SimPO that transformers does not have.
NOT_OF_TRANSFORMERS = frozenset({
  "alpha", "attn_implementation", "auto_insert_empty_system_msg", "base_model_revision", "beta",
  "bnb_4bit_quant_storage",
  "bnb_4bit_quant_type", "chat_template", "cpo_alpha", "dataset_config", "dataset_configs",
  "dataset_mixer", "dataset_mixture", "dataset_name", "dataset_num_proc", "dataset_splits",
  "dataset_streaming", "dataset_test_split", "dataset_train_split", "datasets", "disable_dropout",
  "dtype", "gamma_beta_ratio", "generate_during_eval", "hub_model_revision", "ignore_bias_buffers",
  "is_encoder_decoder", "label_pad_token_id", "label_smoothing", "load_in_4bit", "load_in_8bit",
  "lora_alpha", "lora_dropout", "lora_modules_to_save", "lora_r", "lora_target_modules",
  "lora_target_parameters", "lora_task_type", "loss_type", "max_completion_length", "max_length",
  "max_prompt_length", "max_target_length", "model_code_revision", "model_init_kwargs",
  "model_name_or_path", "model_revision", "padding_value",
  "preprocessing_num_workers", "sft_weight", "simpo_gamma", "streaming", "test_split_size",
  "text_column", "tokenizer_name_or_path", "torch_dtype", "trust_remote_code", "truncation_mode",
  "truncation_side", "use_bnb_nested_quant", "use_dora", "use_flash_attention_2", "use_peft",
  "use_rslora",
})  # fmt: skip

# Fields whose values other modules read, under these names whatever the trainer.
COMMON = frozenset([*RENAMED, *COMBINED, "logging_steps"])
KNOWN = frozenset(
  [
    *RENAMED,
    *SUPPORTED_VALUES,
    *COMBINED,
    *(name for names in IGNORED_FIELDS.values() for name in names),
  ]
)
