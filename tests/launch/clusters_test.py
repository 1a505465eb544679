"""The cluster launchers: what they would run, word for word, and what arrives when it is run.

`gcloud`, `sbatch`, `srun`, `scontrol`, `kubectl` and `sky` are small programs that do what the
real ones do with a script or a manifest, on this machine; the interpreter is one that writes
down its arguments and environment. Golden files are written anew by
  UPDATE_GOLDEN=1 python -m pytest tests/launch/clusters_test.py
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from support.folders import GOLDEN, ROOT
from support.hosts import wait_for

TEXTS = GOLDEN / "launch"
PLAIN = ["--config=configs/m11.py", "--workdir=/outputs/mine"]
# What a shell, a template, YAML or Kubernetes could take for something else.
ODD = [
  "--config=configs/m11.py:smollm2",
  "--workdir=/outputs/a b",
  "--config.generate.at_steps=(2,50)",
  '--config.generate.template=It\'s "{index}" $HOME ${X} $(HOME) $(id) `id` $$ \\ \\\\ *;&|<>!#~',
  "--config.generate.stop=('\n', 'two  spaces', '\t')",
  "--config.generate.prompts=é🎉: yes",
  "",
  "--",
]
TPU = ["--accelerator=tpu-v5p-slice", "--topology=2x2x4"]
GPU = ["--accelerator=nvidia-h100-80gb", "--hosts=2", "--devices-per-host=8"]
IMAGE = ["--name=mine", "--image=registry/simpo_jax:1"]
DRY = {
  "local": ["local.py", "--processes=2", "--devices=4", "--python=python"],
  "local_one": ["local.py", "--python=python"],
  "tpu_vm": ["tpu_vm.py", "my-v5p-32", "--zone=us-east5-a", "--project=p", "--env=TOKEN=a b"],
  "slurm": ["slurm.py", "--nodes=4", "--repo-dir=/shared/simpo_jax", "--sbatch=--gpus-per-node=8"],
  "slurm_once": ["slurm.py", "--repo-dir=/a b", "--max-restarts=0", "--wait", "--env=TOKEN=a b"],
  "gke_tpu": ["gke.py", *IMAGE, *TPU, "--volume=claim:/outputs", "--namespace=team"],
  "gke_gpu": ["gke.py", *IMAGE, *GPU, "--env=TOKEN=a b", "--max-restarts=0"],
  "sky_gpu": ["sky.py", "--accelerators=H100:8", "--nodes=2", "--mount=/outputs=gs://bucket"],
  "sky_tpu": ["sky.py", "--accelerators=tpu-v5p-32", "--cluster=c", "--max-restarts=0"],
}

PYTHON = """
import json, os, pathlib, signal, sys, time
record = pathlib.Path(os.environ["RECORD"])
keys = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "TOKEN")
told = {"argv": sys.argv[1:], "cwd": os.getcwd(), **{k: os.environ.get(k) for k in keys}}
name = f"run-{time.time_ns()}-{os.getpid()}.json"
(record / (name + ".part")).write_text(json.dumps(told))
print("a line of output")
if os.environ.get("UNTIL_SIGTERM"):
  def stop(*_):
    (record / "stopped").touch()
    print("saved")
    sys.exit(int(os.environ["UNTIL_SIGTERM"]))
  signal.signal(signal.SIGTERM, stop)
(record / (name + ".part")).rename(record / name)
while os.environ.get("UNTIL_SIGTERM"):
  time.sleep(0.05)
