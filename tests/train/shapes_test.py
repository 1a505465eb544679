"""Annotations are checked: a wrong letter makes a function fail, and so do sizes that differ."""

import importlib
import pathlib
import sys

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError, install_import_hook

from simpo_jax.program.agreement import agreed_mode
from simpo_jax.train import loss

HIDDEN, MATRIX = jnp.ones((2, 6, 8)), jnp.ones((11, 8))  # B S D, V D
INDEX = IDS = jnp.zeros((2, 3), jnp.int32)  # B targets
CHUNK = 4


@pytest.fixture
def copied(tmp_path, monkeypatch):
  """`copied(old, new)`: the module of the loss with another source, imported as tests import it."""

  def import_copy(old, new):
    source = pathlib.Path(loss.__file__).read_text()
    assert source.count(old) == 1, old
    (tmp_path / "copied_loss.py").write_text(source.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "copied_loss", raising=False)
    with install_import_hook("copied_loss", "beartype.beartype"):
      return importlib.import_module("copied_loss")

  yield import_copy
  sys.modules.pop("copied_loss", None)


@pytest.mark.parametrize(
  "right, wrong",
  [
    ('-> Float32[Array, "B targets"]', '-> Float32[Array, "B V"]'),
    ('ids: Int32[Array, "B targets"],\n  chunk', 'ids: Int32[Array, "B S"],\n  chunk'),
    ('Float32[Array, "B chunk V"]]', 'Float32[Array, "B chunk D"]]'),  # of a private function
    ('"2 B padded"]) ->', '"2 B"]) ->'),  # of a loop's body
  ],
)
def test_a_wrong_letter_fails(copied, right, wrong):
  def call(module):
    return module.target_log_probs(HIDDEN, MATRIX, INDEX, IDS, CHUNK)

  assert call(copied(right, right)).shape == IDS.shape
  with pytest.raises(TypeCheckError):
    call(copied(right, wrong))


@pytest.mark.parametrize(
  "changes",
  [
    dict(ids=IDS[:, :2]),
    dict(index=INDEX[:1]),
    dict(matrix=MATRIX[:, 1:]),
    dict(hidden=HIDDEN[0]),
    dict(ids=IDS.astype(jnp.float32)),
  ],
  ids=["targets", "B", "D", "rank", "dtype"],
)
def test_arguments_that_do_not_fit_fail(changes):
  fitting = dict(hidden=HIDDEN, matrix=MATRIX, index=INDEX, ids=IDS)
  with pytest.raises(TypeCheckError):
    loss.target_log_probs(**{**fitting, **changes}, chunk=CHUNK)


def test_a_ledger_of_one_row_without_its_axis_fails():
  with pytest.raises(TypeCheckError):
    agreed_mode(jnp.zeros(8, jnp.int32))
