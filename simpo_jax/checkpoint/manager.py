"""Train states in checkpoints, by Orbax: written in the background, committed by a rename.

Nothing here launches a device program or compiles: arrays go to the host shard by shard, and
processes meet at the barriers of jax's coordination service.
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
from simpo_jax.checkpoint.cpu_copies import copied, copies_for
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

_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt", METADATA)  # by the commit itself
_PARAMS, _AVERAGE = "['params']", "['average']"  # how the paths of their arrays begin


class Checkpoints:
  """Writes a run's checkpoints; every process calls it at the same positions.

  Args:
    folder: of the checkpoints; all processes must see the same.
    keep: how many of the newest are kept.
    keep_every: those of every so many steps are kept beside them; 0: no others.
    patient: whether writing leaves the processor to everything else.
  """

  def __init__(self, folder: storage.Path, keep: int, keep_every: int, patient: bool = True):
    self._folder, self._keep, self._keep_every = folder, keep, keep_every
    self._main = jax.process_index() == 0
    self._pending: tuple[str, dict[str, Any]] | None = None
    self._memory: concurrent.futures.Future | None = None
    # Threads inherit the priority of the one that starts them: all that write leave the
    # processor to the next step.
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, initializer=_yield_processor if patient else None
    )
    self._orbax = self._thread.submit(_checkpointer, folder, self._seal).result()
    self.saved: Position | None = None  # the last one begun
    self.seconds: list[dict[str, Any]] = []  # that the run waited for each

  def prepare(self, state: TrainState) -> concurrent.futures.Future:
    """Gets, in the background, the memory that saving such a state beside a step will take.

    Args:
      state: or its shapes and shardings.
    """
    self._memory = self._thread.submit(copies_for, _tree(state))
    return self._memory

  def save(self, position: Position, state: TrainState, metadata: dict[str, Any]) -> None:
    """Copies the state to the host and returns; the files are written in the background.

    The state may be donated right after. Waits for the save before this one.

    Args:
      metadata: what `simpo_jax.json` is to say, beside the files; JSON.

    Raises:
      UserError: this save, or the one before, could not be written.
    """
    start = time.perf_counter()
    self.wait()
    with _told(self._folder):
      if self._main and not storage.is_remote(self._folder):
        self._folder.mkdir(exist_ok=True)
      self._pending = (
        position.name,
        {**metadata, "position": position._asdict(), "arrays": arrays_of(_tree(state))},
      )
      memory = self._memory or self.prepare(state)
      tree = jax.tree.map(copied, _tree(state), memory.result())
      args = ocp.args.PyTreeSave(tree, save_args=by_layer(tree))
      self._thread.submit(self._orbax.save, self._folder / position.name, args=args).result()
    self.saved = position
    seconds = round(time.perf_counter() - start, 4)
    began = round(time.time() - seconds, 3)
    self.seconds.append({"step": position.step, "seconds": seconds, "start": began})

  def wait(self) -> None:
    """Until the last save is committed; then removes those that are not to be kept."""
    with _told(self._folder):
      self._orbax.wait_until_finished()
    if self._main and self._pending:
      for position in to_remove(positions(self._folder), self._keep, self._keep_every):
        with contextlib.suppress(*storage.failures()):
          storage.remove_tree(self._folder / position.name)
    self._pending = None

  def close(self) -> None:
    """Ends the threads; what is being written is waited for, its errors are not told."""
    with contextlib.suppress(Exception):
      self._orbax.close()
    self._thread.shutdown()

  def _seal(self) -> None:
    """Writes simpo_jax.json into what is about to be committed; process 0, in the background."""
    assert self._pending
    name, metadata = self._pending
    folder, taken = self._folder / name, {}
    if isinstance(self._folder, pathlib.Path):
      [folder] = self._folder.glob(f"{name}.{TEMPORARY}*")
      taken = read_digests(folder)
    found = {
      name: size
      for name, size in storage.sizes(folder).items()
      if name.rpartition("/")[2] not in _WRITTEN_LATER
    }
    taken |= digests.of_files(folder, [name for name in found if name not in taken])
    metadata = with_checksum(
      {**metadata, "files": {name: [found[name], taken[name]] for name in found}}
    )
    files.write_json(folder / METADATA, metadata)


def restore(folder: storage.Path, abstract: TrainState) -> TrainState:
  """The state of a checkpoint, laid out as `abstract` says, whatever mesh wrote it."""
  return TrainState(**_read(folder, _tree(abstract)))


def restore_weights(folder: storage.Path, abstract: TrainState) -> Any:
  """The weights that a checkpoint evaluates with: their average where it has one."""
  tree = _weights(read_metadata(folder)["arrays"], abstract.params)
  read = _read(folder, tree, partial=True)
  return {name: part for of in read.values() for name, part in of.items()}


def check_fits(folder: storage.Path, abstract: TrainState, weights_only: bool) -> None:
  """Raises a UserError if a checkpoint's arrays are not those of this state."""
  there = read_metadata(folder)["arrays"]
  here = arrays_of(_tree(abstract))
  if weights_only:
    here = arrays_of(_weights(there, abstract.params))
    there = {
      name: a
      for name, a in there.items()
      if name.startswith(_AVERAGE)
      or (name.startswith(_PARAMS) and name.replace(_PARAMS, _AVERAGE, 1) not in there)
    }
    # Any dtype is cast to this run's.
    here, there = ({name: a[:1] for name, a in arrays.items()} for arrays in (here, there))
  for name in {**here, **there}:
    if here.get(name) != there.get(name):
      raise UserError(
        f"{folder} does not fit this run: {name} is {there.get(name, 'absent')} there and "
        f"{here.get(name, 'absent')} here; use the model and the train settings it was made with"
      )


