"""Arrays of checkpoints in local files: Orbax alone reads them back, whatever the disk can do."""

import contextlib
import errno
import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from simpo_jax import storage
from simpo_jax.checkpoint import direct_io, manager
from simpo_jax.storage import digests

PIECE, BLOCK = direct_io._BUFFER_BYTES, direct_io._ALIGNMENT


def saved(folder, tree, by_layer=()):
  """Files as a run has them written."""
  args = {name: ocp.SaveArgs(shard_axes=(0,) if name in by_layer else ()) for name in tree}
  with contextlib.closing(manager._checkpointer(folder)) as writer:
    writer.save(folder, args=ocp.args.PyTreeSave(tree, save_args=args))
    writer.wait_until_finished()
  return folder


def check_sharded(folder):
  """In a process with eight devices: what is read, by Orbax alone, is what was saved."""
  spec = jax.sharding.PartitionSpec
  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def on(*axes):
    return jax.sharding.NamedSharding(mesh, spec(*axes))

  def array(shape, dtype, *axes):
    values = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape).astype(dtype)
    return jax.device_put(values, on(*axes))

  tree = {
    "both": array((3, 8, 6), jnp.float32, None, "fsdp", "tensor"),
    "layers": array((3, 8, 6), jnp.bfloat16, None, "tensor"),
    "layers_cut": array((4, 5, 6), jnp.float16, "fsdp", None, "tensor"),
    "joint": array((16, 3), jnp.int32, ("fsdp", "tensor")),
    "copies": array((5, 7), jnp.float32),
    "scalar": array((), jnp.int32),
  }
  saved(folder, tree, by_layer=("layers", "layers_cut"))
  found = {p.parent.name: 0 for p in folder.glob("*/.zarray")}
  for path in folder.glob("*/[0-9]*"):
    found[path.parent.name] += 1
  assert found == {
    "both": 8, "layers": 6, "layers_cut": 8, "joint": 8, "copies": 1, "scalar": 1,
  }  # fmt: skip
  as_saved = {name: x.sharding for name, x in tree.items()}
  copied = {name: on() for name in tree}
  for target, told in (
    (as_saved, False),
    (copied, True),
    ({**copied, "both": on(None, "fsdp")}, True),
  ):
    args = {name: ocp.ArrayRestoreArgs(sharding=sharding) for name, sharding in target.items()}
    with ocp.PyTreeCheckpointer() as reader:
      read = reader.restore(folder, restore_args=args if told else None)
    assert {name: x.sharding for name, x in read.items()} == target
    for name, x in tree.items():
      assert read[name].dtype == x.dtype
      np.testing.assert_array_equal(np.asarray(read[name]), np.asarray(x))


def test_orbax_alone_reads_sharded_arrays(tmp_path):
  done = subprocess.run(
    [sys.executable, __file__, str(tmp_path / "x")],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


@pytest.fixture(params=("direct", "cannot open", "cannot write"))
def disk(request, monkeypatch):
  """One that is written past the cache, and two whose file systems refuse it."""
  direct = direct_io._O_DIRECT
  opened, write = os.open, os.write
  files = {}

  def refusing_open(path, flags, *mode):
    if request.param == "cannot open" and flags & direct:
      raise OSError(errno.EINVAL, "Invalid argument")
    file = opened(path, flags, *mode)
    files[file] = flags
    return file

  def refusing_write(file, data):
    if request.param == "cannot write" and files.get(file, 0) & direct:
      raise OSError(errno.EINVAL, "Invalid argument")
    return write(file, data[: 3 * BLOCK])  # never all at once

  monkeypatch.setattr(os, "open", refusing_open)
  monkeypatch.setattr(os, "write", refusing_write)


@pytest.mark.parametrize(
  "size", (1, BLOCK - 1, BLOCK, BLOCK + 1, PIECE, PIECE + 1, 2 * PIECE + 777)
)
def test_files_of_any_size_on_any_disk(tmp_path, disk, size):
  data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
  (tmp_path / "x").write_bytes(bytes(3 * PIECE))  # left by another try
  [(name, digest)] = direct_io._write_chunks(tmp_path, [direct_io._Chunk("x", data)]).items()
  assert (tmp_path / name).read_bytes() == data.tobytes()
  assert digest == hashlib.sha256(data.tobytes()).hexdigest()


def test_arrays_of_any_layout_are_written_in_order_of_their_rows(tmp_path):
  data = np.arange(60, dtype=np.int16).reshape(5, 12).T
  direct_io._write_chunks(tmp_path, [direct_io._Chunk("x", data)])
  assert (tmp_path / "x").read_bytes() == data.tobytes()


def test_digests_are_those_of_the_files(tmp_path):
  folder = saved(tmp_path / "x", {"a": jnp.arange(5.0), "b": jnp.zeros((3, 4, 5))}, ("b",))
  found = direct_io.read_digests(folder)
  assert sorted(found) == ["a/0", "b/0.0.0", "b/1.0.0", "b/2.0.0"]
  assert found == digests.of_files(folder, found)
  assert not [n for n in storage.sizes(folder) if n.startswith("digests")], "read once"


def test_a_full_disk_is_told(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "write", full)
  with pytest.raises(OSError, match="No space left"):
    saved(tmp_path / "x", {"a": jnp.arange(5.0)})
  assert not (tmp_path / "x").exists()


if __name__ == "__main__":
  check_sharded(pathlib.Path(sys.argv[1]))
