"""Checkpoints: a run that was stopped or lost and goes on is, bit for bit, the one that was not."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax import run as loop
from simpo_jax.checkpoint import layout, manager
from simpo_jax.errors import Stopped, UserError
from simpo_jax.program import compile_count
from simpo_jax.train.step import TrainState
from support.run_outcome import (
  assert_same,
  assert_same_state,
  bytes_of,
  outcome,
  record,
  rows,
  saved_state,
)
from support.runs_in_process import LAUNCHES, Lost, go, lose, terminate
from support.tiers import sweep

pytestmark = pytest.mark.usefixtures("one_executable")


def names(folder):
  return sorted(p.name for p in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_executable):  # noqa: F811
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  go(folder)
  return outcome(folder), folder


def test_what_is_kept(undisturbed):
  _, folder = undisturbed
  assert names(folder) == ["step_000004", "step_000005"]
  about = layout.read_metadata(folder / "checkpoints" / "step_000004")
  assert about["position"] == {"step": 4, "done": 0}
  assert about["data"] == {"steps": 4, "pairs": 8}
  assert [launch["mode"] for launch in about["launches"]] == LAUNCHES[:6]
  assert about["config"] == json.loads((folder / "config.json").read_text())
  assert about["program"] == record(folder)["program"]
  assert set(about) >= {"seeds", "identity", "versions", "mesh", "files", "arrays"}
  assert record(folder)["resumes"] == []
  waits = record(folder)["timings"]["checkpoint_seconds"]
  assert [w["step"] for w in waits] == [2, 4, 5] and all(w["seconds"] > 0 for w in waits)


@sweep("number", (0, 2, 3, 6, 7), default=2)
def test_a_stop_is_saved_and_gone_on_from(tmp_path, undisturbed, before_launch, number):  # noqa: F811
  before_launch(number, terminate)  # seen by all hosts in the launch after it
  with pytest.raises(Stopped, match="start the same command again") as stopped:
    go(tmp_path / "run")
  assert stopped.value.exit_code == 75
  assert record(tmp_path / "run")["status"] == "stopped"
  assert record(tmp_path / "run")["launches"] == [*LAUNCHES[: number + 1], "stop"]
  compiles = compile_count.compile_count()
  _, folder = go(tmp_path / "run")
  assert compile_count.compile_count() == compiles, "saving or restoring has compiled something"
  assert_same(outcome(folder), undisturbed[0])
  [resume] = record(folder)["resumes"]
  assert resume["step"] == LAUNCHES[: number + 1].count("train")
  assert not (folder / "attempts").exists()


@sweep("number", (3, 6, 8))
def test_a_lost_run_goes_on_from_its_last_checkpoint(tmp_path, undisturbed, before_launch, number):  # noqa: F811
  before_launch(number, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run")
  _, folder = go(tmp_path / "run")
  assert_same(outcome(folder), undisturbed[0])
  assert [r["step"] for r in record(folder)["resumes"]] == [4 if number >= 6 else 2]


def test_a_run_that_is_lost_in_its_export_makes_it_anew(tmp_path, undisturbed, monkeypatch):
  export, out = loop.export_at_end, tmp_path / "run" / "export"
  monkeypatch.setattr(loop, "export_at_end", lambda *args: lose())
  with pytest.raises(Lost):
    go(tmp_path / "run", export__at_end=True)
  assert not out.exists()
  monkeypatch.setattr(loop, "export_at_end", export)
  compiles = compile_count.compile_count()
  _, folder = go(tmp_path / "run", export__at_end=True)
  assert compile_count.compile_count() == compiles, "an export has compiled something"
  assert_same(outcome(folder), undisturbed[0])
  assert {"model.safetensors", "config.json", "tokenizer.json"} <= {p.name for p in out.iterdir()}


def test_what_an_export_must_not_replace_is_noticed_before_the_run(tmp_path):
  (tmp_path / "run" / "export").mkdir(parents=True)
  (tmp_path / "run" / "export" / "notes.txt").write_text("mine")
  (tmp_path / "run" / "config.json").write_text('{"simpo": {}}')  # a run has begun there
  with pytest.raises(UserError, match="holds notes.txt, which no export has written"):
    go(tmp_path / "run", export__at_end=True)
  assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_without_a_checkpoint_begins_anew(tmp_path, undisturbed, before_launch):  # noqa: F811
  before_launch(1, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run")
  _, folder = go(tmp_path / "run")
  assert_same(outcome(folder), undisturbed[0])
  assert record(folder)["resumes"] == []
  assert (folder / "attempts" / "0001" / "metrics.jsonl").exists()


def test_what_comes_before_the_first_step_is_done_once(tmp_path, undisturbed, before_launch):  # noqa: F811
  asked = {"generate__at_start": True, "evaluate__at_start": True}
  for number, act, error in ((0, terminate, Stopped), (6, lose, Lost)):
    before_launch(number, act)
    with pytest.raises(error):
      go(tmp_path / "run", **asked)
  _, folder = go(tmp_path / "run", **asked)
  found, (plain, _) = outcome(folder), undisturbed
  assert [r["step"] for r in record(folder)["resumes"]] == [2]
  assert found["launches"] == ["generate", "evaluate", *LAUNCHES]
  assert [(r["step"], r["mode"]) for r in found["metrics"][:2]] == [
    (0, "generate"),
    (0, "evaluate"),
  ]
  assert found["metrics"][2:] == plain["metrics"]
  assert_same_state(found["saved"], plain["saved"])
  before = {n for n in found["files"] if "step_000000" in n}
  assert {n: f for n, f in found["files"].items() if n not in before} == plain["files"]
  assert {n.split("/")[0] for n in before} == {"samples", "evaluations"}


def test_held_out_pairs_one_by_one(undisturbed):
  """They are what the metrics take the means of."""
  found = [r for r in undisturbed[0]["metrics"] if r["mode"] == "evaluate"]
  assert [r["step"] for r in found] == [2, 4]
  for means in found:
    pairs = undisturbed[0]["files"][f"evaluations/step_{means['step']:06d}/pairs.jsonl"]
    assert len({p["pair"] for p in pairs}) == len(pairs) == means["pairs"] > 1
    for name in ("logps/chosen", "rewards/margins", "length/rejected"):
      np.testing.assert_allclose(np.mean([p[name] for p in pairs]), means[name], rtol=1e-12)


def test_resume_can_be_declined(tmp_path, undisturbed, before_launch):  # noqa: F811
  before_launch(4, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run")
  _, folder = go(tmp_path / "run", checkpoint__resume=False)
  assert_same(outcome(folder), undisturbed[0])
  assert (folder / "attempts" / "0001" / "checkpoints" / "step_000002").is_dir()


def test_another_run_begins_with_the_weights(tmp_path, undisturbed, monkeypatch):
  last = undisturbed[1] / "checkpoints" / "step_000005"
  found, load_state = [], loop.load_state

  def watched(*args):
    state = load_state(*args)
    found.append(jax.tree.map(np.array, state))
    return state

  monkeypatch.setattr(loop, "load_state", watched)
  saved = saved_state(undisturbed[1])[1]["params"]
  for name, source in (("of_a_workdir", undisturbed[1]), ("of_a_checkpoint", last)):
    _, folder = go(tmp_path / name, checkpoint__init_from=str(source))
    assert record(folder)["began_with"] == str(last)
    assert [row["step"] for row in rows(folder / "metrics.jsonl")][0] == 1
  for state in found:
    chex.assert_tree_no_nones(state.params)
    chex.assert_trees_all_equal(jax.tree.map(bytes_of, state.params), saved)
    rest = state.opt_state, state.step
    chex.assert_trees_all_equal(rest, jax.tree.map(np.zeros_like, rest))


def test_another_run_goes_on_with_everything(tmp_path, undisturbed):
  """From step 4 of the same config, in a folder of its own: step 5 is the same."""
  source = str(undisturbed[1] / "checkpoints" / "step_000004")
  _, folder = go(tmp_path / "run", checkpoint__init_from=source, checkpoint__init_what="all")
  assert_same_state(outcome(folder)["saved"], undisturbed[0]["saved"])
  assert rows(folder / "metrics.jsonl") == undisturbed[0]["metrics"][-1:]


def test_a_finished_schedule_cannot_go_on(tmp_path, undisturbed):
  changes = {"checkpoint.init_from": str(undisturbed[1]), "checkpoint.init_what": "all"}
  with pytest.raises(UserError, match="at step 5 of --config.train.steps=5: nothing is left"):
    go(tmp_path / "run", **changes)


@pytest.mark.parametrize("source", ("absent", "empty"))
def test_a_source_without_checkpoints_is_refused(tmp_path, source):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=rf"init_from=.*{source} .* name a workdir or a checkpoint"):
    go(tmp_path / "run", checkpoint__init_from=str(tmp_path / source))


def test_other_sizes_are_refused(tmp_path, undisturbed):
  """The embedding is frozen there, so it has no optimizer state."""
  source = str(undisturbed[1] / "checkpoints" / "step_000004")
  changes = {"checkpoint.init_from": source, "checkpoint.init_what": "all"}
  with pytest.raises(UserError, match=r"does not fit this run: .*opt_state.*absent here"):
    go(tmp_path / "run", **changes, train__freeze_embeddings=True)


@sweep(("keep", "keep_every", "kept"), ((1, 0, [5]), (3, 0, [3, 4, 5]), (1, 2, [2, 4, 5])))
def test_the_newest_are_kept_and_every_mth(tmp_path, keep, keep_every, kept):
  options = {"checkpoint.keep": keep, "checkpoint.keep_every": keep_every, "checkpoint.every": 1}
  _, folder = go(tmp_path / "run", **options, generate__at_steps=(2, 4))
  assert names(folder) == [f"step_{step:06d}" for step in kept]


def test_saves_by_the_clock(tmp_path):
  _, folder = go(tmp_path / "run", checkpoint__every=0, checkpoint__minutes=1e-9)
  saves = record(folder)["timings"]["checkpoint_seconds"]
  assert [save["step"] for save in saves] == [1, 2, 3, 4, 5]


def test_nothing_is_saved_unasked(tmp_path):
  _, folder = go(tmp_path / "run", checkpoint__every=0, checkpoint__at_end=False)
  assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("prepared", (False, True))
def test_the_next_step_updates_in_place_what_is_being_saved(tmp_path, prepared):
  step, weights = jax.device_put(3), jnp.arange(2.0**22)
  state = TrainState(params={"w": weights}, opt_state={}, step=step, average=None)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  update = jax.jit(lambda x: x + 1, donate_argnums=0).lower(weights).compile()
  address = weights.unsafe_buffer_pointer()
  saving = manager.Checkpoints(tmp_path, keep=2, keep_every=0)
  if prepared:
    saving.prepare(abstract)
  for number in (1, 2):  # the second copy is made in the memory of the first
    saving.save(layout.Position(number), state, {})
    state = state._replace(params={"w": update(state.params["w"])})
    assert state.params["w"].unsafe_buffer_pointer() == address
  saving.wait()
  saving.close()
  for number in (1, 2):
    read = manager.restore(tmp_path / f"step_00000{number}", abstract)
    np.testing.assert_array_equal(read.params["w"], np.arange(2.0**22) + number - 1)
