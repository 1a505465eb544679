"""What an entry of data.train names, in one step; compressed content for it."""

import pyarrow as pa

from simpo_jax.data.sources import open_source, read_files


def find_files(source):
  """The files of a source that has one split."""
  return open_source(source).files()


def read_source(source, columns):
  """All (row id, row) of a source, as a run reads them."""
  return read_files(source, find_files(source), columns)


def zstd(content):
  """Bytes that Zstandard packs."""
  out = pa.BufferOutputStream()
  with pa.CompressedOutputStream(out, "zstd") as stream:
    stream.write(content)
  return out.getvalue().to_pybytes()
