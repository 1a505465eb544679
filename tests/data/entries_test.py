"""What people name in data.train and data.eval: each is found, chosen and told, or refused."""

import http.server
import json
import pathlib
import threading
from collections import Counter
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest

from simpo_jax.data.load import BY_ROW, load_data
from simpo_jax.data.pairs import find_repeats
from simpo_jax.data.readers import splits
from simpo_jax.data.shuffle import held_out_prompts, prompt_fraction, prompt_key, split_by_row
from simpo_jax.data.sources import open_source
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings, Settings, TrainSettings
from simpo_jax.storage.paths import check_path
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.sources import find_files, read_source

BYTE = byte_tokenizer()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("SIMPO_JAX_CACHE", str(tmp_path / "cache"))


def lines(name, count, start=0):
  rows = [{"prompt": f"{name} {i}", "chosen": "yes", "rejected": "no"}
          for i in range(start, start + count)]  # fmt: skip
  return "".join(json.dumps(row) + "\n" for row in rows)


def write(**files):
  """`write(data__train=3)`: data/train.jsonl, with so many rows."""
  for name, count in files.items():
    path = pathlib.Path(f"{name.replace('__', '/')}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(path.stem, count))


def read(source, columns=()) -> list[Any]:
  return [row for _, row in read_source(source, dict(columns))]


def load(train, evaluates=True, split_by="prompt", **fields) -> Any:
  data = DataSettings(train=tuple([train] if isinstance(train, str) else train), **fields)
  settings = Settings(data=data, train=TrainSettings(batch_size=1))
  return load_data(settings, BYTE, evaluates, split_by)


def count(pairs):
  return dict(Counter(pair.id.rpartition(":")[0] for pair in pairs))


# --- which files are one split ------------------------------------------------------------------


@pytest.mark.parametrize(
  "names, labels",
  [
    (["a.jsonl", "b/x.jsonl"], {"*": ""}),
    (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], {"train-*": "train"}),
    (["train_1.csv", "train_2.csv"], {"train_[0-9]*.csv": "train"}),
    (["train/a.jsonl", "train/b.jsonl", "valid/a.jsonl"], {"train/*": "train", "valid/*": "test"}),
    (
      ["data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet"],
      {"data/train_prefs-*": "train", "data/test_prefs-*": "test"},
    ),
    (["train.jsonl", "dev.jsonl", "more.jsonl"], {"train.jsonl": "train", "dev.jsonl": "test",
                                                 "more.jsonl": ""}),
    (["test.jsonl", "part-1.jsonl", "part-2.jsonl"], {"test.jsonl": "test",
                                                     "part-[0-9]*.jsonl": ""}),
    (["latest.jsonl", "trainer.jsonl", "contest.jsonl"], {"*": ""}),
  ],
)  # fmt: skip
def test_splits_by_name(names, labels):
  found = splits.group(names)
  assert {split.label: split.kind for split in found} == labels
  assert sorted(name for split in found for name in split.names) == sorted(names)
  for split in found:  # what a message offers selects the same
    assert tuple(splits.matching("", names, split.label)) == split.names


def test_a_folder_of_splits_trains_on_one_and_holds_the_other_out():
  write(data__train=6, data__test=3)
  pathlib.Path("data/README.md").write_text("#")
  pathlib.Path("data/dataset_infos.json").write_text("{}")
  loaded = load("data")
  assert (count(loaded.train), count(loaded.held_out)) == ({"train.jsonl": 6}, {"test.jsonl": 3})
  assert loaded.notes[:2] == [
    "data: train.jsonl are the training pairs, and not test.jsonl",
    "data: not read, being of no known kind: README.md",
  ]
  assert "data: test.jsonl are the held-out pairs, and not train.jsonl" in loaded.notes
  assert loaded.skips["eval data"].kept == 3
  assert count(load("data", evaluates=False).held_out) == {}
  assert count(load("data", eval=("data",)).held_out) == {"test.jsonl": 3}
  both = load("data:t*")
  assert count(both.train + both.held_out) == {"train.jsonl": 6, "test.jsonl": 3}
  with pytest.raises(UserError, match="data has several splits; .*data:train.jsonl .of test.jsonl"):
    find_files("data")


@pytest.mark.parametrize(
  "files, says",
  [
    ({"d__train_a": 2, "d__train_b": 2}, "choose one, such as d:train_b.jsonl"),
    ({"d__pairs": 2, "d__test": 2}, "several splits; .*of pairs.jsonl, test.jsonl"),
    ({"d__train": 2, "d__test": 2, "d__valid": 2}, "of test.jsonl, train.jsonl, valid.jsonl"),
  ],
)
def test_what_is_ambiguous_is_refused_with_the_choices(files, says):
  write(**files)
  with pytest.raises(UserError, match=says):
    load("d")


