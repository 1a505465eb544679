"""README.md and docs/: what they link to is there, what they tell to type runs, quotes are true."""

import ast
import functools
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings

import pytest
from absl import app, flags

from simpo_jax.config import default_config, flatten
from simpo_jax.config_check import validate
from simpo_jax.data.rows.formats import check_texts, to_conversation
from simpo_jax.data.rows.reasons import REASONS
from support.commands import INTERNAL, PROGRAMS, fresh_flags
from support.folders import DOCS, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FIELDS = flatten(default_config())
GROUPS = {name.partition(".")[0] for name in FIELDS if "." in name}


def page_id(path):
  return str(path.relative_to(ROOT))


@functools.cache
def blocks(path):
  """[(language, text)] of a page's code blocks, and what is left of it."""
  found, rest, inside = [], [], None
  for line in path.read_text().splitlines():
    fence = re.match(r"\s*```(\w*)\s*$", line)
    if fence and inside is None:
      inside = (fence[1], [])
    elif fence and inside is not None:
      found.append((inside[0], "\n".join(inside[1]) + "\n"))
      inside = None
    else:
      (rest if inside is None else inside[1]).append(line)
  assert inside is None, f"{path}: a code block has no end"
  return found, "\n".join(rest)


@functools.cache
def anchors(path):
  """A page's headings, as code hosts turn them into anchors."""
  found = set()
  for title in re.findall(r"^#+ (.*)$", blocks(path)[1], re.M):
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    anchor = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
    assert anchor not in found, f"{path}: two headings are called {title!r}"
    found.add(anchor)
  return found


def links(path):
  prose = re.sub(r"`[^`\n]*`", "", blocks(path)[1])
  found = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
  return [link for link in found if not re.match(r"https?:|mailto:", link)]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_and_anchors(path):
  for link in links(path):
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    assert target.exists(), f"{link}: there is no such file"
    assert target.is_relative_to(ROOT), f"{link} leaves the repository"
    if anchor:
      assert anchor in anchors(target), f"{link}: no such heading; {sorted(anchors(target))}"


def parse(module, arguments):
  """What `python -m MODULE` makes of the arguments before it does anything."""
  parsers = []
  with fresh_flags(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(app, "run", lambda main, flags_parser=None: parsers.append(flags_parser))
    patch.setattr(sys, "argv", [module, *arguments])  # in which config_flags looks, too
    patch.chdir(ROOT)
    with warnings.catch_warnings():  # of what other tests have imported already
      warnings.simplefilter("ignore", RuntimeWarning)
      runpy.run_module(module, run_name="__main__")
    rest = parsers[0]([module, *arguments])
    if "config" in flags.FLAGS:
      assert len(rest) == 1, f"unexpected {rest[1:]}"
      if flags.FLAGS["config"].value is not None:
        validate(flags.FLAGS["config"].value)


def launch(script, arguments):
  """A launcher's dry run, and what it would run."""
  cut = arguments.index("--")
  held = {name: sys.modules.pop(name, None) for name in ("common", "jobset")}  # bench/ has one, too
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "launch"))
    main = runpy.run_path(str(ROOT / "launch" / script), run_name=script)["main"]
    assert main([*arguments[:cut], "--dry-run", *arguments[cut:]]) == 0
  for name, module in held.items():
    sys.modules.pop(name, None)
    if module is not None:
      sys.modules[name] = module
  parse("simpo_jax.main", arguments[cut + 1 :])


def check_names(script, arguments):
  """That a benchmark or a drill, which imports what it is measured against, has these flags."""
  known = {"help"}
  for node in ast.walk(ast.parse((ROOT / script).read_text())):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
      if node.func.attr.startswith("DEFINE_") or node.func.attr == "add_argument":
        known.add(ast.literal_eval(node.args[0]).removeprefix("--"))
  for argument in arguments:
    name = argument.removeprefix("--").partition("=")[0]
    assert not argument.startswith("--") or name in known, f"{script} has no {argument}"


def commands(text):
  """The commands of a shell block: [[word, ...], ...]."""
  for line in text.replace("\\\n", " ").splitlines():
    words = shlex.split(line, comments=True)
    while words:
      cut = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", "&")), len(words))
      yield words[:cut]
      words = words[cut + 1 :]


def check_command(words):
  """Returns whether it was one of this project's."""
  while words and re.match(r"[A-Z_]+=", words[0]):
    words = words[1:]
  if not words or not re.fullmatch(r"(.*/)?python3?", words[0]):
    return False
  if words[1:2] == ["-m"] and words[2:] and words[2].startswith("simpo_jax"):
    assert words[2] in PROGRAMS, f"there is no python -m {words[2]}"
    parse(words[2], words[3:])
  elif words[1].startswith("launch/"):
    launch(words[1].removeprefix("launch/"), words[2:])
  elif words[1].endswith(".py"):
    assert (ROOT / words[1]).is_file(), words[1]
    check_names(words[1], words[2:])
  else:
    return False
  return True


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands(path, capfd):
  texts = [text for language, text in blocks(path)[0] if language == "bash"]
  # In a sentence, whole commands; those with a gap ("...") are for the reader to fill.
  spans = re.findall(r"`(python3? [^`]*)`", blocks(path)[1].replace("\\|", "|"))
  texts += [span.replace("\n", " ") for span in spans if "..." not in span]
  for text in texts:
    for words in commands(text):
      try:
        check_command(words)
      except SystemExit as e:
        if e.code:  # not after --help
          pytest.fail(f"{shlex.join(words)}: exit code {e.code}: {capfd.readouterr().err}")


