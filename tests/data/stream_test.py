"""Steps of prepared data: pure functions of the seed, whatever reads them, and nothing lost."""

import json
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from simpo_jax.data.load import load_data
from simpo_jax.data.mixture import Mixture, open_stream
from simpo_jax.data.packing import pack
from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.prefetch import Prefetcher, prefetch_batches
from simpo_jax.data.prepared import builder
from simpo_jax.data.prepared.dataset import open_prepared
from simpo_jax.data.skip_report import SkipReport, add_row, check_read_so_far
from simpo_jax.data.steps import step_source, window_source
from simpo_jax.errors import Stopped, UserError
from simpo_jax.settings import DataSettings, Settings, TrainSettings
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from simpo_jax.train.batch import batch_shape
from support.folders import ROOT
from support.run_outcome import record
from support.runs_in_process import go, terminate
from support.sources import find_files

pytestmark = pytest.mark.program

BYTE = byte_tokenizer()
BATCH, LOOKAHEAD, ROW = 6, 4, 160
ORDER = [6, 4, 7, 8, 5, 3, 2, 1]  # of the first pairs of eight


def rows_of(count, name="q"):
  rng = np.random.default_rng(len(name))
  text = lambda letter: letter * int(rng.integers(1, 40))  # noqa: E731
  return [
    {"prompt": f"{name}{i} {text('x')}", "chosen": text("y"), "rejected": text("n")}
    for i in range(count)
  ]


def prepared(tmp_path, name, rows, eval_fraction=0.0, chunk_bytes=5000):
  source = tmp_path / f"{name}.jsonl"
  source.write_text("".join(json.dumps(r) + "\n" for r in rows))
  target = builder.Target(tmp_path / "out", name, "1.0.0", {})
  files = find_files(str(source))
  builder.build(files, target, eval_fraction, 0.5, workers=1, chunk_bytes=chunk_bytes)
  return open_prepared(f"tfds:{name}:train", str(tmp_path / "out"))


def data_config(**fields):
  sizes = {"max_length": 64, "max_prompt_length": 32, "row_length": ROW, "lookahead": LOOKAHEAD}
  return DataSettings(**{**sizes, "workers": 0, **fields})


def stream(sources, weights=(), seed=0, **fields):
  return open_stream(Mixture(tuple(sources), weights), BYTE, data_config(**fields), BATCH, seed)


def windows(read, seed=0):
  return window_source(read, BATCH, ROW, 16, LOOKAHEAD, seed)


def ids_of(read, steps, seed=0):
  source = step_source(windows(read, seed), LOOKAHEAD)
  return [[p.id for p in source(step)[0]] for step in steps]


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_pairs_are_those_of_the_file(tmp_path):
  rows = rows_of(50)
  data = prepared(tmp_path, "a", rows)
  read = stream([data])
  direct, _ = load_pairs(data_config(), BYTE, (str(tmp_path / "a.jsonl"),), 0)
  for epoch in range(2):
    pairs, report = read(50 * epoch, 50)
    found = {p.id: p for p in pairs}
    assert len(found) == 50 and all(same(found[p.id][1:], p[1:]) for p in direct)
    assert report and (report.total, report.kept, report.skipped) == (50, 50, {})
  orders = [[p.id for p in read(50 * e, 50)[0]] for e in range(2)]
  assert orders[0] != orders[1] and orders[0] != [p.id for p in direct]


def test_the_number_of_workers_changes_nothing(tmp_path):
  data = prepared(tmp_path, "a", rows_of(40))
  steps = range(1, 30)
  wanted = ids_of(stream([data], workers=0), steps)
  for workers in (1, 2, 4):
    assert ids_of(stream([data], workers=workers), steps) == wanted
  assert ids_of(stream([data], seed=1), steps) != wanted


def test_the_order_stays_what_it_was(tmp_path):
  # A run may be resumed under another version of Grain: these must never change.
  read = stream([prepared(tmp_path, "a", rows_of(8))])
  assert [int(p.id.partition(":")[2]) for p in read(0, 8)[0]] == ORDER


def test_any_step_can_be_the_first(tmp_path):
  data = prepared(tmp_path, "a", rows_of(40))
  through = ids_of(stream([data]), range(1, 40))
  for first in (1, 2, 4, 5, 17, 39):
    assert ids_of(stream([data]), range(first, 40)) == through[first - 1 :]
  far = 3_000_001
  assert ids_of(stream([data]), [far]) == ids_of(stream([data]), [far - 1, far, far - 5])[1:2]