codes = os.environ.get("CODES", "0").split()
sys.exit(int(codes[min(len(list(record.glob("run-*.json"))), len(codes)) - 1]))
"""
# ssh: joins the words of the command, and gives them to the login shell in the home folder.
GCLOUD = """
import os, pathlib, subprocess, sys
(command,) = (a.removeprefix("--command=") for a in sys.argv if a.startswith("--command="))
words = command.split(" ")
workers = [
  subprocess.Popen(
    ["bash", "-c", " ".join(words)],
    cwd=home,
    env={**os.environ, "HOSTNAME": f"t1v-n-abc-w-{i}"},
  )
  for i, home in enumerate(sorted(pathlib.Path(os.environ["HOMES"]).iterdir()))
]
codes = [w.wait() for w in workers]
sys.exit(next((c for c in codes if c), 0))
"""
SBATCH = """
import os, pathlib, subprocess, sys
record = pathlib.Path(os.environ["RECORD"])
(record / "script").write_text(sys.stdin.read())
job = {"SLURM_JOB_ID": "40007", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[3-4]"}
for count in range(9):
  restarts = {"SLURM_RESTART_COUNT": str(count)} if count else {}
  (record / "requeued").unlink(missing_ok=True)
  script = ["bash", record / "script"]
  code = subprocess.run(script, cwd="/", env={**os.environ, **job, **restarts}).returncode
  if not (record / "requeued").exists():
    break
sys.exit(code if "--wait" in sys.argv else 0)
"""
SRUN = """
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
  command.pop(0)
count = int(os.environ["SLURM_NTASKS"])
tasks = [
  subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(i)}) for i in range(count)
]
sys.exit(max(t.wait() for t in tasks))
"""
SCONTROL = """
import os, pathlib, sys
if sys.argv[1:3] == ["show", "hostnames"]:
  assert sys.argv[3] == "node[3-4]"
  print("node3", "node4", sep="\\n")
else:
  assert sys.argv[1:] == ["requeue", "40007"]
  (pathlib.Path(os.environ["RECORD"]) / "requeued").touch()
"""
KUBECTL = """
import json, os, pathlib, sys
record = pathlib.Path(os.environ["RECORD"])
if "create" in sys.argv:
  (record / "manifest").write_text(sys.stdin.read())
  sys.exit(int(os.environ.get("CREATE", "0")))
if "logs" in sys.argv:
  print("log of", sys.argv[-1])
  sys.exit(0)
states = json.loads((record / "states.json").read_text())
if "jobset" in sys.argv:
  answer = states.pop(0) if len(states) > 1 else states[0]
  (record / "states.json").write_text(json.dumps(states))
  if answer == "no answer":
    sys.exit("the server is away")
  print(json.dumps(answer) if answer else "", end="")
else:
  print((record / "pods.json").read_text())
"""
SKY = """
import os, pathlib, subprocess, sys, yaml
task = yaml.safe_load(pathlib.Path(sys.argv[-1]).read_text())
nodes = {"SKYPILOT_NODE_IPS": "10.0.0.5\\n10.0.0.6\\n", "SKYPILOT_NUM_NODES": "2"}
for rank in range(2):
  env = {**os.environ, **task["envs"], **nodes, "SKYPILOT_NODE_RANK": str(rank)}
  code = subprocess.run(["bash", "-c", task["run"]], env=env).returncode
