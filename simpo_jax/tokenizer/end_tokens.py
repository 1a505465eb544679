"""End tokens: those of the tokenizer, of generation_config.json and of the chat template."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from simpo_jax.errors import UserError, first_line

# Tokens that end a turn in well-known templates, often different from `eos_token`.
_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|endoftext|>", "</s>", "<|eot|>",
)  # fmt: skip


def end_tokens(
  eos_id: int | None, generation: Sequence[int], template: str, vocab: Mapping[str, int]
) -> tuple[int, ...]:
  """Returns the ids of all end tokens without duplicates, the tokenizer's EOS first.

  Args:
    eos_id: `eos_token_id` of the tokenizer.
    generation: ids from generation_config.json; see `generation_end_tokens`.
    template: the chat template, which is searched for known end-of-turn tokens.
    vocab: {token: id}.
  """
  turn_ends = [vocab[t] for t in _turn_ends(template) if t in vocab]
  return tuple(dict.fromkeys([*([] if eos_id is None else [eos_id]), *generation, *turn_ends]))


def generation_end_tokens(config: pathlib.Path) -> list[int]:
  """Returns the `eos_token_id`s of a generation_config.json; empty if the file does not exist.

  Raises:
    UserError: it is not readable JSON.
  """
  if not config.is_file():
    return []
  try:
    eos = json.loads(config.read_text())["eos_token_id"]
  except KeyError:
    return []
  except (OSError, ValueError, TypeError, RecursionError) as error:
    raise UserError(f"{config} is not readable JSON ({first_line(error)})") from error
  eos = eos if isinstance(eos, list) else [eos]
  return [i for i in eos if type(i) is int and 0 <= i < 2**31]


def _turn_ends(template: str) -> list[str]:
  # In a template with channels (gpt-oss), <|end|> ends one message of a turn, not the turn.
  channels = "<|channel|>" in template
  return [t for t in _TURN_ENDS if t in template and not (channels and t == "<|end|>")]
