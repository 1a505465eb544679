"""What comes with a model, a dataset or a checkpoint runs no code and leads out of no folder."""

import ast
import gzip
import hashlib
import json
import os
import runpy
import shutil

import huggingface_hub
import pytest

from simpo_jax.checkpoint import layout, resume
from simpo_jax.data import row_files
from simpo_jax.data.prepared.builder import Target, build
from simpo_jax.data.prepared.dataset import open_prepared, verify
from simpo_jax.data.readers import hub
from simpo_jax.data.row_files import Malformed, read_rows
from simpo_jax.errors import UserError
from simpo_jax.models import weights
from simpo_jax.settings import CheckpointSettings, Settings
from simpo_jax.storage.paths import escapes_folder
from simpo_jax.tokenizer.load import load_tokenizer
from support import tiny_model_files as valid
from support.folders import ROOT
from support.sources import find_files
from support.tiny_model_files import json_text

# --- no pickle ---------------------------------------------------------------------------

_MODULES = {"pickle", "cPickle", "_pickle", "pickle5", "marshal", "shelve", "dill", "cloudpickle",
            "joblib", "jsonpickle"}  # fmt: skip
_LOADS = {"load", "unsafe_load", "full_load", "load_all", "unsafe_load_all", "full_load_all"}


def unsafe(source):
  """The lines of Python source that could run what a file says, or unpack what an archive says."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      names = [a.name for a in node.names]
      module = getattr(node, "module", None) or ""
      tops = {name.split(".")[0] for name in [*names, module]}
      if tops & _MODULES or (module == "torch" and "load" in names):
        found.append(node.lineno)
    elif isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      options = {k.arg: ast.unparse(k.value) for k in node.keywords}
      called = name.rpartition(".")[2]
      if (
        options.get("allow_pickle", "False") != "False"
        or options.get("trust_remote_code", "False") != "False"
        or (name.startswith("torch.") and called == "load")
        or (name.startswith("yaml.") and called in _LOADS and not _safe_loader(node, source))
        or called in ("read_pickle", "extractall", "unpack_archive")
        or name in ("eval", "exec", "__import__")
      ):
        found.append(node.lineno)
  return found


def _safe_loader(call, source):
  """Whether yaml.load gets a loader that the same file derives from SafeLoader."""
  loader = ast.unparse(call.args[1]) if len(call.args) > 1 else ""
  return loader.isidentifier() and f"class {loader}(yaml.SafeLoader):" in source


@pytest.mark.parametrize(
  "source",
  (
    "import pickle",
    "import os, dill.source",
    "def f():\n  from cloudpickle import loads",
    "from torch import load",
    "torch.load('x', weights_only=True)",
    "torch.hub.load('x')",
    "np.load('x', allow_pickle=True)",
    "np.load('x', allow_pickle=maybe)",
    "yaml.load(text)",
    "yaml.load(text, Loader)",
    "class Mine(yaml.SafeLoader):\n  pass\nyaml.load(text, yaml.Loader)",
    "yaml.unsafe_load(text)",
    "pd.read_pickle('x')",
    "AutoTokenizer.from_pretrained('x', trust_remote_code=True)",
    "tarfile.open('x').extractall()",
    "eval(text)",
  ),
)
def test_the_search_finds(source):
  assert unsafe(source)


def test_no_pickle_in_our_sources():
  folders = ("simpo_jax", "kernels", "launch", "bench", "configs", "tests")
  files = [ROOT / "setup.py", *(p for f in folders for p in (ROOT / f).rglob("*.py"))]
  assert len(files) > 100
  assert not {str(p): lines for p in files if (lines := unsafe(p.read_text()))}
  assert not unsafe("np.load('x')\nnp.load('x', allow_pickle=False)\nyaml.safe_load(x)\nx.load()")


# --- no code of a model's or a dataset's -------------------------------------------------

_EVIL = """import pathlib
pathlib.Path({mark!r}).touch()
from tensorflow_datasets.core.features.text_feature import Text
from transformers import LlamaConfig, PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(LlamaConfig): pass
class EvilText(Text): pass
"""
_IN_CONFIG = {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoTokenizer": ["evil.Evil", None]}}
_IN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}


def write_evil(folder):
  """Code that leaves a mark there, also when it is copied and run elsewhere."""
  (folder / "evil.py").write_text(_EVIL.format(mark=str(folder / "mark")))


@pytest.fixture
def evil(tmp_path, monkeypatch):
  """A folder with such code, from which Python imports, as from a user's own."""
  write_evil(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  # A terminal where somebody says yes to every question.
  monkeypatch.setattr("builtins.input", lambda *_: "y")
  yield tmp_path
  assert not (tmp_path / "mark").exists()


def test_evil_code_would_leave_a_mark(tmp_path):
  write_evil(tmp_path)
  runpy.run_path(str(tmp_path / "evil.py"))
  assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
  ("config", "settings"),
  (
    (_IN_CONFIG, {}),
    ({**_IN_CONFIG, "model_type": "evil"}, {}),
    ({}, _IN_TOKENIZER),
    ({}, {"tokenizer_class": "Evil"}),
    ({}, {"tokenizer_class": "evil.Evil"}),
    (_IN_CONFIG, {**_IN_TOKENIZER, "tokenizer_class": "Evil"}),
    ({"tokenizer_class": "evil.Evil"}, {"tokenizer_class": None}),
    ({**_IN_CONFIG, "model_type": "evil"}, {**_IN_TOKENIZER, "tokenizer_class": "Evil"}),
  ),
)
def test_a_models_code_is_never_run(evil, config, settings):
  files = {
    **valid.WEIGHTS,
    **valid.TOKENIZER_FILES,
    "config.json": json_text({**valid.CONFIG, **config}),
    "tokenizer_config.json": json_text({**valid.TOKENIZER_CONFIG, **settings}),
  }
  write(evil, files)
  for read in (weights.open_model, load_tokenizer):
    try:
      read(str(evil))
    except UserError as error:
      assert str(error)


