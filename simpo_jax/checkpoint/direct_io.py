"""The arrays of a checkpoint on a local disk, as Orbax lays them out without OCDBT.

Every array is a folder in format 2 of zarr, uncompressed: a chunk is the bytes of a shard, or
of one layer of it. TensorStore, by which Orbax writes them, leaves them in the system's cache
of files: memory that the next step could use, and that is slow to get where it was not used of
late (virtual machines). Here they go past it (O_DIRECT), where the disk's file system can do
so, and their SHA-256 is taken on the way: each process takes that of what it writes.
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

_DIGESTS = "digests_{}.json"  # of a process: SHA-256 of the files that it wrote, by name
_DIRECT = getattr(os, "O_DIRECT", 0)
_BLOCK = 4096  # bytes; what O_DIRECT writes are multiples of
_PIECE = 1 << 20  # bytes written at once; stays in the processor's cache while it is hashed
_WRITERS = 8  # threads of a process, at most
_SHARDINGS = {
  jax.sharding.NamedSharding: ocp.metadata.NamedShardingMetadata,
  jax.sharding.SingleDeviceSharding: ocp.metadata.SingleDeviceShardingMetadata,
}


class _Chunk(NamedTuple):
  name: str  # its path within the checkpoint
  data: np.ndarray


class LocalArrays(ocp.type_handlers.ArrayHandler):
  """Has Orbax save arrays as above, and restore as ever.

  Args of `ocp.SaveArgs` are heeded in part: `shard_axes=(0,)` makes a chunk of every layer.
  """

  def __init__(self):
    super().__init__(use_replica_parallel=False)

  async def serialize(
    self,
    values: Sequence[jax.Array],
    infos: Sequence[ocp.type_handlers.ParamInfo],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> list[future.Future]:
    """Brings the arrays to the host and returns; their files are written in the background."""
    own = [[s for s in x.addressable_shards if s.replica_id == 0] for x in values]
    for shards in own:
      for shard in shards:
        shard.data.copy_to_host_async()
    args = args or [ocp.SaveArgs()] * len(values)
    specs, chunks = {}, []
    for x, shards, info, arg in zip(values, own, infos, args, strict=True):
      shape = x.sharding.shard_shape(x.shape)
      if arg.shard_axes == (0,):
        shape = (1, *shape[1:])
      specs[info.name] = _spec(x, shape)
      for shard in shards:
        chunks += _chunks(info.name, shard, shape)
    shardings = {info.name: x.sharding for info, x in zip(infos, values, strict=True)}
    writing = _write(infos[0], specs, shardings, chunks)
    return [future.CommitFutureAwaitingContractedSignals(writing, name="arrays")]


def read_digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of the files that the processes wrote, by name; removes their lists of them."""
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
  """Of one shard: either all of it, or its layers."""
  data = np.asarray(shard.data)
  first = [(part.start or 0) // size for part, size in zip(shard.index, shape, strict=True)]
  numbers, parts = [first], [data]
  if data.shape != shape:
    numbers, parts = [[first[0] + i, *first[1:]] for i in range(len(data))], data
  return [
    _Chunk(f"{name}/{'.'.join(map(str, number)) or 0}", part)
    for number, part in zip(numbers, parts, strict=True)
  ]


async def _write(
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
  writers = min(_WRITERS, os.cpu_count() or 1)
  with concurrent.futures.ThreadPoolExecutor(writers) as pool:
    parts = pool.map(lambda i: _write_chunks(folder, chunks[i::writers]), range(writers))
    digests = {name: digest for part in parts for name, digest in part.items()}
  for name in specs:
    _flush(folder / name)
  (folder / _DIGESTS.format(jax.process_index())).write_text(json.dumps(digests))


def _shardings_text(shardings: dict[str, jax.sharding.Sharding]) -> str:
  """Where the arrays were, for Orbax to restore them if it is not told where to; its format."""
  return json.dumps(
    {
      base64.urlsafe_b64encode(name.encode()).decode(): _SHARDINGS[type(sharding)]
      .from_jax_sharding(sharding)
      .to_serialized_string()
      for name, sharding in shardings.items()
    }
  )


def _write_chunks(folder: pathlib.Path, chunks: Sequence[_Chunk]) -> dict[str, str]:
  """Writes them one after the other; their SHA-256 by name."""
  buffer = np.frombuffer(mmap.mmap(-1, _PIECE), np.uint8)  # begins where a page of memory does
  return {name: _write_file(folder / name, data, buffer) for name, data in chunks}


def _write_file(path: pathlib.Path, data: np.ndarray, buffer: np.ndarray) -> str:
  data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
  try:
    return _write_bytes(path, data, buffer, _DIRECT)
  except OSError as e:
    if e.errno != errno.EINVAL:
      raise
    return _write_bytes(path, data, buffer, 0)  # a file system that is not written so


def _write_bytes(path: pathlib.Path, data: np.ndarray, buffer: np.ndarray, flags: int) -> str:
  digest = hashlib.sha256()
  file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
  try:
    for start in range(0, len(data), len(buffer)):
      piece = data[start : start + len(buffer)]
      np.copyto(buffer[: len(piece)], piece)
      digest.update(buffer[: len(piece)].data)
      left = buffer[: -(-len(piece) // _BLOCK) * _BLOCK].data
      while left:
        left = left[os.write(file, left) :]
    os.ftruncate(file, len(data))
    os.fsync(file)
  finally:
    os.close(file)
  return digest.hexdigest()


def _flush(folder: pathlib.Path) -> None:
  """Has the names of the files in it on the disk, too."""
  file = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(file)
  finally:
    os.close(file)