def test_patterns_and_globs():
  write(d__train=4, d__train_more=5, d__test=3, e__f__train=2)
  pathlib.Path("d/notes.txt").write_text("x")
  assert count(load("d:train*").train + load("d:train*").held_out) == {
    "train.jsonl": 4, "train_more.jsonl": 5,
  }  # fmt: skip
  assert [f.name for f in find_files("d/tr*")] == ["train.jsonl", "train_more.jsonl"]
  assert [f.name for f in find_files("**/train.jsonl")] == ["d/train.jsonl", "e/f/train.jsonl"]
  assert open_source("d/*").others == ("notes.txt",)
  for source, says in (
    ("d:x*", "d:x.: no file matches; there are test.jsonl, train.jsonl, train_more.jsonl"),
    ("d/x*", "matches no file of a known kind"),
    ("d/*.txt", "matches no file of a known kind.*there are notes.txt"),
  ):
    with pytest.raises(UserError, match=says):
      find_files(source)
  write(**{"odd[1]": 2})
  assert [f.name for f in find_files("odd[1].jsonl")] == ["odd[1].jsonl"]


def test_rows_of_each_file_are_told():
  write(a=3, b=4)
  with open("b.jsonl", "a") as file:
    file.write("{\n")
  notes = load(("a.jsonl", "b.jsonl"), max_skip_fraction=0.5).notes
  assert notes == ["a.jsonl: a.jsonl 3 of 3 rows", "b.jsonl: b.jsonl 4 of 5 rows"]
  assert load("?.jsonl", max_skip_fraction=0.5).notes == [
    "?.jsonl: a.jsonl 3 of 3 rows, b.jsonl 4 of 5 rows"
  ]


# --- what `datasets` saves to disk --------------------------------------------------------------


def save_to_disk(folder, count, extra=()):
  """As `datasets.Dataset.save_to_disk`: a stream of record batches, and what is in it."""
  folder.mkdir(parents=True)
  table = pa.Table.from_pylist([json.loads(line) for line in lines(folder.name, count).split("\n")
                                if line])  # fmt: skip
  for name in ("data-00000-of-00001.arrow", *extra):
    with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
      writer.write_table(table)
  (folder / "dataset_info.json").write_text('{"features": {}}')
  files = [{"filename": "data-00000-of-00001.arrow"}]
  (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))


def test_a_dataset_that_was_saved_to_disk():
  save_to_disk(pathlib.Path("one"), 4, extra=["cache-0123.arrow"])
  assert [f.name for f in find_files("one")] == ["data-00000-of-00001.arrow"]
  assert [row["prompt"] for row in read("one")] == [f"one {i}" for i in range(4)]
  pathlib.Path("one/state.json").write_text('{"_data_files": [], "_indices_files": [{}]}')
  with pytest.raises(UserError, match="state.json is not as this version knows it.*parquet"):
    find_files("one")


def test_a_dictionary_of_datasets_that_was_saved_to_disk():
  save_to_disk(pathlib.Path("both/train"), 4)
  save_to_disk(pathlib.Path("both/heldout"), 3)
  pathlib.Path("both/dataset_dict.json").write_text('{"splits": ["train", "heldout"]}')
  loaded = load("both")
  shard = "data-00000-of-00001.arrow"
  assert count(loaded.train) == {f"train/{shard}": 4}
  assert count(loaded.held_out) == {f"heldout/{shard}": 3}
  save_to_disk(pathlib.Path("two/easy"), 4)
  save_to_disk(pathlib.Path("two/hard"), 3)
  pathlib.Path("two/dataset_dict.json").write_text('{"splits": ["easy", "hard"]}')
  with pytest.raises(UserError, match=r"two has several splits; .*of easy/\*, hard/\*"):
    load("two")


def test_the_folder_of_a_prepared_dataset_is_named():
  pathlib.Path("p").mkdir()
  for name in ("dataset_info.json", "mine-train.array_record-00000-of-00001"):
    pathlib.Path("p", name).write_text("{}")
  with pytest.raises(UserError, match="p holds a prepared dataset; name it as tfds:p"):
    load("p")


# --- elsewhere ----------------------------------------------------------------------------------