def test_every_step_is_full_and_every_epoch_whole(tmp_path):
  data = prepared(tmp_path, "a", rows_of(BATCH * LOOKAHEAD))
  steps = ids_of(stream([data]), range(1, 2 * LOOKAHEAD + 1))
  assert {len(s) for s in steps} == {BATCH}
  for epoch in (steps[:LOOKAHEAD], steps[LOOKAHEAD:]):
    assert len({i for step in epoch for i in step}) == BATCH * LOOKAHEAD


def unusable(rows, every):
  """Rows of which some fit no row; only whoever tokenizes can know."""
  wide = "z" * 31
  return [{**r, "prompt": wide, "chosen": "c" * 130} if i % every == 0 else r
          for i, r in enumerate(rows)]  # fmt: skip


def test_rows_that_cannot_be_used_are_counted_and_replaced(tmp_path):
  rows = unusable(rows_of(200), 20)
  data = prepared(tmp_path, "a", rows)
  fields = {"max_length": 256, "max_prompt_length": 128, "row_length": 160}
  read = stream([data], **fields)
  pairs, report = read(0, 200)
  bad = {f"a.jsonl:{i + 1}" for i in range(0, 200, 20)}
  assert len(pairs) == 200 and not bad & {p.id for p in pairs}
  assert report and report.skipped["longer_than_row"] >= 10 and report.kept == 200
  assert report.total == report.kept + report.skipped["longer_than_row"]
  examples = report.examples["longer_than_row"]
  assert len(examples) == 3 and set(examples) <= bad
  # The other 190 are there, whatever replaces the 10; and replacements, too, are as before.
  assert len({p.id for p in pairs}) >= 180 + 1
  assert {p.id for p in pairs} == {f"a.jsonl:{i + 1}" for i in range(200)} - bad
  assert (
    ids_of(stream([data], workers=2, **fields), range(5, 9))
    == ids_of(stream([data], workers=0, **fields), range(1, 9))[4:]
  )


@pytest.mark.parametrize("size", (16, 24, 64))
def test_a_substitute_is_another_row_whatever_the_number_of_rows(tmp_path, size):
  data = prepared(tmp_path, "a", unusable(rows_of(size), 4))
  fields = {"max_length": 256, "max_prompt_length": 128, "row_length": 160}
  pairs, _ = stream([data], max_skip_fraction=0.9, **fields)(0, 5 * size)
  assert {p.id for p in pairs} == {f"a.jsonl:{i + 1}" for i in range(size) if i % 4}


def test_too_many_of_them_end_the_run(tmp_path):
  data = prepared(tmp_path, "a", unusable(rows_of(200), 3))
  fields = {"max_length": 256, "max_prompt_length": 128, "row_length": 160}
  _, report = stream([data], **fields)(0, 200)
  assert report
  with pytest.raises(UserError, match="rows read so far cannot be used: longer_than_row.*a.jsonl"):
    check_read_so_far(report, 0.1)
  check_read_so_far(report, 0.5)
  few = SkipReport(12, 2, {"identical": 10}, {}, {"identical": ["a.jsonl:1"]}, {})
  check_read_so_far(few, 0.1)
  with pytest.raises(UserError, match="11 of 13 rows"):
    check_read_so_far(add_row(few, "a.jsonl:9", "identical"), 0.1)
  none = prepared(tmp_path, "b", unusable(rows_of(20), 1))
  with pytest.raises(UserError, match="no usable pair in 100 rows"):
    stream([none], **fields)(0, 6)


def of(pairs):
  return Counter(p.id.partition(".")[0] for p in pairs)


def test_weights_are_respected_from_the_first_pair_on(tmp_path):
  a, b = prepared(tmp_path, "a", rows_of(90)), prepared(tmp_path, "b", rows_of(10, "other"))
  read = stream([a, b], (0.7, 0.3))
  for n in (10, 100, 1000):
    assert abs(of(read(0, n)[0])["b"] - 0.3 * n) <= 1 + 0.001 * n
  # Each is walked through epoch by epoch, the small one more often.
  seen = Counter(p.id for p in read(0, 1000)[0])
  for name, size in (("a", 90), ("b", 10)):
    counts = [n for i, n in seen.items() if i.startswith(name + ".")]
    assert len(counts) == size and max(counts) - min(counts) <= 1
  assert [p.id for p in read(321, 50)[0]] == [p.id for p in read(300, 100)[0]][21:71]
  whole = of(stream([a, b])(0, 100)[0])
  assert whole == {"a": 90, "b": 10}, "without weights, each pair once an epoch"


