"""^C where there is no step to end first: one line and exit code 130, whatever XLA is doing."""

import json
import os
import signal
import subprocess
import sys
import time

import hosts


def test_while_compiling(tmp_path):
  run = subprocess.Popen(
    [sys.executable, "-m", "simpo_jax.main", *hosts.flags(tmp_path / "run", {})],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
    cwd=hosts.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert any(line.startswith("workdir") for line in run.stdout)
    time.sleep(2)  # lowering and compiling take many times as long
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=120)
  finally:
    run.kill()
  assert (run.returncode, err) == (130, "stopped by ^C\n")
  assert "compiled" not in out and "Traceback" not in out
  record = json.loads((tmp_path / "run" / "run.json").read_text())
  assert record["error"] == "stopped by ^C"