sys.exit(100 if code else 0)
"""


@pytest.fixture
def cluster(tmp_path):
  """cluster(launcher, options, flags) -> (exit code, stdout, stderr), with the fakes on PATH."""
  return Cluster(tmp_path)


class Cluster:
  def __init__(self, folder):
    self.folder = folder
    self.record = folder / "record"
    self.repo = folder / "a repo"
    self.homes = folder / "homes"
    bins = folder / "bin"
    self.record.mkdir()
    bins.mkdir()
    fakes = {
      **{"gcloud": GCLOUD, "sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL},
      **{"kubectl": KUBECTL, "sky": SKY, "python": PYTHON},
    }
    for name, text in fakes.items():
      note = "" if name == "python" else _NOTE
      # -S: they need no packages, and start faster; sky reads YAML.
      site = "" if name == "sky" else " -S"
      (bins / name).write_text(f"#!{sys.executable}{site}\n{note}{text}")
      (bins / name).chmod(0o755)
    interpreters = [self.repo, *(self.homes / f"home{i}" / "simpo_jax" for i in range(2))]
    for repo in interpreters:
      (repo / ".venv" / "bin").mkdir(parents=True)
      (repo / ".venv" / "bin" / "python").symlink_to(bins / "python")
    self.env = {
      **{k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
      "PATH": f"{bins}{os.pathsep}{os.environ['PATH']}",
      "RECORD": str(self.record),
      "HOMES": str(self.homes),
    }

  def start(self, launcher, options, flags, **env):
    """The launcher, started; it waits 0 seconds where it would wait between two looks."""
    code = (
      f"import sys; sys.path.insert(0, {str(ROOT / 'launch')!r}); import common, {launcher}\n"
      f"{launcher}._PAUSE_SECONDS = {launcher}._POLL_SECONDS = 0\n"
      f"common.entry({launcher}.main)"
    )
    return subprocess.Popen(
      [sys.executable, "-S", "-c", code, *options, "--", *flags],
      cwd=self.repo,
      env={**self.env, **env},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __call__(self, launcher, options, flags, **env):
    started = self.start(launcher, options, flags, **env)
    out, err = started.communicate(timeout=30)
    return started.returncode, out, err

  def runs(self):
    """What the interpreters were given, in the order of their process ids, then of time."""
    told = [json.loads(p.read_text()) for p in sorted(self.record.glob("run-*.json"))]
    return sorted(told, key=lambda t: t["JAX_PROCESS_ID"] or "")

  def calls(self, name):
    return [json.loads(p.read_text()) for p in sorted(self.record.glob(f"call-{name}-*"))]


_NOTE = """\
import json, os, pathlib, sys, time
pathlib.Path(os.environ["RECORD"], f"call-{pathlib.Path(sys.argv[0]).name}-{time.time_ns()}"
).write_text(json.dumps(sys.argv[1:]))
"""


def launch(*argv, **env):
  return subprocess.run(
    [sys.executable, "-S", str(ROOT / "launch" / argv[0]), *argv[1:]],
    capture_output=True,
    text=True,
    env={**{k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}, **env},
  )


def dry(name, flags):
  done = launch(*DRY[name], "--dry-run", "--", *flags)
  assert done.returncode == 0, done.stderr
  return done


# --- what they would run ---


@pytest.mark.parametrize("name", DRY)
def test_dry_run(name):
  done = dry(name, PLAIN)
  text = f"$ python launch/{shlex.join([*DRY[name], '--dry-run', '--', *PLAIN])}\n{done.stdout}"
  text = re.sub(r"\d{8}-\d{6}-0", "YYYYMMDD-HHMMSS-0", text + done.stderr)
  golden = TEXTS / f"{name}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    golden.write_text(text)
  assert text == golden.read_text(), "if this is meant, see the top of this file"


def test_no_golden_file_is_left_over():
  assert {p.stem for p in TEXTS.glob("*")} == set(DRY)


def scripts(name, out):
  """The shell scripts inside a dry run's output."""
  if name.startswith("tpu_vm"):
    (command,) = (w for w in shlex.split(out) if w.startswith("--command="))
    return [command.removeprefix("--command="), shlex.split(command)[-1]]
  if name.startswith("sky"):
    return [yaml.safe_load(out)[key] for key in ("setup", "run")]
  return [out]