def write(folder, files):
  folder.mkdir(exist_ok=True)
  for name, data in files.items():
    (folder / name).write_bytes(data)


def change(path, edit):
  """Edits a file of JSON in place."""
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  here = tmp_path_factory.mktemp("made")
  rows = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(9)]
  (here / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  build(find_files(str(here / "a.jsonl")), Target(here, "mine", "1.0.0", {}), 0.0, 0.1, 1)
  return here / "mine"


@pytest.fixture
def dataset(made, tmp_path):
  """The folder of a prepared dataset, to be changed."""
  shutil.copytree(made, tmp_path / "out" / "mine")
  folder = tmp_path / "out" / "mine" / "1.0.0"
  assert len(open_prepared(f"tfds:{folder}")) == 9
  return folder


def _new(features):
  features["featuresDict"]["features"]["chosen"]["pythonClassName"] = "evil.EvilText"


def _inside(features):
  inside = features["featuresDict"]["features"]["messages"]["sequence"]["feature"]
  inside["featuresDict"]["features"]["role"]["pythonClassName"] = "evil.EvilText"


def _old(features):
  features.clear()
  features.update(type="evil.EvilText", content={})


@pytest.mark.parametrize("edit", (_new, _inside, _old))
def test_a_dataset_names_no_code(evil, dataset, edit):
  change(dataset / "features.json", edit)
  with pytest.raises(UserError, match="names 'evil.EvilText', which is code to be run"):
    open_prepared(f"tfds:{dataset}")


# --- no way out of a folder --------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
  """What the hub was asked for."""
  calls = []

  def ask(name, **_):
    calls.append(name)
    raise OSError("offline")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
  monkeypatch.setattr("simpo_jax.tokenizer.load.load_hub", ask)
  return calls


@pytest.mark.parametrize(
  "name",
  (
    "..",
    "../..",
    "../x",
    "a/..",
    "a/../b",
    "a/..b",
    "a/b/c",
    "/no/x",
    "./a",
    "a/.b",
    "a//b",
    "-/b",
  ),
)
def test_what_is_no_name_of_the_hub_is_not_looked_up(asked, tmp_path, monkeypatch, name):
  (tmp_path / "here" / "below").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "here" / "below")
  for read in (weights.open_model, load_tokenizer):
    with pytest.raises(UserError):
      read(name)
  assert not hub.is_hub_source(name) and not asked


