"""A model that is only to speak: opened from wherever it is, with the settings it speaks by.

The model is a run's checkpoint, or any source that a run could begin with. One process, all
devices of this machine; weights are placed as decoding wants them, and nothing is trained.
"""

import contextlib
import json
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax import generate
from simpo_jax import model as llama
from simpo_jax.capacity import HEADROOM, device_bytes
from simpo_jax.config import default_config
from simpo_jax.config_check import kind_problem, range_problem, validate
from simpo_jax.data.load_tokenizer import run_tokenizer
from simpo_jax.data.prompts import SETTINGS
from simpo_jax.data.tokenizer import Tokenizer
from simpo_jax.errors import UserError
from simpo_jax.generate import GenerateShape, State
from simpo_jax.inference import decode_specs, kv_axes, make_engine, pool_spec, weight_bytes
from simpo_jax.lora import make_lora
from simpo_jax.program import compiler_options
from simpo_jax.resolve import compute_dtype, mesh_of
from simpo_jax.saved_run import open_run
from simpo_jax.sharding import named, place
from simpo_jax.weights import OpenModel, load_decode_params, open_model
from simpo_jax.weights_checkpoint import open_checkpoint

MODE = "host_data_parallel"  # of one host: all its devices share the weights
_NEW_TOKENS = 512  # of an answer, where nobody says how many
_FLAGS = {"num_samples": "samples_per_prompt", "prompt_list": "prompt"}  # that have other names


class Speaker(NamedTuple):
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
  config: Any
  of_run: bool
  step: int
  mesh: Mesh
  dtype: Any
  notes: list[str]


class Program(NamedTuple):
  """The compiled steps of an engine: `call(params, pool, rest, *inputs) -> (pool, rest)`.

  The pool is donated. `rest` is a `generate.State` without it.
  """

  call: Callable
  shardings: Any  # of (params, pool, rest)
  abstract: Any  # of (pool, rest)
  seconds: float  # that it took to lower and compile


def open_speaker(
  name: str,
  changes: dict[str, Any],
  step: int | None = None,
  source: str | None = None,
  force: bool = False,
) -> Speaker:
  """Opens a model by its name.

  Args:
    name: the workdir of a run, or a source as `config.model.source` takes it.
    changes: config fields in place of those that the run or the model's
      generation_config.json has.
    step, source, force: of a run, see `open_run`.

  Raises:
    UserError: there is no such model, or a setting cannot be.
  """
  path = pathlib.Path(name).expanduser()
  of_run = _is_workdir(path)
  if of_run:
    saved = open_run(path, step, source, force)
    config, step = saved.config, saved.step
    weights = open_checkpoint(saved.checkpoint, saved.model.config, make_lora(config.train))
    model, tokenizer = saved.model._replace(name=name, read=weights.read), saved.tokenizer
    averaged = ", averaged over its steps" if weights.averaged else ""
    notes = [f"weights of step {step}{averaged}", "settings of the run"]
    config.generate.update(attention="auto", num_pages=0, prefill_rows=0)  # of its own machine
  else:
    if step is not None or source is not None:
      raise UserError(f"--step and --source are for the workdir of a run, which {name} is not")
    config, step = default_config(), 0
    config.model.source = name
    model = open_model(name)
    tokenizer = run_tokenizer(config)
    own = _generation_config(model)
    limit = min(_NEW_TOKENS, model.config.max_position_embeddings // 2)
    config.generate.update({"max_new_tokens": limit, **own})
    notes = [] if model.read else ["random weights"]
    notes += [f"settings of its generation_config.json: {listed(own)}"] if own else []
  config.update_from_flattened_dict(changes)
  validate(config)
  if tokenizer.vocab_size > model.config.vocab_size:
    raise UserError(
      f"the tokenizer of {name} has {tokenizer.vocab_size} tokens, the model only "
      f"{model.config.vocab_size}; use the tokenizer that belongs to the model"
    )
  config.mesh.update(data=1, fsdp=0, tensor=1)  # the run's machine was another
  mesh = mesh_of(config, hosts=1)
  dtype = compute_dtype(config, mesh.devices.flat[0].platform)
  return Speaker(model, tokenizer, config, of_run, step, mesh, dtype, notes)


def _is_workdir(path: pathlib.Path) -> bool:
  try:
    return (path / "run.json").is_file() or (path / "checkpoints").is_dir()
  except (OSError, ValueError):  # a name that can be none; its reader says so
    return False


def _generation_config(model: OpenModel) -> dict[str, Any]:
  """What the model's makers would have it sample with, as fields of `config.generate`.

  What is no valid setting is left alone.
  """
  path = None if model.path is None else model.path / "generation_config.json"
  if path is None or not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text())
    found = {name: found[name] for name in SETTINGS if found.get(name) is not None}
    samples = json.loads(path.read_text()).get("do_sample")
  except (OSError, ValueError, RecursionError, AttributeError, TypeError) as e:
    raise UserError(f"{path} is not readable JSON ({e}); mend or remove it") from e
  defaults = default_config().generate
  good = {
    name: value
    for name, value in found.items()
    if kind_problem(f"generate.{name}", defaults[name], value) is None
    and range_problem(f"generate.{name}", value) is None
  }
  if samples:
    return {"temperature": 1.0, **good}
  greedy = ("repetition_penalty", "max_new_tokens")  # the others are for sampling
  return {name: value for name, value in good.items() if name in greedy}


