"""Settings of the model and of preference data."""

from simpo_jax.data.truncation import HEADERS, RULES
from simpo_jax.settings.field import choice, flag, integer, items, number, text

GROUPS = {
  "model": "the model to train",
  "data": "preference pairs and how they are tokenized",
}
# fmt: off
FIELDS = (
  text("name", "default", "Run name, used in the workdir name, the banner and config.json."),
  integer("seed", 0, "Seed for the order and split of pairs and for random weights.", 0, 2**32 - 1),

  # model
  text(
    "model.source", "embedded",
    '"embedded", a local Hugging Face folder, a .gguf file, a hub id such as '
    '"HuggingFaceTB/SmolLM2-135M-Instruct", or "random:FOLDER" for random weights in the '
    'shape of FOLDER/config.json.',
    path=True,
  ),
  choice(
    "model.param_dtype", "float32",
    "Dtype of the stored weights. Weights that are trained must be float32, since bfloat16 "
    "would round most updates away; with LoRA (train.lora_rank) only the frozen base weights "
    "use it, so bfloat16 is safe.",
    ("float32", "bfloat16"),
  ),
  choice(
    "model.compute_dtype", "auto",
    "Dtype of activations and matrix products; auto: bfloat16 on TPU and GPU, float32 on CPU.",
    ("auto", "float32", "bfloat16"),
  ),

  # data
  items(
    "data.train", ("embedded",),
    'Preference data: files (.json .jsonl .jsonl.gz .parquet) loaded into memory, "embedded",'
    ' or prepared datasets (python -m simpo_jax.prepare) streamed from disk as '
    '"tfds:NAME_OR_DIR[:SPLIT]", such as "tfds:mine" or "tfds:data/mine:train[:90%]".',
    str, "('a.json','b.json')", path=True,
  ),
  items(
    "data.weights", (),
    "Mixture weights for the entries of data.train, such as (0.7, 0.3); empty: proportional to "
    "their size.",
    float, "(0.7,0.3)",
  ),
  items(
    "data.eval", (),
    'Held-out pairs, kept in memory; empty: `eval_fraction` of the training files, and the '
    '"test" split of prepared datasets.',
    str, "('a.json',)", path=True,
  ),
  text(
    "data.dir", "",
    "Where tfds: names are looked up, local or in a bucket; empty: TFDS_DATA_DIR.",
    path=True,
  ),
  integer(
    "data.workers", 4,
    "Threads that read and tokenize prepared data ahead of time; 0: one.",
    0, 256,
  ),
  number(
    "data.eval_fraction", 0.05,
    "Fraction of the training files' pairs to hold out when data.eval is empty.",
    0.0, 0.5,
  ),
  integer("data.embedded_pairs", 256, 'Number of pairs that "embedded" generates.', 1, 100_000),
  integer("data.max_length", 1024, "Maximum tokens of prompt plus one response.", 2, 2**24),
  integer(
    "data.max_prompt_length", 512,
    "Maximum tokens a prompt keeps when it has to be truncated.",
    1,
  ),
  choice(
    "data.truncation", "prompt_first",
    'What is truncated first; "princeton" follows the SimPO reference code.',
    RULES,
  ),
  text(
    "data.chat_template", "",
    "Jinja text or a .jinja file that replaces the model's own chat template.",
  ),
  flag(
    "data.empty_system", False,
    "Add an empty system message to conversations without one, if the chat template supports it"
    " (princeton).",
  ),
  choice(
    "data.header", "prompt",
    'Whether the assistant header counts as part of the "prompt" (as in TRL) or of the '
    '"response" (princeton).',
    HEADERS,
  ),
  number(
    "data.max_skip_fraction", 0.1,
    "Fail if more than this fraction of the rows has to be skipped.",
    0.0, 1.0,
  ),
  integer(
    "data.row_length", 0,
    "Tokens of a packed row; 0: 2 * max_length, which fits any pair.",
    0, 2**25,
  ),
  integer("data.max_pairs_per_row", 16, "Maximum number of pairs packed into one row.", 1, 65_536),
  integer(
    "data.lookahead", 32,
    "Steps in a shuffling window within which pairs are regrouped to fill rows; 0: no "
    "regrouping.",
    0, 1000,
  ),
)
# fmt: on
