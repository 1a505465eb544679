"""Which tokens end an answer: by tokenizer, generation settings and template."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from simpo_jax.errors import UserError, first_line

# Tokens that end a turn in well-known templates, where `eos_token` often is another.
_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|endoftext|>", "</s>", "<|eot|>",
)  # fmt: skip


def end_tokens(
  own: int | None, generation: Sequence[int], template: str, vocab: Mapping[str, int]
) -> tuple[int, ...]:
  """All of them, the tokenizer's own first.

  Args:
    own: `eos_token_id` of the tokenizer.
    generation: of generation_config.json; see `generation_end_tokens`.
    template: the chat template; the tokens that end its turns count.
    vocab: token to id.
  """
  turn_ends = [vocab[t] for t in _turn_ends(template) if t in vocab]
  return tuple(dict.fromkeys([*([] if own is None else [own]), *generation, *turn_ends]))


def generation_end_tokens(config: pathlib.Path) -> list[int]:
  """Those of a generation_config.json, if there is one."""
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
  # Where a template knows channels, <|end|> closes one of them and not the turn.
  channels = "<|channel|>" in template
  return [t for t in _TURN_ENDS if t in template and not (channels and t == "<|end|>")]
