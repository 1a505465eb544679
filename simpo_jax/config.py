"""Every setting of a run, with its default and its meaning.

A config file (`configs/*.py`) calls `default_config()`, changes what it needs
and returns it; the command line overrides single fields with
`--config.train.steps=10`. Sequences are tuples, because lists cannot be
overridden by flags.
"""

import difflib

import ml_collections

from simpo_jax.lora import TARGETS


def default_config() -> ml_collections.ConfigDict:
  """The defaults: the embedded tiny model and its own pairs, nothing to download."""
  c = ml_collections.ConfigDict()
  c.name = "default"  # of the run: in the workdir's name, the banner and config.json
  c.seed = 0  # of the pairs' order and split, and of random weights

  c.model = ml_collections.ConfigDict()  # what is trained
  # "embedded", a local Hugging Face folder, a .gguf file, a hub id such as
  # "HuggingFaceTB/SmolLM2-135M-Instruct", or "random:FOLDER" for random weights
  # in the shape of FOLDER/config.json.
  c.model.source = "embedded"
  # Master weights and optimizer state. With adapters (train.lora_rank) it is the frozen weights'
  # alone, and bfloat16 costs no exactness of the updates.
  c.model.param_dtype = "float32"
  c.model.compute_dtype = "auto"  # bfloat16 on TPU and GPU, float32 on CPU

  c.data = ml_collections.ConfigDict()  # preference pairs, and how they become tokens
  # Files (.json .jsonl .jsonl.gz .parquet), which are read into memory, "embedded", or
  # prepared datasets (python -m simpo_jax.prepare), which are read as they are needed:
  # "tfds:NAME_OR_DIR[:SPLIT]", such as "tfds:mine" or "tfds:data/mine:train[:90%]".
  c.data.train = ("embedded",)
  # Of the entries of data.train, such as (0.7, 0.3); empty: as many pairs as each has.
  c.data.weights = ()
  # Held-out pairs, held in memory; empty: `eval_fraction` of the training files' pairs and the
  # split "test" of prepared datasets.
  c.data.eval = ()
  c.data.dir = ""  # where tfds: names are looked up, also in a bucket; empty: TFDS_DATA_DIR
  c.data.workers = 4  # threads that read and tokenise prepared data ahead of its step; 0: one
  c.data.eval_fraction = 0.05  # of the training files' pairs, where data.eval is empty
  c.data.embedded_pairs = 256  # how many "embedded" stands for
  c.data.max_length = 1024  # tokens of prompt + one response
  c.data.max_prompt_length = 512  # tokens that a prompt may keep where it has to be cut
  c.data.truncation = "prompt_first"  # what is cut; "princeton" is the rule of that paper's code
  c.data.chat_template = ""  # Jinja text, or a .jinja file, in place of the model's own
  # Before a conversation without one an empty system message, where the chat template has a place
  # for it (princeton).
  c.data.empty_system = False
  # What the assistant header is part of: the "prompt" (as in TRL), or the "response" (princeton).
  c.data.header = "prompt"
  c.data.max_skip_fraction = 0.1  # more skipped rows than this is an error
  c.data.row_length = 0  # tokens of one packed row; 0: 2 * max_length, which any pair fits
  c.data.max_pairs_per_row = 16  # pairs that are packed together at the most
  c.data.lookahead = 32  # steps within which pairs change places so that rows are full; 0: none

  c.train = ml_collections.ConfigDict()  # the optimizer and what a step computes
  c.train.steps = 7  # optimizer steps of the whole run, counted from 1
  c.train.batch_size = 8  # pairs per optimizer step, over all hosts
  c.train.micro_batch_rows = 0  # packed rows per forward pass, all hosts; 0: one per data shard
  c.train.optimizer = "adamw"  # there is no other yet
  c.train.learning_rate = 1e-6  # after the warm-up
  c.train.schedule = "cosine"  # cosine | linear | constant
  c.train.warmup_ratio = 0.1  # of the steps, from 0 to the learning rate in a line
  c.train.weight_decay = 0.0  # decoupled, as AdamW has it
  c.train.b1 = 0.9  # of the first moment
  c.train.b2 = 0.999  # of the second moment
  c.train.eps = 1e-8  # beside the root of the second moment
  c.train.max_grad_norm = 1.0  # over all weights; 0: no clipping
  c.train.attention = "auto"  # over packed rows: auto | tpu | gpu | xla | reference
  # Response tokens of a row whose logits exist at once; 0: 1,024, on CPU 256.
  c.train.logits_chunk = 0
  # What the backward pass computes again: full (each layer, from its input) | dots (all but
  # matrix products and attention) | none.
  c.train.remat = "full"
  c.train.mu_dtype = "float32"  # of AdamW's first moment; bfloat16 takes half the memory
  c.train.max_bad_steps = 0  # steps that are not finite may be left out, up to so many
  c.train.freeze_embeddings = False  # neither trained nor given optimizer state
  c.train.ema_decay = 0.0  # evaluate and generate with the weights' moving average; 0: off
  # Train adapters W + (alpha / rank) A B in place of the weights; 0: the weights themselves.
  c.train.lora_rank = 0
  c.train.lora_alpha = 16.0  # see lora_rank
  c.train.lora_targets = TARGETS  # the matrices that have one, by PEFT's names

  c.simpo = ml_collections.ConfigDict()  # the names and defaults of princeton-nlp/SimPO
  c.simpo.beta = 2.0  # a response's reward is beta times its average log-probability
  c.simpo.gamma_beta_ratio = 0.25  # the margin that is asked for, over beta
  c.simpo.loss_type = "sigmoid"  # sigmoid | hinge
  c.simpo.label_smoothing = 0.0  # the share of labels that may be wrong; not with hinge
  c.simpo.sft_weight = 0.0  # of the cross-entropy of the chosen responses beside the loss

  c.generate = ml_collections.ConfigDict()  # when, for which prompts, and how
  c.generate.at_steps = ()  # after exactly these steps; wins over `every`
  c.generate.every = 0  # steps; 0: never
  c.generate.at_start = False  # before the first step, too; samples/step_000000 has them
  c.generate.mode = "host_data_parallel"  # prompts dealt to hosts; or all on the "global_mesh"
  # "synthetic", a .txt file (one prompt per line), a .jsonl, .json or .parquet file of messages.
  c.generate.prompts = "synthetic"
  c.generate.prompt_list = ()  # prompts given right here; wins over `prompts`
  # A synthetic prompt; {index} is its number, from 0.
  c.generate.template = "Tell me a short story about the number {index}."
  c.generate.count = 128  # synthetic: how many; files: the first so many, 0 for all
  c.generate.num_samples = 1  # answers per prompt
  c.generate.max_new_tokens = 2048  # an answer that is as long is cut off
  c.generate.max_prompt_length = 1024  # a longer prompt is refused before anything runs
  c.generate.temperature = 0.0  # 0: greedy; otherwise at least 0.01
  c.generate.top_k = 0  # 0: off
  c.generate.top_p = 1.0  # 1: off
  c.generate.min_p = 0.0  # drops tokens under this part of the best one's probability; 0: off
  c.generate.repetition_penalty = 1.0  # 1: off
  c.generate.stop = ()  # strings that end an answer, beside the end tokens
  c.generate.ignore_eos = False  # True: answers go on behind end tokens
  c.generate.seed = 0  # of sampling; the same one gives the same answers
  c.generate.logprobs = False  # write the log-probability of every token beside the samples
  c.generate.max_slots = 0  # sequences decoded at once, per group of prompts; 0: all
  c.generate.page_size = 128  # tokens per KV page
  c.generate.num_pages = 0  # KV pages per group; 0: for every slot, if memory allows
  c.generate.prefill_chunk = 0  # prompt tokens of a row of prefill; 0: 128, on CPU 32
  c.generate.prefill_rows = 0  # rows of a prefill pass; 0: 512 tokens' worth, on CPU 256
  c.generate.attention = "auto"  # paged attention: auto | tpu | gpu | xla | reference

  c.evaluate = ml_collections.ConfigDict()  # the loss on held-out pairs
  c.evaluate.every = 0  # steps; 0: only at the end
  c.evaluate.at_start = False  # before the first step, too
  c.evaluate.at_end = True  # after the last step

  c.checkpoint = ml_collections.ConfigDict()  # states on disk
  c.checkpoint.every = 0  # steps; 0: only those at a stop and at the end
  c.checkpoint.minutes = 0.0  # after the last one; 0: not by time
  c.checkpoint.keep = 2  # how many of the newest are kept
  c.checkpoint.keep_every = 0  # keep those of every so many steps, too; 0: no others
  c.checkpoint.at_end = True  # after the last step
  c.checkpoint.resume = True  # go on where an unfinished run in the workdir was; False: anew
  c.checkpoint.init_from = ""  # a workdir or a checkpoint folder to begin with
  c.checkpoint.init_what = "weights"  # that are taken; "all": optimizer state and step, too

  c.export = ml_collections.ConfigDict()  # weights as a Hugging Face folder
  c.export.at_end = False  # of a run, out of its last checkpoint into WORKDIR/export
  c.export.dtype = "auto"  # float32 | bfloat16 | float16; auto: as the run has them
  c.export.average = True  # where there are averaged weights (train.ema_decay), those
  c.export.shard_gb = 5.0  # the most that one file of weights has, in 10^9 bytes

  c.mesh = ml_collections.ConfigDict()  # how the devices share the work
  # A host's devices in training: data * fsdp * tensor. Tensor-parallel groups never cross hosts.
  c.mesh.data = 1  # groups of devices that hold the same weights
  c.mesh.fsdp = 0  # devices that share one set of weights; 0: the rest of the host
  c.mesh.tensor = 1  # devices that share every matrix product
  c.mesh.shard_over_hosts = True  # False: every host holds whole weights and optimizer state

  c.watchdog = ml_collections.ConfigDict()  # ends launches that hang
  c.watchdog.factor = 10.0  # a launch this many times slower than any of its mode hangs; 0: off
  c.watchdog.least_seconds = 600.0  # before which no launch counts as hanging
  c.watchdog.first_seconds = 7200.0  # that the first launch of a mode may take

  c.profile = ml_collections.ConfigDict()  # traces for xprof
  c.profile.steps = ()  # (first, last): a trace of these steps and what runs between them

  c.log = ml_collections.ConfigDict()  # what the terminal shows
  c.log.samples_shown = 3  # generations printed after each launch, and shown by trackers

  c.tracking = ml_collections.ConfigDict()  # what shows metrics.jsonl as the run goes
  c.tracking.tensorboard = True  # event files in the workdir
  c.tracking.wandb = False  # Weights & Biases: pip install 'simpo_jax[wandb]'
  c.tracking.wandb_project = "simpo_jax"  # its project
  c.tracking.wandb_mode = "online"  # "offline": to be sent with `wandb sync` later
  c.tracking.mlflow = False  # pip install 'simpo_jax[mlflow]'
  c.tracking.mlflow_uri = ""  # a server or sqlite:///FILE; empty: MLflow's own default
  c.tracking.mlflow_experiment = "simpo_jax"  # its experiment
  c.tracking.name = ""  # of the run there; empty: the workdir's
  c.tracking.flush_seconds = 10.0  # how long trackers may take when the run ends

  c.report = ml_collections.ConfigDict()  # report.html in the workdir
  c.report.write = True  # False: no report
  c.report.every_seconds = 60.0  # rewritten so often, and at the end; 0: only at the end
  c.report.max_mib = 96  # of generated text in it, compressed; the rest stays in samples/
  return c


def flatten(config, prefix: str = "") -> dict:
  """{"train.steps": 7, ...}, in the order of the config."""
  out = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      out.update(flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def did_you_mean(name: str, known) -> str:
  """ "; did you mean 'x'?", or nothing if no known name is near."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""
