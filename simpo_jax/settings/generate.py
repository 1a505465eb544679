"""Settings of generation and evaluation."""

import dataclasses

from simpo_jax.kernels import paged_attention
from simpo_jax.settings.field import choice, flag, integer, items, number, text


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
  """When to generate, for which prompts, and how."""

  at_steps: tuple[int, ...] = items(
    (),
    "Generate after exactly these steps; takes precedence over `every`.",
    int,
    "(2,50)",
  )
  every: int = integer(0, "Generate every this many steps; 0: never.", 0)
  at_start: bool = flag(
    False,
    "Also generate before the first step, into samples/step_000000.",
  )
  mode: str = choice(
    "host_data_parallel",
    '"host_data_parallel": each host answers its own share of the prompts; "global_mesh": all '
    "hosts answer them together.",
    ("host_data_parallel", "global_mesh"),
  )
  prompts: str = text(
    "synthetic",
    '"synthetic", a .txt file (one prompt per line), or rows as in data.train: a file, a folder, a '
    "glob, a hub dataset or a link.",
    path=True,
  )
  prompt_list: tuple[str, ...] = items(
    (),
    "Prompts given inline; takes precedence over `prompts`.",
    str,
    "('Tell me a joke.',)",
    text=True,
  )
  template: str = text(
    "Tell me a short story about the number {index}.",
    "Template of synthetic prompts; {index} is the prompt's number, from 0.",
  )
  count: int = integer(
    128,
    "Number of synthetic prompts, or of prompts to read from the file; 0: all prompts of the file.",
    0,
    1_000_000,
  )
  num_samples: int = integer(1, "Samples per prompt.", 1, 1_000_000)
  max_new_tokens: int = integer(2048, "Maximum number of tokens generated per answer.", 1)
  max_prompt_length: int = integer(
    1024,
    "Maximum prompt tokens.",
    1,
  )
  long_prompts: str = choice(
    "error",
    "What becomes of a prompt with more than max_prompt_length tokens: an error before the run "
    'starts, or "skip": it is left out, counted and named.',
    ("error", "skip"),
  )
  temperature: float = number(
    0.0,
    "Sampling temperature; 0: greedy, otherwise at least 0.01.",
    0.0,
  )
  top_k: int = integer(0, "Sample from the k most probable tokens; 0: all.", 0)
  top_p: float = number(
    1.0,
    "Nucleus sampling: sample from the smallest set of tokens with this total probability; 1: all.",
    1e-06,
    1.0,
  )
  min_p: float = number(
    0.0,
    "Drop tokens less probable than this fraction of the most probable one; 0: off.",
    0.0,
    1.0,
  )
  repetition_penalty: float = number(
    1.0,
    "Penalty on tokens that already occurred; 1: off.",
    0.01,
    100.0,
  )
  stop: tuple[str, ...] = items(
    (),
    "Stop strings, in addition to the end-of-sequence tokens.",
    str,
    "('User:',)",
    text=True,
  )
  strip_stop: bool = flag(
    False,
    "Leave the stop string that ends an answer, and any text behind it, out of the answer's text.",
  )
  ignore_eos: bool = flag(False, "Keep generating past end-of-sequence tokens.")
  min_new_tokens: int = integer(
    0,
    "Minimum number of tokens generated per answer: no end-of-sequence token before; 0: off.",
    0,
  )
  suppress_tokens: tuple[int, ...] = items(
    (),
    "Ids of tokens that are never generated.",
    int,
    "(5,17)",
  )
  seed: int = integer(0, "Sampling seed; the same seed gives the same answers.", 0, 2**32 - 1)
  logprobs: bool = flag(False, "Also write the log-probability of every generated token.")
  max_slots: int = integer(0, "Sequences decoded concurrently per prompt group; 0: all.", 0)
  page_size: int = integer(128, "Tokens per KV page.", 1)
  num_pages: int = integer(
    0,
    "KV pages per prompt group; 0: enough for every slot, if memory allows.",
    0,
    2**20,
  )
  prefill_chunk: int = integer(
    0,
    "Prompt tokens per row of a prefill pass; 0: 128, on CPU 32.",
    0,
  )
  prefill_rows: int = integer(
    0,
    "Rows per prefill pass; 0: as many as hold 512 tokens, on CPU 256.",
    0,
  )
  attention: str = choice(
    "auto",
    "Paged-attention kernel; auto: the platform's default.",
    paged_attention.IMPLEMENTATIONS,
  )

  @property
  def stripped(self) -> tuple[str, ...]:
    """The stop strings that are left out of answers' texts."""
    return self.stop if self.strip_stop else ()


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """Evaluation on held-out pairs."""

  every: int = integer(0, "Evaluate every this many steps; 0: only at the end.", 0)
  at_start: bool = flag(False, "Also evaluate before the first step.")
  at_end: bool = flag(True, "Evaluate after the last step.")
