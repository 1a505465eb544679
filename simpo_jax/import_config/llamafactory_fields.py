"""Tables of LLaMA-Factory's fields, of version 0.9.5; it builds on transformers' arguments."""

from typing import Any

from simpo_jax.import_config.fields import FROZEN_DTYPES, SHARED_DEFAULTS

MARKERS: tuple[str, ...] = (
  "stage", "pref_loss", "pref_beta", "pref_ftx", "finetuning_type", "cutoff_len", "template",
  "lora_target", "lora_rank", "dataset", "dataset_dir", "overwrite_cache", "plot_loss",
)  # fmt: skip
COMMON_NAMES = {
  "pref_beta": "beta",
  "pref_loss": "loss_type",
  "pref_ftx": "cpo_alpha",
  "dpo_label_smoothing": "label_smoothing",
  "cutoff_len": "max_length",
  "lora_rank": "lora_r",
  "lora_target": "lora_target_modules",
}
DEFAULTS: dict[str, Any] = {
  **SHARED_DEFAULTS,
  "beta": 0.1,
  "cpo_alpha": 0.0,
  "finetuning_type": "lora",
  "gradient_checkpointing": True,
  "lora_dropout": 0.0,
  "lora_r": 8,
  "lora_target_modules": "all",
  "max_length": 2048,
  "simpo_gamma": 0.5,
  "stage": "sft",
  "val_size": 0.0,
}
for _name in ("lora_alpha", "use_peft"):
  del DEFAULTS[_name]  # twice the rank; by finetuning_type