OUTSIDE = (
  "../x",
  "../../x",
  "..",
  "a/../../x",
  "/x",
  "a\\..\\x",
  "a\0",
  "link",
  "folder/x",
  "loop",
)


@pytest.fixture
def links(tmp_path):
  """A folder `in` with links out of it, and what they lead to."""
  folder = tmp_path / "in"
  folder.mkdir()
  (tmp_path / "x").write_text("outside")
  (folder / "own").write_text("inside")
  (folder / "link").symlink_to(tmp_path / "x")
  (folder / "folder").symlink_to(tmp_path)
  (folder / "loop").symlink_to("loop")
  (folder / "alias").symlink_to("own")
  return folder


def test_what_leads_out_of_a_folder(links):
  assert [escapes_folder(links, name) for name in OUTSIDE] == [True] * len(OUTSIDE)
  assert (
    not escapes_folder(links, "own")
    and not escapes_folder(links, "alias")
    and not escapes_folder(links, "absent")
  )
  (links.parent / "other").symlink_to(links)
  assert not escapes_folder(links.parent / "other", "own"), "the folder itself may be a link"


def test_the_links_of_the_hubs_cache_are_its_own(tmp_path):
  snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
  snapshot.mkdir(parents=True)
  (snapshot.parent.parent / "blobs").mkdir()
  (snapshot.parent.parent / "blobs" / "abc").write_text("")
  (snapshot / "m").symlink_to("../../blobs/abc")
  (snapshot / "n").symlink_to("../../../elsewhere")
  assert not escapes_folder(snapshot, "m") and escapes_folder(snapshot, "n")


@pytest.mark.parametrize("name", ("../x.safetensors", "/x", "sub/x", "link", ".."))
def test_shards_of_weights(tmp_path, name):
  write(tmp_path / "m", valid.SHARDED)
  write(tmp_path / "m" / "sub", {"x": valid.WEIGHTS["model.safetensors"]})
  write(tmp_path, {"x.safetensors": valid.WEIGHTS["model.safetensors"]})
  (tmp_path / "m" / "link").symlink_to(tmp_path / "x.safetensors")
  weights.open_model(str(tmp_path / "m"))
  index = tmp_path / "m" / valid.INDEX_NAME
  change(index, lambda v: v["weight_map"].update({"model.norm.weight": name}))
  with pytest.raises(UserError, match="which is not a file in its folder, or a link out of it"):
    weights.open_model(str(tmp_path / "m"))


@pytest.mark.parametrize(
  "spec",
  (
    "tfds:../secret",
    "tfds:mine/../../secret",
    "tfds:mine:../1.0.0",
    "tfds:./mine/../../secret/1.0.0",
  ),
)
def test_names_of_datasets(dataset, tmp_path, monkeypatch, spec):
  shutil.copytree(dataset.parent, tmp_path / "secret")
  (tmp_path / "a" / "b").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "a" / "b")
  assert len(open_prepared("tfds:mine", str(tmp_path / "out"))) == 9
  with pytest.raises(UserError, match="is not the folder of a prepared dataset|no such dataset"):
    open_prepared(spec, str(tmp_path / "out"))


@pytest.mark.parametrize("name", ("../x", "/x", "link"))
def test_shards_of_a_dataset(dataset, name):
  (shard,) = dataset.glob("*.array_record*")
  for place in (dataset.parent / "x", dataset.parent / "y"):
    shutil.copy(shard, place)
  (dataset / "link").symlink_to(dataset.parent / "x")
  edit = lambda v: v["shards"]["train"][0].update(file=name)  # noqa: E731
  change(dataset / "prepared.json", edit)
  for read in (open_prepared, lambda spec: verify(spec, dataset)):
    with pytest.raises(UserError, match="outside its folder or a link out of it"):
      read(f"tfds:{dataset}")


def _by_template(info, shard):
  info["splits"][0]["filepathTemplate"] = "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def _by_name(info, shard):
  info["name"] = "../mine"


