"""Data in a bucket: what is read from there, and prepared there, is what it is on a disk."""

import contextlib
import json
import os

import pytest

from simpo_jax import storage
from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.prepared.dataset import open_prepared, verify
from simpo_jax.data.prompts import load_prompts
from simpo_jax.data.readers import download
from simpo_jax.errors import UserError
from simpo_jax.prepare.__main__ import prepare
from simpo_jax.settings import DataSettings, GenerateSettings
from simpo_jax.storage import bucket_lock
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.buckets import content, objects, put

pytestmark = pytest.mark.services

ROWS = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SIMPO_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(scope="module", params=("gs", "s3"))
def bucket(request):
  request.getfixturevalue({"gs": "emulator", "s3": "moto"}[request.param])
  return f"{request.param}://bucket"


@pytest.fixture(scope="module")
def out(bucket):
  """The folder of a dataset that was prepared into the bucket from the bucket."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SIMPO_JAX_CACHE", "/nowhere")  # every test has its own
    put(f"{bucket}/rows/a.jsonl", LINES.encode())
    put(f"{bucket}/rows/deep/b.jsonl", LINES.replace("Say", "Cry").encode())
  return storage.open_path(f"{bucket}/out", "--out")


def prepared(out, **options):
  return prepare([f"{out.parent}/rows"], out, "mine", **options)


def rows(source):
  return [source.read(i) for i in range(len(source))]


def test_a_file_is_read_as_from_a_disk(tmp_path, bucket):
  (tmp_path / "a.jsonl").write_text(LINES)
  put(f"{bucket}/a.jsonl", LINES.encode())
  data, tokenizer = DataSettings(), byte_tokenizer()
  local, _ = load_pairs(data, tokenizer, (str(tmp_path / "a.jsonl"),), 0)
  remote, report = load_pairs(data, tokenizer, (f"{bucket}/a.jsonl",), 0)
  assert report.kept == len(ROWS)
  assert str(remote) == str(local), "ids, too"


def test_prompts_are_read_from_there(bucket):
  put(f"{bucket}/prompts.txt", b"one\ntwo\n")
  generate = GenerateSettings(prompts=f"{bucket}/prompts.txt", count=0)
  assert len(load_prompts(generate, byte_tokenizer()).prompts) == 2


def test_a_copy_is_of_one_version(cache, bucket):
  path = storage.open_path(f"{bucket}/versions.txt", "data")
  put(path, b"first")
  assert download.fetch(path).read_bytes() == b"first"
  copy = download.fetch(path)
  copy.write_bytes(b"known by its place")
  assert download.fetch(path).read_bytes() == b"known by its place", "fetched once"
  put(path, b"other")
  assert download.fetch(path).read_bytes() == b"other"
  assert not list(cache.rglob(".*")), "nothing half fetched"


def test_a_name_that_is_no_file(bucket):
  put(f"{bucket}/kinds/versions.json", b"[]")
  with pytest.raises(UserError) as error:
    load_pairs(DataSettings(), byte_tokenizer(), (f"{bucket}/kinds/vesrions.json",), 0)
  assert f"does not exist; did you mean {bucket}/kinds/versions.json?" in str(error.value)


def test_a_folder_has_splits_as_on_a_disk(bucket, cache):
  put(f"{bucket}/both/train/a.jsonl", LINES.encode())
  put(f"{bucket}/both/test.jsonl", LINES.splitlines()[0].encode())
  read = lambda source: load_pairs(DataSettings(), byte_tokenizer(), (source,), 0)[0]  # noqa: E731
  assert [pair.id for pair in read(f"{bucket}/both")] == ["test.jsonl:1"], "as held-out pairs"
  assert not [path for path in cache.rglob("*") if path.name == "a.jsonl"], "the others stay there"
  assert len(read(f"{bucket}/both:train/*")) == len(ROWS)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, bucket):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("SIMPO_JAX_CACHE", str(tmp_path / "file"))
  put(f"{bucket}/a.jsonl", LINES.encode())
  with pytest.raises(UserError, match="could not be fetched into .*SIMPO_JAX_CACHE"):
    load_pairs(DataSettings(), byte_tokenizer(), (f"{bucket}/a.jsonl",), 0)


def test_a_dataset_is_what_it_is_on_a_disk(bucket, out, tmp_path, capsys):
  folder = prepared(out, eval_fraction=0.2)
  assert str(folder) == f"{bucket}/out/mine/1.0.0"
  (tmp_path / "rows" / "deep").mkdir(parents=True)
  for name in ("a.jsonl", "deep/b.jsonl"):
    (tmp_path / "rows" / name).write_bytes(content(f"{bucket}/rows/{name}"))
  prepare([str(tmp_path / "rows")], tmp_path / "out", "mine", eval_fraction=0.2)
  for split in ("train", "test"):
    local = open_prepared("tfds:mine", str(tmp_path / "out"), split)
    for spec, where in (("tfds:mine", str(out)), (f"tfds:{out}/mine/1.0.0", "")):
      remote = open_prepared(spec, where, split)
      assert rows(remote) == rows(local) and len(remote) == len(local)
      assert remote.identity == local.identity, "a run may go on with either"
  assert verify("tfds:mine", out)[0] == 2 * len(["a", "b"])
  # The same again does nothing, though the copies of the source are new.
  capsys.readouterr()
  os.rename(download.cache_folder(), tmp_path / "old")
  prepared(out, eval_fraction=0.2)
  assert "exists already" in capsys.readouterr().out
  with pytest.raises(UserError, match="holds a dataset of another source"):
    prepared(out, eval_fraction=0.3)
  prepared(out, eval_fraction=0.5, force=True)
  assert (
    len(open_prepared("tfds:mine:test", str(out))) > len(open_prepared("tfds:mine", str(out))) / 3
  )
  assert not [name for name in objects(out) if name.endswith(".lock")]


def test_a_shard_that_is_corrupt_is_named(out):
  prepared(out, version="2.0.0")
  folder = f"{out}/mine/2.0.0"
  [shard, *_] = [name for name in objects(folder) if "array_record" in name]
  good = content(f"{folder}/{shard}")
  open_prepared("tfds:mine:2.0.0", str(out))
  put(f"{folder}/{shard}", good[:-1])
  with pytest.raises(
    UserError, match=rf"{shard} is corrupt \(it has .* bytes and was written with"
  ):
    open_prepared("tfds:mine:2.0.0", str(out))
  put(f"{folder}/{shard}", bytes([good[0] ^ 1]) + good[1:])
  for look in (open_prepared, lambda spec, where: verify(spec, out)):
    with pytest.raises(
      UserError, match=rf"{shard} is corrupt \(its sha256.*--out={out} --name=mine"
    ):
      look("tfds:mine:2.0.0", str(out))
  put(f"{folder}/{shard}", good)
  shards, size = verify("tfds:mine:2.0.0", out)
  assert shards and size >= len(good)


def test_half_a_dataset_is_none(out, monkeypatch):
  fs = storage.filesystem(out)
  with monkeypatch.context() as patch:
    patch.setattr(fs, "put_file", lambda *_: (_ for _ in ()).throw(OSError("cut off")))
    with pytest.raises(UserError, match="cannot be written .*start the same command again"):
      prepared(out, version="3.0.0")
  assert any("3.0.0" in name for name in objects(out))
  with pytest.raises(UserError, match="there is no such dataset in .*://bucket/out"):
    open_prepared("tfds:mine:3.0.0", str(out))
  prepared(out, version="3.0.0")
  assert rows(open_prepared("tfds:mine:3.0.0", str(out)))


def test_one_preparation_at_a_time(out):
  with contextlib.closing(bucket_lock.Lease(out / ".mine.lock")):
    with pytest.raises(UserError, match="is being prepared in .*://bucket/out right now"):
      prepared(out, version="4.0.0")


# --- names that lead elsewhere: of S3, as Google's emulator takes none such -----------------


@pytest.fixture
def shelf(moto, tmp_path):  # noqa: F811
  """A folder of its own in the bucket, with rows and a dataset of them."""
  folder = f"s3://bucket/{tmp_path.name}"
  put(f"{folder}/rows/a.jsonl", LINES.encode())
  prepare([f"{folder}/rows"], storage.open_path(f"{folder}/out", "--out"), "mine")
  return folder


def tree(folder):
  """What lies below a folder, and when each has changed."""
  return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize(
  "name", ("../../../../.bashrc", "a/../../../x", "..", "a/..", "../x.jsonl", "/TMP/x.jsonl")
)
@pytest.mark.parametrize("what", ("dataset", "rows"))
def test_an_object_that_leads_elsewhere_is_refused(shelf, tmp_path, what, name):
  name = name.replace("/TMP", str(tmp_path))
  folder = {"dataset": f"{shelf}/out/mine/1.0.0", "rows": f"{shelf}/rows"}[what]
  put(f"{folder}/{name}", b"evil")
  before = tree(tmp_path)
  with pytest.raises(UserError) as error:
    if what == "dataset":
      open_prepared(f"tfds:{folder}")
    else:
      prepare([folder], tmp_path / "out", "mine")
  assert f"{folder} has an object named {name!r}" in str(error.value)
  assert "nothing was fetched" in str(error.value)
  assert tree(tmp_path) == before


def test_only_what_a_datasets_lists_name_is_fetched(shelf, cache):
  folder = f"{shelf}/out/mine/1.0.0"
  listed = objects(folder)
  for name in ("more.txt", "mine-train.array_record-00001-of-00002", "deep/dataset_info.json"):
    put(f"{folder}/{name}", b"not asked for")
  for name in ("with our list", "without"):
    assert len(open_prepared(f"tfds:{folder}")) == len(ROWS), name
    if name != "without":
      storage.filesystem(folder).rm_file(f"{folder}/prepared.json")
  found = {p.name for p in cache.rglob("*") if p.is_file()}
  assert found == {*listed, "a.jsonl"}


def _info(folder, **fields):
  path = f"{folder}/dataset_info.json"
  info = json.loads(content(path))
  info["splits"][0].update(fields)
  put(path, json.dumps(info).encode())


def test_lists_by_others_lead_nowhere(shelf, cache):
  folder = f"{shelf}/out/mine/1.0.0"
  storage.filesystem(folder).rm_file(f"{folder}/prepared.json")
  [shard] = [name for name in objects(folder) if "array_record" in name]
  put(f"{shelf}/out/mine/{shard}", content(f"{folder}/{shard}"))
  _info(folder, filepathTemplate="../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
  with pytest.raises(
    UserError, match=rf"{folder}: dataset_info.json lists '\.\./{shard}', outside"
  ):
    open_prepared(f"tfds:{folder}")
  assert not [p for p in cache.rglob("*") if "array_record" in p.name]


@pytest.mark.parametrize("name", ("../x", "/x", "a/../../x", ".."))
def test_no_name_is_fetched_that_leads_elsewhere(shelf, tmp_path, name):
  before = tree(tmp_path)
  with pytest.raises(UserError, match="which as a file would be outside of it"):
    download.fetch(storage.open_path(f"{shelf}/rows", "data"), ["a.jsonl", name])
  assert tree(tmp_path) == before
