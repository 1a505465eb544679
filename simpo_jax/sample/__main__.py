"""Answers of a model to prompts, as a run writes them: JSONL, one line per answer.

The model is a run's newest checkpoint, a Hugging Face folder, a .gguf file or a hub id. The
engine is that of a run: the same weights, prompts, settings and seed give the same tokens.
Settings that no flag names are the run's own; else those of the model's
generation_config.json; else greedy.

Examples:
  python -m simpo_jax.sample --model=runs/mine --prompts=questions.txt --out=answers.jsonl
  python -m simpo_jax.sample --model=runs/mine --out=answers.jsonl        # the run's own prompts
  python -m simpo_jax.sample --model=HuggingFaceTB/SmolLM2-135M-Instruct \
    --prompt="Why is the sky blue?" --temperature=0.7 --samples_per_prompt=4 --out=-
"""

import contextlib
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from simpo_jax import (
  monitor,  # noqa: F401  counts compilations from here on
  speaker_flags,
)
from simpo_jax.cli import run_program
from simpo_jax.errors import UserError, one_line
from simpo_jax.paths import check_path

_OWN = (
  *speaker_flags.MODEL, "prompts", "prompt", "count", "out", *speaker_flags.SETTINGS,
  "samples_per_prompt", "logprobs", "max_slots", "max_prompt_length", "debug",
)  # fmt: skip
_LINE_SECONDS = 15.0  # between lines of progress where there is no terminal


def _settings() -> dict:
  """The config fields that the flags set."""
  values = flags.FLAGS
  found = speaker_flags.changes(
    (*speaker_flags.SETTINGS, "logprobs", "max_slots", "max_prompt_length", "count"),
    samples_per_prompt="generate.num_samples",
    prompts="generate.prompts",
    prompt="generate.prompt_list",
  )
  if values.prompts and values.prompt:
    raise UserError("--prompts and --prompt exclude each other; give one of them")
  if values.prompts:
    found["generate.prompt_list"] = ()
  if values.prompts or values.prompt:  # the run's own are another matter
    found.setdefault("generate.count", 0)
    found.setdefault("generate.max_prompt_length", 2**24)
  return found


@contextlib.contextmanager
def _writing(name: str):
  """Yields a function that writes text to the file, which has its name when all is there."""
  if name == "-":
    yield lambda text: print(text, end="", flush=True)
    return
  path = pathlib.Path(name).expanduser()
  partial = path.with_name(path.name + ".partial")
  try:
    with open(partial, "w", encoding="utf-8") as file:
      yield file.write
    partial.rename(path)
  except OSError as e:
    raise UserError(f"--out={name} cannot be written ({one_line(e)}); choose another file") from e
  except KeyboardInterrupt:
    print(f"stopped; the answers so far are in {partial}", file=sys.stderr)
    sys.exit(130)


def _check_out(name: str | None) -> None:
  if not name:
    raise UserError("--out is missing: a file to write, or - for the standard output")
  if name == "-":
    return
  check_path("--out", name)
  path = pathlib.Path(name).expanduser()
  if path.exists():
    raise UserError(f"--out={name} is there already; choose another name, or remove it")
  if not path.parent.is_dir():
    raise UserError(f"--out={name}: there is no folder {path.parent}; make it first")


class _Progress:
  """One line that changes on a terminal; elsewhere a line now and then. All on stderr."""

  def __init__(self):
    self._live = sys.stderr.isatty()
    self._last = time.monotonic()

  def show(self, text: str) -> None:
    if self._live:
      print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - self._last > _LINE_SECONDS:
      self._last = time.monotonic()
      print(text, file=sys.stderr, flush=True)

  def say(self, text: str) -> None:
    before = "\r\x1b[K" if self._live else ""
    print(f"{before}{one_line(text)}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> None:
  """Writes the answers; exit code 0 when all of them are there."""
  values = flags.FLAGS
  speaker_flags.check(argv)
  _check_out(values.out)
  changes = _settings()
  from simpo_jax.sample.answers import sample, usable_prompts
  from simpo_jax.speaker import in_own_words, listed, open_speaker, speaker_text

  progress = _Progress()
  with in_own_words():
    progress.show("opening the model")
    speaker = open_speaker(values.model, changes, values.step, values.source, values.force)
    config = speaker.config.generate
    progress.say(speaker_text(speaker))
    if config.prompts == "synthetic" and not config.prompt_list and not speaker.of_run:
      raise UserError("--prompts is missing: a file of prompts; or give one with --prompt")
    prompts = usable_prompts(speaker, progress.say)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    progress.say(listed({name: config[name] for name in names}))
    with _writing(values.out) as write:
      progress.say(sample(speaker, prompts, write, progress.say, progress.show))


def _define_flags() -> None:
  speaker_flags.define_flags()
  flags.DEFINE_string(
    "prompts", None, "A file: .txt, .jsonl, .json or .parquet. Default: the run's own prompts."
  )
  flags.DEFINE_multi_string("prompt", None, "A prompt itself; may be given several times.")
  flags.DEFINE_integer("count", None, "Only the first so many prompts; 0: all.")
  flags.DEFINE_string("out", None, "The JSONL file to write; - is the standard output.")
  flags.DEFINE_integer("samples_per_prompt", None, "Answers to each prompt.")
  flags.DEFINE_bool("logprobs", None, "Write the log-probability of every token as well.")
  flags.DEFINE_integer("max_slots", None, "Answers decoded at once; 0: all.")
  flags.DEFINE_integer("max_prompt_length", None, "Tokens of a prompt; longer ones are left out.")


if __name__ == "__main__":
  _define_flags()
  run_program(main, _OWN)
