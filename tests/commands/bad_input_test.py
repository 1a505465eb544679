"""Bad input of every kind, through the real command line: one line that says what to change.

Each case runs `python -m simpo_jax.main ARGS` in a process of its own, forked from
one interpreter that has imported everything and touched no device: as good as a
fresh interpreter, and a hundred times faster. This file, run as a script, is it.
"""

import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import traceback

import pytest

from support.folders import ROOT, TESTS

M11 = f"--config={ROOT}/configs/m11.py"
CONFIG_HEAD = """from simpo_jax.config import default_config
def get_config():
  c = default_config()
"""
PAIR = {"prompt": "Say {}.", "chosen": "Yes, {}.", "rejected": "No {}."}
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def cases():
  """(name, arguments, what the message must say): one kind of mistake each."""
  train = "--config.data.train="
  source = "--config.model.source="
  out_of_range = [
    ("train.steps", "0"),
    ("train.steps", "99999999999999"),
    ("train.batch_size", "-1"),
    ("simpo.label_smoothing", "0.9"),
    ("data.eval_fraction", "1.5"),
    ("seed", "-1"),
    ("generate.top_k", "3000000000"),
    ("generate.top_p", "0"),
    ("mesh.tensor", "0"),
    ("generate.page_size", "0"),
    ("generate.temperature", "-0.5"),
  ]
  wrong_type = [
    ("train.steps", "abc", "whole number"),
    ("train.steps", "2.5", "whole number"),
    ("train.steps", "True", "whole number"),
    ("train.steps", "", "whole number"),
    ("train.learning_rate", "fast", "finite number"),
    ("train.learning_rate", "nan", "finite number"),
    ("simpo.beta", "inf", "finite number"),
    ("train.weight_decay", "1e999", "finite number"),
    ("generate.ignore_eos", "maybe", "True or False"),
    ("generate.at_steps", "2.5", "tuple"),
    ("generate.at_steps", "soon", "(2,50)"),
    ("generate.at_steps", "(2,2.5)", "(2,50)"),
    ("data.train", "3", "('a.json','b.json')"),
  ]
  return [
    # --- the command line ---
    ("no_config", [], ["--config=configs/m11.py"]),
    ("empty_config", ["--config="], ["--config is empty", "--config=configs/m11.py"]),
    ("config_without_value", ["--config"], ["--config needs a value"]),
    (
      "missing_config",
      ["--config=good/goood.py"],
      ["good/goood.py", "did you mean", "good/good.py"],
    ),
    ("missing_config_folder", ["--config=nowhere/m11.py"], ["no folder nowhere"]),
    ("config_is_a_folder", ["--config=good"], ["is a folder", "good/good.py"]),
    ("unknown_variant", [f"{M11}:smolm2"], ["'smolm2'", "did you mean 'smollm2'"]),
    ("variant_of_a_config_without", ["--config=good/good.py:x"], ["good.py", "no variants", ":x"]),
    (
      "typo_in_a_field",
      [M11, "--config.train.stepz=3"],
      ["--config.train.stepz", "no such field", "did you mean 'train.steps'"],
    ),
    ("typo_after_a_space", [M11, "--config.train.stepz", "3"], ["did you mean 'train.steps'"]),
    ("group_as_field", [M11, "--config.train=3"], ["--config.train is a group"]),
    ("field_without_value", [M11, "--config.train.steps"], ["--config.train.steps needs a value"]),
    ("wrong_type_after_a_space", [M11, "--config.train.steps", "2.5"], ["whole number"]),
    ("field_before_config", ["--config.train.steps=3", M11], ["--config.train.steps", "before it"]),
    ("unknown_flag", [M11, "--workdirr=x"], ["--workdirr", "did you mean 'workdir'"]),
    ("unlike_any_flag", [M11, "--qqq=x"], ["--qqq", "--help"]),
    ("bad_debug", [M11, "--debug=perhaps"], ["--debug=perhaps", "--help"]),
    ("stray_argument", [M11, "stray"], ["'stray'", "--config=configs/m11.py"]),
    *(
      (
        f"wrong_type:{name}={value}",
        [M11, f"--config.{name}={value}"],
        [f"--config.{name}=", expected],
      )
      for name, value, expected in wrong_type
    ),
    *(
      (
        f"out_of_range:{name}={value}",
        [M11, f"--config.{name}={value}"],
        [f"--config.{name}={value}", "must be"],
      )
      for name, value in out_of_range
    ),
    (
      "bad_choice",
      [M11, "--config.simpo.loss_type=sigmod"],
      ["--config.simpo.loss_type", "sigmoid, hinge", "did you mean 'sigmoid'"],
    ),
    (
      "generate_after_the_last_step",
      [M11, "--config.generate.at_steps=(2,9)"],
      ["--config.generate.at_steps", "step 9", "1..7", "--config.train.steps"],
    ),
    (
      "export_without_a_checkpoint",
      [M11, "--config.export.at_end=True", "--config.checkpoint.at_end=False"],
      ["--config.export.at_end=True", "--config.checkpoint.at_end=False", "switch one of them"],
    ),
    (
      "every_beside_the_files_steps",
      [M11, "--config.generate.every=10"],
      ["--config.generate.every=10", "(2,) of", "precedence", '--config.generate.at_steps="()"'],
    ),
    (
      "fewer_steps_than_the_file_names",
      [M11, "--config.train.steps=1"],
      ["--config.train.steps=1", "step 2", '--config.generate.at_steps="()"'],
    ),
    ("nested_too_deeply", [M11, "--config.train.steps=" + "-" * 5000 + "1"], ["whole number"]),
    ("no_key", [M11, "--config.generate.at_steps={[]:1}"], ["a tuple", "(2,50)"]),
    ("of_many_digits", [M11, "--config.seed=0x" + "f" * 5000], ["digits", "between 0 and"]),
    ("not_a_float", [M11, "--config.train.eps=0x" + "f" * 5000], ["finite number"]),
    ("name_too_long", ["--config=" + "x" * 300], ["--config=xxx", "File name too long"]),
    ("no_ones_home", [M11, "--workdir=~nobody-here/x"], ["--workdir=~nobody-here/x", "be a path"]),
    ("a_path_too_long", [M11, source + "a/" * 3000 + "b"], ["--config.model.source", "too long"]),
    # --- the code of a config file ---
    ("config_raises", ["--config=raises.py"], ["raises.py, line 4", "ZeroDivisionError"]),
    ("config_raises_two_lines", ["--config=two_lines.py"], ["two_lines.py, line 4", "one two"]),
    ("config_syntax", ["--config=syntax.py"], ["syntax.py, line 1", "invalid syntax"]),
    ("config_reads_nothing", ["--config=reads.py"], ["reads.py, line 4", "absent.txt"]),
    ("config_types", ["--config=cast.py"], ["cast.py, line 4", "steps"]),
    ("config_typo", ["--config=typo.py"], ["train.stepz", "did you mean 'train.steps'"]),
    ("config_nan", ["--config=nan.py"], ["--config.train.learning_rate=nan"]),
    ("config_infinite", ["--config=infinite.py"], ["--config.train.weight_decay=inf"]),
    ("config_without_get_config", ["--config=empty.py"], ["empty.py", "get_config()"]),
    ("config_returns_a_number", ["--config=number.py"], ["number.py", "default_config()"]),
    # --- preference data ---
    ("missing_data", [M11, train + "gud.json"], ["gud.json", "did you mean good.json"]),
    ("second_file_missing", [M11, train + "('good.json','gud.json')"], ["gud.json"]),
    ("data_in_no_folder", [M11, train + "nowhere/a.json"], ["neither does the folder nowhere"]),
    ("no_data", [M11, train + "()"], ["data.train"]),
    ("malformed_json", [M11, train + "broken.json"], ["broken.json", "not valid JSON"]),
    ("jsonl_named_json", [M11, train + "lines.json"], ["lines.json", "name it .jsonl"]),
    ("object_not_list", [M11, train + "object.json"], ["object.json", "list of objects"]),
    (
      "too_many_bad_rows",
      [M11, train + "half.jsonl"],
      ["10 of 20", "half.jsonl", "malformed_json 10", "half.jsonl:11", "max_skip_fraction=0.1"],
    ),
    ("missing_columns", [M11, train + "columns.json"], ["missing_field", "columns.json:1"]),
    ("empty_rows", [M11, train + "blank.json"], ["20 of 20", "empty_prompt", "blank.json:1"]),
    ("identical_answers", [M11, train + "same.json"], ["20 of 20", "identical", "same.json:1"]),
    ("no_rows", [M11, train + "none.jsonl"], ["none.jsonl has no rows"]),
    ("unknown_kind", [M11, train + "good/good.py"], ["good/good.py", ".jsonl", ".parquet"]),
    ("table_without_rows", [M11, train + "good.csv"], ["good.csv has no rows"]),
    ("folder_without_data", [M11, train + "good"], ["good holds no file of a known", "good.py"]),
    ("damaged_parquet", [M11, train + "bad.parquet"], ["bad.parquet", "parquet"]),
    ("damaged_gzip", [M11, train + "bad.jsonl.gz"], ["bad.jsonl.gz", "cannot be read"]),
    (
      "batch_larger_than_data",
      [M11, train + "good.json", "--config.train.batch_size=64"],
      ["--config.train.batch_size=64", "there are 19"],
    ),
    (
      "no_room_for_a_response",
      [M11, "--config.data.max_prompt_length=256"],
      ["data.max_prompt_length=256", "below data.max_length=256"],
    ),
    ("rows_too_short", [M11, "--config.data.row_length=10"], ["data.row_length"]),
    (
      "nothing_held_out",
      [M11, "--config.data.eval_fraction=0"],
      ["--config.data.eval_fraction", "--config.evaluate.at_end=False"],
    ),
    # --- models ---
    ("no_model", [M11, source], ["--config.model.source is empty"]),
    ("missing_model", [M11, source + "no_model"], ["--config.model.source", "no_model"]),
    ("missing_gguf", [M11, source + "no.gguf"], ["--config.model.source", "no.gguf"]),
    ("folder_without_config", [M11, source + "good"], ["good holds no config.json"]),
    ("unsupported_model", [M11, source + "gpt2"], ["'gpt2' is not supported", "llama"]),
    ("pickled_weights", [M11, source + "pickle"], ["pickle", "convert", "safetensors"]),
    ("truncated_gguf", [M11, source + "cut.gguf"], ["cut.gguf is not a complete GGUF file"]),
    (
      "context_too_long",
      [M11, "--config.data.max_length=5000"],
      ["--config.data.max_length=5000", "4096"],
    ),
    # --- prompts ---
    (
      "missing_prompts",
      [M11, "--config.generate.prompts=prompt.txt"],
      ["prompt.txt", "did you mean prompts.txt"],
    ),
    ("prompts_of_unknown_kind", [M11, "--config.generate.prompts=good.xlsx"], [".csv", ".jsonl"]),
    (
      "malformed_prompts",
      [M11, "--config.generate.prompts=prompts.jsonl"],
      ["prompts.jsonl:2", "not a JSON object"],
    ),
    (
      "prompt_too_long",
      [M11, "--config.generate.max_prompt_length=3"],
      ["prompt 0", "generate.max_prompt_length=3"],
    ),
    (
      "budget_beyond_context",
      [M11, "--config.generate.max_new_tokens=4096"],
      ["prompt 0", "--config.generate.max_new_tokens=4096", "4096"],
    ),
    (
      "unknown_field_in_template",
      [M11, "--config.generate.template=Tell {name}"],
      ["generate.template", "{index}"],
    ),
    (
      "pool_too_small",
      [M11, "--config.generate.num_pages=1"],
      ["KV pages, and --config.generate.num_pages=1; set it to at least"],
    ),
    (
      "kernel_of_another_platform",
      [M11, "--config.generate.attention=tpu"],
      ["--config.generate.attention=tpu", "does not run on cpu"],
    ),
    ("empty_stop_string", [M11, "--config.generate.stop=('',)"], ["generate.stop", "empty string"]),
    ("no_text_to_stop_at", [M11, "--config.generate.stop=\udcff"], ["stop", "lone surrogate"]),
    ("padding_without_end", [M11, "--config.generate.template={index:999999999}"], ["width", "99"]),
    (
      "too_many_answers",
      [M11, "--config.generate.num_samples=1000000"],
      ["num_samples=1000000", "more than 1,000,000 answers"],
    ),
    ("synthetic_without_count", [M11, "--config.generate.count=0"], ["generate.count=0"]),
    # --- devices and workdir ---
    (
      "tensor_parallel_too_wide",
      [M11, "--config.mesh.tensor=3"],
      ["--config.mesh.tensor=3", "2 devices"],
    ),
    (
      "odd_micro_batch",
      [M11, "--config.train.micro_batch_rows=3"],
      ["--config.train.micro_batch_rows=3", "multiple of the 2"],
    ),
    ("workdir_is_a_file", [M11, "--workdir=good.json"], ["--workdir=good.json is a file"]),
    (
      "workdir_inside_a_file",
      [M11, "--workdir=good.json/run"],
      ["--workdir=good.json/run", "choose another folder"],
    ),
    ("workdir_in_use", [M11, "--workdir=earlier"], ["--workdir=earlier holds an earlier run"]),
  ]


