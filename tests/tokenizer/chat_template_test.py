"""A chat template is a program that came with a model: it gets time, memory, and nothing else."""

import re
import subprocess
import sys

import pytest

from simpo_jax.errors import UserError
from simpo_jax.tokenizer import chat_template
from simpo_jax.tokenizer.chat_template import TemplateFailed, render

MESSAGES = [{"role": "user", "content": "a"}]
NESTED = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture(scope="module", autouse=True)
def impatient(tmp_path_factory):
  """The worker as it is, but for the size of its limits."""
  source = chat_template._WORKER.read_text()
  for name, value in (("CPU_SECONDS", 0.7), ("MEMORY_BYTES", 2**27)):
    source, found = re.subn(rf"^{name} = \S+", f"{name} = {value}", source, flags=re.MULTILINE)
    assert found == 1
  path = tmp_path_factory.mktemp("worker") / "worker.py"
  path.write_text(source)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chat_template, "_WORKER", path)
    patch.setattr(chat_template, "_worker", None)
    yield
    if chat_template._worker:
      chat_template._reap(chat_template._worker)


def rendered(text, **more):
  return render(text, {"messages": MESSAGES, "eos_token": "</s>", **more}, "here", "2026-11-24")


@pytest.mark.parametrize(
  ("text", "limit"),
  (
    (NESTED, "time"),
    ("{{ 7 ** 99999999 % 5 }}", "time"),  # one operation, in which no Python code runs
    ("{{ 'a' * 2 ** 31 }}", "memory"),
    ("{% set n = namespace(a='a') %}{% for i in range(40) %}{% set n.a = n.a + n.a %}{% endfor %}",
     "memory"),
    ("{% set n = namespace(a=[1]) %}{% for i in range(40) %}{% set n.a = n.a + n.a %}{% endfor %}",
     "memory"),
    ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "characters"),
  ),
)  # fmt: skip
def test_what_goes_on_for_ever_is_ended_and_the_next_is_served(text, limit):
  with pytest.raises(UserError, match=rf"template of here went beyond its limits \({limit}\)"):
    rendered(text)
  assert rendered("{{ messages[0].content }}{{ eos_token }}") == "a</s>"


def test_the_limit_of_time_holds_where_its_signal_is_ignored():
  """As libtpu leaves it, and every child inherits it."""
  code = (
    "import pathlib, signal, sys; signal.signal(signal.SIGPROF, signal.SIG_IGN); "
    "from simpo_jax.tokenizer import chat_template as c; c._WORKER = pathlib.Path(sys.argv[1]); "
    "c.render(sys.argv[2], {}, 'here', '2026-11-24')"
  )
  line = [sys.executable, "-c", code, str(chat_template._WORKER), NESTED]
  done = subprocess.run(line, capture_output=True, text=True, timeout=120)
  assert "went beyond its limits (time)" in done.stderr


@pytest.mark.parametrize(
  "text",
  (
    "{{ 1 / 0 }}",
    "{{ messages[7].content }}",
    "{{ raise_exception('no') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "\ud800",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends messages %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ range(1000000) }}",
  ),
)
def test_a_template_may_fail(text):
  with pytest.raises(TemplateFailed, match="."):
    rendered(text)


@pytest.mark.parametrize("text", ("{{ oops", "{% for %}", "{% nonsense %}"))
def test_what_is_not_jinja_is_told_of_the_template(text):
  with pytest.raises(UserError, match="chat template of here is not valid Jinja .line 1: "):
    rendered(text)


@pytest.mark.parametrize("depth", (200, 20_000))
def test_nesting_ends_nobody_else(depth):
  with pytest.raises((TemplateFailed, UserError)):
    rendered("{{ " + "(" * depth + "1" + ")" * (depth - 1) + " }}")
  assert rendered("x") == "x"


@pytest.mark.parametrize(
  "way",
  (
    "''.__class__.__mro__[1].__subclasses__()",
    "messages.__class__.__base__",
    "messages[0].__init__.__globals__",
    "self.__init__.__globals__",
    "self._TemplateReference__context",
    "cycler.__init__.__globals__.os.popen('touch MARK').read()",
    "lipsum.__globals__['os'].system('touch MARK')",
    "joiner.__init__.__globals__",
    "namespace.__init__.__globals__",
    "namespace(**{'__class__': 1})",
    "raise_exception.__globals__",
    "strftime_now.__globals__['datetime'].sys.modules",
    "dict.__call__.__func__.__globals__",
    "dict.mro()",
    "'{0.__class__.__mro__}'.format(1)",
    "('{0.__class__}' | attr('format'))(1)",
    "'{a.__class__}'.format_map({'a': 1})",
    "(messages | map(attribute='__class__') | list)",
    "(messages | attr('__class__'))",
    "(messages | groupby('__class__') | list)",
    "(messages | tojson).__class__",
    "caller.__globals__",
    "range.__self__.open('/etc/passwd').read()",
    "open('/etc/passwd').read()",
    "__import__('os').getcwd()",
  ),
)
def test_no_way_out_of_the_sandbox(way, tmp_path):
  mark = tmp_path / "mark"
  try:
    text = rendered("[{{ " + way.replace("MARK", str(mark)) + " }}]")
  except TemplateFailed:
    text = ""
  assert not mark.exists()
  for leak in ("class", "function", "method", "module", "object at", "root:", "builtin"):
    assert leak not in text
