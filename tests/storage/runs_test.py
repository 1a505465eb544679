"""A workdir in a bucket: what a run leaves there, however it ends, is what it leaves on a disk."""

import contextlib
import json
import re
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from simpo_jax import storage
from simpo_jax.checkpoint import layout
from simpo_jax.data.prepared import builder
from simpo_jax.errors import UserError
from simpo_jax.export.adapter import export_adapter
from simpo_jax.models.config import EMBEDDED
from simpo_jax.models.hf_weights import open_checkpoint
from simpo_jax.models.lora import all_tensors, make_lora
from simpo_jax.models.weights import open_model
from simpo_jax.runtime.profiling import Profiler
from simpo_jax.runtime.resolve import resolve
from simpo_jax.runtime.watchdog import Watchdog
from simpo_jax.settings import ModelSettings, Settings, TrainSettings, WatchdogSettings
from simpo_jax.storage import bucket_lock
from simpo_jax.workdir import files
from support.buckets import BUCKET, content, download, objects, put
from support.run_outcome import assert_same, outcome, record
from support.runs_in_process import Lost, go, lose
from support.sources import find_files

pytestmark = pytest.mark.usefixtures("emulator", "one_executable")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """(a folder of prepared pairs on a disk, the same in a bucket)."""
  folder = tmp_path_factory.mktemp("data")
  rows = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(40)]
  (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for out in (folder, storage.open_path(f"{BUCKET}/data", "--out")):
    target = builder.Target(out, "a", "1.0.0", {})
    builder.build(find_files(str(folder / "a.jsonl")), target, 0.2, 0.0, workers=1)
  return str(folder), f"{BUCKET}/data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SIMPO_JAX_CACHE", str(tmp_path / "cache"))


def start(folder, data_dir, **changes):
  changes = {"checkpoint__every": 1, "evaluate__every": 0, **changes}
  go(folder, data__train=("tfds:a",), data__dir=data_dir, **changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data, one_executable):  # noqa: F811
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  start(folder, data[0])
  return outcome(folder)


@pytest.fixture
def lost(data, request, before_launch):  # noqa: F811
  """A run that was lost in step 4, with checkpoints of steps 1 to 3, in a bucket as its data."""
  first = f"{BUCKET}/lost"
  if not objects(first):
    before_launch(4, lose)
    with pytest.raises(Lost):
      start(first, data[1], checkpoint__keep=3)
  folder = f"{BUCKET}/{request.node.name.partition('[')[0]}/{len(objects(BUCKET))}"
  for name in objects(first):
    put(f"{folder}/{name}", content(f"{first}/{name}"))
  return folder


def goes_on(folder, data, undisturbed, tmp_path, step):
  start(folder, data[1], checkpoint__keep=3)
  copy = download(folder, tmp_path / "copy")
  assert_same(outcome(copy), undisturbed)
  assert [r["step"] for r in record(copy)["resumes"]] == [step]
  assert (record(copy)["executables"], record(copy)["status"]) == (1, "done")


def test_a_lost_run_goes_on(lost, data, undisturbed, tmp_path):
  found = objects(f"{lost}/checkpoints")
  assert {n.partition("/")[0] for n in found} == {f"step_00000{i}" for i in (1, 2, 3)}
  goes_on(lost, data, undisturbed, tmp_path, 3)
  assert ".lock" not in objects(lost), "it has ended well"
  left = {n.partition("/")[0] for n in objects(f"{lost}/checkpoints")}
  assert left == {f"step_00000{i}" for i in (3, 4, 5)}, "the oldest are removed"
  with pytest.raises(UserError, match="an earlier run that is finished"):
    start(lost, data[1])


def largest(folder):
  names = [n for n in objects(folder) if "/d/" in n]
  return max((f"{folder}/{n}" for n in names), key=lambda path: len(content(path)))


