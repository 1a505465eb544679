"""The one table of settings: a field is declared once, with its default, meaning and limits.

`default_config()`, the checks, `--help`, docs/configuration.md and the flags of the commands that
answer prompts derive from it.
"""

from simpo_jax.settings import generate, model_and_data, operation, train
from simpo_jax.settings.field import Field

GROUPS = {**model_and_data.GROUPS, **train.GROUPS, **generate.GROUPS, **operation.GROUPS}
FIELDS: dict[str, Field] = {
  field.name: field
  for field in (
    *model_and_data.FIELDS,
    *train.FIELDS,
    *generate.FIELDS,
    *operation.FIELDS,
  )
}
# Groups that a resumed run may change: they affect its numbers by rounding at most.
RESUMABLE = (
  "checkpoint", "watchdog", "profile", "log", "mesh", "tracking", "export", "report",
)  # fmt: skip


def is_resumable(field: Field) -> bool:
  """Whether a resumed run may change it."""
  return field.resumable or field.group in RESUMABLE
