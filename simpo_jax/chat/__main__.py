"""A conversation with a model in the terminal, by the engine that a run generates with.

The model is a run's newest checkpoint, a Hugging Face folder, a .gguf file or a hub id.
Answers appear as they are made; ^C stops one, ^D or /exit ends, /help lists commands. Lines
may also come from a pipe; then answers alone go to the standard output. Settings that no flag
names are the run's own; else those of the model's generation_config.json; else greedy.

Examples:
  python -m simpo_jax.chat --model=runs/mine
  python -m simpo_jax.chat --model=HuggingFaceTB/SmolLM2-135M-Instruct --temperature=0.7
  printf 'Hello!\\n' | python -m simpo_jax.chat --model=SmolLM2-135M-Instruct.Q4_1.gguf
"""

import os
import sys
from collections.abc import Sequence

from absl import app, flags

from simpo_jax import (
  monitor,  # noqa: F401  counts compilations from here on
  speaker_flags,
)
from simpo_jax.cli import answering, parse_flags

_OWN = (*speaker_flags.MODEL, "system", "context", *speaker_flags.SETTINGS, "debug")


def main(argv: Sequence[str]) -> None:
  """Talks until the input ends."""
  values = flags.FLAGS
  speaker_flags.check(argv)
  from simpo_jax.chat.terminal import Chat, Terminal
  from simpo_jax.chat.voice import Voice
  from simpo_jax.speaker import in_own_words, listed, open_speaker, speaker_text

  terminal = Terminal()
  with in_own_words():
    terminal.note("opening the model ...")
    changes = speaker_flags.changes()
    speaker = open_speaker(values.model, changes, values.step, values.source, values.force)
    terminal.note(speaker_text(speaker))
    terminal.note("compiling, then loading the weights ...")
    voice = Voice(speaker, values.context)
    terminal.note("; ".join(voice.notes))
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
    terminal.note(listed({name: speaker.config.generate[name] for name in names}))
    chat = Chat(speaker, voice, terminal, values.system or "")
  if chat.completes:
    terminal.note(
      "this model has no chat template: it goes on with each of your lines, and knows no others"
    )
  if terminal.live:
    terminal.note("^C stops an answer, ^D ends, /help lists commands\n")
  chat.run()


def _main(argv: Sequence[str]) -> None:
  try:
    answering(main, argv)
  except BrokenPipeError:  # whoever read the answers has left
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _define_flags() -> None:
  speaker_flags.define_flags()
  flags.DEFINE_string("system", None, "The system's message that the conversation begins with.")
  flags.DEFINE_integer("context", 4096, "Tokens of a conversation, if the model takes so many.", 1)


if __name__ == "__main__":
  _define_flags()
  app.run(_main, flags_parser=lambda argv: parse_flags(argv, _OWN))
