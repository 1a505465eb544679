"""Settings of the model and of the preference data."""

import dataclasses

from simpo_jax.settings.field import choice, flag, integer, items, number, text


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """The model to train."""

  source: str = text(
    "embedded",
    '"embedded", a local Hugging Face folder (of a model, or of an adapter by PEFT), a .gguf '
    "file, a hub id such as "
    '"HuggingFaceTB/SmolLM2-135M-Instruct", or "random:FOLDER" for random weights in the '
    "shape of FOLDER/config.json.",
    path=True,
  )
  param_dtype: str = choice(
    "float32",
    "Dtype of the stored weights. Weights that are trained must be float32, since bfloat16 "
    "would round most updates away; with LoRA (train.lora_rank) only the frozen base weights "
    "use it, so bfloat16 is safe.",
    ("float32", "bfloat16"),
  )
  compute_dtype: str = choice(
    "auto",
    "Dtype of the operands of matrix products and, except on CPU, of activations; auto: bfloat16 "
    "on TPU and GPU, float32 on CPU.",
    ("auto", "float32", "bfloat16"),
  )


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Preference pairs and how they are tokenized."""

  train: tuple[str, ...] = items(
    ("embedded",),
    "Preference data, loaded into memory: files (.json .jsonl .csv .tsv, also .gz or .zst; "
    ".parquet .arrow), globs, folders or FOLDER:PATTERN, hub datasets ORG/NAME[:PATTERN], links "
    '(https://...), or "embedded". Or prepared datasets (python -m simpo_jax.prepare), streamed '
    "from disk: "
    '"tfds:NAME_OR_DIR[:SPLIT]", such as "tfds:mine" or "tfds:data/mine:train[:90%]".',
    str,
    "('a.json','b.json')",
    path=True,
  )
  weights: tuple[float, ...] = items(
    (),
    "Mixture weights for the entries of data.train, such as (0.7, 0.3); empty: proportional to "
    "their size.",
    float,
    "(0.7,0.3)",
  )
  eval: tuple[str, ...] = items(
    (),
    "Held-out pairs, kept in memory; empty: the test split of folders, hub datasets and prepared "
    "datasets that have one, and `eval_fraction` of all other files.",
    str,
    "('a.json',)",
    path=True,
  )
  columns: tuple[str, ...] = items(
    (),
    "Names of columns that stand for fields of a row, FIELD=COLUMN, in data.train, data.eval and "
    "generate.prompts.",
    str,
    "('prompt=question','rejected=bad')",
  )
  dir: str = text(
    "",
    "Where tfds: names are looked up, local or in a bucket; empty: TFDS_DATA_DIR.",
    path=True,
  )
  workers: int = integer(
    4,
    "Threads that read and tokenize prepared data in parallel; 0: no extra threads.",
    0,
    256,
  )
  eval_fraction: float = number(
    0.05,
    "Fraction of the training files' pairs to hold out when data.eval is empty; the pairs of a "
    "prompt stay together.",
    0.0,
    0.5,
  )
  embedded_pairs: int = integer(256, 'Number of pairs that "embedded" generates.', 1, 100_000)
  max_length: int = integer(1024, "Maximum tokens of prompt plus one response.", 2, 2**24)
  max_prompt_length: int = integer(
    512,
    "Maximum prompt tokens to keep when a pair is truncated.",
    1,
  )
  truncation: str = choice(
    "prompt_first",
    'What is truncated first; "princeton" follows the SimPO reference code.',
    ("prompt_first", "princeton"),
  )
  chat_template: str = text(
    "",
    "A file of Jinja text, or the text itself, that replaces the model's own chat template.",
  )
  empty_system: bool = flag(
    False,
    "Add an empty system message to conversations without one, if the chat template supports it"
    " (princeton).",
  )
  header: str = choice(
    "prompt",
    'Whether the assistant header counts as part of the "prompt" (as in TRL) or of the '
    '"response" (princeton).',
    ("prompt", "response"),
  )
  max_skip_fraction: float = number(
    0.1,
    "Fail if more than this fraction of rows is skipped.",
    0.0,
    1.0,
  )
  row_length: int = integer(
    0,
    "Tokens of a packed row; 0: 2 * max_length, which fits any pair.",
    0,
    2**25,
  )
  max_pairs_per_row: int = integer(16, "Maximum number of pairs packed into one row.", 1, 65_536)
  lookahead: int = integer(
    32,
    "Steps in a shuffling window within which pairs are regrouped to fill rows; 0: no regrouping.",
    0,
    1000,
  )