def _weights(there: dict[str, list], params: dict[str, Any]) -> dict[str, Any]:
  """Weights by where a checkpoint with these arrays has them: what trained may be averaged."""
  averaged = [n for n in params if any(a.startswith(f"{_AVERAGE}['{n}']") for a in there)]
  average = {name: params[name] for name in averaged}
  rest = {name: part for name, part in params.items() if name not in averaged}
  return {what: tree for what, tree in (("params", rest), ("average", average)) if tree}


def arrays_of(tree: Any) -> dict[str, list]:
  """Shape and dtype of every array, by its path; JSON."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p): [list(x.shape), np.dtype(x.dtype).name] for p, x in leaves}


def _tree(state: TrainState) -> dict[str, Any]:
  return {name: part for name, part in state._asdict().items() if part is not None}


def _yield_processor() -> None:
  """Lets every other thread run before this one, where the system allows it."""
  with contextlib.suppress(AttributeError, OSError):
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def by_layer(tree: dict[str, Any]) -> dict[str, Any]:
  """How the arrays are cut up on disk: the matrices of the weights by layer.

  A reader without devices (`models/hf_weights.py`) then needs one layer's in memory.
  """

  def args(path: tuple[Any, ...], x: jax.Array) -> ocp.SaveArgs:
    stacked = path[0].key in ("params", "average") and len(x.shape) == 3
    return ocp.SaveArgs(shard_axes=(0,) if stacked else ())

  return jax.tree_util.tree_map_with_path(args, tree)


def _read(folder: storage.Path, tree: Any, partial: bool = False) -> Any:
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
  # Naming the processes makes Orbax meet at the coordination service's barriers. Without,
  # it launches a collective of its own.
  processes = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes=set(range(jax.process_count()))
  )
  local = not storage.is_remote(folder)
  # Replicated arrays are else cut up on the devices, so that all hosts write a part.
  arrays = LocalArrays() if local else ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  handler = ocp.PyTreeCheckpointHandler(
    type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
    multiprocessing_options=processes,
    use_ocdbt=not local,  # `models/hf_weights.py` reads these files by itself
    use_zarr3=False,
    enable_pinned_host_transfer=False,
    use_compression=False,  # weights hardly shrink, and the next step needs the processor
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
def _told(folder: storage.Path):
  """What goes wrong while writing, as the user's error."""
  try:
    yield
  # TensorStore tells of a full disk in any of these.
  except (*storage.failures(), ValueError, RuntimeError) as e:
    last = positions(folder)
    good = f"the last good one is {last[-1].name}" if last else "there is none yet"
    raise UserError(
      f"a checkpoint could not be written in {folder} ({one_line(e)}); {good}; free space or "
      "fix the storage, then start the same command again"
    ) from e
