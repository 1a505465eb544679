"""Finds and reads the rows that an entry of data.train, data.eval or generate.prompts names.

An entry is a file, a folder, FOLDER:PATTERN, a glob, a dataset on the hub, ORG/NAME[:PATTERN], or a
link, https://...; files and folders may be in a bucket. What is not on this machine is fetched into
a cache.
"""

import glob
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from simpo_jax import storage
from simpo_jax.data.file_chunks import File
from simpo_jax.data.readers import download, hub, links, splits
from simpo_jax.data.readers.compressed import PAIRS, Kinds
from simpo_jax.data.readers.splits import Split
from simpo_jax.data.row_files import find_file, read_rows
from simpo_jax.data.rows.fields import FIELDS, check_columns, rename_all
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import is_link

_GLOB = "*?["


class Source(NamedTuple):
  """What an entry names, listed but not fetched yet.

  Attributes:
    name: the entry, for messages.
    splits: at least one.
    others: files that are left out, since they are of no known kind.
    fetch: returns the files of these names, downloaded if need be; raises UserError.
    revision: ORG/NAME...@COMMIT of a dataset on the hub; "" otherwise.
  """

  name: str
  splits: list[Split]
  others: tuple[str, ...]
  fetch: Callable[[Sequence[str]], list[File]]
  revision: str = ""

  def files(self, kind: str = "") -> list[File]:
    """Fetches the files of the only split, or of the only one of a kind; see `splits.choose`."""
    return self.fetch(splits.choose(self.name, self.splits, kind).names)

  def left_out(self) -> tuple[str, ...]:
    """Says, in a line, which files are left out; no line if none is."""
    if not self.others:
      return ()
    return (f"{self.name}: not read, being of no known kind: {splits.listed(self.others)}",)


def open_source(source: str, kinds: Kinds = PAIRS) -> Source:
  """Lists the files that an entry names.

  Args:
    source: as the user wrote it.
    kinds: of the files that are taken.

  Raises:
    UserError: there is no such thing, or nothing of a known kind in it.
  """
  if hub.is_hub_source(source):
    return _hub_source(source, kinds)
  if is_link(source):
    return _single(source, links.file_name(source), lambda: links.fetch(source))
  folder, pattern = _folder_and_pattern(source)
  if folder is not None:
    return _folder_source(source, folder, pattern, kinds)
  if not storage.is_remote(source) and any(c in source for c in _GLOB):
    if not storage.open_path(source, "data").exists():
      return _glob_source(source, kinds)
  name = source.rpartition("/")[2]
  return _single(source, name, lambda: find_file(source))


def read_files(
  source: str,
  files: Sequence[File],
  columns: Mapping[str, str],
  fields: Collection[str] = FIELDS,
  kinds: Kinds = PAIRS,
  check: bool = True,
) -> Iterator[tuple[str, Any]]:
  """Yields (row id, row) of all rows of files, in order, with mapped columns renamed.

  Of tables only the columns in `fields` and the mapped ones are decoded; all others have the value
  `rows.fields.UNREAD`.

  Args:
    source: the entry that names the files, for messages.
    columns: {field: column}, from `rows.fields.parse_columns`.
    kinds: of the files, and of their rows; see `row_files.read_rows`.
    check: whether each mapped column must be there.

  Raises:
    UserError: a file cannot be read, or no row has a mapped column.
  """
  used = {*fields, *columns.values()}
  seen: dict[str, None] = {}
  for file in files:
    for row_id, row in rename_all(read_rows(file.path, used, kinds), columns, seen):
      yield f"{file.name}:{row_id.rpartition(':')[2]}", row
  if check:
    check_columns(columns, seen, source)


def _single(source: str, name: str, fetch: Callable[[], pathlib.Path]) -> Source:
  def files(names: Sequence[str]) -> list[File]:
    file = fetch()
    return [File(str(file), file.name) for _ in names]

  return Source(source, [Split(name, "", (name,))], (), files)