def test_a_dataset_of_the_hub_is_an_entry(monkeypatch):
  files = {
    "README.md": "#", ".gitattributes": "", "data/train-00000-of-00001.jsonl": lines("train", 5),
    "data/test-00000-of-00001.jsonl": lines("test", 2),
  }  # fmt: skip
  asked = []

  class Api:
    def dataset_info(self, name):
      siblings = [huggingface_hub.hf_api.RepoSibling(rfilename=name) for name in files]
      return type("Info", (), {"siblings": siblings, "sha": "c0ffee"})

  def get(name, file, repo_type, revision):
    asked.append((name, file, repo_type, revision))
    path = pathlib.Path("hub", file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(files[file])
    return str(path)

  monkeypatch.setattr(huggingface_hub, "HfApi", Api)
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", get)
  loaded = load("org/pairs")
  assert count(loaded.train) == {"data/train-00000-of-00001.jsonl": 5}
  assert count(loaded.held_out) == {"data/test-00000-of-00001.jsonl": 2}
  assert {(name, *rest) for name, _, *rest in asked} == {("org/pairs", "dataset", "c0ffee")}
  asked.clear()
  assert count(load("org/pairs:data/test-*", False).train) == {"data/test-00000-of-00001.jsonl": 2}
  assert [file for _, file, *_ in asked] == ["data/test-00000-of-00001.jsonl"]


class _Web(http.server.BaseHTTPRequestHandler):
  content, tag, sent = b"", '"1"', 0

  def do_GET(self):
    if "absent" in self.path:
      self.send_error(404)
      return
    self.send_response(200)
    html = self.path.endswith(".html") or "/blob/" in self.path
    self.send_header("Content-Type", "text/html" if html else "application/octet-stream")
    self.send_header("Content-Length", str(len(self.content) + ("short" in self.path)))
    if "plain" not in self.path:
      self.send_header("ETag", self.tag)
      self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    self.end_headers()
    self.wfile.write(self.content)
    type(self).sent += 1

  def log_message(self, *_):
    pass


@pytest.fixture
def web():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Web.content, _Web.tag = lines("a", 4).encode(), '"1"'
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.services
@pytest.mark.parametrize("name", ("a%20b.jsonl?download=true", "plain/a%20b.jsonl"))
def test_a_link_is_a_file_of_one_version(web, name):
  prompts = lambda: [row["prompt"] for row in read(f"{web}/{name}")]  # noqa: E731
  assert [row_id for row_id, _ in read_source(f"{web}/{name}", {})][0] == "a b.jsonl:1"
  [copy] = [file.path for file in find_files(f"{web}/{name}")]
  pathlib.Path(copy).write_text(lines("cached", 1))
  assert prompts() == ["cached 0"]
  _Web.content, _Web.tag = lines("b", 2).encode(), '"2"'
  assert prompts() == ["b 0", "b 1"]


@pytest.mark.services
@pytest.mark.parametrize(
  "name, says",
  [
    ("absent.jsonl", "cannot be fetched .HTTP 404 Not Found.; check the link"),
    ("blob/main/a.jsonl", "is a web page, not a file; .*/resolve/"),
    ("short.jsonl", "cannot be fetched .*bytes"),
    ("", "names no file"),
    ("file?name=a.jsonl", "of an unknown kind"),
  ],
)
def test_a_link_that_gives_no_file(web, name, says):
  with pytest.raises(UserError, match=says) as error:
    list(read_source(f"{web}/{name}", {}))
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="cannot be fetched .*refused"):
    find_files("http://127.0.0.1:9/a.jsonl")


@pytest.mark.parametrize("scheme", ("https://", "HTTP://"))
def test_a_link_may_be_longer_than_the_name_of_a_file(scheme):
  link = f"{scheme}host/{'x' * 5000}/a.jsonl"
  check_path("--source", link)
  assert open_source(link).splits[0].names == ("a.jsonl",)
  with pytest.raises(UserError, match="--source=.* cannot be a path"):
    check_path("--source", link.removeprefix(scheme))


# --- held-out pairs -----------------------------------------------------------------------------


def pairs_of(prompts, responses=None):
  """Pairs of one token each: {index: (chosen, rejected)}, or (1, 2)."""
  return [
    PairTokens(f"r:{i}", *np.asarray([[p], *([x] for x in (responses or {}).get(i, (1, 2)))], "i4"))
    for i, p in enumerate(prompts)
  ]


