"""The benchmarks' contract: `--help` with the command of the figures, `--json` with the fields."""

import json
import re
import subprocess
import sys

import pytest

from support.folders import DOCS, ROOT

BENCHES = sorted(
  path
  for path in (ROOT / "bench").glob("*.py")
  if re.search(r"app\.run\(common\.with_user_errors\(main\)\)", path.read_text())
)
FIELDS = {
  *("name", "unit", "ours", "theirs", "ratio", "peer", "floor", "fraction_of_floor", "rows"),
  *("device", "devices", "date", "versions"),
}


def bench(path, *arguments):
  done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True)
  return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_help(path):
  code, text = bench(path, "--help")
  assert code == 1 and f"python bench/{path.name}" in text  # absl's code for --help
  assert "--json" in text and "docs/performance.md" in text
  assert f"`python bench/{path.name}`" in (DOCS / "performance.md").read_text()


def test_figures(tmp_path):
  """Of a small case: the kernel next to the dense form."""
  path = tmp_path / "figures.json"
  sizes = {"batch": 2, "context": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "layers": 1}
  code, text = bench(
    ROOT / "bench" / "paged_attention.py",
    f"--json={path}",
    *(f"--{name}={value}" for name, value in sizes.items()),
  )
  assert code == 0, text
  found = json.loads(path.read_text())
  assert found.keys() == FIELDS and found["rows"][0]["case"] == "2 x 64" in text
  assert found["ratio"] == pytest.approx(found["theirs"] / found["ours"])
  assert found["fraction_of_floor"] == pytest.approx(found["floor"] / found["ours"])
  assert {"jax", "jaxlib", "python"} <= found["versions"].keys()
