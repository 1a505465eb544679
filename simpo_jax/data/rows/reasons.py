"""Why a row cannot be used."""

from simpo_jax.errors import one_line

# {reason for skipping a row: explanation for the user}
REASONS = {
  "malformed_json": "not a JSON object; a file that is one list of them is named .json",
  "not_utf8": "the bytes are not valid UTF-8; convert the file",
  "missing_field": "needs prompt (or another field for it), chosen and rejected; data.columns maps "
  "other names to them",
  "not_a_string": "a text is not a string",
  "not_unicode": "a text has a lone surrogate",
  "not_a_message": "a message needs role and content, or from and value",
  "not_text_content": "the content of a message has parts other than text",
  "unknown_role": "roles are system, developer, user, assistant, tool and their usual synonyms",
  "not_tools": "tools is not a list of JSON schemas, nor the JSON text of one",
  "not_template_kwargs": "chat_template_kwargs is not an object, nor the JSON text of one",
  "several_chosen": "there are several chosen answers; keep one",
  "several_rejected": "there are several rejected answers; prepare makes a pair of each",
  "mixed_forms": "chosen and rejected are of different kinds",
  "prompts_differ": "chosen and rejected answer different prompts, or another one than the row's",
  "last_turn_not_assistant": "a response is not by the assistant",
  "prompt_ends_with_assistant": "the prompt must end with the user's turn",
  "empty_prompt": "the prompt has no text",
  "empty_chosen": "the chosen response has no text",
  "empty_rejected": "the rejected response has no text",
  "template_failed": "the chat template refuses the conversation",
  "template_not_prefix": "the chat template rewrites earlier turns once they are answered",
  "no_embedding": "the text or the chat template spells a token without a row in the model's "
  "embedding",
  "identical": "both responses are the same tokens",
  "longer_than_row": "the pair does not fit data.row_length",
}


class SkipRow(Exception):
  """A row is unusable.

  Attributes:
    reason: a key of REASONS.
    detail: what the row has instead, for the user; may be empty.
  """

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(reason)
    self.reason, self.detail = reason, one_line(detail) if detail else ""
