"""launch/local.py with real processes: their output, exit codes, signals, restarts, their end.

A small program takes the place of the interpreter, and so of `-m simpo_jax.main`.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from support.folders import ROOT
from support.hosts import wait_for
from support.tiers import sweep

LOCAL = [sys.executable, "-S", str(ROOT / "launch" / "local.py")]
HEAD = """#!{python} -ISu
import json, os, pathlib, signal, sys, time
me = int(os.environ["JAX_PROCESS_ID"])
here = pathlib.Path(__file__).parent
def pids():
  return [int(p.name) for p in (here / "pids").iterdir()]
(here / "pids" / str(os.getpid())).touch()
"""
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}


@pytest.fixture
def program(tmp_path):
  """program(body, *options) -> the launcher, started; each of its processes runs `body`."""
  (tmp_path / "pids").mkdir()
  started = []

  def start(body, *options, flags=("--workdir=w",), env=()):
    file = tmp_path / "python"
    file.write_text(HEAD.format(python=sys.executable) + body)
    file.chmod(0o755)
    command = [*LOCAL, f"--python={file}", *options, "--", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(command, env={**CLEAN, **dict(env)}, **pipes))
    return started[-1]

  start.folder = tmp_path
  yield start
  for launcher in started:
    launcher.kill()
    launcher.communicate()


def ended(launcher, timeout=20):
  out, err = launcher.communicate(timeout=timeout)
  return launcher.returncode, out, err


def running(pid):
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return stat.rpartition(")")[2].split()[0] not in "ZX"


def pids(folder):
  return [int(p.name) for p in (folder / "pids").iterdir()]


def test_each_process_learns_who_it_is(program):
  body = "print(json.dumps([sys.argv[1:], dict(os.environ)]))"
  flags = ["--workdir=a b", "--config.x=(2,50)", "it's $HOME \"\n`"]
  old = {"XLA_FLAGS": "--xla_old=1"}
  code, out, err = ended(program(body, "--processes=3", "--devices=4", flags=flags, env=old))
  assert (code, err) == (0, "")
  lines = sorted(out.splitlines())
  told = [json.loads(line.split(" ", 1)[1]) for line in lines]
  assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
  assert all(argv == ["-m", "simpo_jax.main", *flags] for argv, _ in told)
  envs = [env for _, env in told]
  assert [e["JAX_PROCESS_ID"] for e in envs] == ["0", "1", "2"]
  assert {e["JAX_NUM_PROCESSES"] for e in envs} == {"3"}
  (address,) = {e["JAX_COORDINATOR_ADDRESS"] for e in envs}
  assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
  assert {e["XLA_FLAGS"] for e in envs} == {"--xla_old=1 --xla_force_host_platform_device_count=4"}
  assert {e["JAX_PLATFORMS"] for e in envs} == {"cpu"}


def test_a_single_process_keeps_the_devices_of_the_machine(program):
  body = "print(json.dumps([os.environ.get(k) for k in ('JAX_PLATFORMS', 'XLA_FLAGS')]))"
  assert ended(program(body)) == (0, "[null, null]\n", "")


def test_a_platform_that_is_set_stays(program):
  body = "print(os.environ['JAX_PLATFORMS'], os.environ.get('XLA_FLAGS'))"
  code, out, _ = ended(program(body, "--processes=2", env={"JAX_PLATFORMS": "cuda"}))
  assert (code, sorted(out.splitlines())) == (0, ["[0] cuda None", "[1] cuda None"])


# The others notice it when it is over, and end with a code of their own.
ONE_FAILS = """
if me == 2:
  (here / "failed").touch()
  sys.exit(7)
while not (here / "failed").exists():
  time.sleep(0.05)
time.sleep(1)
sys.exit(75)
"""


@pytest.mark.parametrize(
  ("body", "code", "says"),
  [
    ("sys.exit(3 if me == 1 else 0)", 3, "process 1 failed with exit code 3"),
    (
      "sys.exit(75 if me == 1 else 0)",
      75,
      "process 1 ended with exit code 75; the same command resumes the run",
    ),
    (ONE_FAILS, 7, "process 2 failed with exit code 7"),
    ("me == 1 and os.kill(os.getpid(), 9)", 137, "process 1 was killed by SIGKILL (exit code 137)"),
  ],
  ids=["one_fails", "one_has_stopped", "the_others_follow", "one_is_killed"],
)
def test_the_exit_code_is_that_of_the_first_that_failed(program, body, code, says):
  got, _, err = ended(program(body, "--processes=3"))
  assert (got, err.splitlines()[-1]) == (code, f"[launch] {says}")


def test_what_does_not_end_after_a_failure_is_killed(program):
  body = "sys.exit(5) if me == 0 else time.sleep(60)"
  code, _, err = ended(program(body, "--processes=3", "--grace=1"), timeout=15)
  assert code == 5
  assert "killed after 1 s: process 1, 2" in err
  assert "process 0 failed with exit code 5" in err.splitlines()[-1]
  assert not any(map(running, pids(program.folder)))


def test_lines_stay_whole(program):
  body = """
for i in range(200):
  line = f"{me} {i} " + "x" * (i * 37 % 5000) + " end\\n"
  os.write(1, line[:7].encode())
  os.write(1, line[7:].encode())
