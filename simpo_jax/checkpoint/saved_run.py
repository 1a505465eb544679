"""Opens a saved run by its workdir: a checkpoint, its config and its base model."""

import pathlib
from typing import Any, NamedTuple

from simpo_jax.checkpoint.layout import positions, read_metadata, verify
from simpo_jax.checkpoint.resume import checkpoints_folder
from simpo_jax.checkpoint.split_change import check_split
from simpo_jax.checkpoint.tie_change import as_trained
from simpo_jax.config import flatten, replace_fields
from simpo_jax.config_check import kind_problem
from simpo_jax.errors import UserError, one_line
from simpo_jax.models.weights import OpenModel, open_model
from simpo_jax.runtime.fingerprint import model_fields
from simpo_jax.settings import FIELDS, Settings
from simpo_jax.storage.paths import plain
from simpo_jax.tokenizer.load import UnusableTemplate, is_jinja
from simpo_jax.tokenizer.of_model import tokenizer_of
from simpo_jax.tokenizer.tokenizer import Tokenizer

_SOURCE_REMEDY = "give the current location of the run's base model with --source"


class SavedRun(NamedTuple):
  """A checkpoint of a run, with the run's config and base model.

  Attributes:
    checkpoint: the checkpoint's folder.
    step: training steps done when it was saved.
    config: of the run; fields that its version did not have are at their defaults.
    model: the base model. `open_checkpoint` reads the trained weights.
    tokenizer: the run's: of the base model or its adapter, with the run's chat template.
  """

  checkpoint: pathlib.Path
  step: int
  config: Settings
  model: OpenModel
  tokenizer: Tokenizer


def open_run(
  workdir: pathlib.Path, step: int | None = None, source: str | None = None, force: bool = False
) -> SavedRun:
  """Opens a checkpoint of a run; needs neither the run's devices nor its data.

  Args:
    workdir: of the run.
    step: of the checkpoint; None: the newest.
    source: current location of the base model, if it was moved.
    force: continue even if the base model's config or tokenizer has changed.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or its base model or chat template
      cannot be opened.
  """
  checkpoint = _checkpoint(workdir, step)
  if problem := verify(checkpoint):
    raise UserError(f"{checkpoint} is damaged ({problem}); name another with --step")
  metadata = read_metadata(checkpoint)
  config = _run_config(checkpoint, metadata)
  try:
    config = replace_fields(config, {"model.source": source} if source else {})
    model = open_model(config.model.source)
    # Chat templates that print the date get the run's, so prompts are the same as in the run.
    tokenizer = tokenizer_of(model, config, metadata.get("date", ""))
  except UnusableTemplate as e:
    raise UserError(f"{e.problem}; {_template_remedy(config.data.chat_template)}") from e
  except UserError as e:
    raise UserError(f"{e}; {_SOURCE_REMEDY}") from e
  identity = metadata.get("identity", {})
  model = as_trained(model, identity)
  if not force:
    remedy = "--force uses the split that the model's files name, with which it was trained"
    check_split(checkpoint, identity, model, tokenizer, remedy)
  now = model_fields(model, tokenizer)
  if changed := [name for name in now if identity.get(name, now[name]) != now[name]]:
    if not force:
      raise UserError(
        f"{model.name} is not what {workdir} began with: its {' and '.join(changed)} differ; name "
        "the right one with --source, or pass --force"
      )
  return SavedRun(checkpoint, metadata["position"]["step"], config, model, tokenizer)


def _template_remedy(setting: str) -> str:
  """What to do if the chat template that a run was trained with cannot be used."""
  if is_jinja(setting):
    return _SOURCE_REMEDY
  remedy = f"the run was trained with this template: put the file back as {plain(setting)}"
  if pathlib.Path(setting).expanduser().is_absolute():
    return remedy
  return f"{remedy}, or start this command in the folder that the run was started in"


def _checkpoint(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
  """The folder of the newest checkpoint, or of the newest one of this step."""
  if not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is not a folder; name the folder of a run")
  folder = checkpoints_folder(workdir)
  available = positions(folder)
  if not available:
    raise UserError(
      f"--workdir={workdir} holds no checkpoint; a run saves one at its end, and more often "
      "with --config.checkpoint.every"
    )
  found = [p for p in available if step in (None, p.step)]
  if not found:
    steps = ", ".join(str(s) for s in sorted({p.step for p in available}))
    raise UserError(f"--step={step}: {workdir} has no such checkpoint; it has those of {steps}")
  return workdir / folder.name / found[-1].name


def _run_config(checkpoint: pathlib.Path, metadata: dict[str, Any]) -> Settings:
  try:
    found = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in flatten(metadata["config"]).items()
      if name in FIELDS
    }
    wrong = (kind_problem(FIELDS[name], value) for name, value in found.items())
    if problem := next(filter(None, wrong), None):
      raise ValueError(f"a field {problem}")
    return replace_fields(Settings(), found)
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError(
      f"{checkpoint} was written by another version of simpo_jax ({one_line(e)}); use that one"
    ) from e