def flip_a_bit(folder):
  path = largest(folder)
  flipped = bytearray(content(path))
  flipped[len(flipped) // 2] ^= 4
  put(path, bytes(flipped))


def uncommit(folder):
  storage.filesystem(folder).rm(f"{folder}/commit_success.txt")


def test_checkpoints_that_are_not_whole(lost, data, undisturbed, tmp_path, capsys):
  flip_a_bit(f"{lost}/checkpoints/step_000003")
  uncommit(f"{lost}/checkpoints/step_000002")  # as a save leaves it that is cut off
  goes_on(lost, data, undisturbed, tmp_path, 1)
  out = capsys.readouterr().out
  assert re.search("checkpoint step_000003 is damaged: .* has other content", out)
  assert "step_000002 is damaged" not in out
  assert any("step_000003.damaged/" in n for n in objects(lost))


def test_what_is_damaged_is_found_without_reading_it_back(lost, monkeypatch):
  folder = opened(lost.removeprefix(BUCKET)[1:]) / "checkpoints" / "step_000003"
  with monkeypatch.context() as patch:
    patch.setattr(type(folder), "open", None)
    patch.setattr(layout, "read_metadata", lambda f: json.loads(content(f / layout.METADATA)))
    assert layout.verify(folder) is None
  path = largest(folder)
  put(path, content(path)[:100])
  name = path.removeprefix(f"{folder}/")
  assert re.fullmatch(rf"{name} has 100 bytes, not \d+", layout.verify(folder) or "")
  storage.filesystem(path).rm_file(path)
  assert layout.verify(folder) == f"{name} is missing"


def test_a_copy_of_a_checkpoint_on_a_disk_is_as_whole(lost, tmp_path):
  copy = download(lost, tmp_path / "copy") / "checkpoints" / "step_000003"
  assert layout.verify(copy) is None
  weights = open_checkpoint(copy, EMBEDDED)
  with contextlib.closing(ocp.PyTreeCheckpointer()) as reader:
    embed = reader.restore(copy)["params"]["embed"]
  np.testing.assert_array_equal(weights.read("model.embed_tokens.weight", ()), embed)
  name = next(n for n in json.loads((copy / layout.METADATA).read_text())["files"] if "/d/" in n)
  (copy / name).write_bytes((copy / name).read_bytes()[::-1])
  assert layout.verify(copy) == f"{name} has other content"


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew(data, undisturbed, tmp_path, before_launch):  # noqa: F811
  folder = f"{BUCKET}/anew"
  before_launch(1, lose)
  with pytest.raises(Lost):
    start(folder, data[1], checkpoint__every=0)
  start(folder, data[1])
  copy = download(folder, tmp_path / "copy")
  assert_same(outcome(copy), undisturbed)
  assert (copy / "attempts" / "0001" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_another_run_begins_with_its_weights(lost, data):
  start(f"{BUCKET}/second", data[1], checkpoint__init_from=lost)
  began = json.loads(content(f"{BUCKET}/second/run.json"))["began_with"]
  assert began == f"{lost}/checkpoints/step_000003"


# --- what else a run may write -------------------------------------------------------------


def test_a_trace():
  with Profiler((1, 1), opened("traced")) as profiler:
    profiler.before_step(1)
    profiler.after_step(1)
  assert [n for n in objects(f"{BUCKET}/traced/profile") if n.endswith(".xplane.pb")]


def test_what_the_watchdog_saw(monkeypatch, capfd):
  ended = []
  monkeypatch.setattr("simpo_jax.distributed.end", lambda code, error: ended.append(code))
  watchdog = Watchdog(WatchdogSettings(), opened("hung"))
  watchdog.on_timeout(4.0, "train", [], [1, 2])
  told = content(f"{BUCKET}/hung/watchdog_host_0000.txt").decode()
  assert told.startswith("launch 0 (train) took more than 4 s\n") and __file__ in told
  assert ended == [75]


def test_adapters():
  lora = make_lora(TrainSettings(lora_rank=4))
  assert lora
  values = {
    name: jax.numpy.full(tensor.shape, 2.0)
    for name, tensor in all_tensors(EMBEDDED, lora)["lora"].items()
  }
  export_adapter(opened("adapters"), values, EMBEDDED, lora, None)
  found = safetensors.numpy.load(content(f"{BUCKET}/adapters/adapter_model.safetensors"))
  assert len(found) == sum(len(v) for v in values.values())
  assert all((value == 2).all() for value in found.values())
  assert json.loads(content(f"{BUCKET}/adapters/adapter_config.json"))["r"] == 4


# --- one holder at a time ------------------------------------------------------------------


def opened(name):
  return storage.open_path(f"{BUCKET}/{name}", "--workdir")


def test_a_workdir_in_use_is_refused(data):
  folder = opened("in_use")
  files.make_workdir(str(folder), {})
  try:
    with pytest.raises(UserError, match="is in use by a run in progress"):
      start(str(folder), data[1])
  finally:
    files.unlock(folder)
  assert files.make_workdir(str(folder), {}) == folder, "at once, when it was given back"
  files.unlock(folder)


def test_the_claim_of_a_dead_holder_passes_on():
  path = opened("dead/.lock")
  path.write_text(json.dumps({"holder": "gone", "count": 7}))
  begun = time.monotonic()
  mine = bucket_lock.Lease(path)
  assert time.monotonic() - begun >= bucket_lock.EXPIRY_SECONDS
  mine.check()
  mine.close()
  assert not path.exists()


def test_a_run_that_has_lost_its_claim_ends_and_writes_nothing(
  data,
  before_launch,  # noqa: F811
  monkeypatch,
):
  # A process that was suspended for long sends no heartbeats.
  monkeypatch.setattr(bucket_lock, "HEARTBEAT_SECONDS", 3600)
  folder = f"{BUCKET}/lost_claim"
  theirs = json.dumps({"holder": "host-7:42", "count": 1})
  taken = lambda: put(f"{folder}/.lock", theirs.encode())  # noqa: E731
  before_launch(3, taken)
  with pytest.raises(UserError, match="host-7:42 has taken it over.*start the same command again"):
    start(folder, data[1])
  assert content(f"{folder}/.lock").decode() == theirs
  assert json.loads(content(f"{folder}/run.json"))["status"] == "running"


# --- files that grow -----------------------------------------------------------------------


def test_metrics_are_in_the_bucket_when_they_are_counted():
  folder = opened("grows")
  files.append_metrics(folder, {"step": 1})
  assert objects(folder) == []
  assert files.metrics_bytes(folder) == 12 == len(content(f"{folder}/metrics.jsonl"))
  files.append_metrics(folder, {"step": 2})
  files.flush_metrics(folder, now=False)  # the last time is only just over
  assert content(f"{folder}/metrics.jsonl") == b'{"step": 1}\n'
  files.flush_metrics(folder, now=True)
  assert content(f"{folder}/metrics.jsonl") == b'{"step": 1}\n{"step": 2}\n'
  storage.forget(folder / "metrics.jsonl")  # as after a new start
  files.truncate_metrics(folder, 12)
  files.append_metrics(folder, {"step": 3})
  assert files.metrics_bytes(folder) == 24
  assert content(f"{folder}/metrics.jsonl") == b'{"step": 1}\n{"step": 3}\n'


def test_a_bucket_that_is_gone_is_told_of(monkeypatch):
  monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0, raising=False)  # seconds between tries
  monkeypatch.setattr(storage.filesystem("gs://x"), "_endpoint", "http://127.0.0.1:9")
  with pytest.raises(UserError, match=r"gone cannot be written \(.*\); choose another folder"):
    files.make_workdir(f"{BUCKET}/gone", {})


# --- what is not supported -----------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "says"),
  (
    ("s3://bucket/run", "to local disks and gs:// only; s3:// is for data; name a local folder or"),
    ("ftp://host/run", "ftp:// is not known here; name a local folder or gs://BUCKET/..."),
    ("gs://", "names no bucket"),
    ("gs://bucket/run[1]", "must not contain any of *?[]"),
  ),
)
def test_other_places_for_a_workdir(name, says):
  with pytest.raises(UserError, match=re.escape(says)):
    go(name)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
  import fsspec

  def absent(scheme):
    raise ImportError("Please install gcsfs")

  monkeypatch.setattr(fsspec, "filesystem", absent)
  with pytest.raises(UserError, match=r"gs:// needs the package gcsfs; pip install 'simpo-jax\[gc"):
    go(f"{BUCKET}/run")


def test_a_model_in_a_bucket():
  config = Settings(model=ModelSettings(source=f"{BUCKET}/model"))
  with pytest.raises(UserError, match="copy it to a local folder"):
    resolve(config)
  with pytest.raises(UserError, match="copy it to a local folder"):
    open_model("s3://bucket/model.gguf")
