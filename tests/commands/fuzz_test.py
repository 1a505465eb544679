"""Whatever stands on the command line or in a config is valid, or one line says what is wrong."""

import math

import pytest
from absl import flags
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import config_flags

from simpo_jax import cli
from simpo_jax.config import default_config, flatten
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from support.fuzz_damage import JUNK, examples

FIELDS = flatten(default_config())
CONFIG = """from simpo_jax.config import default_config
def get_config(variant=""):
  return default_config()
"""
_HARD = st.sampled_from(
  ("", " ", "-", "--", "=", "1 ", " 1", "+1", "1_0", "0x10", "0x" + "f" * 5000, "9" * 5000, "1e5",
   "1e999", "-0", "nan", "inf", "1j", "None", "true", "yes", "...", "()", "(1,", "1,2", "[1]", "{}",
   "{[]:1}", "{1}", "{[]}", "b'a'", "('a',1)", "(((1,),),)", "(" * 300, "[" * 99, "-" * 5000 + "1",
   "not " * 3000 + "1", "1+" * 9000 + "1", "a" + ".a" * 5000, "lambda: 1", "__import__('os')",
   "f'{1}'", "'a' 'b'", "a b", "a\nb", "'\\ud800'", "\udcff", "\x1b[2J", "\u0661", "~", "/", "../x",
   "~nobody-here/x", "a/" * 3000, "x" * 300, "x" * 100_000, "tfds:", "tfds:" + "y" * 300,
   "random:~nobody-here", "tfds:../x:train[:1%]", "a\x00b", "{index}", "{index:99999999999}")
)  # fmt: skip
_VALUES = st.one_of(
  _HARD,
  st.text(max_size=6),
  st.integers().map(str),
  st.floats().map(str),
  JUNK.map(repr),
  st.lists(JUNK, max_size=3).map(lambda v: repr(tuple(v))),
)
_NAMES = st.one_of(
  st.sampled_from([f"config.{name}" for name in FIELDS]),
  st.sampled_from([f"config.{name}" for name in FIELDS]),
  st.sampled_from(cli.PROGRAM_FLAGS),
  st.sampled_from(
    ("config.train", "config.", "config..", "config.train.stepz", "workdirr", "", "h")
  ),
  _HARD.map(lambda t: f"config.{t}"),
)
_ARGUMENTS = st.one_of(
  st.tuples(st.sampled_from(("--", "-")), _NAMES, _VALUES).map(lambda a: [f"{a[0]}{a[1]}={a[2]}"]),
  st.tuples(_NAMES, _VALUES).map(lambda a: [f"--{a[0]}", a[1]]),
  _HARD.map(lambda t: [t]),
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("config") / "c.py"
  path.write_text(CONFIG)
  return str(path)


def parse(argv):
  """What `main` does with its arguments, with flags of its own: absl's are for one command line."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_bool("debug", False, "", flag_values=values)
  flags.DEFINE_bool("into_existing", False, "", flag_values=values)
  flags.DEFINE_enum("distributed", "auto", ["auto", "off"], "", flag_values=values)
  flags.DEFINE_string("coordinator_address", None, "", flag_values=values)
  flags.DEFINE_integer("num_processes", None, "", flag_values=values)
  flags.DEFINE_integer("process_id", None, "", flag_values=values)
  assert set(cli.PROGRAM_FLAGS) <= {"config", *values}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flags, "FLAGS", values)
    cli._parse(argv, cli.PROGRAM_FLAGS)
  return values["config"].value


def changed(name, value):
  """A config with a value of any type in a field, which only a config file can do."""
  config = default_config()
  *groups, field = name.split(".")
  section = config
  for group in groups:
    section = section[group]
  del section[field]  # else the library casts what it can
  section[field] = value
  return config


def check(config):
  """Validates; what is valid then has the types and the sizes that everything relies on."""
  try:
    validate(config)
  except UserError as error:
    said(error)
    return
  for name, value in flatten(config).items():
    kind = type(FIELDS[name])
    assert isinstance(value, kind) or (kind is float and type(value) is int), name
    for number in value if isinstance(value, tuple) else (value,):
      assert isinstance(number, str) or math.isfinite(number)
      assert type(number) is not int or name == "seed" or abs(number) < 2**32


def said(error):
  text = str(error)
  assert text and text.isprintable() and len(text) < 5000
  assert text not in ("MemoryError", "RecursionError")


@examples(1000)
@given(
  arguments=st.lists(_ARGUMENTS, min_size=1, max_size=3),
  place=st.sampled_from(("", ":x", ":\udcff")),
)
@example(arguments=[["--config.train.steps=" + "-" * 5000 + "1"]], place="")
@example(arguments=[["--config.generate.stop={[]:1}"]], place="")
def test_command_lines(config_file, arguments, place):
  argv = ["main", f"--config={config_file}{place}", *(a for more in arguments for a in more)]
  try:
    config = parse(argv)
  except UserError as error:
    said(error)
    assert "MemoryError" not in str(error) and "RecursionError" not in str(error)
    return
  check(config)


_WILD = st.one_of(
  JUNK,
  _VALUES,
  st.integers(),
  st.floats(),
  st.lists(st.one_of(JUNK, _VALUES), max_size=3).map(tuple),
  st.sampled_from((10**400, -(10**5000), (10**5000,), (float("nan"),), {1, 2}, object, 1j, b"a")),
)


@examples(1000)
@given(name=st.sampled_from(list(FIELDS)), value=_WILD)
def test_config_fields(name, value):
  check(changed(name, value))


_LIMITS = (2**31, -(2**31), 10**400, float("nan"), None, "x" * 9999, "\ud800", (), (None,), True)


def test_every_field_at_its_limits():
  for name in FIELDS:
    for value in _LIMITS:
      check(changed(name, value))
