"""Writes the arrays of a checkpoint to a local disk, in Orbax's layout without OCDBT.

Every array is a folder in Zarr v2 format, uncompressed; a chunk holds a shard, or one layer of
it. TensorStore, which Orbax uses by default, writes through the page cache. That takes memory
that the next step could use, and on virtual machines new memory is slow to allocate. So files
are written with O_DIRECT where the file system supports it. Each process computes the SHA-256
of its files while writing them.
"""

import base64
import concurrent.futures
import errno
import hashlib
import json
import mmap
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import future

from simpo_jax.arith import round_up

_DIGESTS = "digests_{}.json"  # by process index: SHA-256 of the files it wrote
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_ALIGNMENT = 4096  # bytes; O_DIRECT requires multiples of it
_BUFFER_BYTES = 1 << 20  # per write; fits into the CPU's cache, where it is hashed
_MAX_THREADS = 8  # per process
_SHARDINGS = {
  jax.sharding.NamedSharding: ocp.metadata.NamedShardingMetadata,
  jax.sharding.SingleDeviceSharding: ocp.metadata.SingleDeviceShardingMetadata,
}


class _Chunk(NamedTuple):
  name: str  # path within the checkpoint
  data: np.ndarray


class LocalArrays(ocp.type_handlers.ArrayHandler):
  """An Orbax handler that saves arrays as described above; restoring is Orbax's.

  Of `ocp.SaveArgs` only `shard_axes` is supported: (0,) makes each layer a chunk.
  """

  def __init__(self):
    super().__init__(use_replica_parallel=False)

  async def serialize(
    self,
    values: Sequence[jax.Array],
    infos: Sequence[ocp.type_handlers.ParamInfo],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> list[future.Future]:
    """Copies the arrays to the host and returns; the files are written in the background."""
    primary = [[s for s in x.addressable_shards if s.replica_id == 0] for x in values]
    for shards in primary:
      for shard in shards:
        shard.data.copy_to_host_async()
    args = args or [ocp.SaveArgs()] * len(values)
    specs, chunks = {}, []
    for x, shards, info, arg in zip(values, primary, infos, args, strict=True):
      shape = x.sharding.shard_shape(x.shape)
      if arg.shard_axes == (0,):
        shape = (1, *shape[1:])
      specs[info.name] = _spec(x, shape)
      for shard in shards:
        chunks += _chunks(info.name, shard, shape)
    shardings = {info.name: x.sharding for info, x in zip(infos, values, strict=True)}
    writing = _write_arrays(infos[0], specs, shardings, chunks)
    return [future.CommitFutureAwaitingContractedSignals(writing, name="arrays")]


def read_digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of all files that the processes wrote, by name; removes the files that list them."""
  found = {}
  for path in folder.glob(_DIGESTS.format("*")):
    found |= json.loads(path.read_text())
    path.unlink()
  return found


def _spec(x: jax.Array, chunk: tuple[int, ...]) -> dict[str, Any]:
  return {
    "driver": "zarr",
    "dtype": np.dtype(x.dtype).name,
    "metadata": {"shape": x.shape, "chunks": chunk, "compressor": None},
  }


def _chunks(name: str, shard: jax.Shard, shape: tuple[int, ...]) -> list[_Chunk]:
  """The chunks of a shard: one, or one per layer if that is the chunks' shape."""
  data = np.asarray(shard.data)
  first = [(part.start or 0) // size for part, size in zip(shard.index, shape, strict=True)]
  indices, parts = [first], [data]
  if data.shape != shape:
    indices, parts = [[first[0] + i, *first[1:]] for i in range(len(data))], data
  return [
    _Chunk(f"{name}/{'.'.join(map(str, index)) or 0}", part)
    for index, part in zip(indices, parts, strict=True)
  ]


async def _write_arrays(
  info: ocp.type_handlers.ParamInfo,
  specs: dict[str, dict[str, Any]],
  shardings: dict[str, jax.sharding.Sharding],
  chunks: list[_Chunk],
) -> None:
  await info.await_path_creation()
  folder = pathlib.Path(info.parent_dir)
  for name in specs:
    (folder / name).mkdir(exist_ok=True)
  if jax.process_index() == 0:
    for name, spec in specs.items():
      kvstore = {"driver": "file", "path": f"{folder / name}/"}
      await tensorstore.open({**spec, "kvstore": kvstore}, create=True)
    (folder / "_sharding").write_text(_shardings_text(shardings))
  chunks = sorted(chunks, key=lambda chunk: -chunk.data.nbytes)
  threads = min(_MAX_THREADS, os.cpu_count() or 1)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    parts = pool.map(lambda i: _write_chunks(folder, chunks[i::threads]), range(threads))
    digests = {name: digest for part in parts for name, digest in part.items()}
  for name in specs:
    _fsync_folder(folder / name)
  (folder / _DIGESTS.format(jax.process_index())).write_text(json.dumps(digests))


def _shardings_text(shardings: dict[str, jax.sharding.Sharding]) -> str:
  """Content of Orbax's `_sharding` file: its default shardings when it restores the arrays."""
  return json.dumps(
    {
      base64.urlsafe_b64encode(name.encode()).decode(): _SHARDINGS[type(sharding)]
      .from_jax_sharding(sharding)
      .to_serialized_string()
      for name, sharding in shardings.items()
    }
  )


def _write_chunks(folder: pathlib.Path, chunks: Sequence[_Chunk]) -> dict[str, str]:
  """Writes chunks one after another; returns their SHA-256 by name."""
  buffer = np.frombuffer(mmap.mmap(-1, _BUFFER_BYTES), np.uint8)  # page-aligned
  return {name: _write_file(folder / name, data, buffer) for name, data in chunks}


def _write_file(path: pathlib.Path, data: np.ndarray, buffer: np.ndarray) -> str:
  data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
  try:
    return _write_bytes(path, data, buffer, _O_DIRECT)
  except OSError as e:
    if e.errno != errno.EINVAL:
      raise
    return _write_bytes(path, data, buffer, 0)  # the file system does not support O_DIRECT


def _write_bytes(path: pathlib.Path, data: np.ndarray, buffer: np.ndarray, flags: int) -> str:
  digest = hashlib.sha256()
  file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
  try:
    for start in range(0, len(data), len(buffer)):
      piece = data[start : start + len(buffer)]
      np.copyto(buffer[: len(piece)], piece)
      digest.update(buffer[: len(piece)].data)
      left = buffer[: round_up(len(piece), _ALIGNMENT)].data
      while left:
        left = left[os.write(file, left) :]
    os.ftruncate(file, len(data))
    os.fsync(file)
  finally:
    os.close(file)
  return digest.hexdigest()


def _fsync_folder(folder: pathlib.Path) -> None:
  """Makes the folder's entries durable: fsync of a file does not cover its name."""
  file = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(file)
  finally:
    os.close(file)