os.write(2, b"an error\\n")
os.write(1, b"no newline at the end")
"""
  code, out, err = ended(program(body, "--processes=4"))
  assert code == 0
  assert sorted(err.splitlines()) == [f"[{p}] an error" for p in range(4)]
  for process in range(4):
    mine = [line for line in out.splitlines() if line.startswith(f"[{process}] ")]
    expected = [f"[{process}] {process} {i} {'x' * (i * 37 % 5000)} end" for i in range(200)]
    assert mine == [*expected, f"[{process}] no newline at the end"]
  assert len(out.splitlines()) == 4 * 201


COUNT_SIGNALS = """
count = 0
def handle(signum, _):
  global count
  count += 1
  print("signal", signum, count)
  if count == END_AT:
    sys.exit(CODE)
signal.signal(signal.SIGTERM, handle)
signal.signal(signal.SIGINT, handle)
print("ready")
while True:
  time.sleep(0.05)
"""


def ready(launcher, count):
  for _ in range(count):
    assert "ready" in launcher.stdout.readline()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once(program, signum):
  body = COUNT_SIGNALS.replace("END_AT", "1").replace("CODE", "0")
  launcher = program(body, "--processes=3")
  ready(launcher, 3)
  launcher.send_signal(signum)
  code, out, _ = ended(launcher)
  assert code == 0
  assert sorted(out.splitlines()) == [f"[{p}] signal {int(signum)} 1" for p in range(3)]


def test_a_second_signal_is_passed_on_too_and_nothing_restarts(program):
  body = COUNT_SIGNALS.replace("END_AT", "2").replace("CODE", "75")
  launcher = program(body, "--processes=2", "--max-restarts=3")
  ready(launcher, 2)
  for _ in range(2):
    launcher.send_signal(signal.SIGTERM)
    for _ in range(2):
      assert "signal 15" in launcher.stdout.readline()
  code, out, err = ended(launcher)
  assert (code, out) == (75, "")
  assert "restart" not in err
  assert len(pids(program.folder)) == 2


def test_what_ignores_a_signal_is_killed(program):
  body = COUNT_SIGNALS.replace("END_AT", "-1")
  launcher = program(body, "--processes=2", "--grace=1")
  ready(launcher, 2)
  launcher.send_signal(signal.SIGTERM)
  code, _, err = ended(launcher, timeout=15)
  assert code == 137 and "killed after" in err


FAIL_TWICE = """
print(os.environ["JAX_COORDINATOR_ADDRESS"])
attempt = len((here / "attempts").read_text()) if (here / "attempts").exists() else 0
if me == 1:
  (here / "attempts").write_text("x" * (attempt + 1))
  sys.exit(CODE if attempt < 2 else 0)
"""


@sweep(
  ("failure", "limit", "code", "attempts"),
  [(75, 3, 0, 3), (1, 2, 0, 3), (75, 1, 75, 2), (75, 0, 75, 1), (2, 3, 2, 1)],
  default=2,
)
def test_restarts(program, failure, limit, code, attempts):
  body = FAIL_TWICE.replace("CODE", str(failure))
  got, out, err = ended(program(body, "--processes=2", f"--max-restarts={limit}"))
  assert got == code
  assert len((program.folder / "attempts").read_text()) == attempts
  assert err.count("; restart ") == attempts - 1
  assert len(set(re.findall(r"127\S+", out))) == attempts, "each attempt has a port of its own"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_nothing_outlives_a_killed_launcher(program):
  launcher = program("time.sleep(60)", "--processes=3")
  wait_for(lambda: len(pids(program.folder)) == 3)
  assert all(map(running, pids(program.folder)))
  launcher.kill()
  wait_for(lambda: not any(map(running, pids(program.folder))))


def test_the_dry_run_is_what_runs(program):
  # In one write each: bash keeps nobody's lines apart.
  body = """
mine = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_", "PYTHON"))}
os.write(1, (json.dumps([mine, sys.argv[1:]]) + "\\n").encode())
"""
  flags = ["--workdir=a b", "it's $HOME"]
  options = ("--processes=2", "--devices=3")
  _, script, _ = ended(program(body, *options, "--dry-run", flags=flags))
  assert not pids(program.folder)
  dry = subprocess.run(
    ["bash"], input=script, capture_output=True, text=True, env={**CLEAN, "PORT": "1234"}
  )
  _, real, _ = ended(program(body, *options, flags=flags))

  def told(out):
    rows = sorted(re.sub(r"^\[\d\] ", "", re.sub(r"1:\d+", "1:PORT", x)) for x in out.splitlines())
    return [json.loads(row) for row in rows]

  assert len(told(real)) == 2
  assert told(dry.stdout) == told(real)


def test_an_interpreter_that_is_not_there():
  done = subprocess.run(
    [*LOCAL, "--python=/no/python", "--processes=2", "--", "--workdir=w"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert re.fullmatch(r"error: cannot run /no/python: [^\n]+\n", done.stderr)


def test_a_reader_that_leaves_ends_it_quietly(program):
  launcher = program("while True: print('x' * 1000)", "--processes=2")
  launcher.stdout.readline()
  launcher.stdout.close()
  launcher.wait(timeout=15)
  assert launcher.returncode == 128 + signal.SIGPIPE
  assert "Traceback" not in launcher.stderr.read()
  assert not any(map(running, pids(program.folder)))