TYPES: dict[type, tuple[str, ...]] = {
  float: ("val_size",),
  int: ("max_samples",),
  bool: ("disable_gradient_checkpointing", "do_train", "pure_bf16"),
  str: ("dataset_dir", "finetuning_type", "mix_strategy", "stage", "template"),
}
OWN: tuple[str, ...] = (
  "dataset", "dataset_dir", "disable_gradient_checkpointing", "do_train", "enable_thinking",
  "eval_dataset", "finetuning_type", "max_samples", "mix_strategy",
  "pure_bf16", "stage", "template", "val_size",
)  # fmt: skip
IGNORED: dict[str, tuple[str, ...]] = {
  "execution and sharding are configured by train.attention, mesh.* and train.remat": (
    "enable_liger_kernel", "flash_attn", "fp8_backend", "fp8_enable_fsdp_float8_all_gather",
    "low_cpu_mem_usage", "master_addr", "master_port", "offload_folder", "ray_init_kwargs",
    "ray_num_workers", "upcast_layernorm", "upcast_lmhead_output", "use_kt", "use_kv_cache",
    "use_mca", "use_reentrant_gc", "use_unsloth", "use_unsloth_gc", "use_v1_kernels",
    "use_hyper_parallel", "hyper_parallel_args", "kt_expert_checkpoint_path",
    "kt_lora_expert_intermediate_size", "kt_lora_expert_num", "kt_use_lora_experts",
    "kt_weight_path",
  ),
  "data loading is configured by data.workers and data.lookahead": (
    "buffer_size", "data_shared_file_system", "interleave_probs", "overwrite_cache",
    "preprocessing_batch_size", "preprocessing_num_workers", "streaming", "tokenized_path",
  ),
  "every step is logged to metrics.jsonl": (
    "compute_accuracy", "include_effective_tokens_per_second", "plot_loss", "print_param_status",
    "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url", "swanlab_logdir",
    "swanlab_mode", "swanlab_project", "swanlab_run_name", "swanlab_workspace", "use_swanlab",
    "enable_torch_profiler", "profile_modules", "profiler_active_steps", "profiler_output_dir",
    "profiler_profile_memory", "profiler_record_shapes", "profiler_repeat", "profiler_wait_steps",
    "profiler_warmup_steps", "profiler_with_stack",
  ),
  "generation is configured by generate.*, an export by simpo_jax.export": (
    "do_sample", "eval_num_beams", "export_device", "export_dir", "export_hub_model_id",
    "export_legacy_format", "export_quantization_bit", "export_quantization_dataset",
    "export_quantization_maxlen", "export_quantization_nsamples", "export_size",
    "generation_config", "generation_max_length", "generation_num_beams", "infer_backend",
    "infer_dtype", "length_penalty", "max_length", "max_new_tokens", "num_beams",
    "predict_with_generate", "repetition_penalty", "sglang_config", "sglang_lora_backend",
    "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "skip_special_tokens",
    "temperature", "top_k", "top_p", "vllm_config", "vllm_enforce_eager", "vllm_gpu_util",
    "vllm_max_lora_rank", "vllm_maxlen",
  ),
  "SimPO has no reference model, and this stage no reward model": (
    "kto_chosen_weight", "kto_rejected_weight", "ld_alpha", "ppo_buffer_size", "ppo_epochs",
    "ppo_score_norm", "ppo_target", "ppo_whiten_rewards", "pref_bco_weight", "ref_model",
    "ref_model_adapters", "ref_model_quantization_bit", "reward_model", "reward_model_adapters",
    "reward_model_quantization_bit", "reward_model_type",
  ),
  "models and pairs are text": (
    "audio_sampling_rate", "crop_to_patches", "freeze_multi_modal_projector",
    "freeze_vision_tower", "image_do_pan_and_scan", "image_max_pixels", "image_min_pixels",
    "media_dir", "use_audio_in_video", "video_fps", "video_max_pixels", "video_maxlen",
    "video_min_pixels",
  ),
  "code in model repositories is never run": ("trust_remote_code",),
  "does not affect the training": (
    "cache_dir", "eval_on_each_dataset", "hf_hub_token", "ignore_pad_token_for_loss",
    "ms_hub_token", "om_hub_token", "preserve_thinking", "sortish_sampler", "tool_format",
    "use_fast_tokenizer",
  ),
  "an option of a method that the recipe does not use": (
    "apollo_layerwise", "apollo_proj", "apollo_proj_type", "apollo_rank", "apollo_scale",
    "apollo_scale_front", "apollo_scale_type", "apollo_target", "apollo_update_interval",
    "asft_alpha", "badam_mask_mode", "badam_mode", "badam_start_block", "badam_switch_interval",
    "badam_switch_mode", "badam_update_ratio", "badam_verbose", "double_quantization",
    "eaft_alpha", "freeze_extra_modules", "freeze_trainable_layers", "freeze_trainable_modules",
    "galore_layerwise", "galore_proj_type", "galore_rank", "galore_scale", "galore_target",
    "galore_update_interval", "init_special_tokens", "loraplus_lr_embedding", "module_dropout",
    "oft_block_size", "oft_rank", "oft_target", "pissa_convert", "pissa_iter",
    "quantization_device_map", "quantization_method", "quantization_type", "create_new_adapter",
  ),
}  # fmt: skip
REFUSED: dict[str, tuple[str, ...]] = {
  "only AdamW is supported": (
    "use_adam_mini", "use_apollo", "use_badam", "use_galore", "use_muon", "loraplus_lr_ratio",
  ),
  FROZEN_DTYPES: ("quantization_bit", "fp8"),
  "adapters are plain LoRA on matrices of the layers, and begin at zero": (
    "additional_target", "adapter_name_or_path", "adapter_folder", "pissa_init",
  ),
  "the model's tokenizer and vocabulary are used as they are": (
    "add_special_tokens", "add_tokens", "new_special_tokens_config", "resize_vocab",
    "split_special_tokens",
  ),
  "the model is that of its config.json": (
    "mixture_of_depths", "moe_aux_loss_coef", "rope_scaling", "shift_attn", "train_from_scratch",
    "use_llama_pro", "freeze_language_model",
  ),
  "another objective": (
    "mask_history", "neat_packing", "packing", "train_on_prompt", "use_asft_loss", "use_dft_loss",
    "use_eaft_loss",
  ),
  "pairs are always shuffled": ("disable_shuffling",),
  "training always runs to its last step": ("early_stopping_steps",),
  "no system message is added; put it into the pairs": ("default_system",),
}  # fmt: skip
NAMES = frozenset(
  [
    *COMMON_NAMES,
    *OWN,
    *(name for table in (IGNORED, REFUSED) for names in table.values() for name in names),
    *("lora_alpha", "lora_dropout", "model_name_or_path", "model_revision"),
    *("simpo_gamma", "use_dora", "use_rslora"),
  ]
)
