"""Pairs of one conversation."""

from simpo_jax.data.tokenize_pairs import encode_pair, fit_pair


def tokenize_pair(conversation, tokenizer, data, id=""):
  """As `read_row` tokenizes and cuts it; raises SkipRow."""
  return fit_pair(encode_pair(conversation, tokenizer, data.header, id), tokenizer, data)