def _folder_and_pattern(source: str) -> tuple[storage.Path | None, str | None]:
  """(folder, pattern) of FOLDER or FOLDER:PATTERN; (None, None) if it is neither."""
  scheme, separator, rest = source.rpartition("://")  # empty for local paths
  place, colon, pattern = rest.partition(":")
  if not (colon and any(c in source for c in _GLOB)):
    path = storage.open_path(source, "data")
    if path.is_dir():
      return path, None
  while colon:
    path = storage.open_path(f"{scheme}{separator}{place}", "data")
    if path.is_dir():
      return path, pattern
    more, colon, pattern = pattern.partition(":")
    place = f"{place}:{more}"
  return None, None


def _folder_source(source: str, folder: storage.Path, pattern: str | None, kinds: Kinds) -> Source:
  names = list(storage.sizes(folder))
  _refuse_prepared(source, names)

  def read(name: str) -> dict[str, Any]:
    try:
      return _json_object((folder / name).read_bytes())
    except (*storage.failures(), ValueError, RecursionError) as error:
      raise UserError(f"{folder / name} cannot be read ({one_line(error)})") from error

  def fetch(chosen: Sequence[str]) -> list[File]:
    here = download.fetch(folder, chosen) if storage.is_remote(folder) else folder
    return [File(str(here / name), name) for name in chosen]

  return _grouped(source, names, pattern, kinds, read, fetch)


def _refuse_prepared(source: str, names: Sequence[str]) -> None:
  if any(".array_record" in name or ".tfrecord" in name for name in names):
    raise UserError(f"{source} holds a prepared dataset; name it as tfds:{source}")


def _json_object(content: bytes) -> dict[str, Any]:
  value = json.loads(content)
  if not isinstance(value, dict):
    raise ValueError("it must hold an object")
  return value


def _grouped(
  source: str,
  names: Sequence[str],
  pattern: str | None,
  kinds: Kinds,
  read: Callable[[str], dict[str, Any]],
  fetch: Callable[[Sequence[str]], list[File]],
  merge: bool = True,
) -> Source:
  """The source of a folder or a dataset on the hub.

  Args:
    names: of all files in it, in order.
    read: returns the content of a .json file.
    merge: see `splits.group`.
  """
  found = splits.data_files(names, kinds)
  states = [name for name in found.others if name.rpartition("/")[2] == "state.json"]
  data = splits.saved_files([*found.data, *states], read)
  if not data:
    raise UserError(
      f"{source} holds no file of a known kind; the name must end in {kinds}"
      + (f"; there are {splits.listed(found.others)}" if found.others else "")
    )
  dictionary = "dataset_dict.json" in found.others
  if pattern is not None:
    grouped = [Split(pattern, "", tuple(splits.matching(source, data, pattern)))]
  else:
    grouped = splits.group(data, dictionary, merge)
  others = tuple(name for name in found.others if not splits.is_metadata(name, names))
  return Source(source, grouped, others, fetch)


def _hub_source(source: str, kinds: Kinds) -> Source:
  dataset = hub.open_dataset(source)

  def read(name: str) -> dict[str, Any]:
    [path] = hub.download(dataset, [name])
    try:
      return _json_object(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
      raise UserError(f"{source}: {name} cannot be read ({one_line(error)})") from error

  def fetch(chosen: Sequence[str]) -> list[File]:
    paths = hub.download(dataset, chosen)
    return [File(path, name) for path, name in zip(paths, chosen, strict=True)]

  found = _grouped(source, dataset.files, dataset.pattern, kinds, read, fetch, merge=False)
  return found._replace(others=(), revision=f"{source}@{dataset.commit}")


def _glob_source(source: str, kinds: Kinds) -> Source:
  parts = storage.open_path(source, "data").parts
  first = next(i for i, part in enumerate(parts) if any(c in part for c in _GLOB))
  root, pattern = pathlib.Path(*parts[:first]), os.sep.join(parts[first:])
  names = sorted(glob.glob(pattern, root_dir=root, recursive=True), key=lambda n: n.split("/"))
  found = splits.data_files([n for n in names if (root / n).is_file()], kinds)
  if not found.data:
    there = f"; there are {splits.listed(found.others)}" if found.others else ""
    raise UserError(
      f"{source} matches no file of a known kind; the name must end in {kinds}{there}"
    )

  def fetch(chosen: Sequence[str]) -> list[File]:
    return [File(str(root / name), name) for name in chosen]

  return Source(source, [Split(pattern, "", found.data)], found.others, fetch)
