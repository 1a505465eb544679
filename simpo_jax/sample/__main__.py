"""Generates a model's answers to prompts, as JSONL with one line per answer.

The model is a run's newest checkpoint, a Hugging Face folder, a .gguf file or a hub id. The
engine is that of training runs: the same weights, prompts, settings and seed give the same
tokens. Settings not given as flags come from the run's config or the model's
generation_config.json; without either, decoding is greedy.

Examples:
  python -m simpo_jax.sample --model=runs/mine --prompts=questions.txt --out=answers.jsonl
  python -m simpo_jax.sample --model=runs/mine --out=answers.jsonl  # the run's own prompts
  python -m simpo_jax.sample --model=HuggingFaceTB/SmolLM2-135M-Instruct \
    --prompt="Why is the sky blue?" --temperature=0.7 --samples_per_prompt=4 --out=-
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from absl import flags

from simpo_jax import interrupts
from simpo_jax.cli import run_program
from simpo_jax.data.readers.compressed import PROMPTS
from simpo_jax.data.rows.fields import COLUMNS_HELP
from simpo_jax.errors import UserError, one_line
from simpo_jax.loaded_model import flags as model_flags
from simpo_jax.storage.paths import check_path, plain

_PROGRAM_FLAGS = (
  *model_flags.MODEL, "prompts", "prompt", "columns", "count", "out", *model_flags.SETTINGS,
  "samples_per_prompt", "logprobs", "max_slots", "max_prompt_length", "debug",
)  # fmt: skip
_LOG_SECONDS = 15.0  # between progress lines if stderr is not a terminal


def _config_changes() -> dict:
  """Returns the config fields that the flags set, by name."""
  values = flags.FLAGS
  found = model_flags.changes(
    (*model_flags.SETTINGS, "logprobs", "max_slots", "max_prompt_length", "count"),
    samples_per_prompt="generate.num_samples",
    prompts="generate.prompts",
    prompt="generate.prompt_list",
    columns="data.columns",
  )
  if values.prompts and values.prompt:
    raise UserError("--prompts and --prompt exclude each other; give only one of them")
  if values.prompts:
    found["generate.prompt_list"] = ()
  if values.prompts or values.prompt:  # the run's limits are for its own prompts
    found.setdefault("generate.count", 0)
    found.setdefault("generate.max_prompt_length", 2**24)
  return found


@contextlib.contextmanager
def open_output(name: str):
  """Yields a function that writes text to a file, which is renamed to NAME when complete.

  Until then it is NAME.partial, or NAME.partial-2 and so on if that exists; nothing is overwritten.

  Args:
    name: path of the file, or "-" for standard output.

  Raises:
    UserError: the file cannot be written.
  """
  if name == "-":
    yield lambda text: print(text, end="", flush=True)
    return
  path = plain(name)
  partial, number = path.with_name(path.name + ".partial"), 1
  while os.path.lexists(partial):
    number += 1
    partial = path.with_name(f"{path.name}.partial-{number}")
  try:
    with open(partial, "x", encoding="utf-8") as file:
      yield file.write
    partial.rename(path)
  except OSError as e:
    raise UserError(f"--out={name} cannot be written ({one_line(e)}); choose another file") from e
  except KeyboardInterrupt as e:
    interrupts.acknowledge(e)
    print(f"stopped; the answers so far are in {partial}", file=sys.stderr)
    sys.exit(130)


def _check_out(name: str | None) -> None:
  if not name:
    raise UserError("--out is missing: name a file to write, or - for standard output")
  if name == "-":
    return
  check_path("--out", name)
  path = plain(name)
  if path.exists():
    raise UserError(f"--out={name} already exists; choose another name, or remove it")
  if not path.parent.is_dir():
    raise UserError(f"--out={name}: there is no folder {path.parent}; create it first")


class _Progress:
  """Progress on stderr: one line that is updated on a terminal, else a line every 15 seconds."""

  def __init__(self):
    self._live = sys.stderr.isatty()
    self._last = time.monotonic()

  def show(self, text: str) -> None:
    if self._live:
      print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - self._last > _LOG_SECONDS:
      self._last = time.monotonic()
      print(text, file=sys.stderr, flush=True)

  def say(self, text: str) -> None:
    before = "\r\x1b[K" if self._live else ""
    print(f"{before}{one_line(text)}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> None:
  """Writes all answers to --out, then fails if the logits of some were not finite."""
  values = flags.FLAGS
  model_flags.check(argv)
  _check_out(values.out)
  changes = _config_changes()
  from simpo_jax.generate.results import check_finite
  from simpo_jax.loaded_model.messages import in_flag_names
  from simpo_jax.loaded_model.model import describe_model, listed, load_model
  from simpo_jax.sample.answers import sample, usable_prompts

  progress = _Progress()
  with in_flag_names():
    progress.show("opening the model")
    loaded = load_model(values.model, changes, values.step, values.source, values.force)
    config = loaded.config.generate
    progress.say(describe_model(loaded))
    if config.prompts == "synthetic" and not config.prompt_list and not loaded.from_run:
      raise UserError(
        "--prompts is missing: name a file of prompts, or give a prompt with --prompt"
      )
    if values.columns and (config.prompt_list or config.prompts == "synthetic"):
      raise UserError("--columns names columns of files; name one with --prompts")
    prompts = usable_prompts(loaded, progress.say, bool(values.columns))
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    progress.say(listed({name: getattr(config, name) for name in names}))
    with open_output(values.out) as write:
      outcome = sample(loaded, prompts, write, progress.say, progress.show)
    progress.say(outcome.text)
    check_finite(outcome.requests, outcome.summary)


def _define_flags() -> None:
  model_flags.define_flags()
  flags.DEFINE_string(
    "prompts",
    None,
    "File, folder, FOLDER:PATTERN, glob, link, or ORG/NAME[:PATTERN] on the hub. Files: "
    f"{PROMPTS}. Default: the run's prompts.",
  )
  flags.DEFINE_multi_string("columns", None, f"{COLUMNS_HELP} Default: the run's data.columns.")
  flags.DEFINE_multi_string("prompt", None, "A prompt given inline; repeatable.")
  flags.DEFINE_integer("count", None, "Number of prompts to use; 0: all.")
  flags.DEFINE_string("out", None, "Output JSONL file; - for standard output.")
  flags.DEFINE_integer("samples_per_prompt", None, "Samples per prompt.")
  flags.DEFINE_bool("logprobs", None, "Also write the log-probability of every token.")
  flags.DEFINE_integer("max_slots", None, "Sequences decoded concurrently; 0: all.")
  flags.DEFINE_integer(
    "max_prompt_length", None, "Maximum prompt tokens; longer prompts are skipped."
  )


if __name__ == "__main__":
  _define_flags()
  run_program(main, _PROGRAM_FLAGS)
