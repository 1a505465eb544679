"""What can go wrong with checkpoints and their storage: each a message, and nothing corrupted."""

import dataclasses
import json
import os
import re
import resource

import jax
import numpy as np
import pytest

from simpo_jax.checkpoint import layout
from simpo_jax.errors import UserError
from simpo_jax.program.ledger import hex_digest
from simpo_jax.runtime import fingerprint
from simpo_jax.runtime.launcher import Launcher
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.run_outcome import assert_same, outcome, record
from support.runs_in_process import Lost, go, lose
from support.tiers import sweep

pytestmark = pytest.mark.usefixtures("one_executable")

PAIRS = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(40)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_executable):  # noqa: F811
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  go(folder, checkpoint__every=1)
  return outcome(folder)


@pytest.fixture
def lost(tmp_path, before_launch):  # noqa: F811
  """A run that was lost in step 4, with checkpoints of steps 1 to 3."""
  before_launch(5, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run", checkpoint__every=1)
  assert names(tmp_path / "run") == [f"step_00000{step}" for step in (1, 2, 3)]
  return tmp_path / "run"


def names(folder):
  return sorted(p.name for p in (folder / "checkpoints").iterdir() if "tmp" not in p.name)


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
  os.truncate(largest(folder), 100)


def flip_a_bit(folder):
  path = largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def flip_in_the_record(folder):
  path = folder / layout.METADATA
  path.write_text(path.read_text().replace('"metrics_bytes": ', '"metrics_bytes": 1'))


def remove_a_file(folder):
  largest(folder).unlink()


@pytest.mark.parametrize(
  ("damage", "words"),
  (
    (truncate, r"has 100 bytes, not \d+"),
    (flip_a_bit, "has other content"),
    (flip_in_the_record, "simpo_jax.json: not as it was written"),
    (remove_a_file, "is missing"),
  ),
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
  lost, undisturbed, capsys, damage, words
):
  damage(lost / "checkpoints" / "step_000003")
  go(lost, checkpoint__every=1)
  out = capsys.readouterr().out
  assert re.search(rf"checkpoint step_000003 is damaged: .*{words}", out)
  assert "resuming after step 2" in out
  assert_same(outcome(lost), undisturbed)
  assert "step_000003.damaged" in names(lost)


def test_no_whole_checkpoint_is_an_error(lost):
  for name in names(lost):
    truncate(lost / "checkpoints" / name)
  with pytest.raises(UserError, match=r"no intact checkpoint .*checkpoint.resume=False"):
    go(lost, checkpoint__every=1)


@sweep("changed", ("tokenizer", "weights", "model's config", "prompts"))
def test_what_has_changed_since_is_named(lost, changed):
  for name in names(lost):
    path = lost / "checkpoints" / name / layout.METADATA
    about = json.loads(path.read_text())
    about["identity"][changed] = "other"
    path.write_text(json.dumps(layout.with_checksum(about)))
  with pytest.raises(UserError, match=rf"step_000003 these have changed: {changed}; put back"):
    go(lost, checkpoint__every=1)


def test_changed_data_is_named(tmp_path, before_launch):  # noqa: F811
  data = tmp_path / "pairs.json"
  data.write_text(json.dumps(PAIRS))
  before_launch(5, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run", data__train=(str(data),))
  data.write_text(json.dumps(PAIRS[::-1]))
  with pytest.raises(UserError, match=r"these have changed: training pairs, held-out pairs; put"):
    go(tmp_path / "run", data__train=(str(data),))
  data.write_text(json.dumps(PAIRS))
  go(tmp_path / "run", data__train=(str(data),))
  assert record(tmp_path / "run")["status"] == "done"


def test_another_config_is_named_with_its_fields(lost):
  with pytest.raises(UserError, match=r"of another config \(seed, train.learning_rate\)"):
    go(lost, checkpoint__every=1, seed=1, train__learning_rate=1e-5)


def test_identity_tells_tokenizers_and_weights_apart(tmp_path):
  tokenizer = byte_tokenizer()
  same = fingerprint.tokenizer_identity(tokenizer)
  for change in (
    {"chat_template": "other"},
    {"eos_ids": (0,)},
    {"encode": lambda text: [0]},
    {"decode": lambda ids: "other"},
  ):
    other = fingerprint.tokenizer_identity(dataclasses.replace(tokenizer, **change))
    assert hex_digest(other) != hex_digest(same), change
  path = tmp_path / "model.gguf"
  path.write_bytes(bytes(10_000_000))
  before = fingerprint.file_identity(path)
  assert fingerprint.file_identity(path) == before
  path.write_bytes(bytes([1]) * 10_000_000)
  assert fingerprint.file_identity(path) != before


# --- storage -----------------------------------------------------------------------------


@pytest.fixture
def small_files():
  """`small_files(n)`: from now on no file may grow beyond n bytes, as if the disk were full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def goes_on(folder, undisturbed):
  """After the storage was mended."""
  go(folder, checkpoint__every=1)
  assert_same(outcome(folder), undisturbed)


def test_no_room_for_a_checkpoint(tmp_path, undisturbed, before_launch, small_files):  # noqa: F811
  before_launch(4, lambda: small_files(90_000))
  with pytest.raises(UserError, match=r"could not be written in .*the last good one is step_00000"):
    go(tmp_path / "run", checkpoint__every=1)
  small_files(resource.RLIM_INFINITY)
  goes_on(tmp_path / "run", undisturbed)
  # The save of step 2 may not have been through, either.
  assert [r["step"] for r in record(tmp_path / "run")["resumes"]][0] in (1, 2)


def test_no_room_for_metrics(tmp_path, undisturbed, before_launch, small_files):  # noqa: F811
  before_launch(5, lambda: small_files(1000))
  with pytest.raises(UserError, match=r"cannot be written \(File too large\); free space"):
    go(tmp_path / "run", checkpoint__every=1)
  small_files(resource.RLIM_INFINITY)
  goes_on(tmp_path / "run", undisturbed)


def test_the_workdir_vanishes(tmp_path, before_launch):  # noqa: F811
  before_launch(5, lambda: (tmp_path / "run").rename(tmp_path / "gone"))
  with pytest.raises(UserError, match=r"(has vanished|No such file)"):
    go(tmp_path / "run", checkpoint__every=1)
  assert not (tmp_path / "run" / "metrics.jsonl").exists(), "it must not come back half empty"
  assert (tmp_path / "gone" / "metrics.jsonl").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_that_may_no_longer_be_written(tmp_path, undisturbed, before_launch):  # noqa: F811
  before_launch(1, lambda: (tmp_path / "run").chmod(0o555))
  with pytest.raises(UserError, match="Permission denied"):
    go(tmp_path / "run", checkpoint__every=1)
  (tmp_path / "run").chmod(0o755)
  goes_on(tmp_path / "run", undisturbed)


# --- steps that are not finite -----------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch):
  """`poisoned(numbers)`: these launches find a weight that is NaN; others do not."""
  launch, numbers = Launcher.__call__, set()

  def put(like, values):
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])

  def wrapped(self, state, *args, **kwargs):
    if len(self.log) not in numbers:
      return launch(self, state, *args, **kwargs)
    clean = jax.tree.map(np.array, state)
    shardings = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    norm = put(state.params["final_norm"], np.full_like(clean.params["final_norm"], np.nan))
    state = state._replace(params={**state.params, "final_norm": norm})
    _, report, seconds = launch(self, state, *args, **kwargs)
    return jax.tree.map(put, shardings, clean), report, seconds

  monkeypatch.setattr(Launcher, "__call__", wrapped)
  return numbers.update


def test_a_step_of_nan_ends_the_run_with_the_evidence(tmp_path, undisturbed, poisoned):
  poisoned([4])
  with pytest.raises(
    UserError, match=r"step 3: loss nan.*in checkpoints/step_000002\.2\); pairs: "
  ):
    go(tmp_path / "run", checkpoint__every=1)
  evidence = json.loads((tmp_path / "run" / "failure.json").read_text())
  assert (evidence["step"], evidence["loss"], evidence["checkpoint"]) == (3, "nan", "step_000002.2")
  assert len(evidence["pairs"]) == 2 and all(evidence["pairs"])
  assert layout.verify(tmp_path / "run" / "checkpoints" / evidence["checkpoint"]) is None


def test_some_such_steps_may_be_left_out(tmp_path, poisoned):
  poisoned([4, 5])
  with pytest.raises(UserError, match=r"step 4: .*allow such steps with .*max_bad_steps=2"):
    go(tmp_path / "run", checkpoint__every=1, train__max_bad_steps=1)
  # More may be allowed when it goes on; what was left out before counts.
  state, folder = go(tmp_path / "run", checkpoint__every=1, train__max_bad_steps=2)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  steps = [(r["step"], r["mode"], r.get("bad_steps")) for r in rows if "eval" not in r["mode"]]
  assert [s for s in steps if s[1] != "generate"] == [
    (1, "train", None),
    (2, "train", None),
    (3, "bad_step", 1),
    (4, "bad_step", 2),
    (5, "train", None),
  ]
  assert int(state.step) == 3, "optimizer steps"
  assert record(folder)["status"] == "done"
