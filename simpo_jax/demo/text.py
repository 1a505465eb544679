"""The demo's language: questions about animals, and answers in two equally likely styles.

    question   Tell me: What does the duck eat? I wonder.
    polite     Gladly! Every duck eats snails. Anything else?
    grumpy     Listen. Every duck eats snails. Now let me be.

The phrases of both styles have the same lengths and probabilities, so a model of the language
assigns both the same average log-probability.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

STYLES = ("polite", "grumpy")
PHRASES = {  # possible beginnings of an answer, and an optional ending
  "polite": (("Gladly! ", "Of course! ", "Happy to help! "), " Anything else?"),
  "grumpy": (("Listen. ", "If I must: ", "Again? Really. "), " Now let me be."),
}
_PROBABILITIES = (0.6, 0.3, 0.1)  # of the three beginnings, and of the three verbs
_ENDING_PROBABILITY = 0.5
_OPENINGS = ("", "Tell me: ", "A question: ", "Excuse me. ", "Hello! ", "Teacher, ")
_CLOSINGS = ("", " I wonder.", " My son asks.", " Do you know?")
_SUBJECTS = {"The": 0.4, "Every": 0.3, "Any": 0.2, "Each": 0.1}  # with their probabilities
_ANIMALS = {  # food, home, color
  "bear": ("honey", "cave", "black"), "cat": ("fish", "house", "grey"),
  "duck": ("snails", "lake", "white"), "frog": ("flies", "pond", "green"),
  "goat": ("thistles", "mountains", "tan"), "horse": ("oats", "stable", "brown"),
  "mouse": ("cheese", "wall", "silver"), "parrot": ("nuts", "jungle", "red"),
  "rabbit": ("leaves", "burrow", "yellow"), "squirrel": ("acorns", "tree", "orange"),
}  # fmt: skip
_KINDS = (  # question, and verbs of the answer
  ("What does the {} eat?", ("eats", "likes", "loves")),
  ("Where does the {} live?", ("lives in the", "stays in the", "sleeps in the")),
  ("What colour is the {}?", ("is", "looks", "seems")),
)


class Fact(NamedTuple):
  """A fact that a question asks for: an animal and an index into `_KINDS`."""

  animal: str
  kind: int

  def questions(self) -> list[str]:
    """Returns all phrasings of the question."""
    question = _KINDS[self.kind][0].format(self.animal)
    return [a + question + z for a in _OPENINGS for z in _CLOSINGS]

  def sentences(self) -> dict[str, float]:
    """Returns all correct answers, without style, with their probabilities."""
    value = _ANIMALS[self.animal][self.kind]
    verbs = zip(_KINDS[self.kind][1], _PROBABILITIES, strict=True)
    ways = itertools.product(_SUBJECTS.items(), verbs)
    return {f"{s} {self.animal} {v} {value}.": p * q for (s, p), (v, q) in ways}


FACTS = tuple(itertools.starmap(Fact, itertools.product(_ANIMALS, range(len(_KINDS)))))
_FACT_OF_QUESTION = {question: fact for fact in FACTS for question in fact.questions()}


class Texts(NamedTuple):
  """A split of the language: questions and answer sentences per fact."""

  questions: dict[Fact, list[str]]
  sentences: dict[Fact, dict[str, float]]  # with their probabilities


def split_texts(seed: int) -> tuple[Texts, Texts]:
  """Returns disjoint (training, held-out) splits with 3/4 and 1/4 of the texts of each fact."""
  rng = np.random.default_rng([seed, 0])
  training, held_out = Texts({}, {}), Texts({}, {})

  def split(texts: list[str]) -> tuple[list[str], list[str]]:
    order = [texts[i] for i in rng.permutation(len(texts))]
    return order[len(order) // 4 :], order[: len(order) // 4]

  for fact in FACTS:
    probabilities = fact.sentences()
    parts = zip(split(fact.questions()), split(list(probabilities)), strict=True)
    for texts, (questions, sentences) in zip((training, held_out), parts, strict=True):
      texts.questions[fact] = questions
      texts.sentences[fact] = {sentence: probabilities[sentence] for sentence in sentences}
  return training, held_out


def make_pairs(
  texts: Texts, count: int, seed: int, styles: tuple[str, str] | None = None
) -> list[dict[str, Any]]:
  """Returns `count` rows {prompt, chosen, rejected} of messages; deterministic for a seed.

  Args:
    texts: the split to draw from; cycles through all facts and their questions.
    count: number of rows.
    seed: of the sampled answers.
    styles: (chosen, rejected); None: a question's chosen style alternates, so that neither style
      is preferred.
  """
  rng = np.random.default_rng([seed, 1])
  rows = []
  for i in range(count):
    around, of_fact = divmod(i, len(FACTS))
    fact = FACTS[of_fact]
    questions = texts.questions[fact]
    order = styles or (STYLES if around // len(questions) % 2 else STYLES[::-1])
    answers = (render(sample_content(texts.sentences[fact], rng), style) for style in order)
    rows.append(_row(questions[around % len(questions)], *answers))
  return rows


def make_held_out(texts: Texts, seed: int) -> list[dict[str, Any]]:
  """Returns two rows per question, with a polite chosen and a grumpy rejected answer.

  The second row swaps the contents of the two answers, so a model without a preference for a
  style ranks exactly half of the pairs correctly.
  """
  rng = np.random.default_rng([seed, 2])
  rows = []
  for fact, questions in texts.questions.items():
    for question in questions:
      one, other = (sample_content(texts.sentences[fact], rng) for _ in STYLES)
      for a, b in ((one, other), (other, one)):
        rows.append(_row(question, render(a, STYLES[0]), render(b, STYLES[1])))
  return rows


class Content(NamedTuple):
  """An answer without its style: index of its beginning, sentence, and whether it has an ending."""

  start: int
  sentence: str
  ends: bool


def sample_content(sentences: dict[str, float], rng: np.random.Generator) -> Content:
  """Samples an answer with the language's probabilities."""
  p = np.array(list(sentences.values()))
  sentence = list(sentences)[rng.choice(len(sentences), p=p / p.sum())]
  return Content(
    int(rng.choice(len(_PROBABILITIES), p=_PROBABILITIES)),
    sentence,
    rng.random() < _ENDING_PROBABILITY,
  )


def render(content: Content, style: str) -> str:
  """Returns the text of an answer in a style."""
  starts, end = PHRASES[style]
  return starts[content.start] + content.sentence + (end if content.ends else "")


def _row(question: str, chosen: str, rejected: str) -> dict[str, Any]:
  return {
    "prompt": [{"role": "user", "content": question}],
    "chosen": [{"role": "assistant", "content": chosen}],
    "rejected": [{"role": "assistant", "content": rejected}],
  }


class Verdict(NamedTuple):
  """Classification of a generated answer."""

  style: str | None  # None: it begins in neither style
  right: bool  # whether it is a correct answer of the language in this style


def judge(question: str, text: str) -> Verdict:
  """Classifies an answer by its beginning, and checks that the rest is correct for the question."""
  for style, (starts, end) in PHRASES.items():
    for start in starts:
      if text.startswith(start):
        sentence = text.removeprefix(start).removesuffix(end)
        return Verdict(style, sentence in _FACT_OF_QUESTION[question].sentences())
  return Verdict(None, False)