def _by_link(info, shard):
  shard.unlink()
  shard.symlink_to(shard.parent.parent / shard.name)


@pytest.mark.parametrize("edit", (_by_template, _by_name, _by_link))
def test_files_of_a_dataset_by_others(dataset, edit):
  """Which has no list of ours with its shards."""
  (dataset / "prepared.json").unlink()
  (shard,) = dataset.glob("*.array_record*")
  shutil.copy(shard, dataset.parent)
  assert len(open_prepared(f"tfds:{dataset}")) == 9
  change(dataset / "dataset_info.json", lambda info: edit(info, shard))
  with pytest.raises(UserError, match="dataset_info.json lists .*, outside its folder or a link"):
    open_prepared(f"tfds:{dataset}")


@pytest.mark.parametrize("name", ("../x", "/x", "a/../../x", "link"))
def test_files_of_a_checkpoint(tmp_path, name):
  folder = tmp_path / "step_000003"
  write(folder, {"own": b"1"})
  write(tmp_path, {"x": b"1"})
  (folder / "link").symlink_to(tmp_path / "x")
  about = {
    "position": {"step": 3, "done": 0},
    "metrics_bytes": 0,
    "launches": [],
    "bad_steps": [],
    "identity": {},
    "arrays": {},
    "files": {"own": [1, hashlib.sha256(b"1").hexdigest()]},
  }
  (folder / layout.METADATA).write_text(json.dumps(layout.with_checksum(about)))
  assert layout.verify(folder) is None
  about["files"][name] = about["files"].pop("own")
  (folder / layout.METADATA).write_text(json.dumps(layout.with_checksum(about)))
  for start in (folder, tmp_path):
    config = Settings(checkpoint=CheckpointSettings(init_from=str(start)))
    with pytest.raises(UserError, match="is outside of the folder, or a link out of it"):
      resume.resolve_init_from(config)


@pytest.mark.parametrize("made", (os.mkfifo, lambda path: os.symlink("/dev/zero", path)))
def test_what_has_no_end_is_not_read(tmp_path, made):
  """A pipe that nobody writes to, a device: each is refused, or as if it were not there."""
  for name in ("config.json", "model.safetensors", valid.INDEX_NAME, "generation_config.json"):
    folder = tmp_path / name
    write(folder, {**valid.WEIGHTS, **valid.TOKENIZER_FILES})
    (folder / name).unlink(missing_ok=True)
    made(folder / name)
    for read in (weights.open_model, load_tokenizer):
      if (read, name) == (load_tokenizer, "config.json"):
        continue  # a run opens the model first
      try:
        read(str(folder))
      except UserError as error:
        assert str(error)
  made(tmp_path / layout.METADATA)
  assert "is missing" in (layout.verify(tmp_path) or "")


# --- no archive that unpacks to anything -------------------------------------------------


def test_lines_that_never_end(tmp_path, monkeypatch):
  monkeypatch.setattr(row_files, "MAX_LINE", 100)
  row = b'{"a": 1}'
  packed = gzip.compress(
    b"\n".join([row, b"[" * 1000, row, b" " * 1000, row + b" " * 92, b"x" * 99])
  )
  (tmp_path / "a.jsonl.gz").write_bytes(packed)
  read = dict(read_rows(str(tmp_path / "a.jsonl.gz")))
  bad = Malformed("malformed_json")
  assert read == {
    f"a.jsonl.gz:{n}": r
    for n, r in ((1, {"a": 1}), (2, bad), (3, {"a": 1}), (5, {"a": 1}), (6, bad))
  }
  lines = [line for _, line in row_files.open_lines(tmp_path / "a.jsonl.gz")]
  assert max(map(len, lines)) == 100


def test_a_list_that_unpacks_to_too_much(tmp_path, monkeypatch):
  (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b" " * 1000 + b"{}]"))
  assert len(list(read_rows(str(tmp_path / "a.json.gz")))) == 1
  monkeypatch.setattr(row_files, "_MAX_UNPACKED", 1000)
  with pytest.raises(UserError, match=r"unpacks to more than .*\.jsonl\.gz"):
    list(read_rows(str(tmp_path / "a.json.gz")))