CASES = cases()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A working directory full of bad files, with a good one of each kind beside them."""
  here = tmp_path_factory.mktemp("bad")
  pairs = [{k: v.format(i) for k, v in PAIR.items()} for i in range(20)]
  lines = [json.dumps(p) for p in pairs]
  (here / "good").mkdir()
  (here / "earlier").mkdir()
  (here / "gpt2").mkdir()
  (here / "pickle").mkdir()
  llama = {
    "model_type": "llama",
    "vocab_size": 262,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "rms_norm_eps": 1e-5,
  }
  texts = {
    "good/good.py": CONFIG_HEAD + "  return c\n",
    "raises.py": CONFIG_HEAD + "  c.train.steps = 3 // 0\n  return c\n",
    "two_lines.py": CONFIG_HEAD + "  raise ValueError('one\\ntwo')\n",
    "syntax.py": "def get_config(:\n  pass\n",
    "reads.py": CONFIG_HEAD + "  open('absent.txt')\n  return c\n",
    "cast.py": CONFIG_HEAD + "  c.train.steps = 'three'\n  return c\n",
    "typo.py": CONFIG_HEAD + "  c.train.stepz = 3\n  return c\n",
    "nan.py": CONFIG_HEAD + "  c.train.learning_rate = float('nan')\n  return c\n",
    "infinite.py": CONFIG_HEAD + "  c.train.weight_decay = float('inf')\n  return c\n",
    "empty.py": "",
    "number.py": "def get_config():\n  return 3\n",
    "good.json": json.dumps(pairs),
    "good.csv": "prompt,chosen,rejected\n",
    "good.xlsx": "prompt",
    "broken.json": json.dumps(pairs)[:-5],
    "lines.json": "\n".join(lines),
    "object.json": json.dumps({"rows": pairs}),
    "half.jsonl": "\n".join(lines[:10] + ["{oops"] * 10),
    "columns.json": json.dumps([{"question": "a", "answer": "b"}] * 20),
    "blank.json": json.dumps([dict.fromkeys(PAIR, " ")] * 20),
    "same.json": json.dumps([{**p, "rejected": p["chosen"]} for p in pairs]),
    "none.jsonl": "\n",
    "bad.parquet": "PAR1 but no more",
    "bad.jsonl.gz": "not gzip",
    "prompts.txt": "Tell me a joke.\n",
    "prompts.jsonl": '{"prompt": "Tell me a joke."}\n{oops\n',
    "gpt2/config.json": json.dumps({"model_type": "gpt2"}),
    "pickle/config.json": json.dumps(llama),
    "pickle/pytorch_model.bin": "pickle",
    "earlier/run.json": "{}",
  }
  for name, text in texts.items():
    (here / name).write_text(text)
  # A header that promises 5 tensors, and then the end of the file.
  counts = (5).to_bytes(8, "little") + (2).to_bytes(8, "little")
  (here / "cut.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + counts + bytes(7))
  return here


@pytest.fixture(scope="module")
def command(folder):
  """command(*args) -> (exit code, stdout, stderr) of the real command line, in `folder`."""
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    **TWO_DEVICES,
    "PYTHONPATH": os.pathsep.join(
      filter(None, [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH")])
    ),
  }
  worker = subprocess.Popen(
    [sys.executable, __file__],
    cwd=folder,
    env=env,
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )

  asked, answers = worker.stdin, worker.stdout
  assert asked and answers

  def run(*args):
    print(json.dumps(args), file=asked, flush=True)
    return json.loads(answers.readline())

  yield run
  asked.close()
  assert worker.wait(timeout=60) == 0


@pytest.mark.parametrize(("args", "says"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_line_that_says_what_to_change(command, folder, args, says):
  before = sorted(folder.rglob("*"))
  code, out, err = command(*args)
  assert code == 2, err
  assert re.fullmatch(r"error: \S[^\n]*\n", err), err
  assert not out, "nothing may run before the input is checked"
  for part in says:
    assert part in err
  for noise in ("Traceback", "FATAL", "--helpfull"):
    assert noise not in err
  after = [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts]
  assert after == [p for p in before if "__pycache__" not in p.parts], "it left files behind"


def test_at_least_twenty_kinds():
  assert len({name.split(":")[0] for name, *_ in CASES}) >= 20
  assert len({name for name, *_ in CASES}) == len(CASES)


@pytest.mark.parametrize(
  "args",
  [
    ["--debug", M11, "--config.train.stepz=3"],  # found while the flags are read
    [M11, "--config.seed=-1", "--debug"],  # by the config's own check
    ["--debug", "--config=raises.py"],  # in the config file's code
    [M11, "--config.data.train=gud.json", "--debug=true"],  # by the run
  ],
)
def test_debug_shows_the_trace(command, args):
  code, _, err = command(*args)
  assert code != 0
  assert "Traceback" in err and "UserError" in err


# The last argument is a mistake in another field, so that the rest is known to be accepted.
@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["--config.data.train=nope.json"], "nope.json does not exist"),
    (["--config.data.train=('nope.json',)"], "nope.json does not exist"),
    (["--config.data.train=('good.json','nope.json')"], "nope.json does not exist"),
    (["--config.data.train=nope.json,good.json"], "nope.json does not exist"),
    (["--config.data.train", "good.json, nope.json"], "nope.json does not exist"),
    (["--config.data.train=good.json,,nope.json"], "has an empty entry"),
    (["--config.data.train=a name with spaces.json"], "a name with spaces.json does not exist"),
    (["--config.generate.stop=a,b", "--config.seed=-1"], "--config.seed=-1"),
    (["--config.data.train", "nope.json"], "nope.json does not exist"),
    (["--config.generate.at_steps=2", "--config.seed=-1"], "--config.seed=-1"),
    (["--config.generate.at_steps=9"], "step 9"),
    (["--config.generate.at_steps=(9,)"], "step 9"),
    (
      [
        "--config.generate.at_steps=()",
        "--config.generate.template={no}",
        "--config.train.batch_size=999",
      ],
      "batch_size=999",
    ),
    (
      ["--config.generate.at_steps=()", "--config.generate.every=0", "--config.seed=-1"],
      "--config.seed=-1",
    ),
    (
      ["--config.generate.every=3", "--config.generate.at_steps", "(1,)", "--config.seed=-1"],
      "--config.seed=-1",
    ),
    (["--config.generate.ignore_eos", "--config.seed=-1"], "--config.seed=-1"),
    (["--config.generate.ignore_eos=false", "--config.seed=-1"], "--config.seed=-1"),
    (["--config.train.learning_rate=1", "--config.seed=-1"], "--config.seed=-1"),
    (["--config.seed=-1", "--config.train.learning_rate=1e-5"], "--config.seed=-1"),
  ],
)
def test_values_are_written_as_people_write_them(command, args, says):
  _, _, err = command(M11, *args)
  assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("first", [["--config", M11.partition("=")[2]], ["-" + M11[2:]]])
def test_config_after_a_space_or_one_dash(command, first):
  code, _, err = command(*first, "--config.seed=-1")
  assert (code, "--config.seed=-1" in err) == (2, True), err


@pytest.mark.parametrize("args", [["--help"], ["-h"], [M11, "--helpfull"], ["--help", "--oops"]])
def test_help(command, args):
  code, out, err = command(*args)
  assert (code, err) == (0, "")
  for part in (
    "python -m simpo_jax.main --config=configs/m11.py",
    "--workdir",
    "--debug",
    "--config.train.learning_rate=",
    "--config.simpo.beta=2.0",
  ):
    assert part in out
  assert "jax_" not in out and "--verbosity" not in out, "only the flags of this program"


@pytest.mark.parametrize("args", [["--help"], [M11, "--config.train.steps=0"]])
def test_no_device_is_touched(args):
  # A platform that does not exist: initializing the devices would fail.
  done = subprocess.run(
    [sys.executable, "-m", "simpo_jax.main", *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "no_such_platform"},
    timeout=120,
  )
  assert done.returncode == (0 if args == ["--help"] else 2), done.stderr
  assert "no_such_platform" not in done.stderr


def serve():
  """Answers each line of arguments on stdin with the outcome of the command line."""
  import simpo_jax.run  # noqa: F401  all imports, no device

  for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
      pid = os.fork()
      if not pid:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os._exit(_main(json.loads(line)))
      code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
      texts = []
      for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode())
    print(json.dumps([code, *texts]), flush=True)


def _main(args) -> int:
  """`python -m simpo_jax.main ARGS`: its exit code."""
  sys.argv = ["simpo_jax.main", *args]
  try:
    runpy.run_module("simpo_jax.main", run_name="__main__", alter_sys=True)
    code = 0
  except SystemExit as e:
    code = e.code if isinstance(e.code, int) else int(e.code is not None)
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  return code


if __name__ == "__main__":
  serve()
