"""End tokens and stop strings, compiled to one automaton over tokens.

A stop string has many tokenizations, and may begin or end inside a token. The strings are
therefore compiled to an automaton over bytes (Aho and Corasick 1975,
doi:10.1145/360825.360855), and from it to a table over tokens: `stops[state, token]` is the
next state, or -1 if the answer ends with this token. It matches every tokenization exactly.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16

from simpo_jax.errors import UserError

MAX_BYTES = 256  # of all stop strings together
STOPPED = -1


def stop_automaton(
  vocab_size: int,
  end_ids: Sequence[int] = (),
  strings: Sequence[str] = (),
  token_bytes: Sequence[bytes] | None = None,
) -> Int16[np.ndarray, "stop_states V"]:
  """Returns the table `stops`; an answer starts in state 0.

  Args:
    vocab_size: V.
    end_ids: tokens that end an answer in every state; those outside the vocabulary are ignored.
    strings: an answer ends with the token that completes one of them.
    token_bytes: the bytes of each token; required if there are strings.

  Raises:
    UserError: a string is empty or has a lone surrogate, or together they have more than
      `MAX_BYTES` bytes in UTF-8.
    ValueError: there are strings, but no `token_bytes`.
  """
  try:
    encoded = [s.encode() for s in strings]
  except UnicodeEncodeError as error:
    raise UserError(
      "--config.generate.stop has a lone surrogate, which no tokenizer reads; remove it"
    ) from error
  by_byte = _byte_automaton(encoded)
  states = len(by_byte)
  table = np.repeat(np.arange(states, dtype=np.int16)[:, None], vocab_size, axis=1)
  if strings:
    if token_bytes is None:
      raise ValueError("stop strings need token_bytes")
    lengths = np.asarray([len(b) for b in token_bytes], np.int64)
    for index in range(int(lengths.max())):
      tokens = np.flatnonzero(lengths > index)
      byte = np.asarray([token_bytes[t][index] for t in tokens.tolist()], np.int64)
      now = table[:, tokens]
      table[:, tokens] = np.where(now == STOPPED, STOPPED, by_byte[now, byte])
  table[:, [i for i in end_ids if i < vocab_size]] = STOPPED
  return table


def before_stop(text: str, strings: Sequence[str]) -> str:
  """Returns the text before the stop string that is complete first; all of it if there is none."""
  places = [(text.find(string), len(string)) for string in strings]
  ends = [(start + length, start) for start, length in places if start >= 0]
  return text[: min(ends)[1]] if ends else text


def _byte_automaton(strings: list[bytes]) -> Int16[np.ndarray, "stop_states 256"]:
  """The next state after each byte, `STOPPED` where a string is complete."""
  if not all(strings):
    raise UserError("--config.generate.stop has an empty string, which would stop at once")
  if sum(map(len, strings)) > MAX_BYTES:
    raise UserError(
      f"--config.generate.stop: the strings have more than {MAX_BYTES} bytes together"
    )
  children: list[dict[int, int]] = [{}]
  final = [False]
  for string in strings:
    state = 0
    for byte in string:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
        final.append(False)
      state = children[state][byte]
    final[state] = True
  table = np.zeros((len(children), 256), np.int16)
  shorter = [0] * len(children)  # the state of the longest proper suffix
  queue = list(children[0].values())
  for byte, child in children[0].items():
    table[0, byte] = child
  while queue:
    state = queue.pop(0)
    final[state] |= final[shorter[state]]
    table[state] = table[shorter[state]]
    for byte, child in children[state].items():
      shorter[child] = int(table[shorter[state], byte])
      table[state, byte] = child
      queue.append(child)
  return np.where(np.asarray(final)[table], STOPPED, table).astype(np.int16)