# What commands of these pages leave behind, run as they are but for sizes that take seconds.
SMALL = [
  "--config.data.embedded_pairs=24",
  "--config.data.max_length=64",
  "--config.data.max_prompt_length=32",
  "--config.data.row_length=128",
  "--config.train.batch_size=2",
  "--config.generate.page_size=16",
  "--config.generate.max_new_tokens=8",
]
LEAVES = [  # page, a flag of the command, samples of these steps
  (DOCS / "getting_started.md", "--config.generate.every=10", (0, 10, 20)),
]


@pytest.mark.program
@pytest.mark.parametrize(("path", "flag", "steps"), LEAVES, ids=lambda x: str(x)[-24:])
def test_what_a_command_leaves_behind(path, flag, steps, tmp_path):
  texts = [text for language, text in blocks(path)[0] if language == "bash"]
  [words] = [words for text in texts for words in commands(text) if flag in words]
  [_, m, module, config, *rest] = words
  workdir = next(word.removeprefix("--workdir=") for word in rest if "--workdir=" in word)
  config = config.replace("configs/", f"{ROOT / 'configs'}/")
  subprocess.run([sys.executable, m, module, config, *rest, *SMALL], cwd=tmp_path, check=True)
  made = sorted(p.name for p in (tmp_path / workdir / "samples").iterdir())
  assert made == [f"step_{step:06d}" for step in steps]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_code_compiles(path):
  for language, text in blocks(path)[0]:
    if language == "python":
      compile(text, str(path), "exec")
    elif language == "json":
      for line in text.splitlines():  # JSON lines, or one object on one line
        json.loads(line)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_fields_exist(path):
  text = path.read_text()
  for name in re.findall(r"--config\.([a-z_]+\.[a-z_0-9]+)", text):
    assert name in FIELDS, f"--config.{name}"
  for name in re.findall(r"`([a-z]+\.[a-z_0-9]+)`", text):
    known = name in FIELDS or name.split(".")[1] in ("py", "md", "json", "jsonl", "svg", "html")
    assert known or name.split(".")[0] not in GROUPS, name


def test_the_rows_in_the_data_page_can_be_used():
  rows = [text for language, text in blocks(DOCS / "data.md")[0] if language == "json"]
  lines = "".join(rows).splitlines()
  assert len(lines) == 9  # the forms of its first table, one of them twice
  for line in lines:
    check_texts(to_conversation(json.loads(line)))
  named = re.findall(r"^\| `([a-z0-9_]+)` \|", blocks(DOCS / "data.md")[1], re.M)
  assert set(named) >= set(REASONS)


def test_every_program_is_told_of():
  text = "".join(path.read_text() for path in PAGES)
  missing = [p for p in PROGRAMS if not p.endswith(INTERNAL) and f"python -m {p}" not in text]
  assert PROGRAMS and not missing


def test_the_reference_is_that_of_the_code():
  made = runpy.run_path(str(DOCS / "make_reference.py"))
  assert made["PAGE"].read_text() == made["reference"](), "run python docs/make_reference.py"


def string(node):
  """A string's text with \\0 where a value is put in; None for other code."""
  match node:
    case ast.Constant(value=str(text)):
      return text
    case ast.JoinedStr(values=values):
      return "".join(string(v) or "\0" for v in values)
    case ast.BinOp(left=left, op=ast.Add(), right=right):
      parts = string(left), string(right)
      return None if parts == (None, None) else "".join(p or "\0" for p in parts)
  return None


def test_quoted_errors_are_those_of_the_code():
  """`…` in a quotation stands for anything, as values that are put in do in the sources."""
  sources = [
    *(ROOT / "simpo_jax").rglob("*.py"),
    *ROOT.glob("launch/*.py"),
    *ROOT.glob("configs/*.py"),
  ]
  texts = [
    text
    for path in sources
    for node in ast.walk(ast.parse(path.read_text()))
    if (text := string(node))
  ]
  quoted = re.findall(r"^\| `([^`]+)` \|", blocks(DOCS / "troubleshooting.md")[1], re.M)
  assert len(quoted) > 50
  for message in quoted:
    parts = [part.replace("\\|", "|") for part in message.split("…")]
    assert max(map(len, parts)) >= 8, f"{message!r} says too little"
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in texts), f"no error says {message!r}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=page_id)
def test_notebooks(path):
  notebook = json.loads(path.read_text())
  cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
  for cell in cells:
    compile("".join(cell["source"]), str(path), "exec")
    assert not any(out["output_type"] == "error" for out in cell["outputs"])
  assert cells and path.stat().st_size < 500_000
  assert any(out.get("data", {}).get("image/png") for c in cells for out in c["outputs"])


def test_the_site_builds(tmp_path):
  config = pytest.importorskip("mkdocs.config", reason="pip install -e '.[docs]'")
  build = importlib.import_module("mkdocs.commands.build")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    loaded = config.load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    build.build(loaded)  # raises Abort at a warning
  html = {path: path.read_text() for path in tmp_path.rglob("*.html")}
  assert len(html) >= len(list(DOCS.glob("*.md")))
  for path, text in html.items():  # nothing is fetched from elsewhere
    for tag in re.findall(r"<(?:script|link|img)\b[^>]*>", text):
      assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{path}: {tag}"
