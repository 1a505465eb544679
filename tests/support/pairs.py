"""Pairs of one conversation."""

from simpo_jax.data.tokenize_pairs import encode_pair, fit_pair


def tokenize_pair(conversation, tokenizer, data, id=""):
  """As `read_row` tokenizes and cuts it; raises SkipRow."""
  pair, _ = encode_pair(conversation, tokenizer, data.header, id)
  return fit_pair(pair, tokenizer, data)
