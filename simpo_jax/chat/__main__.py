"""Chats with a model in the terminal, using the generation engine of training runs.

The model is a run's newest checkpoint, a Hugging Face folder, a .gguf file or a hub id.
Answers are streamed; ^C stops an answer, ^D or /exit ends the session, /help lists commands.
Input may also come from a pipe; then only answers are written to standard output. Settings not
given as flags come from the run's config or the model's generation_config.json; without
either, decoding is greedy.

Examples:
  python -m simpo_jax.chat --model=runs/mine
  python -m simpo_jax.chat --model=HuggingFaceTB/SmolLM2-135M-Instruct --temperature=0.7
  printf 'Hello!\\n' | python -m simpo_jax.chat --model=SmolLM2-135M-Instruct.Q4_1.gguf
"""

import os
import sys
from collections.abc import Sequence

from absl import app, flags

from simpo_jax.cli import parse_flags, run_command
from simpo_jax.loaded_model import flags as model_flags

_PROGRAM_FLAGS = (*model_flags.MODEL, "system", "context", *model_flags.SETTINGS, "debug")


def main(argv: Sequence[str]) -> None:
  """Chats until the input ends."""
  values = flags.FLAGS
  model_flags.check(argv)
  from simpo_jax.chat.engine import ChatEngine
  from simpo_jax.chat.terminal import Chat, Terminal
  from simpo_jax.loaded_model.messages import in_flag_names
  from simpo_jax.loaded_model.model import describe_model, listed, load_model

  terminal = Terminal()
  with in_flag_names():
    terminal.note("opening the model ...")
    changes = model_flags.changes()
    loaded = load_model(values.model, changes, values.step, values.source, values.force)
    terminal.note(describe_model(loaded))
    terminal.note("compiling, then loading the weights ...")
    engine = ChatEngine(loaded, values.context)
    terminal.note("; ".join(engine.notes))
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
    terminal.note(listed({name: getattr(loaded.config.generate, name) for name in names}))
    chat = Chat(loaded, engine, terminal, values.system or "")
  if chat.completes:
    terminal.note(
      "this model has no chat template: it continues each line and does not see earlier ones"
    )
  if terminal.live:
    terminal.note("^C stops an answer, ^D ends, /help lists commands\n")
  chat.run()


def _main(argv: Sequence[str]) -> None:
  try:
    run_command(main, argv)
  except BrokenPipeError:  # the reader of the pipe has exited
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _define_flags() -> None:
  model_flags.define_flags()
  flags.DEFINE_string("system", None, "System message.")
  flags.DEFINE_integer("context", 4096, "Context length in tokens, limited by the model's.", 1)


if __name__ == "__main__":
  _define_flags()
  app.run(_main, flags_parser=lambda argv: parse_flags(argv, _PROGRAM_FLAGS))