@pytest.mark.parametrize("flags", [PLAIN, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("name", [n for n in DRY if not n.startswith("gke")])
def test_shellcheck(name, flags):
  shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
  assert shellcheck, "it comes with the extra `test`"
  for script in scripts(name, dry(name, flags).stdout):
    done = subprocess.run(
      [shellcheck, "--shell=bash", "-"], input=script, capture_output=True, text=True
    )
    # The user's words may look like mistakes inside single quotes; ours may not.
    found = [c for c in re.findall(r"SC\d+", done.stdout) if flags is PLAIN or c != "SC2016"]
    assert not found, done.stdout


@pytest.mark.parametrize("name", [n for n in DRY if n.startswith("gke")])
@pytest.mark.parametrize("flags", [PLAIN, ODD], ids=["plain", "odd"])
def test_the_jobset_has_the_form_of_its_api(name, flags):
  told = yaml.safe_load(dry(name, flags).stdout)
  # A field that the API does not have would be lost on the way.
  read = JobsetV1alpha2JobSet.from_dict(told)
  assert read and json.loads(read.to_json()) == told
  job = told["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["completions"] == job["parallelism"]
  (container,) = job["template"]["spec"]["containers"]
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert rule["onExitCodes"]["values"] == [2]


@pytest.mark.parametrize(
  ("topology", "per_host", "hosts", "chips"),
  [
    ("2x2x4", (), 4, 4),
    ("2x2x1", (), 1, 4),
    ("4x4", (), 4, 4),
    ("1x1", (), 1, 1),
    ("2x4", ("--devices-per-host=8",), 1, 8),
  ],
)
def test_the_topology_tells_the_hosts(topology, per_host, hosts, chips):
  options = ["gke.py", *IMAGE, TPU[0], f"--topology={topology}", *per_host, "--dry-run"]
  told = yaml.safe_load(launch(*options, "--", *PLAIN).stdout)
  job = told["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  assert (job["completions"], container["resources"]["limits"]) == (
    hosts,
    {"google.com/tpu": chips},
  )


# --- what arrives ---


def test_tpu_vm_runs_the_line_on_every_worker(cluster):
  options = ["tpu", "--zone=z", "--env=TOKEN=it's $HOME"]
  code, out, _ = cluster("tpu_vm", options, ODD)
  assert code == 0
  runs = cluster.runs()
  homes = [cluster.homes / f"home{i}" / "simpo_jax" for i in range(2)]
  assert sorted(r["cwd"] for r in runs) == list(map(str, homes))
  for run in runs:
    assert run["argv"] == ["-m", "simpo_jax.main", *ODD]
    assert run["TOKEN"] == "it's $HOME"
    assert run["JAX_NUM_PROCESSES"] is None, "JAX knows the pod itself"
  assert sorted(out.splitlines()) == [f"[{i}] a line of output" for i in range(2)]
  for home in homes:
    (log,) = (home / "launch_logs").iterdir()
    assert log.read_text() == "a line of output\n"
  (call,) = cluster.calls("gcloud")
  assert call[:5] == ["compute", "tpus", "tpu-vm", "ssh", "tpu"]
  assert {"--zone=z", "--worker=all"} <= set(call)


def test_tpu_vm_restarts_until_it_works_but_not_after_a_mistake(cluster):
  code, _, err = cluster("tpu_vm", ["tpu", "--zone=z"], PLAIN, CODES="75 75 75 75 0 0")
  assert (code, len(cluster.calls("gcloud"))) == (0, 3)
  assert "exit code 75; restart 2 of 3" in err


@pytest.mark.parametrize(("failure", "limit", "calls"), [(2, 3, 1), (1, 0, 1), (75, 1, 2)])
def test_tpu_vm_exit_code(cluster, failure, limit, calls):
  options = ["tpu", "--zone=z", f"--max-restarts={limit}"]
  code, _, _ = cluster("tpu_vm", options, PLAIN, CODES=str(failure))
  assert (code, len(cluster.calls("gcloud"))) == (failure, calls)


def test_tpu_vm_needs_its_folder(cluster):
  code, _, err = cluster("tpu_vm", ["tpu", "--zone=z", "--repo-dir=~/nowhere"], PLAIN)
  assert (code, len(cluster.calls("gcloud")), cluster.runs()) == (2, 1, [])
  assert "nowhere: No such file" in err


@pytest.mark.parametrize("left", [0, 75])
def test_tpu_vm_passes_a_signal_on(cluster, left):
  started = cluster.start("tpu_vm", ["tpu", "--zone=z"], PLAIN, UNTIL_SIGTERM=str(left))
  wait_for(lambda: len(cluster.runs()) == 2)
  started.send_signal(signal.SIGINT)
  out, err = started.communicate(timeout=15)
  assert started.returncode == left
  assert out.count("saved\n") == 2, "what it says while it ends still arrives"
  assert "restart" not in err


def test_tpu_vm_leaves_nothing_running_when_it_is_killed(cluster):
  started = cluster.start("tpu_vm", ["tpu", "--zone=z"], PLAIN, UNTIL_SIGTERM="0")
  wait_for(lambda: len(cluster.runs()) == 2)
  started.kill()
  wait_for((cluster.record / "stopped").exists)
  # Both have ended when the pipe that they share has no writer any more.
  assert started.communicate(timeout=15)[0].count("saved\n") == 2


def test_tpu_vm_kills_what_ignores_the_signal(cluster):
  (cluster.folder / "bin" / "python").write_text(
    f"#!{sys.executable}\nimport signal, time, pathlib, os\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "(pathlib.Path(os.environ['RECORD']) / f'on-{os.getpid()}').touch()\ntime.sleep(60)\n"
  )
  started = cluster.start("tpu_vm", ["tpu", "--zone=z", "--grace=1"], PLAIN)
  wait_for(lambda: len(list(cluster.record.glob("on-*"))) == 2)
  started.send_signal(signal.SIGTERM)
  started.communicate(timeout=15)
  assert started.returncode == 137


def test_a_worker_runs_an_attempt_once(cluster):
  script = scripts("tpu_vm", dry("tpu_vm", PLAIN).stdout)[0]
  reader, writer = os.pipe()  # open as long as the connection stands
  for expected in (0, 75):
    done = subprocess.run(
      ["bash", "-c", script], cwd=cluster.homes / "home0", env=cluster.env, stdin=reader
    )
    assert done.returncode == expected
  os.close(reader)
  os.close(writer)
  assert len(cluster.runs()) == 1


def test_slurm_runs_the_line_on_every_node(cluster):
  options = ["--nodes=2", "--env=TOKEN=it's $HOME", "--sbatch=--time=1:00", "--sbatch=--x=a b"]
  code, out, _ = cluster("slurm", options, ODD)
  assert code == 0
  runs = cluster.runs()
  assert [r["JAX_PROCESS_ID"] for r in runs] == ["0", "1"]
  for run in runs:
    assert run["argv"] == ["-m", "simpo_jax.main", *ODD]
    assert run["JAX_COORDINATOR_ADDRESS"] == "node3:20007"
    assert run["JAX_NUM_PROCESSES"] == "2"
    assert run["TOKEN"] == "it's $HOME"
    assert run["cwd"] == str(cluster.repo)
  assert cluster.calls("sbatch") == [["--time=1:00", "--x=a b"]]
  assert out.count("a line of output") == 2


@pytest.mark.parametrize(
  ("codes", "limit", "code", "requeues"),
  [
    ("0", 3, 0, 0),
    ("75 75 1 1 0 0", 3, 0, 2),
    ("75", 1, 75, 1),
    ("2", 3, 2, 0),
    ("1", 0, 1, 0),
    ("0 5", 0, 5, 0),  # one of two
  ],
)
def test_slurm_requeues_and_passes_the_code_on(cluster, codes, limit, code, requeues):
  options = ["--nodes=2", "--wait", f"--max-restarts={limit}"]
  got, _, _ = cluster("slurm", options, PLAIN, CODES=codes)
  assert (got, len(cluster.calls("srun"))) == (code, requeues + 1)
  assert len(cluster.calls("scontrol")) == 2 * requeues + 1


def expand(text, variables):
  """Kubernetes' rule for $(NAME) and $$ in commands and values."""
  return re.sub(
    r"\$\$|\$\(([\w.-]+)\)",
    lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]),
    text,
  )


@pytest.mark.parametrize("kind", [TPU, GPU], ids=["tpu", "gpu"])
def test_gke_runs_the_line_on_every_host(cluster, kind):
  options = [*IMAGE, *kind, "--env=HOME=/home/x", "--env=TOKEN=$(HOME) it's $HOME"]
  assert cluster("gke", options, ODD)[0] == 0
  assert cluster.calls("kubectl") == [["create", "--filename=-"]]
  told = yaml.safe_load((cluster.record / "manifest").read_text())
  job = told["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  for index in range(job["completions"]):
    env = {}
    for variable in container["env"]:
      if "value" in variable:
        env[variable["name"]] = expand(variable["value"], env)
      else:
        path = variable["valueFrom"]["fieldRef"]["fieldPath"]
        assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        env[variable["name"]] = str(index)
    words = [expand(word, env) for word in container["command"]]
    subprocess.run(words, env={**cluster.env, **env}, check=True)
  runs = cluster.runs()
  assert len(runs) == (4 if kind is TPU else 2)
  for index, run in enumerate(runs):
    assert run["argv"] == ["-m", "simpo_jax.main", *ODD]
    assert run["TOKEN"] == "$(HOME) it's $HOME"
    who = [run[f"JAX_{k}"] for k in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")]
    # JobSet names a pod JOBSET-JOB-REPLICA-INDEX, in the subdomain that is set.
    assert who == ([None] * 3 if kind is TPU else ["mine-hosts-0-0.mine:8476", "2", str(index)])
  assert told["spec"]["network"]["subdomain"] == "mine"


def pod(index, attempt, phase, code=None, at=""):
  ended = {"terminated": {"exitCode": code, "finishedAt": at}} if code is not None else {}
  metadata = {
    "name": f"mine-hosts-0-{index}-{attempt}",
    "labels": {"jobset.sigs.k8s.io/restart-attempt": str(attempt)},
    "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
  }
  return {
    "metadata": metadata,
    "status": {"phase": phase, "containerStatuses": [{"state": ended}]},
  }


def state(restarts=0, terminal=None):
  return {"status": {"restarts": restarts, **({"terminalState": terminal} if terminal else {})}}


FAILED = [
  pod(0, 1, "Failed", 75, "2026-01-01T00:00:09Z"),
  pod(1, 1, "Failed", 3, "2026-01-01T00:00:02Z"),
  pod(2, 1, "Succeeded", 0, "2026-01-01T00:00:01Z"),
]
ALL = [pod(0, 0, "Failed", 75, "2026-01-01T00:00:05Z"), pod(0, 1, "Succeeded", 0)]


@pytest.mark.parametrize(
  ("states", "pods", "code", "logs", "says"),
  [
    ([{}, state(), state(1), "no answer", state(1, "Completed")], ALL, 0, 2, "away"),
    ([state(1, "Failed")], FAILED, 3, 1, "pod mine-hosts-0-1-1 failed with exit code 3"),
    ([state(0, "Failed")], [pod(0, 0, "Pending")], 1, 0, "kubectl describe jobset"),
    ([state(), {}], [pod(0, 0, "Running")], 1, 1, "deleted"),
  ],
  ids=["completed", "failed", "never_ran", "deleted"],
)
def test_gke_waits_for_the_result(cluster, states, pods, code, logs, says):
  if states[0] == {}:
    states = [{"status": {}}, *states[1:]]
  (cluster.record / "states.json").write_text(json.dumps(states))
  (cluster.record / "pods.json").write_text(json.dumps({"items": pods}))
  got, out, err = cluster("gke", [*IMAGE, *GPU, "--namespace=n", "--wait"], PLAIN)
  assert (got, out.count("log of")) == (code, logs), err
  assert says in err
  assert all(call[0] == "--namespace=n" for call in cluster.calls("kubectl"))


def test_gke_passes_on_that_it_was_refused(cluster):
  code, _, _ = cluster("gke", [*IMAGE, *GPU, "--wait"], PLAIN, CREATE="1")
  assert (code, len(cluster.calls("kubectl"))) == (1, 1)


@pytest.mark.parametrize("codes", ["0", "3"])
def test_sky_runs_the_line_on_every_node(cluster, codes):
  options = ["--accelerators=H100:8", "--nodes=2", "--env=TOKEN=it's $HOME"]
  code, _, _ = cluster("sky", options, ODD, CODES=codes)
  assert code == (0 if codes == "0" else 100)
  runs = cluster.runs()
  assert [r["JAX_PROCESS_ID"] for r in runs] == ["0", "1"]
  for run in runs:
    assert run["argv"] == ["-m", "simpo_jax.main", *ODD]
    assert run["JAX_COORDINATOR_ADDRESS"] == "10.0.0.5:8476"
    assert run["JAX_NUM_PROCESSES"] == "2"
    assert run["TOKEN"] == "it's $HOME"
  (call,) = cluster.calls("sky")
  assert call[:3] == ["jobs", "launch", "--yes"]


# --- mistakes, help ---


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["local.py"], "no flags for simpo_jax.main; put them after --"),
    (["local.py", "--config=x"], "the flags of simpo_jax.main go after --"),
    (["local.py", "--processes=0", "--", *PLAIN], "--processes: expected a whole number from 1"),
    (["local.py", "--max-restarts=-1", "--", *PLAIN], "--max-restarts: expected a whole number"),
    (["local.py", "--max-restarts=2", "--", PLAIN[0]], "needs --workdir=DIR after --"),
    (["slurm.py", "--", PLAIN[0], "--workdir="], "or say --max-restarts=0"),
    (["slurm.py", "--env=1=2", "--", *PLAIN], "expected KEY=VALUE or KEY, not '1=2'"),
    (["slurm.py", "--env=NOT_SET_HERE", "--", *PLAIN], "NOT_SET_HERE is not set here"),
    (["slurm.py", "--", *PLAIN], "cannot run sbatch: No such file or directory"),
    (["tpu_vm.py", "tpu", "--", *PLAIN], "required: --zone"),
    (["gke.py", *IMAGE, TPU[0], "--", *PLAIN], "needs its --topology"),
    (["gke.py", *IMAGE, TPU[0], "--topology=2", "--", *PLAIN], "such as 2x2x4"),
    (["gke.py", *IMAGE, TPU[0], "--topology=3x2", "--", *PLAIN], "must divide them"),
    (["gke.py", *IMAGE, *TPU, "--hosts=3", "--", *PLAIN], "has 4 hosts, not 3"),
    (["gke.py", *IMAGE, GPU[0], "--", *PLAIN], "needs --hosts and --devices-per-host"),
    (["gke.py", *IMAGE, *GPU, "--volume=x", "--", *PLAIN], "expected CLAIM:/PATH"),
    (["gke.py", *IMAGE, *GPU, "--name=Mine", "--", *PLAIN], "use 1 to 40 of a-z"),
    (["sky.py", "--accelerators=H100", "--cluster=c", "--", *PLAIN], "--max-restarts=0"),
    (["sky.py", "--accelerators=H100", "--mount=x", "--", *PLAIN], "expected PATH=URL"),
  ],
)
def test_a_mistake_is_one_line(argv, says):
  done = launch(*argv, PATH="/nowhere")
  assert (done.returncode, done.stdout) == (2, "")
  assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
  assert says in done.stderr


@pytest.mark.parametrize("name", ["local", "tpu_vm", "gke", "slurm", "sky"])
def test_help(name):
  done = launch(f"{name}.py", "--help")
  assert (done.returncode, done.stderr) == (0, "")
  for part in (f"python launch/{name}.py", "--dry-run", "--max-restarts", "--config=configs/m11"):
    assert part in done.stdout


def test_an_environment_variable_without_a_value_is_taken_from_here():
  done = launch(*DRY["slurm"], "--env=TOKEN", "--dry-run", "--", *PLAIN, TOKEN="a b")
  assert "export TOKEN='a b'\n" in done.stdout
