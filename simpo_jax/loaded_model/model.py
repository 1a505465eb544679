"""A model that is only to speak: opened from wherever it is, with the settings it speaks by.

The model is a run's checkpoint, or any source that a run could begin with. One process, all
devices of this machine; weights are placed as decoding wants them, and nothing is trained.
"""

import pathlib
from typing import Any, NamedTuple

from jax.sharding import Mesh

from simpo_jax.checkpoint.saved_run import open_run
from simpo_jax.config import replace_fields
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.loaded_model.generation_config import read_generation_config
from simpo_jax.models import llama
from simpo_jax.models.hf_weights import open_checkpoint
from simpo_jax.models.lora import make_lora
from simpo_jax.models.weights import OpenModel, open_model
from simpo_jax.program.configure import compute_dtype, mesh_of
from simpo_jax.runtime.resolve import check_vocabulary
from simpo_jax.settings import MeshSettings, Settings
from simpo_jax.storage.paths import plain
from simpo_jax.tokenizer.load import run_tokenizer
from simpo_jax.tokenizer.tokenizer import Tokenizer

MODE = "host_data_parallel"  # of one host: all its devices share the weights
_NEW_TOKENS = 512  # of an answer, where nobody says how many


class LoadedModel(NamedTuple):
  """A model that was opened; nothing is on a device yet.

  Attributes:
    model: with the weights that will speak: a checkpoint's, if it is a run's.
    config: the run's, else the default one; `config.generate` has the settings.
    of_run: whether it is a run's.
    step: after which the weights were saved; 0 if they are no run's.
    mesh, dtype: of the weights on this machine.
    notes: what to tell of it.
  """

  model: OpenModel
  tokenizer: Tokenizer
  config: Settings
  of_run: bool
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
    name: the workdir of a run, or a source as `config.model.source` takes it.
    changes: config fields in place of those that the run or the model's
      generation_config.json has.
    step, source, force: of a run, see `open_run`.

  Raises:
    UserError: there is no such model, or a setting cannot be.
  """
  path = plain(name)
  of_run = _is_workdir(path)
  if of_run:
    saved = open_run(path, step, source, force)
    config, step = saved.config, saved.step
    lora = make_lora(config.train)
    weights = open_checkpoint(saved.checkpoint, saved.model.config, lora)
    model, tokenizer = saved.model._replace(name=name, read=weights.read), saved.tokenizer
    averaged = ", averaged over its steps" if weights.averaged else ""
    notes = [f"weights of step {step}{averaged}", "settings of the run"]
    own = {"attention": "auto", "num_pages": 0, "prefill_rows": 0}  # the run's machine was another
  else:
    if step is not None or source is not None:
      raise UserError(f"--step and --source are for the workdir of a run, which {name} is not")
    config, step = replace_fields(Settings(), {"model.source": name}), 0
    model = open_model(name)
    tokenizer = run_tokenizer(config)
    own = read_generation_config(model)
    limit = min(_NEW_TOKENS, model.config.max_position_embeddings // 2)
    notes = [] if model.read else ["random weights"]
    notes += [f"settings of its generation_config.json: {listed(own)}"] if own else []
    own = {"max_new_tokens": limit, **own}
  own = {f"generate.{name}": value for name, value in own.items()}
  config = validate(replace_fields(config, {**own, **changes}))
  check_vocabulary(tokenizer, model)
  mesh = mesh_of(MeshSettings(), hosts=1)
  dtype = compute_dtype(config.model, mesh.devices.flat[0].platform)
  return LoadedModel(model, tokenizer, config, of_run, step, mesh, dtype, notes)


def _is_workdir(path: pathlib.Path) -> bool:
  try:
    return (path / "run.json").is_file() or (path / "checkpoints").is_dir()
  except (OSError, ValueError):  # a name that can be none; its reader says so
    return False


def listed(settings: dict[str, Any]) -> str:
  """ "temperature 0.6, top_p 0.9"."""
  return ", ".join(f"{name} {value}" for name, value in settings.items())


def describe_model(loaded: LoadedModel) -> str:
  """ "runs/mine: llama, 134.5M parameters, float32, 1 x cpu; weights of step 7"."""
  cfg, devices = loaded.model.config, loaded.mesh.devices
  what = (
    f"{loaded.model.name}: {cfg.model_type}, {llama.count_params(cfg) / 1e6:,.1f}M parameters, "
    f"{loaded.dtype}, {devices.size} x {devices.flat[0].device_kind}"
  )
  return "; ".join([what, *loaded.notes])
