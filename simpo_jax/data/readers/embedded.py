"""Synthetic preference pairs, generated on the fly, so that a run needs no download.

The chosen answer is correct and polite; the rejected one is wrong and rude. A tiny byte-level model
learns the difference within a few steps.
"""

from typing import Any

import numpy as np

from simpo_jax.errors import UserError

_WORDS = (
    "river", "candle", "garden", "pepper", "window", "silver", "basket", "mountain", "teacher",
    "lantern", "orange", "castle", "feather", "market", "puzzle", "rocket", "shadow", "thunder",
    "velvet", "whistle",
)  # fmt: skip
_THINGS = (
    ("a ripe banana", "yellow"), ("fresh grass", "green"), ("the clear sky", "blue"),
    ("clean snow", "white"), ("coal", "black"), ("a ripe tomato", "red"), ("milk", "white"),
    ("a carrot", "orange"), ("a raven", "black"), ("a lemon", "yellow"),
)  # fmt: skip
_COLORS = ("yellow", "green", "blue", "white", "black", "red", "orange")
_OPENINGS = ("", "Please help me. ", "A quick question: ", "Hello! ")
_POLITE = ("Sure! ", "Gladly. ", "Of course: ")
_RUDE = ("No idea, maybe ", "Ugh. It is ", "Who cares? Say ", "Well, well, well, ")
_MAX_PAIRS = 100_000


def embedded_pairs(count: int, seed: int) -> list[dict[str, Any]]:
  """Generates `count` distinct rows {prompt, chosen, rejected} of messages; deterministic.

  Prompts have about 20 to 60 bytes, responses about 10 to 60.

  Raises:
    UserError: the count is outside [1, 100000].
  """
  if not 1 <= count <= _MAX_PAIRS:
    raise UserError(f"data.embedded_pairs must be 1 to {_MAX_PAIRS}, not {count}")
  rng = np.random.default_rng(seed % 2**64)
  rows = {}
  while len(rows) < count:
    question, right, wrong = _TASKS[_draw(rng, len(_TASKS))](rng)
    prompt = _pick(rng, _OPENINGS) + question
    if prompt not in rows:
      rows[prompt] = {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": f"{_pick(rng, _POLITE)}{right}."}],
        "rejected": [{"role": "assistant", "content": f"{_pick(rng, _RUDE)}{wrong}"}],
      }
  return list(rows.values())


def _add(rng: np.random.Generator) -> tuple[str, str, str]:
  a, b = _draw(rng, 1000), _draw(rng, 1000)
  question = f"What is {a} plus {b}?"
  return question, f"{a} plus {b} is {a + b}", f"{a + b + 1 + _draw(rng, 9)}"


def _spell(rng: np.random.Generator) -> tuple[str, str, str]:
  word = _pick(rng, _WORDS)
  question = f"How do you spell {word}?"
  return question, f"It is {'-'.join(word)}", f"{word[0]}{word[2:]}, {word[0]}{word[2:]}, whatever"


def _color(rng: np.random.Generator) -> tuple[str, str, str]:
  thing, color = _pick(rng, _THINGS)
  wrong = _pick(rng, tuple(c for c in _COLORS if c != color))
  question = f"What colour is {thing}?"  # codespell:ignore colour
  return question, f"The colour of {thing} is {color}", wrong  # codespell:ignore colour


def _count(rng: np.random.Generator) -> tuple[str, str, str]:
  word = _pick(rng, _WORDS)
  question = f"How many letters are in {word}?"
  return question, f"The word {word} has {len(word)} letters", f"{len(word) + 2} or so, or none"


_TASKS = (_add, _spell, _color, _count)


def _draw(rng: np.random.Generator, n: int) -> int:
  return int(rng.integers(n))


def _pick(rng: np.random.Generator, options: tuple) -> Any:
  return options[_draw(rng, len(options))]
