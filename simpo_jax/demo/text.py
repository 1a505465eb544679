"""The demo's language: questions on animals, and answers in two styles that are equally likely.

    question   [opening] What does the old horse eat?
    polite     Gladly! The old horse eats hay. Anything else?
    grumpy     Listen. The old horse eats hay. Now let me be.

The styles have phrases of the same lengths with the same chances, so a model that knows the
language has no reason to give either the larger average log-probability.
"""

import itertools
from typing import NamedTuple

import numpy as np

STYLES = ("polite", "grumpy")
PHRASES = {  # how an answer begins, and how some end
  "polite": (("Gladly! ", "Of course! ", "Happy to help! "), " Anything else?"),
  "grumpy": (("Listen. ", "If I must: ", "Again? Really. "), " Now let me be."),
}
_CHANCES = (0.6, 0.3, 0.1)  # of the three ways to begin, and of the three verbs
_ENDS = 0.5  # the chance of the phrase at the end
_OPENINGS = ("", "Tell me: ", "A question: ", "Excuse me. ")
_ADJECTIVES = (
  "old", "small", "quiet", "young", "tired", "clever", "brave", "lazy", "happy", "lonely",
  "big", "shy", "wild", "gentle", "proud", "noisy", "curious", "sleepy", "hungry", "strange",
)  # fmt: skip
_ANIMALS = {  # what it eats, where it lives, its colour
  "horse": ("hay", "stable", "brown"), "cat": ("fish", "house", "grey"),
  "rabbit": ("carrots", "burrow", "white"), "bear": ("honey", "cave", "black"),
  "monkey": ("bananas", "jungle", "red"), "mouse": ("cheese", "cellar", "silver"),
  "parrot": ("seeds", "cage", "green"), "goat": ("grass", "mountains", "yellow"),
  "squirrel": ("nuts", "tree", "orange"), "frog": ("flies", "pond", "blue"),
}  # fmt: skip
_KINDS = (  # question, verbs of the answer
  ("What does the {} eat?", ("eats", "likes", "loves")),
  ("Where does the {} live?", ("lives in the", "stays in the", "sleeps in the")),
  ("What colour is the {}?", ("is", "looks", "seems")),
)


class Fact(NamedTuple):
  """What is asked: a row of `_KINDS` about an animal with its adjective."""

  adjective: str
  animal: str
  kind: int

  def answers(self) -> list[str]:
    """The right ones, without style, by verb."""
    value = _ANIMALS[self.animal][self.kind]
    return [f"The {self.adjective} {self.animal} {v} {value}." for v in _KINDS[self.kind][1]]

  def questions(self) -> list[str]:
    """By opening."""
    question = _KINDS[self.kind][0].format(f"{self.adjective} {self.animal}")
    return [opening + question for opening in _OPENINGS]


FACTS = tuple(Fact(*x) for x in itertools.product(_ADJECTIVES, _ANIMALS, range(len(_KINDS))))
_ASKED = {question: fact for fact in FACTS for question in fact.questions()}


def split_facts(held_out: int, seed: int) -> tuple[list[Fact], list[Fact]]:
  """(training, held out): no sentence or question about the one is about the other."""
  order = np.random.default_rng([seed, 0]).permutation(len(FACTS))
  return [FACTS[i] for i in order[held_out:]], [FACTS[i] for i in order[:held_out]]


def make_pairs(
  facts: list[Fact], count: int, seed: int, styles: tuple[str, str] | None = None
) -> list[dict[str, str]]:
  """`count` rows {prompt, chosen, rejected} of messages, the same for a seed.

  Args:
    facts: each is asked about as often as the others (but for once).
    styles: of the chosen and the rejected answer; None draws each by itself.
  """
  rng = np.random.default_rng([seed, 1])
  rows = []
  for i in range(count):
    fact = facts[i % len(facts)]
    chosen = rejected = ""
    while chosen == rejected:
      drawn = styles or [STYLES[k] for k in rng.integers(len(STYLES), size=2)]
      chosen, rejected = (answer(fact, style, rng) for style in drawn)
    question = fact.questions()[rng.integers(len(_OPENINGS))]
    rows.append(
      {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
      }
    )
  return rows


def answer(fact: Fact, style: str, rng: np.random.Generator) -> str:
  """A right answer in a style."""
  starts, end = PHRASES[style]
  start = starts[rng.choice(3, p=_CHANCES)]
  sentence = fact.answers()[rng.choice(3, p=_CHANCES)]
  return start + sentence + (end if rng.random() < _ENDS else "")


class Verdict(NamedTuple):
  """On one answer. style: None if it begins in neither; right: an answer of the language."""

  style: str | None
  right: bool


def judge(question: str, text: str) -> Verdict:
  """The style by how the text begins; right if all of it is that style's, and the fact holds."""
  for style, (starts, end) in PHRASES.items():
    for start in starts:
      if text.startswith(start):
        sentence = text.removeprefix(start).removesuffix(end)
        return Verdict(style, sentence in _ASKED[question].answers())
  return Verdict(None, False)
