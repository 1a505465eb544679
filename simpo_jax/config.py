"""Every setting of a run, with its default and its meaning.

A config file (`configs/*.py`) calls `default_config()`, changes what it needs
and returns it; the command line overrides single fields with
`--config.train.steps=10`. Sequences are tuples, because lists cannot be
overridden by flags.
"""

import ml_collections


def default_config() -> ml_collections.ConfigDict:
  """The defaults: the embedded tiny model and its own pairs, nothing to download."""
  c = ml_collections.ConfigDict()
  c.name = "default"
  c.seed = 0

  c.model = ml_collections.ConfigDict()
  # "embedded", a local Hugging Face folder, a .gguf file, a hub id such as
  # "HuggingFaceTB/SmolLM2-135M-Instruct", or "random:FOLDER" for random weights
  # in the shape of FOLDER/config.json.
  c.model.source = "embedded"
  c.model.param_dtype = "float32"  # master weights and optimizer state
  c.model.compute_dtype = "auto"  # bfloat16 on TPU and GPU, float32 on CPU

  c.data = ml_collections.ConfigDict()
  c.data.train = ("embedded",)  # files (.json .jsonl .jsonl.gz .parquet), or "embedded"
  c.data.eval = ()  # held-out files; empty: `eval_fraction` of the training pairs
  c.data.eval_fraction = 0.05
  c.data.embedded_pairs = 256
  c.data.max_length = 1024  # tokens of prompt + one response
  c.data.max_prompt_length = 512
  c.data.truncation = "prompt_first"  # or "princeton", that paper's code's rule
  c.data.header = "prompt"  # the assistant header belongs to "prompt" (TRL) or "response" (princeton)
  c.data.max_skip_fraction = 0.1  # more skipped rows than this is an error
  c.data.row_length = 0  # tokens of one packed row; 0: 2 * max_length, which any pair fits
  c.data.max_pairs_per_row = 16

  c.train = ml_collections.ConfigDict()
  c.train.steps = 7
  c.train.batch_size = 8  # pairs per optimizer step, over all hosts
  c.train.micro_batch_rows = 0  # packed rows per forward pass, all hosts; 0: one per data shard
  c.train.optimizer = "adamw"
  c.train.learning_rate = 1e-6
  c.train.schedule = "cosine"  # cosine | linear | constant
  c.train.warmup_ratio = 0.1
  c.train.weight_decay = 0.0
  c.train.b1 = 0.9
  c.train.b2 = 0.999
  c.train.eps = 1e-8
  c.train.max_grad_norm = 1.0  # 0: no clipping
  c.train.remat = "full"  # full | none: recompute each layer in the backward pass, or keep it

  c.simpo = ml_collections.ConfigDict()  # the names and defaults of princeton-nlp/SimPO
  c.simpo.beta = 2.0
  c.simpo.gamma_beta_ratio = 0.25
  c.simpo.loss_type = "sigmoid"  # sigmoid | hinge
  c.simpo.label_smoothing = 0.0
  c.simpo.sft_weight = 0.0

  c.generate = ml_collections.ConfigDict()
  c.generate.at_steps = ()  # after exactly these steps; wins over `every`
  c.generate.every = 0  # 0: never
  c.generate.mode = "host_data_parallel"  # or "global_mesh"
  # "synthetic", a .txt file (one prompt per line), a .jsonl file of messages.
  c.generate.prompts = "synthetic"
  c.generate.prompt_list = ()  # prompts given right here; wins over `prompts`
  c.generate.template = "Tell me a short story about the number {index}."
  c.generate.count = 128  # synthetic: how many; files: the first so many, 0 for all
  c.generate.num_samples = 1  # per prompt
  c.generate.max_new_tokens = 2048
  c.generate.max_prompt_length = 1024  # a longer prompt is refused before anything runs
  c.generate.temperature = 0.0  # 0: greedy
  c.generate.top_k = 0  # 0: off
  c.generate.top_p = 1.0
  c.generate.ignore_eos = False
  c.generate.seed = 0
  c.generate.max_slots = 0  # sequences decoded at once, per host; 0: all of them
  c.generate.page_size = 128  # tokens per KV page
  c.generate.prefill_chunk = 128  # prompt tokens per prefill step
  c.generate.attention = "auto"  # paged attention: auto | reference | xla

  c.evaluate = ml_collections.ConfigDict()
  c.evaluate.every = 0  # 0: only at the end
  c.evaluate.at_end = True

  c.mesh = ml_collections.ConfigDict()
  c.mesh.tensor = 1  # tensor-parallel devices in training; the rest of a host is FSDP

  c.log = ml_collections.ConfigDict()
  c.log.samples_shown = 3  # generations printed after each launch
  return c
