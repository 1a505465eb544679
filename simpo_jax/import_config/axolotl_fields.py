"""Tables of axolotl's fields, of version 0.19; it passes them to TRL's CPOConfig."""

from typing import Any

from simpo_jax.import_config.fields import ROWS_GIVE_ARGUMENTS, SHARED_DEFAULTS

MARKERS: tuple[str, ...] = (
  "base_model", "rl", "rl_beta", "micro_batch_size", "num_epochs", "sequence_len", "val_set_size",
  "adapter", "lora_target_linear", "lr_scheduler", "dataset_prepared_path", "saves_per_epoch",
  "evals_per_epoch", "special_tokens", "test_datasets",
)  # fmt: skip
COMMON_NAMES = {
  "base_model": "model_name_or_path",
  "rl": "loss_type",
  "rl_beta": "beta",
  "micro_batch_size": "per_device_train_batch_size",
  "num_epochs": "num_train_epochs",
  "sequence_len": "max_length",
  "optimizer": "optim",
  "lr_scheduler": "lr_scheduler_type",
  "wandb_name": "run_name",
  "peft_use_rslora": "use_rslora",
}
DEFAULTS: dict[str, Any] = {
  **SHARED_DEFAULTS,
  "beta": 0.1,
  "bf16": "auto",
  "cpo_alpha": 1.0,
  "excess_length_strategy": "drop",
  "lora_dropout": 0.0,
  "lr_scheduler_type": "cosine",
  "max_length": 512,
  "num_train_epochs": 1.0,
  "optim": "adamw_torch_fused",
  "output_dir": "./model-out",
  "per_device_train_batch_size": 1,
  "save_strategy": "epoch",
  "save_total_limit": 4,
  "val_set_size": 0.0,
}
# axolotl requires these, derives them from other fields, or does not have them.
for _name in (
  "label_smoothing", "learning_rate", "logging_steps", "lora_alpha", "lora_r", "use_peft",
):  # fmt: skip
  del DEFAULTS[_name]