def config_of(**fields):
  return Settings(data=data_config(**fields), train=TrainSettings(batch_size=BATCH))


def test_files_and_prepared_data_mix(tmp_path):
  prepared(tmp_path, "a", rows_of(100), eval_fraction=0.3)
  (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows_of(40, "file")))
  train = ("tfds:a", str(tmp_path / "c.jsonl"))
  config = config_of(train=train, dir=str(tmp_path / "out"), weights=(1, 3), eval_fraction=0.1)
  pairs, held_out, skips, _ = load_data(config, BYTE, True)
  read = open_stream(pairs, BYTE, config.data, BATCH, 0)
  assert abs(of(read(0, 400)[0])["c"] - 300) <= 1
  held = of(held_out)
  assert held["c"] == 4 and held["a"] > 10, "each holds its own part out"
  assert not {p.id for p in held_out} & {p.id for p in read(0, 2000)[0]}
  assert skips[train[1]].kept == 40
  with pytest.raises(UserError, match="data.weights=.*each of the 2 entries"):
    load_data(config_of(train=train, dir=str(tmp_path / "out"), weights=(1.0,)), BYTE, False)
  with pytest.raises(UserError, match="each of the 2 entries"):
    load_data(config_of(train=train, dir=str(tmp_path / "out"), weights=(1.0, 0.0)), BYTE, False)


def test_a_held_out_split_of_its_own(tmp_path):
  prepared(tmp_path, "a", rows_of(100), eval_fraction=0.3)
  fields = {"dir": str(tmp_path / "out"), "train": ("tfds:a:train",)}
  with pytest.raises(UserError, match="prepare datasets with --eval_fraction"):
    load_data(config_of(**fields), BYTE, True)
  _, held_out, *_ = load_data(config_of(**fields, eval=("tfds:a",)), BYTE, True)
  _, slice_, *_ = load_data(config_of(**fields, eval=("tfds:a:train[:7]",)), BYTE, True)
  assert len(slice_) == 7 and len(held_out) > 10
  assert not {p.id for p in held_out} & {p.id for p in slice_}


def test_a_corrupt_record_is_an_error_of_its_step_also_in_threads(tmp_path):
  data = prepared(tmp_path, "a", rows_of(60))
  shard = sorted((tmp_path / "out").rglob("*array_record*"))[0]
  content = bytearray(shard.read_bytes())
  content[1000] ^= 1
  shard.write_bytes(content)
  data = open_prepared("tfds:a", str(tmp_path / "out"))
  shape = batch_shape(BATCH, ROW, 16, 1)
  for workers in (0, 3):
    with prefetch_batches(
      windows(stream([data], workers=workers)), LOOKAHEAD, shape, range(1)
    ) as feed:
      with pytest.raises(UserError, match=f"{shard.name} is corrupt.*simpo_jax.prepare"):
        for step in range(1, 12):
          feed(step)


