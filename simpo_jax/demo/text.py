"""The demo's language: questions on animals, and answers in two styles that are equally likely.

    question   Tell me: What does the duck eat? I wonder.
    polite     Gladly! Every duck eats snails. Anything else?
    grumpy     Listen. Every duck eats snails. Now let me be.

The styles have phrases of the same lengths with the same chances, so a model that knows the
language has no reason to give either the larger average log-probability.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

STYLES = ("polite", "grumpy")
PHRASES = {  # how an answer begins, and how some end
  "polite": (("Gladly! ", "Of course! ", "Happy to help! "), " Anything else?"),
  "grumpy": (("Listen. ", "If I must: ", "Again? Really. "), " Now let me be."),
}
_CHANCES = (0.6, 0.3, 0.1)  # of the three ways to begin, and of the three verbs
_ENDS = 0.5  # the chance of the phrase at the end
_OPENINGS = ("", "Tell me: ", "A question: ", "Excuse me. ", "Hello! ", "Teacher, ")
_CLOSINGS = ("", " I wonder.", " My son asks.", " Do you know?")
_SUBJECTS = {"The": 0.4, "Every": 0.3, "Any": 0.2, "Each": 0.1}  # and their chances
_ANIMALS = {  # what it eats, where it lives, its colour
  "bear": ("honey", "cave", "black"), "cat": ("fish", "house", "grey"),
  "duck": ("snails", "lake", "white"), "frog": ("flies", "pond", "green"),
  "goat": ("thistles", "mountains", "tan"), "horse": ("oats", "stable", "brown"),
  "mouse": ("cheese", "wall", "silver"), "parrot": ("nuts", "jungle", "red"),
  "rabbit": ("leaves", "burrow", "yellow"), "squirrel": ("acorns", "tree", "orange"),
}  # fmt: skip
_KINDS = (  # question, verbs of the answer
  ("What does the {} eat?", ("eats", "likes", "loves")),
  ("Where does the {} live?", ("lives in the", "stays in the", "sleeps in the")),
  ("What colour is the {}?", ("is", "looks", "seems")),
)


class Fact(NamedTuple):
  """What is asked: a row of `_KINDS` about an animal."""

  animal: str
  kind: int

  def questions(self) -> list[str]:
    """All the ways to ask."""
    question = _KINDS[self.kind][0].format(self.animal)
    return [a + question + z for a in _OPENINGS for z in _CLOSINGS]

  def sentences(self) -> dict[str, float]:
    """All the right answers, without style, and their chances."""
    value = _ANIMALS[self.animal][self.kind]
    verbs = zip(_KINDS[self.kind][1], _CHANCES, strict=True)
    ways = itertools.product(_SUBJECTS.items(), verbs)
    return {f"{s} {self.animal} {v} {value}.": p * q for (s, p), (v, q) in ways}


FACTS = tuple(itertools.starmap(Fact, itertools.product(_ANIMALS, range(len(_KINDS)))))
_ASKED = {question: fact for fact in FACTS for question in fact.questions()}


class Texts(NamedTuple):
  """A part of the language: some of the questions and some of the sentences on each fact."""

  questions: dict[Fact, list[str]]
  sentences: dict[Fact, dict[str, float]]


def split_texts(seed: int) -> tuple[Texts, Texts]:
  """(training, held out), three quarters and a quarter; no text of the one is in the other."""
  rng = np.random.default_rng([seed, 0])
  training, held_out = Texts({}, {}), Texts({}, {})

  def cut(texts: list[str]) -> tuple[list[str], list[str]]:
    order = [texts[i] for i in rng.permutation(len(texts))]
    return order[len(order) // 4 :], order[: len(order) // 4]

  for fact in FACTS:
    chances = fact.sentences()
    parts = zip(cut(fact.questions()), cut(list(chances)), strict=True)
    for texts, (questions, sentences) in zip((training, held_out), parts, strict=True):
      texts.questions[fact] = questions
      texts.sentences[fact] = {sentence: chances[sentence] for sentence in sentences}
  return training, held_out


def make_pairs(
  texts: Texts, count: int, seed: int, styles: tuple[str, str] | None = None
) -> list[dict[str, Any]]:
  """`count` rows {prompt, chosen, rejected} of messages, the same for a seed.

  Args:
    texts: what they are made of; all facts are asked about equally often, in all their ways.
    styles: of the chosen and the rejected answer; None: one of each, and each question's
      order alternates, so that neither style is preferred.
  """
  rng = np.random.default_rng([seed, 1])
  rows = []
  for i in range(count):
    around, of_fact = divmod(i, len(FACTS))
    fact = FACTS[of_fact]
    questions = texts.questions[fact]
    order = styles or (STYLES if around // len(questions) % 2 else STYLES[::-1])
    answers = (say(draw(texts.sentences[fact], rng), style) for style in order)
    rows.append(_row(questions[around % len(questions)], *answers))
  return rows


def make_held_out(texts: Texts, seed: int) -> list[dict[str, Any]]:
  """Two rows for each question, polite before grumpy.

  What else differs between the two answers is the other way round in the second row: who
  knows the language and prefers no style has exactly half of the pairs right.
  """
  rng = np.random.default_rng([seed, 2])
  rows = []
  for fact, questions in texts.questions.items():
    for question in questions:
      one, other = (draw(texts.sentences[fact], rng) for _ in STYLES)
      for a, b in ((one, other), (other, one)):
        rows.append(_row(question, say(a, STYLES[0]), say(b, STYLES[1])))
  return rows


class Content(NamedTuple):
  """An answer but for its style: which of the ways it begins, its sentence, whether it ends."""

  start: int
  sentence: str
  ends: bool


def draw(sentences: dict[str, float], rng: np.random.Generator) -> Content:
  """One by the language's chances."""
  chances = np.array(list(sentences.values()))
  sentence = list(sentences)[rng.choice(len(sentences), p=chances / chances.sum())]
  return Content(int(rng.choice(len(_CHANCES), p=_CHANCES)), sentence, rng.random() < _ENDS)


def say(content: Content, style: str) -> str:
  """The answer in a style."""
  starts, end = PHRASES[style]
  return starts[content.start] + content.sentence + (end if content.ends else "")


def _row(question: str, chosen: str, rejected: str) -> dict[str, Any]:
  return {
    "prompt": [{"role": "user", "content": question}],
    "chosen": [{"role": "assistant", "content": chosen}],
    "rejected": [{"role": "assistant", "content": rejected}],
  }


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
        return Verdict(style, sentence in _ASKED[question].sentences())
  return Verdict(None, False)
