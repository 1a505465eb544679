"""Tokenized pairs and prompts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

# {"role": "user", "content": "...", ...}: other keys, such as "tool_calls", are the template's.
Message = dict[str, Any]
TURN = ("role", "content")  # the keys that every message has
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing


class PairTokens(NamedTuple):
  """One pair. The prompt has at least one token; responses end with EOS unless truncated.

  A token of a response that is only read, such as of a user's turn between two answers, is stored
  as ~id, which is negative: it is not trained, and does not count for the response's length.
  """

  id: str
  prompt: np.ndarray  # int32[P]
  chosen: np.ndarray  # int32[C]
  rejected: np.ndarray  # int32[R]


class Prompt(NamedTuple):
  """One prompt. text: that of its last message that has any, or the plain text, for display."""

  index: int
  text: str
  tokens: np.ndarray  # int32[T], with at most one BOS, up to the start of the answer
  settings: Mapping[str, float] = MappingProxyType({})  # overrides of the config
