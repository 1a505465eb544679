"""What data becomes, token ids of pairs and prompts. A leaf: it reads nothing."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class PairTokens(NamedTuple):
  """One pair. The prompt has at least one token; responses end with an EOS unless cut."""

  id: str
  prompt: np.ndarray  # int32[P]
  chosen: np.ndarray  # int32[C]
  rejected: np.ndarray  # int32[R]


class Prompt(NamedTuple):
  """One prompt. text: what the user wrote last, for display."""

  index: int
  text: str
  tokens: np.ndarray  # int32[T], one BOS at most, ending where the answer begins
  settings: Mapping[str, float] = MappingProxyType({})  # its own, in place of the config's
