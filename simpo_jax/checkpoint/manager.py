"""Saves and restores train states with Orbax, in the background and atomically.

Nothing here compiles or launches a device program: arrays are copied to the host by shard, and
processes synchronize through the barriers of JAX's coordination service.
"""

import concurrent.futures
import contextlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from simpo_jax import storage
from simpo_jax.checkpoint.cpu_copies import allocate_buffers, copy_on_cpu
from simpo_jax.checkpoint.direct_io import LocalArrays, read_digests
from simpo_jax.checkpoint.layout import (
  METADATA,
  TEMPORARY,
  Position,
  positions,
  read_metadata,
  to_remove,
  with_checksum,
)
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage import digests
from simpo_jax.train.step import TrainState
from simpo_jax.workdir import files

_WRITTEN_AT_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt", METADATA)
_PARAMS, _AVERAGE = "['params']", "['average']"  # prefixes of the paths of arrays


class Checkpoints:
  """Writes a run's checkpoints; every process must call it at the same positions.

  Args:
    folder: of the checkpoints; all processes must see the same folder.
    keep: number of most recent checkpoints to keep.
    keep_every: also keep the checkpoints of every step divisible by it; 0: keep no others.
    low_priority: whether writing threads yield the CPU to all others.

  Attributes:
    saved: position of the last save; it may still be in progress.
    seconds: for each save: its step, start time, and the seconds for which it blocked the run.
  """

  def __init__(self, folder: storage.Path, keep: int, keep_every: int, low_priority: bool = True):
    self._folder, self._keep, self._keep_every = folder, keep, keep_every
    self._is_primary = jax.process_index() == 0
    self._pending: tuple[str, dict[str, Any]] | None = None
    self._buffers: concurrent.futures.Future | None = None
    # Threads inherit the priority of their parent, so Orbax's threads get this one's, too.
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, initializer=_lower_priority if low_priority else None
    )
    self._orbax = self._thread.submit(_checkpointer, folder, self._write_metadata).result()
    self.saved: Position | None = None
    self.seconds: list[dict[str, Any]] = []

  def prepare(self, state: TrainState) -> concurrent.futures.Future:
    """Allocates, in the background, the buffers that saving a state needs on CPU.

    Args:
      state: arrays, or their shapes and shardings.
    """
    self._buffers = self._thread.submit(allocate_buffers, _tree(state))
    return self._buffers

  def save(self, position: Position, state: TrainState, metadata: dict[str, Any]) -> None:
    """Copies the state to the host and returns; the files are written in the background.

    The state may be donated immediately afterwards. Waits for the previous save.

    Args:
      metadata: for `simpo_jax.json`, to which position, arrays and files are added.

    Raises:
      UserError: this save or the previous one could not be written.
    """
    start = time.perf_counter()
    self.wait()
    with _write_errors_as_user_errors(self._folder):
      if self._is_primary and not storage.is_remote(self._folder):
        self._folder.mkdir(exist_ok=True)
      self._pending = (
        position.name,
        {**metadata, "position": position._asdict(), "arrays": array_specs(_tree(state))},
      )
      buffers = self._buffers or self.prepare(state)
      tree = jax.tree.map(copy_on_cpu, _tree(state), buffers.result())
      args = ocp.args.PyTreeSave(tree, save_args=save_args_by_layer(tree))
      self._thread.submit(self._orbax.save, self._folder / position.name, args=args).result()
    self.saved = position
    seconds = round(time.perf_counter() - start, 4)
    start_time = round(time.time() - seconds, 3)
    self.seconds.append({"step": position.step, "seconds": seconds, "start": start_time})

  def wait(self) -> None:
    """Blocks until the last save is committed, then removes checkpoints no longer kept."""
    with _write_errors_as_user_errors(self._folder):
      self._orbax.wait_until_finished()
    if self._is_primary and self._pending:
      for position in to_remove(positions(self._folder), self._keep, self._keep_every):
        with contextlib.suppress(*storage.failures()):
          storage.remove_tree(self._folder / position.name)
    self._pending = None

  def close(self) -> None:
    """Waits for a save in progress, whose errors are ignored, and ends the threads."""
    with contextlib.suppress(Exception):
      self._orbax.close()
    self._thread.shutdown()

  def _write_metadata(self) -> None:
    """Writes `simpo_jax.json` just before the commit; Orbax calls this on process 0 only."""
    assert self._pending
    name, metadata = self._pending
    folder, hashes = self._folder / name, {}
    if isinstance(self._folder, pathlib.Path):
      [folder] = self._folder.glob(f"{name}.{TEMPORARY}*")
      hashes = read_digests(folder)
    sizes = {
      name: size
      for name, size in storage.sizes(folder).items()
      if name.rpartition("/")[2] not in _WRITTEN_AT_COMMIT
    }
    hashes |= digests.of_files(folder, [name for name in sizes if name not in hashes])
    metadata = with_checksum(
      {**metadata, "files": {name: [sizes[name], hashes[name]] for name in sizes}}
    )
    files.write_json(folder / METADATA, metadata)


