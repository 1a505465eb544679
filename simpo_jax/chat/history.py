"""What was said, and how much of it the model still gets to see."""

from typing import NamedTuple

from simpo_jax.data.prompts import encode_messages
from simpo_jax.data.row_formats import Message
from simpo_jax.errors import UserError
from simpo_jax.tokenizer.tokenizer import Tokenizer

_KEPT = 3 / 4  # of the room, when turns are dropped: or some would be with every answer


class Fitted(NamedTuple):
  """A conversation as the model gets it."""

  tokens: list[int]
  messages: list[Message]  # those that are left
  dropped: int


def fit(messages: list[Message], tokenizer: Tokenizer, room: int) -> Fitted:
  """Drops the oldest turns, never the system's message, until the rest takes `room` tokens.

  Args:
    messages: the last one is the user's.

  Raises:
    UserError: the last message alone does not fit, or the chat template refuses it.
  """
  kept, most = messages, room
  while True:
    tokens = encode_messages("the conversation", kept, tokenizer)
    if len(tokens) <= most:
      return Fitted(tokens, kept, len(messages) - len(kept))
    shorter = _without_oldest_turn(kept)
    if shorter == kept:
      if len(tokens) <= room:
        return Fitted(tokens, kept, len(messages) - len(kept))
      raise UserError(
        f"this message takes {len(tokens):,} tokens, and there is room for {room:,}; shorten it, "
        "or start with a larger --context"
      )
    kept, most = shorter, int(_KEPT * room)


def _without_oldest_turn(messages: list[Message]) -> list[Message]:
  """Without the first message by the user, and what follows up to the next one; never the last."""
  users = [i for i, message in enumerate(messages) if message["role"] == "user"]
  return messages if len(users) < 2 else [*messages[: users[0]], *messages[users[1] :]]