@pytest.mark.parametrize("fraction", (0.01, 0.05, 0.2, 0.5))
@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_of_a_prompt_are_on_one_side(fraction, seed):
  pairs = pairs_of([i // 4 for i in range(400)] + [1000 + i for i in range(100)])
  held = held_out_prompts(pairs, fraction, seed)
  out = [pair for pair in pairs if prompt_key(pair) in held]
  assert abs(len(out) - 500 * fraction) <= 4 and held == held_out_prompts(pairs, fraction, seed)
  assert held != held_out_prompts(pairs, fraction, seed + 1)


def test_prompts_that_occur_once_are_split_as_they_were():
  pairs = pairs_of(range(97))
  held = held_out_prompts(pairs, 0.1, 5)
  assert [p for p in pairs if prompt_key(p) in held] == split_by_row(pairs, 0.1, 5)[1]


@pytest.mark.parametrize(
  "prompts, fraction, held",
  [([0] * 9, 0.5, 0), ([0] * 9 + [1], 0.5, 1), ([0] * 5 + [1] * 4, 0.01, 4), ([], 0.5, 0),
   ([0, 1], 0.01, 1), ([0, 1], 0.99, 1), ([0, 1, 2], 0.0, 0)],
)  # fmt: skip
def test_each_side_gets_a_prompt_if_there_are_two(prompts, fraction, held):
  pairs = pairs_of(prompts)
  chosen = held_out_prompts(pairs, fraction, 0)
  assert len([p for p in pairs if prompt_key(p) in chosen]) == held


def test_a_file_of_many_pairs_a_prompt_and_of_one():
  rows = [{"prompt": f"q{i % 5}", "chosen": f"yes {i}", "rejected": "no"} for i in range(50)]
  pathlib.Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  loaded = load("a.jsonl", eval_fraction=0.2)
  assert len(loaded.held_out) == 10 and not loaded.notes
  assert not {p.prompt.tobytes() for p in loaded.held_out} & {
    p.prompt.tobytes() for p in loaded.train
  }
  older = load("a.jsonl", eval_fraction=0.2, split_by=BY_ROW)
  [note] = older.notes
  assert note.startswith("10 of 10 held-out pairs ask what training pairs ask, too: ")
  together = [pair.id for pair in load("a.jsonl", evaluates=False).train]
  rows = split_by_row([PairTokens(i, *[None] * 3) for i in together], 0.2, 0)  # pyright: ignore
  assert [p.id for p in older.held_out] == [p.id for p in rows[1]]
  pathlib.Path("b.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 9)
  with pytest.raises(UserError, match="there must be two prompts"):
    load("b.jsonl")


def test_entries_of_a_mixture_are_split_by_the_same_prompts():
  rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(30)]
  for name, chosen in (("a", "yes"), ("b", "well")):
    text = "".join(json.dumps({**row, "chosen": chosen}) + "\n" for row in rows)
    pathlib.Path(f"{name}.jsonl").write_text(text)
  loaded = load(("a.jsonl", "b.jsonl"), weights=(1.0, 2.0), eval_fraction=0.2)
  held = {pair.prompt.tobytes() for pair in loaded.held_out}
  assert count(loaded.held_out) == {"a.jsonl": 6, "b.jsonl": 6}
  assert not held & {p.prompt.tobytes() for source in loaded.train.sources for p in source}


def test_prompts_that_data_eval_shares_are_counted():
  write(a=10)
  pathlib.Path("e.jsonl").write_text(lines("a", 4, start=8))
  [note] = load("a.jsonl", eval=("e.jsonl",)).notes
  assert note.startswith("2 of 4 held-out pairs ask what training pairs ask, too: 2 prompts")
  assert "e.jsonl:1" in note


def test_repeats_are_counted_and_trained():
  prompts = [0, 0, 0, 1, 0, 0]
  pairs = pairs_of(prompts, {1: (2, 1), 2: (1, 2), 3: (2, 1), 4: (3, 4), 5: (2, 1)})
  assert find_repeats(pairs) == (["r:2", "r:5"], ["r:1"])
  row = {"prompt": "q", "chosen": "a", "rejected": "b"}
  swapped = {"prompt": "q", "chosen": "b", "rejected": "a"}
  text = "".join(json.dumps(r) + "\n" for r in (row, row, swapped))
  pathlib.Path("a.jsonl").write_text(text)
  loaded = load("a.jsonl", evaluates=False)
  assert len(loaded.train) == 3
  assert [note.partition(" training")[0] for note in loaded.notes] == ["1 of 3", "1 of 3"]
  assert "(first: a.jsonl:2)" in loaded.notes[0] and "(first: a.jsonl:3)" in loaded.notes[1]


def test_the_split_of_prepared_prompts_stays_what_it_was():
  # It defines the splits of prepared datasets: these must never change.
  messages = [{"role": "user", "content": "é"}]
  assert prompt_fraction("q") == 0.5661274261338285
  assert prompt_fraction(messages) == 0.554186846585992
  assert prompt_fraction([{"content": "é", "role": "user"}]) == 0.554186846585992
  found = [prompt_fraction(f"q{i}") for i in range(1000)]
  assert all(0 <= x < 1 for x in found) and 160 < sum(x < 0.2 for x in found) < 240