def restore(folder: storage.Path, abstract: TrainState) -> TrainState:
  """Restores a state with the shardings of `abstract`, whatever mesh saved it."""
  return TrainState(**_restore(folder, _tree(abstract)))


def restore_weights(folder: storage.Path, abstract: TrainState) -> Any:
  """Restores the weights that evaluation uses: the average of those that have one."""
  tree = _weights(read_metadata(folder)["arrays"], abstract.params)
  restored = _restore(folder, tree, partial=True)
  return {name: part for weights in restored.values() for name, part in weights.items()}


def check_fits(folder: storage.Path, abstract: TrainState, weights_only: bool) -> None:
  """Raises a UserError unless a checkpoint's arrays have the shapes and dtypes of this state.

  Args:
    weights_only: whether to compare only the weights, and only their shapes.
  """
  there = read_metadata(folder)["arrays"]
  here = array_specs(_tree(abstract))
  if weights_only:
    here = array_specs(_weights(there, abstract.params))
    there = {
      name: a
      for name, a in there.items()
      if name.startswith(_AVERAGE)
      or (name.startswith(_PARAMS) and name.replace(_PARAMS, _AVERAGE, 1) not in there)
    }
    # Weights are cast to this run's dtype.
    here, there = ({name: a[:1] for name, a in arrays.items()} for arrays in (here, there))
  for name in {**here, **there}:
    if here.get(name) != there.get(name):
      raise UserError(
        f"{folder} does not fit this run: {name} is {there.get(name, 'absent')} there and "
        f"{here.get(name, 'absent')} here; use the model and the train settings it was made with"
      )


def _weights(there: dict[str, list], params: dict[str, Any]) -> dict[str, Any]:
  """The tree of weights to restore: from "average" where the checkpoint has one, else "params"."""
  averaged = [n for n in params if any(a.startswith(f"{_AVERAGE}['{n}']") for a in there)]
  average = {name: params[name] for name in averaged}
  rest = {name: part for name, part in params.items() if name not in averaged}
  return {what: tree for what, tree in (("params", rest), ("average", average)) if tree}


def array_specs(tree: Any) -> dict[str, list]:
  """Shape and dtype of every array by its path, as JSON values."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p): [list(x.shape), np.dtype(x.dtype).name] for p, x in leaves}


def _tree(state: TrainState) -> dict[str, Any]:
  return {name: part for name, part in state._asdict().items() if part is not None}


def _lower_priority() -> None:
  """Gives this thread the lowest priority, where the system allows it."""
  with contextlib.suppress(AttributeError, OSError):
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def save_args_by_layer(tree: dict[str, Any]) -> dict[str, Any]:
  """Orbax's SaveArgs, with a chunk per layer for the stacked weight matrices.

  So `models/hf_weights.py` can read one layer at a time.
  """

  def args(path: tuple[Any, ...], x: jax.Array) -> ocp.SaveArgs:
    stacked = path[0].key in ("params", "average") and len(x.shape) == 3
    return ocp.SaveArgs(shard_axes=(0,) if stacked else ())

  return jax.tree_util.tree_map_with_path(args, tree)


def _restore(folder: storage.Path, tree: Any, partial: bool = False) -> Any:
  args = ocp.args.PyTreeRestore(
    item=tree,
    restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
    partial_restore=partial,
  )
  with contextlib.closing(_checkpointer(folder)) as checkpointer:
    return checkpointer.restore(folder, args=args)


def _checkpointer(
  folder: storage.Path, before_commit: Callable[[], None] | None = None
) -> ocp.AsyncCheckpointer:
  # With `active_processes` Orbax uses the coordination service's barriers. Without, it would
  # launch a collective.
  processes = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes=set(range(jax.process_count()))
  )
  local = not storage.is_remote(folder)
  # `use_replica_parallel` would launch programs that slice replicated arrays.
  arrays = LocalArrays() if local else ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  handler = ocp.PyTreeCheckpointHandler(
    type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
    multiprocessing_options=processes,
    use_ocdbt=not local,  # `models/hf_weights.py` reads the files without OCDBT
    use_zarr3=False,
    enable_pinned_host_transfer=False,
    use_compression=False,  # weights hardly compress, and the next step needs the CPU
  )
  logging.getLogger("absl").setLevel(logging.ERROR)
  return ocp.AsyncCheckpointer(
    handler,
    multiprocessing_options=processes,
    async_options=ocp.options.AsyncOptions(
      post_finalization_callback=before_commit, create_directories_asynchronously=False
    ),
  )


@contextlib.contextmanager
def _write_errors_as_user_errors(folder: storage.Path):
  """Turns errors while writing a checkpoint into UserErrors."""
  try:
    yield
  # TensorStore reports a full disk as any of these.
  except (*storage.failures(), ValueError, RuntimeError) as e:
    last = positions(folder)
    last_good = f"the last good one is {last[-1].name}" if last else "there is none yet"
    raise UserError(
      f"a checkpoint could not be written in {folder} ({one_line(e)}); {last_good}; free space or "
      "fix the storage, then start the same command again"
    ) from e
