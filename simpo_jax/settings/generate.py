"""Settings of generation and evaluation."""

from simpo_jax.kernels import paged_attention
from simpo_jax.settings.field import choice, flag, integer, items, number, text

GROUPS = {
  "generate": "when to generate, for which prompts, and how",
  "evaluate": "evaluation on held-out pairs",
}
# fmt: off
FIELDS = (
  # generate
  items(
    "generate.at_steps", (),
    "Generate after exactly these steps; takes precedence over `every`.",
    int, "(2,50)",
  ),
  integer("generate.every", 0, "Generate every this many steps; 0: never.", 0),
  flag(
    "generate.at_start", False,
    "Also generate before the first step, into samples/step_000000.",
  ),
  choice(
    "generate.mode", "host_data_parallel",
    '"host_data_parallel": each host answers its own share of the prompts; "global_mesh": all '
    'hosts answer them together.',
    ("host_data_parallel", "global_mesh"),
  ),
  text(
    "generate.prompts", "synthetic",
    '"synthetic", a .txt file (one prompt per line), or a .jsonl, .json or .parquet file of '
    'messages.',
    path=True,
  ),
  items(
    "generate.prompt_list", (),
    "Prompts given inline; takes precedence over `prompts`.",
    str, "('Tell me a joke.',)",
  ),
  text(
    "generate.template", "Tell me a short story about the number {index}.",
    "Template of synthetic prompts; {index} is the prompt's number, from 0.",
  ),
  integer(
    "generate.count", 128,
    "Number of synthetic prompts, or of prompts to take from the file; 0: all of the file.",
    0, 1_000_000,
  ),
  integer("generate.num_samples", 1, "Samples per prompt.", 1, 1_000_000),
  integer("generate.max_new_tokens", 2048, "Maximum number of tokens generated per answer.", 1),
  integer(
    "generate.max_prompt_length", 1024,
    "Maximum prompt tokens; a longer prompt is an error before the run starts.",
    1,
  ),
  number(
    "generate.temperature", 0.0,
    "Sampling temperature; 0: greedy, otherwise at least 0.01.",
    0.0,
  ),
  integer("generate.top_k", 0, "Sample from the k most probable tokens; 0: all.", 0),
  number(
    "generate.top_p", 1.0,
    "Nucleus sampling: sample from the smallest set of tokens with this total probability; 1: "
    "all.",
    1e-06, 1.0,
  ),
  number(
    "generate.min_p", 0.0,
    "Drop tokens less probable than this fraction of the most probable one; 0: off.",
    0.0, 1.0,
  ),
  number(
    "generate.repetition_penalty", 1.0,
    "Penalty on tokens that already occurred; 1: off.",
    0.01, 100.0,
  ),
  items(
    "generate.stop", (),
    "Stop strings, in addition to the end-of-sequence tokens.",
    str, "('User:',)",
  ),
  flag("generate.ignore_eos", False, "Keep generating past end-of-sequence tokens."),
  integer("generate.seed", 0, "Sampling seed; the same seed gives the same answers.", 0, 2**32 - 1),
  flag("generate.logprobs", False, "Also write the log-probability of every generated token."),
  integer("generate.max_slots", 0, "Sequences decoded concurrently per prompt group; 0: all.", 0),
  integer("generate.page_size", 128, "Tokens per KV page.", 1),
  integer(
    "generate.num_pages", 0,
    "KV pages per prompt group; 0: enough for every slot, if memory allows.",
    0, 2**20,
  ),
  integer(
    "generate.prefill_chunk", 0,
    "Prompt tokens per row of a prefill pass; 0: 128, on CPU 32.",
    0,
  ),
  integer(
    "generate.prefill_rows", 0,
    "Rows per prefill pass; 0: as many as hold 512 tokens, on CPU 256.",
    0,
  ),
  choice(
    "generate.attention", "auto",
    "Paged-attention kernel; auto: the platform's own.",
    paged_attention.IMPLEMENTATIONS,
  ),

  # evaluate
  integer("evaluate.every", 0, "Evaluate every this many steps; 0: only at the end.", 0),
  flag("evaluate.at_start", False, "Also evaluate before the first step."),
  flag("evaluate.at_end", True, "Evaluate after the last step."),
)
# fmt: on
