"""Opens a model for inference: a checkpoint of a run, or any `config.model.source`.

One process, which uses all devices of this machine, with the weights sharded for decoding.
"""

import pathlib
from typing import Any, NamedTuple

from jax.sharding import Mesh

from simpo_jax.checkpoint.saved_run import open_run
from simpo_jax.config import replace_fields
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.loaded_model.generation_config import drop_excessive_minimum, read_generation_config
from simpo_jax.models import llama
from simpo_jax.models.hf_weights import open_checkpoint
from simpo_jax.models.lora import make_lora
from simpo_jax.models.weights import OpenModel, open_model
from simpo_jax.program.configure import compute_dtype, mesh_of
from simpo_jax.runtime.resolve import within_vocabulary
from simpo_jax.settings import MeshSettings, Settings
from simpo_jax.storage.paths import plain
from simpo_jax.tokenizer.of_model import tokenizer_of
from simpo_jax.tokenizer.tokenizer import Tokenizer

MODE = "host_data_parallel"  # with one host: the weights are sharded over all devices
_NEW_TOKENS = 512  # default of max_new_tokens, unless generation_config.json has one


class LoadedModel(NamedTuple):
  """A model opened for inference; nothing is on a device yet.

  Attributes:
    model: if it is from a run, reads the weights of the run's checkpoint.
    config: of the run, else the default; `config.generate` has the sampling settings.
    from_run: whether the model is a checkpoint of a run.
    step: training step of the checkpoint; 0 if the model is not from a run.
    mesh: the devices of this machine.
    dtype: of weights and computation.
    notes: messages for the user.
  """

  model: OpenModel
  tokenizer: Tokenizer
  config: Settings
  from_run: bool
  step: int
  mesh: Mesh
  dtype: Any
  notes: list[str]


def load_model(
  name: str,
  changes: dict[str, Any],
  step: int | None = None,
  source: str | None = None,
  force: bool = False,
) -> LoadedModel:
  """Opens a model by its name.

  Args:
    name: the workdir of a run, or any `config.model.source`.
    changes: config fields that override those of the run or of generation_config.json.
    step, source, force: for a run, see `open_run`.

  Raises:
    UserError: there is no such model, or a setting is not valid.
  """
  path = plain(name)
  from_run = _is_workdir(path)
  if from_run:
    saved = open_run(path, step, source, force)
    config, step = saved.config, saved.step
    lora = make_lora(config.train)
    weights = open_checkpoint(saved.checkpoint, saved.model.config, lora)
    model, tokenizer = saved.model._replace(name=name, read=weights.read), saved.tokenizer
    averaged = ", averaged over its steps" if weights.averaged else ""
    notes = [f"weights of step {step}{averaged}", "settings of the run"]
    # The run may have used another machine.
    defaults = {"attention": "auto", "num_pages": 0, "prefill_rows": 0}
  else:
    if step is not None or source is not None:
      raise UserError(f"--step and --source are for the workdir of a run, which {name} is not")
    config, step = replace_fields(Settings(), {"model.source": name}), 0
    model = open_model(name)
    tokenizer = tokenizer_of(model, config)
    limit = min(_NEW_TOKENS, model.config.context // 2)
    recommended, notes = _recommended(model, limit, changes)
    notes = notes if model.read else ["random weights", *notes]
    defaults = {"max_new_tokens": limit, **recommended}
    if "generate.stop" in changes:
      both = (*recommended.get("stop", ()), *changes["generate.stop"])
      changes = {**changes, "generate.stop": tuple(dict.fromkeys(both))}
  defaults = {f"generate.{name}": value for name, value in defaults.items()}
  config = validate(replace_fields(config, {**defaults, **changes}))
  tokenizer, beyond = within_vocabulary(tokenizer, model)
  notes += [*model.notes, *beyond]
  mesh = mesh_of(MeshSettings(), hosts=1)
  dtype = compute_dtype(config.model, mesh.devices.flat[0].platform)
  return LoadedModel(model, tokenizer, config, from_run, step, mesh, dtype, notes)


def _recommended(
  model: OpenModel, limit: int, changes: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
  """The settings of the model's generation_config.json, and notes about them."""
  found = read_generation_config(model)
  if "generate.min_new_tokens" not in changes:
    own = found.settings.get("max_new_tokens", limit)
    found = drop_excessive_minimum(found, changes.get("generate.max_new_tokens", own))
  settings, notes = found
  if settings:
    notes = [f"settings of its generation_config.json: {listed(settings)}", *notes]
  return settings, notes


def _is_workdir(path: pathlib.Path) -> bool:
  try:
    return (path / "run.json").is_file() or (path / "checkpoints").is_dir()
  except (OSError, ValueError):  # not a valid path; opening the model will fail with a message
    return False


def listed(settings: dict[str, Any]) -> str:
  """Formats settings, such as "temperature 0.6, top_p 0.9"."""
  return ", ".join(f"{name} {value}" for name, value in settings.items())


def describe_model(loaded: LoadedModel) -> str:
  """Formats "runs/mine: llama, 134.5M parameters, float32, 1 x cpu; weights of step 7"."""
  cfg, devices = loaded.model.config, loaded.mesh.devices
  what = (
    f"{loaded.model.name}: {cfg.model_type}, {llama.count_params(cfg) / 1e6:,.1f}M parameters, "
    f"{loaded.dtype}, {devices.size} x {devices.flat[0].device_kind}"
  )
  return "; ".join([what, *loaded.notes])
