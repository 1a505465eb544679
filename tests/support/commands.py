"""The commands, as `python -m` runs them, in the tests' own process."""

import contextlib
import re
import runpy
import sys
import warnings

import pytest
from absl import app, flags

from support.folders import ROOT

PROGRAMS = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
  for path in sorted((ROOT / "simpo_jax").rglob("*.py"))
  if "kernels" not in path.parts and re.search(r"^if __name__ == ", path.read_text(), re.M)
]
INTERNAL = ("_worker",)  # programs that others start


def command(module, *arguments):
  """What `python -m MODULE ARGUMENTS` does; a user's mistake is raised."""
  parsers = []
  with fresh_flags(_is_own), pytest.MonkeyPatch.context() as patch:
    patch.setattr(app, "run", lambda main, flags_parser: parsers.append(flags_parser))
    patch.setattr(sys, "argv", [module, *arguments])  # in which config_flags looks, too
    with warnings.catch_warnings():  # of what other tests have imported already
      warnings.simplefilter("ignore", RuntimeWarning)
      main = runpy.run_module(module, run_name="__main__")["main"]
    main(parsers[0]([module, *map(str, arguments)]))


def _is_own(name):
  group = name.partition(".")[0]
  module = flags.FLAGS.find_module_defining_flag(name) or ""
  return group == "config" or module.startswith("simpo_jax.")


@contextlib.contextmanager
def fresh_flags(which=lambda name: True):
  """Absl's flags as if none of those for which `which(name)` holds had been defined; put back."""

  def take():
    found = [name for name in flags.FLAGS if which(name)]
    held = {flag.name: flag for flag in map(flags.FLAGS.__getitem__, found)}
    flags.FLAGS.remove_flag_values(found)
    return held

  parsed, held = flags.FLAGS.is_parsed(), take()
  try:
    yield
  finally:
    take()
    for name, flag in held.items():
      flags.FLAGS[name] = flag
    if not parsed:
      flags.FLAGS.unparse_flags()