def test_feeding_gives_the_batches_of_the_steps(tmp_path):
  data = prepared(tmp_path, "a", rows_of(60))
  shape = batch_shape(BATCH, ROW, 16, 1)
  source = step_source(windows(stream([data])), LOOKAHEAD)
  with prefetch_batches(windows(stream([data])), LOOKAHEAD, shape, range(1)) as feed:
    for step in (1, 2, 3, 4, 5, 9, 30, 29, 2):
      made = feed(step)
      pairs, report = source(step)
      assert [p.id for p in made.pairs] == [p.id for p in pairs]
      assert (made.report is None) == (report is None) == ((step - 1) % LOOKAHEAD != 0)
      for ours, wanted in zip(made.batch, pack(pairs, shape), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_ahead_makes_the_next_while_one_is_used():
  made, others = [], threading.Event()

  def make(i):
    made.append((i, threading.current_thread()))
    if len(made) == 4:
      others.set()
    if i == 13:
      raise ValueError("thirteen")
    return i * i

  with Prefetcher(make, 3) as ahead:
    assert ahead(10) == 100
    assert others.wait(10), "10 to 13, though only 10 was asked for"
    assert [i for i, _ in made] == [10, 11, 12, 13]
    assert all(t is not threading.current_thread() for _, t in made)
    assert (ahead(12), ahead(12)) == (144, 144)
    with pytest.raises(ValueError, match="thirteen"):
      ahead(13)
    assert (ahead(2), ahead(3), ahead(50)) == (4, 9, 2500), "any index at any time"
    thread = made[0][1]
  thread.join(10)
  assert not thread.is_alive()
  with pytest.raises(RuntimeError):
    ahead(1)


def test_ahead_hides_the_time_that_making_takes():
  with Prefetcher(lambda i: time.sleep(0.05) or i, 2) as ahead:
    ahead(0)
    time.sleep(0.3)
    start = time.perf_counter()
    assert (ahead(1), ahead(2)) == (1, 2)
    assert time.perf_counter() - start < 0.05


def test_a_run_on_prepared_data_with_rows_that_it_must_skip(tmp_path):
  rows = rows_of(60)
  for i in range(0, 60, 10):  # the same tokens once they are cut
    rows[i]["chosen"], rows[i]["rejected"] = "s" * 200 + "1", "s" * 200 + "2"
  prepared(tmp_path, "a", rows, eval_fraction=0.2)
  fields = {
    "data.train": "tfds:a", "data.dir": tmp_path / "out", "data.max_length": 64,
    "data.max_prompt_length": 32, "data.row_length": 128, "data.max_skip_fraction": 0.5,
    "data.lookahead": 2, "train.steps": 5, "train.batch_size": 4, "generate.at_steps": "()",
  }  # fmt: skip
  command = [sys.executable, "-m", "simpo_jax.main", f"--config={ROOT}/configs/m11.py"]
  command += [f"--config.{name}={value}" for name, value in fields.items()]
  command.append(f"--workdir={tmp_path / 'run'}")
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "run" / "run.json").read_text())
  assert (record["compiles"], record["executables"]) == (1, 1)
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  train = [row for row in map(json.loads, lines) if row["mode"] == "train"]
  assert len(train) == 5 and all(row["data_wait_seconds"] >= 0 for row in train)
  skipped = [row.get("data_skipped", {}).get("identical", 0) for row in train]
  assert sum(skipped) == record["data"]["train"]["skipped"]["identical"] > 0
  assert not skipped[1] and not skipped[3], "told with the first step of a window of two"
  assert record["data"]["train"]["kept"] == 3 * 2 * 4
  assert record["pairs"]["train"] + record["data"]["eval tfds:a"]["total"] == 60


def test_counts_of_a_stopped_run_are_told_when_it_stops_and_when_it_goes_on(
  tmp_path,
  before_launch,  # noqa: F811
  capsys,
):
  """It stops between its second step and the generation that follows."""
  prepared(tmp_path, "a", rows_of(60))
  data = {"data__train": ("tfds:a",), "data__dir": str(tmp_path / "out"), "data__lookahead": 1}
  settings = {**data, "evaluate__every": 0}
  before_launch(1, terminate)
  with pytest.raises(Stopped):
    go(tmp_path / "run", **settings)
  assert record(tmp_path / "run")["data"]["train"]["kept"] == 2 * 2
  capsys.readouterr()
  go(tmp_path / "run", **settings)
  assert re.search(r"train +4 of 4 rows kept", capsys.readouterr().out)
  assert record(tmp_path / "run")["data"]["train"]["kept"] == 5 * 2


_READER = """
import sys
from simpo_jax.settings import DataSettings
from simpo_jax.data.prepared.dataset import open_prepared
from simpo_jax.data.mixture import Mixture, open_stream
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
data = DataSettings(max_length=64, max_prompt_length=32, workers=2)
read = open_stream(Mixture((open_prepared(sys.argv[1]),), ()), byte_tokenizer(), data, 8, 0)
for window in range(8):
  read(window * 1000, 500)
# Not ru_maxrss, which counts what the parent held when it forked.
print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="asks Linux")
def test_memory_is_flat_in_the_number_of_pairs(tmp_path):
  """Ten times the pairs: well under what their text, or even their tokens, would take."""
  rows = [{**row, "chosen": "y" * 1500} for row in rows_of(200)]
  peaks = {}
  for count in (2_000, 20_000):
    prepared(tmp_path, f"n{count}", rows * (count // 200), chunk_bytes=2**20)
    command = [sys.executable, "-c", _READER, f"tfds:{tmp_path}/out/n{count}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks[count] = int(done.stdout) * 1024
  print(peaks)
  assert peaks[20_000] - peaks[2_000] < 8 * 2**20
