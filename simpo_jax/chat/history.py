"""Truncates the message history so that it fits into the model's context."""

from typing import NamedTuple

from simpo_jax.data.prompts import encode_messages
from simpo_jax.data.types import Message
from simpo_jax.errors import UserError
from simpo_jax.tokenizer.tokenizer import Tokenizer

_KEEP_FRACTION = 3 / 4  # of `room`, once turns are dropped, so that not every answer drops some


class Fitted(NamedTuple):
  """A conversation that fits into the context."""

  tokens: list[int]
  messages: list[Message]  # the remaining ones
  dropped: int  # number of messages


def fit(messages: list[Message], tokenizer: Tokenizer, room: int) -> Fitted:
  """Drops the oldest turns, but not the system message, until the rest fits into `room` tokens.

  Args:
    messages: the conversation, ending with a user message.
    tokenizer: renders the messages with its chat template.
    room: maximum number of tokens.

  Raises:
    UserError: the last message alone does not fit, or the chat template rejects it.
  """
  kept, limit = messages, room
  while True:
    tokens = encode_messages("the conversation", kept, tokenizer)
    if len(tokens) <= limit:
      return Fitted(tokens, kept, len(messages) - len(kept))
    shorter = _without_oldest_turn(kept)
    if shorter == kept:
      if len(tokens) <= room:
        return Fitted(tokens, kept, len(messages) - len(kept))
      raise UserError(
        f"this message takes {len(tokens):,} tokens, and there is room for {room:,}; shorten it, "
        "or start with a larger --context"
      )
    kept, limit = shorter, int(_KEEP_FRACTION * room)


def _without_oldest_turn(messages: list[Message]) -> list[Message]:
  """Drops everything from the first user message up to the second; keeps the last turn."""
  users = [i for i, message in enumerate(messages) if message["role"] == "user"]
  return messages if len(users) < 2 else [*messages[: users[0]], *messages[users[1] :]]