TYPES: dict[type, tuple[str, ...]] = {
  float: ("dpo_beta", "val_set_size", "warmup_ratio", "warmup_steps"),
  int: ("batch_size", "evals_per_epoch", "saves_per_epoch"),
  bool: ("lora_target_linear",),
  str: ("adapter", "chat_template", "chat_template_jinja", "excess_length_strategy"),
}
OWN: tuple[str, ...] = (
  "adapter", "batch_size", "bf16", "bfloat16", "chat_template", "chat_template_jinja", "datasets",
  "dpo_beta", "evals_per_epoch", "excess_length_strategy", "gradient_checkpointing",
  "load_in_4bit", "load_in_8bit", "lora_target_linear", "saves_per_epoch", "special_tokens",
  "test_datasets", "val_set_size", "warmup_ratio", "warmup_steps",
)  # fmt: skip
# Fields with the names and meanings of `fields.py`.
_SAME = (
  "adam_beta1", "adam_beta2", "adam_epsilon", "cpo_alpha", "dataloader_drop_last", "eval_steps",
  "eval_strategy", "evaluation_strategy", "gradient_accumulation_steps", "hub_model_id",
  "learning_rate", "lora_alpha", "lora_dropout", "lora_r", "lora_target_modules", "max_grad_norm",
  "max_steps", "output_dir", "save_steps", "save_strategy", "save_total_limit", "seed",
  "simpo_gamma", "weight_decay",
)  # fmt: skip
IGNORED: dict[str, tuple[str, ...]] = {
  "execution and sharding are configured by train.attention, mesh.* and train.remat": (
    "accelerator_config", "activation_offloading", "attn_implementation", "chunked_cross_entropy",
    "chunked_cross_entropy_num_chunks", "context_parallel_size", "ddp", "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_timeout", "deepcompile", "deepspeed",
    "device", "device_map", "dp_replicate_size", "dp_shard_size", "eager_attention",
    "experimental_skip_move_to_device", "experts_implementation", "flash_attention",
    "flash_attn_cross_entropy", "flash_attn_d512", "flash_attn_fuse_mlp", "flash_attn_rms_norm",
    "flash_optimum", "flex_attention", "flex_attn_compile_kwargs", "fp32_norm_classes",
    "fp32_norms", "fsdp", "fsdp_config", "fsdp_final_state_dict_type", "fsdp_version",
    "fused_attn_kernel", "gc_collect_steps", "gc_steps", "gemma4_hybrid_attn_impl",
    "gpu_memory_limit", "gradient_checkpointing_kwargs", "heads_k_stride", "large_head_attention",
    "layer_offloading", "llama4_linearized_experts", "local_rank", "lora_embedding_kernel",
    "lora_mlp_kernel", "lora_o_kernel", "lora_on_cpu", "lora_qkv_kernel", "low_cpu_mem_usage",
    "max_memory", "ple_cpu_offload", "qlora_sharded_model_loading", "ray_num_workers",
    "ray_run_name", "resources_per_worker", "ring_attn_func", "sage_attention", "sdp_attention",
    "sdpa_varlen", "selective_checkpointing", "sequence_parallel_degree", "tensor_parallel_size",
    "tf32", "tiled_mlp", "tiled_mlp_num_shards", "tiled_mlp_use_original_mlp", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "torch_compile_options",
    "torch_empty_cache_steps", "use_kernels", "use_ray", "world_size", "xformers_attention",
  ),
  "data loading is configured by data.workers and data.lookahead": (
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataset_keep_in_memory", "dataset_num_proc", "dataset_prepared_path", "dataset_processes",
    "group_by_length", "hf_use_auth_token", "is_preprocess", "num_dataset_shards_to_save",
    "pad_to_multiple_of", "pad_to_sequence_len", "preprocess_iterable", "push_dataset_to_hub",
    "remove_unused_columns", "shuffle_before_merging_datasets", "shuffle_merged_datasets",
    "skip_prepare_dataset", "streaming_multipack_buffer_size", "total_num_tokens",
    "total_supervised_tokens",
  ),
  "every step is logged to metrics.jsonl": (
    "comet_api_key", "comet_experiment_config", "comet_experiment_key", "comet_mode",
    "comet_online", "comet_project_name", "comet_workspace", "debug", "hf_mlflow_log_artifacts",
    "include_tkps", "include_tokens_per_second", "logging_steps", "mlflow_experiment_name",
    "mlflow_run_name", "mlflow_tracking_uri", "otel_metrics_host", "otel_metrics_port",
    "profiler_steps", "profiler_steps_start", "trackio_project_name", "trackio_run_name",
    "trackio_space_id", "use_comet", "use_mlflow", "use_otel_metrics", "use_tensorboard",
    "use_trackio", "use_wandb", "wandb_entity", "wandb_log_model", "wandb_mode", "wandb_project",
    "wandb_run_id", "wandb_watch",
  ),
  "evaluation always computes the loss and its metrics over all held-out pairs": (
    "bench_dataset", "bench_split", "do_bench_eval", "do_causal_lm_eval", "eval_batch_size",
    "eval_causal_lm_metrics", "eval_max_new_tokens", "eval_sample_packing", "eval_sequence_len",
    "eval_table_size",
  ),
  "a run writes a fixed set of files, see docs/results.md": (
    "auto_resume_from_checkpoints", "dynamic_checkpoint", "greater_is_better", "hub_revision",
    "hub_strategy", "metric_for_best_model", "resume_from_checkpoint", "save_first_step",
    "save_only_model", "save_safetensors", "tokenizer_save_jinja_files",
  ),
  "generation is configured by generate.*": (
    "generate_samples", "generation_do_sample", "generation_max_new_tokens",
    "generation_prompt_ratio", "generation_temperature", "generation_top_k", "generation_top_p",
    "gradio_max_new_tokens", "gradio_server_name", "gradio_server_port", "gradio_share",
    "gradio_temperature", "gradio_title", "num_generation_samples", "vllm",
  ),
  "the model's kind and tokenizer are those of its files": (
    "base_model_config", "is_falcon_derived_model", "is_llama_derived_model",
    "is_mistral_derived_model", "is_qwen_derived_model", "model_type", "processor_kwargs",
    "processor_type", "tokenizer_config", "tokenizer_legacy", "tokenizer_type",
    "tokenizer_use_fast", "type_of_model",
  ),
  "code in model repositories is never run": ("trust_remote_code",),
  "not of this objective, or an option of a method that the recipe does not use": (
    "bnb_config_kwargs", "dion_lr", "dion_momentum", "dion_rank_fraction", "dion_rank_multiple_of",
    "dpo_generate_during_eval", "dpo_label_smoothing", "dpo_loss_type", "dpo_loss_weights",
    "dpo_norm_loss", "dpo_padding_free", "dpo_use_liger_kernel", "dpo_use_logits_to_keep",
    "dpo_use_weighting", "eaft_alpha", "eaft_k", "ebft", "jagged_restart_anneal_steps",
    "jagged_restart_warmup_steps", "kto_desirable_weight", "kto_undesirable_weight",
    "lisa_layers_attribute", "lisa_step_interval", "loraplus_lr_embedding", "max_prompt_len",
    "merge_lora", "merge_method", "multipack_real_batches", "pose_max_context_len",
    "pose_num_chunks", "pose_split_on_token_ids", "precompute_ref_log_probs",
    "pretrain_multipack_attn", "pretrain_multipack_buffer_size",
    "pretraining_sample_concatenation", "qgalore_cos_threshold", "qgalore_gamma_proj",
    "qgalore_proj_bits", "qgalore_proj_group_size", "qgalore_proj_quant", "qgalore_proj_type",
    "qgalore_queue_size", "qgalore_rank", "qgalore_scale", "qgalore_update_proj_gap",
    "relora_cpu_offload", "relora_prune_method", "relora_prune_ratio", "rpo_alpha",
    "sample_packing_bin_size", "sample_packing_eff_est", "sample_packing_group_size",
    "sample_packing_mp_start_method", "sample_packing_sequentially", "torchdistx_path",
    "train_on_inputs", "curriculum_sampling", "scaling_softmax_bias", "scaling_softmax_factor",
  ),
  "does not affect the training": ("axolotl_config_path", "role_boundaries", "strict"),
}  # fmt: skip
REFUSED: dict[str, tuple[str, ...]] = {
  "only AdamW with the options adam_beta1, adam_beta2 and adam_epsilon is supported": (
    "adam_beta3", "adam_epsilon2", "embedding_lr", "embedding_lr_scale", "loraplus_lr_ratio",
    "lr_groups", "optim_args", "optim_target_modules",
  ),
  "schedules decay to 0; cosine is half a period": (
    "cosine_constant_lr_ratio", "cosine_min_lr_ratio", "jagged_restart_steps", "lr_div_factor",
    "lr_quadratic_warmup", "lr_scheduler_kwargs", "relora",
  ),
  "only bfloat16 and float32 are supported": (
    "float16", "fp16", "fp8", "fp8_config", "fp8_enable_fsdp_float8_all_gather", "gptq",
    "model_quantization_config", "model_quantization_config_kwargs", "qat", "quantization",
    "quantize_moe_experts", "use_onebitllms",
  ),
  "adapters are plain LoRA on matrices of the layers, and begin at zero": (
    "lora_alpha_pattern", "lora_fan_in_fan_out", "lora_model_dir", "lora_modules_to_save",
    "lora_rank_pattern", "lora_target_parameters", "peft", "peft_init_lora_weights",
    "peft_layer_replication", "peft_layers_pattern", "peft_layers_to_transform",
    "peft_trainable_token_indices", "peft_use_dora",
  ),
  "either all weights of the model are trained, or only the adapters": (
    "freeze_mm_modules", "lisa_n_layers", "peft_ensure_weight_tying", "unfrozen_parameters",
  ),
  "the model is that of its config.json, and its tokenizer is used as it is": (
    "added_tokens_overrides", "cls_model_config", "embeddings_skip_upcast",
    "fix_untrained_tokens", "image_resize_algorithm", "image_size", "mean_resizing_embeddings",
    "num_labels", "overrides_of_model_config", "overrides_of_model_kwargs", "reinit_weights",
    "resize_token_embeddings_to_32x", "revision_of_model", "rope_scaling", "s2_attention",
    "scaling_softmax", "shrink_embeddings", "tokenizer_use_mistral_common",
    "tokens",
  ),
  ROWS_GIVE_ARGUMENTS: ("chat_template_kwargs",),
  "the chat template is data.chat_template, used as it is": (
    "default_system_message", "eot_tokens",
  ),
  "prepare the data, and name it with --data": (
    "dataset_exact_deduplication", "dataset_shard_idx", "dataset_shard_num", "min_sample_len",
    "pretraining_dataset", "streaming",
  ),
  "for an objective other than SimPO": (
    "batch_flattening", "center_rewards_coefficient", "max_packed_sequence_len",
    "neftune_noise_alpha", "noisy_embedding_alpha", "orpo_alpha", "process_reward_model",
    "reward_model", "sample_packing", "use_eaft", "use_pose",
  ),
  "training always runs to its last step, and its result is the final weights": (
    "early_stopping_patience", "load_best_model_at_end", "loss_watchdog_patience",
    "loss_watchdog_threshold",
  ),
  "the batch size is set by the config": ("auto_find_batch_size",),
  "another program": ("plugins", "trainer_cls", "trl"),
  "compute and weights are configured by bf16": ("float32", "peft_autocast_adapter_dtype"),
}  # fmt: skip
NAMES = frozenset(
  [
    *COMMON_NAMES,
    *OWN,
    *_SAME,
    *(name for table in (IGNORED, REFUSED) for names in table.values() for name in names),
  ]
)
