"""^C where there is no step to end first: one line and exit code 130, whatever XLA is doing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from support import hosts
from support.folders import ROOT

pytestmark = pytest.mark.program

_DROPPED = """
import gc, os, signal, sys, time
from absl import app
from simpo_jax import cli, main as program

def press():
  os.kill(os.getpid(), signal.SIGINT)
  sum(range(100))

def main(*_):
{body}
  time.sleep(60)

program.main = main
app.run({run})
"""


# Where Python drops what is raised: a callback of the garbage collector, as jax has one, and code
# that takes whatever is raised, as compiled modules do.
_PLACES = {
  "garbage collection": """
  def collected(*_):
    gc.callbacks.remove(collected)
    press()
  gc.callbacks.append(collected)
  gc.collect()
""",
  "an except clause": """
  try:
    press()
  except BaseException:
    pass
""",
}


@pytest.mark.parametrize("run", ["program._main", "lambda argv: cli.answering(main, argv)"])
@pytest.mark.parametrize("place", _PLACES)
def test_where_it_is_dropped(place, run):
  script = _DROPPED.format(run=run, body=_PLACES[place])
  done = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=50,
  )
  assert (done.returncode, done.stderr) == (130, "stopped by ^C\n")


def test_while_compiling(tmp_path):
  run = subprocess.Popen(
    [sys.executable, "-m", "simpo_jax.main", *hosts.flags(tmp_path / "run", {})],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert any(line.startswith("workdir") for line in run.stdout or ())
    time.sleep(2)  # lowering and compiling take many times as long
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=120)
  finally:
    run.kill()
  assert (run.returncode, err) == (130, "stopped by ^C\n")
  assert "compiled" not in out and "Traceback" not in out
  record = json.loads((tmp_path / "run" / "run.json").read_text())
  assert record["error"] == "stopped by ^C"