def listed(settings: dict[str, Any]) -> str:
  """ "temperature 0.6, top_p 0.9"."""
  return ", ".join(f"{name} {value}" for name, value in settings.items())


def speaker_text(speaker: Speaker) -> str:
  """ "runs/mine: llama, 134.5M parameters, float32, 1 x cpu; weights of step 7"."""
  cfg, devices = speaker.model.config, speaker.mesh.devices
  what = (
    f"{speaker.model.name}: {cfg.model_type}, {llama.count_params(cfg) / 1e6:,.1f}M parameters, "
    f"{speaker.dtype}, {devices.size} x {devices.flat[0].device_kind}"
  )
  return "; ".join([what, *speaker.notes])


def room_for_pool(speaker: Speaker) -> int | None:
  """Bytes that a device has for the KV pool beside the weights; None if that is unknown."""
  total = device_bytes(speaker.mesh.devices.flat[0])
  if total is None:
    return None
  weights = weight_bytes(speaker.model.config, speaker.mesh, MODE, speaker.dtype)
  return int(total * (1 - HEADROOM)) - weights


def compile_steps(
  speaker: Speaker, shape: GenerateShape, step: Callable[..., State], inputs: tuple
) -> Program:
  """Compiles `step(engine, inputs[0], state, *inputs[1:])`, which the host then calls in a loop.

  Args:
    step: such as `generate.generate_some`.
    inputs: numpy arrays, of the right shapes.
  """
  cfg, mesh = speaker.model.config, speaker.mesh
  heads, everywhere = kv_axes(cfg, mesh, MODE), NamedSharding(mesh, P())
  start = time.perf_counter()

  def run(params, pool, rest, *inputs):
    engine = make_engine(params, cfg, mesh, heads, shape, speaker.dtype)
    out = step(engine, inputs[0], rest._replace(pool=pool), *inputs[1:])
    return out.pool, out._replace(pool=None)

  engine = make_engine({}, cfg, mesh, heads, shape, speaker.dtype)
  state = jax.eval_shape(lambda: generate.initial(engine))
  pool, rest = state.pool, state._replace(pool=None)
  weights = named(mesh, decode_specs(cfg, mesh, MODE))
  replicated = lambda tree: jax.tree.map(lambda _: everywhere, tree)  # noqa: E731
  shardings = weights, NamedSharding(mesh, pool_spec(heads)), replicated(rest)
  given = (_abstract_decode_params(speaker), pool, rest, *inputs)
  call = jax.jit(
    run,
    donate_argnums=1,
    in_shardings=(*shardings, *map(replicated, inputs)),
    out_shardings=shardings[1:],
  )
  compiled = call.lower(*given).compile(compiler_options(mesh))
  return Program(compiled, shardings, (pool, rest), time.perf_counter() - start)


def _abstract_decode_params(speaker: Speaker):
  cfg = speaker.model.config
  stacked = llama.abstract_params(cfg, speaker.dtype)
  return jax.eval_shape(lambda p: llama.unstack(p, cfg, speaker.dtype), stacked)


def load(speaker: Speaker, program: Program):
  """Places weights, an empty pool and the rest of the first state; nothing compiles."""
  weights, pool, rest = program.shardings
  params = load_decode_params(speaker.model, weights, speaker.dtype, speaker.config.seed)

  def zeros(x, sharding):
    part = sharding.shard_shape(x.shape)
    return jax.make_array_from_callback(x.shape, sharding, lambda _: np.zeros(part, x.dtype))

  return params, *jax.tree.map(zeros, program.abstract, (pool, rest))


def put(speaker: Speaker, values):
  """Places numpy arrays on every device of the mesh; what was placed stays as it is."""
  everywhere = NamedSharding(speaker.mesh, P())
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else place(np.asarray(x), everywhere), values
  )


@contextlib.contextmanager
def in_own_words():
  """Names fields of a config in messages as the flags that set them here."""
  try:
    yield
  except UserError as e:
    error = UserError(own_words(str(e)))
    error.exit_code = e.exit_code
    raise error from e


def own_words(text: str) -> str:
  """ "--config.generate.top_k=-1 ..." -> "--top_k=-1 ..."."""
  fields = "|".join(default_config().generate)
  text = text.replace("--config.model.source", "--model").replace("--workdir=", "--model=")
  text = text.replace("--config.model.compute_dtype", "--dtype")
  return re.sub(
    rf"(?:--config\.|(?<![\w/.\\-]))generate\.({fields})\b",
    lambda m: f"--{_FLAGS.get(m[1], m[1])}",
    text,
  )
