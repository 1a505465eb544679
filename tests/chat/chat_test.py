"""`simpo_jax.chat`: streamed is what a run generates; the cache stays; text does nothing else."""

import dataclasses
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from simpo_jax.arith import common_prefix
from simpo_jax.chat import engine as voices
from simpo_jax.chat import history
from simpo_jax.chat.engine import ChatEngine
from simpo_jax.chat.terminal import Chat, Terminal
from simpo_jax.chat.text import stream_text, strip_stop, visible
from simpo_jax.data.prompts import encode_messages
from simpo_jax.errors import UserError
from simpo_jax.generate.stop_automaton import before_stop
from simpo_jax.loaded_model.model import load_model
from simpo_jax.program import compile_count
from simpo_jax.sample import answers
from simpo_jax.settings import GenerateSettings
from simpo_jax.tokenizer.byte_vocab import decode as decode_bytes
from support.folders import ROOT
from support.hf_models import load, our_logits, save_hf_folder, save_llama
from support.kv_pool import check_in_place

pytestmark = pytest.mark.model

TEMPLATE = (
  "{% for m in messages %}{{ {'system': '<|2|>', 'user': '<|0|>', 'assistant': '<|1|>'}[m.role] }}"
  "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|1|>{% endif %}"
)
CONTEXT = 200
SMALL = {"generate.max_new_tokens": 12, "generate.page_size": 16, "generate.prefill_chunk": 8}
SETTINGS = {
  "greedy": {},
  "sampled": {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 3},
}
FIRST = [1, 2, 3, 40, 50]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny Llama that knows characters, in a larger context than the usual tiny one."""
  folder = tmp_path_factory.mktemp("model")
  save_hf_folder(folder, TEMPLATE)
  save_llama(folder, max_position_embeddings=256)
  return folder


@pytest.fixture(scope="module")
def loaded(folder):
  return load_model(str(folder), SMALL)


@pytest.fixture(scope="module")
def voice(loaded):
  """One compilation, here; every test asks the same program."""
  before = compile_count.compile_count()
  voice = ChatEngine(loaded, CONTEXT)
  assert compile_count.compile_count() == before + 1 and voice.context == CONTEXT
  return voice


def settings(**changes):
  return GenerateSettings(**{"max_new_tokens": 12, **changes})


@pytest.fixture
def one_at_a_time(voice, monkeypatch):
  """A launch for every token, however fast they are."""
  monkeypatch.setattr(voices, "_MAX_STEPS", 1)
  voice._steps = 1


def said(voice, tokens, **changes):
  return sum(voice.answer(tokens, settings(**changes)), [])


# --- tokens -----------------------------------------------------------------------------------


def test_the_tokens_are_those_of_a_prompts_file(folder, voice):
  """Two samples of one prompt, and a greedy one of another: the draw depends on its number."""
  own = {name: value for name, value in SETTINGS["sampled"].items() if name != "seed"}
  rows = [{"prompt": "What is it?", **own}, {"prompt": "hello"}]
  file = folder / "prompts.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  changes = {
    "generate.prompts": str(file),
    "generate.count": 0,
    "generate.seed": SETTINGS["sampled"]["seed"],
    "generate.num_samples": 2,
  }
  loaded, rows = load_model(str(folder), {**SMALL, **changes}), []
  prompts = answers.usable_prompts(loaded, print)
  answers.sample(loaded, prompts, rows.append, print, lambda text: None)
  rows = [json.loads(row) for row in rows]
  assert len({tuple(row["generated_token_ids"]) for row in rows}) == 3
  for row in rows:
    number, sample = row["prompt_index"], row["sample_index"]
    config = settings(**SETTINGS[("sampled", "greedy")[number]])
    pieces = list(voice.answer(prompts[number].tokens.tolist(), config, sample))
    assert sum(pieces, []) == row["generated_token_ids"]
    assert voice.finish == row["finish_reason"]


@pytest.mark.parametrize("name", SETTINGS)
def test_later_turns_equal_a_full_pass(folder, voice, name):
  """The log-probability of every token of every turn; only what is new is computed."""
  cfg, params = load(folder)
  random = np.random.default_rng(0)
  said(voice, [9, 9])  # of another conversation
  talk, common, turns = FIRST, 0, []
  for turn in range(5):
    tokens = said(voice, talk, **SETTINGS[name])
    assert voice.computed == len(talk) - 1 - common
    logprobs = np.asarray(voice._state[1].out.logprobs)[0, : len(tokens)]
    turns.append((len(talk), tokens, logprobs))
    talk = [*talk, *tokens]
    if turn in (2, 4):  # one pass over the conversation has the logits of all its turns
      logits = our_logits(cfg, params, np.asarray([talk], np.int32))[0]
      expected = np.asarray(jax.nn.log_softmax(logits))
      for start, tokens, logprobs in turns:
        places = start - 1 + np.arange(len(tokens))
        np.testing.assert_allclose(logprobs, expected[places, tokens], atol=2e-5)
      talk, turns = talk[3:], []  # as if its oldest turn was dropped: nothing is in its place
    talk = [*talk, *random.integers(3, 90, 50 if turn == 1 else 7).tolist()]
    common = common_prefix(voice.cached, talk)
    assert common == (0 if turn in (2, 4) else len(voice.cached))


def test_an_answer_that_was_left_in_the_middle(voice, one_at_a_time):
  whole = said(voice, FIRST)
  for stop in (1, 3):
    for number, _ in enumerate(voice.answer(FIRST, settings())):
      if number == stop:
        break
    assert voice.finish is None
    assert said(voice, FIRST) == whole
    assert voice.computed == 0


def test_budgets(voice):
  assert len(said(voice, FIRST, max_new_tokens=3)) == 3 and voice.finish == "length"
  longest = [5] * (CONTEXT - 2)
  assert len(said(voice, longest)) <= 2 and voice.count <= 2
  assert len(said(voice, [5] * (CONTEXT - 1))) == 1


def test_the_cache_is_written_in_place(voice):
  check_in_place(voice._program)


def test_no_context_is_refused(loaded):
  with pytest.raises(UserError, match="--context=8"):
    ChatEngine(loaded, 8)


# --- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "text",
  ["héllo 你好 👩‍👧 ok", "plain", "\ufffdtrue\ufffd", ""],
  ids=["mixed", "plain", "half", "none"],
)
@pytest.mark.parametrize("size", (1, 2, 3))
def test_streaming_waits_for_whole_characters(text, size):
  ids = list(text.encode())
  pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
  out = list(stream_text(decode_bytes, pieces))
  assert "".join(out) == text and all(out)
  if "\ufffd" not in text:
    assert "\ufffd" not in "".join(out)
    # As soon as it is whole: nothing but a character's first bytes is held back.
    for number in range(len(pieces)):
      now = "".join(stream_text(decode_bytes, pieces[: number + 1]))
      assert text.startswith(now.rstrip("\ufffd"))


@pytest.mark.parametrize("strings", (("ab",), ("aab", "ba"), ("cabc", "b"), ()))
def test_a_stop_string_is_never_shown(strings):
  """However the text is cut into pieces; no more is held back than what may begin a string."""
  rng = np.random.default_rng(0)
  for _ in range(200):
    text = "".join(rng.choice(list("abc"), 8))
    ends = [text.find(s) + len(s) for s in strings if s in text]
    cuts = sorted({*rng.integers(0, 9, 3).tolist(), min(ends, default=8)})
    cuts = [0, *(cut for cut in cuts if 0 < cut < min(ends, default=8))]
    pieces = [text[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
    seen = []

    def texts(pieces=pieces, seen=seen):
      for piece in pieces:
        seen.append(piece)
        yield piece

    def stopped(pieces=pieces, seen=seen, ends=ends):
      return bool(ends) and len(seen) == len(pieces)

    out = ""
    for piece in strip_stop(texts(), strings, stopped):
      out += piece
      assert len("".join(seen)) - len(out) < max(map(len, strings), default=1) or stopped()
    assert out == before_stop(text, strings)


def test_bytes_that_are_no_characters_are_shown():
  ids = [97, 0xE4, 0xBD, 98, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 99, 0xF0, 0x9F]
  assert "".join(stream_text(decode_bytes, [[i] for i in ids])) == decode_bytes(ids)
  shown = []

  def pieces():
    for i in [97, *[0xFF] * 9]:
      yield [i]
      shown.append(len("".join(out)))

  out = []
  for piece in stream_text(decode_bytes, pieces()):
    out.append(piece)
  assert shown[-1] >= 6, "they do not pile up"


def test_text_cannot_act_on_the_terminal():
  assert visible("a\x1b[31m\x07\r\x9b2J\u202eb\u2028") == r"a\x1b[31m\x07\r\x9b2J\u202eb\u2028"
  assert visible("\ud800") == r"\ud800" and visible("\U000e0041") == r"\U000e0041"
  for text in ("a\tb\nc", "你好 é", "👩\u200d👧 ❤️", "\xa0"):
    assert visible(text) == text


# --- the history ------------------------------------------------------------------------------


def turns(*lengths):
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": "x" * n} for i, n in enumerate(lengths)]


def test_the_oldest_turns_are_dropped(loaded):
  tokenizer, system = loaded.tokenizer, {"role": "system", "content": "s"}
  talk = [system, *turns(10, 10, 10, 10, 10)]
  size = lambda messages: len(encode_messages("", messages, tokenizer))  # noqa: E731
  assert history.fit(talk, tokenizer, size(talk)) == (
    encode_messages("", talk, tokenizer), talk, 0,
  )  # fmt: skip
  fitted = history.fit(talk, tokenizer, size(talk) - 1)
  assert fitted.messages == [system, *talk[3:]] and fitted.dropped == 2
  assert len(fitted.tokens) <= 0.75 * (size(talk) - 1)
  last = [system, talk[-1]]
  assert history.fit(talk, tokenizer, size(last)).messages == last
  with pytest.raises(UserError, match="this message takes 16 tokens, and there is room for 15"):
    history.fit(talk, tokenizer, size(last) - 1)


# --- the terminal -----------------------------------------------------------------------------


def talk(loaded, voice, *lines, live=False):
  """(stdout, stderr, the chat) of lines that come from a pipe."""
  out, err = io.StringIO(), io.StringIO()
  terminal = Terminal(io.StringIO("".join(f"{line}\n" for line in lines)), out, err)
  if live:
    terminal.live, terminal._notes = True, out
  chat = Chat(loaded, voice, terminal)
  chat.run()
  return out.getvalue(), err.getvalue(), chat


def test_a_conversation(loaded, voice):
  before = compile_count.compile_count()
  out, err, chat = talk(loaded, voice, "hello", "", "and \\", "more")
  assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
  assert [m["content"] for m in chat.messages[::2]] == ["hello", "and \nmore"]
  first, second = (m["content"] for m in chat.messages[1::2])
  assert out == f"{visible(first)}\n{visible(second)}\n" and first
  tokens = encode_messages("", chat.messages[:3], loaded.tokenizer)
  assert second == loaded.tokenizer.decode(said(voice, tokens))
  assert talk(loaded, voice, "hello", "/exit", "no")[0] == f"{visible(first)}\n"
  assert "max_new_tokens=12" in err and "\x1b" not in out + err
  assert compile_count.compile_count() == before, "the program is the voice's"


def test_commands(loaded, voice, tmp_path):
  file = tmp_path / "talk.json"
  lines = ["/settings temperature=0.9 seed=4", "hi", "/again", "/system Be kind.", f"/save {file}"]
  out, err, chat = talk(loaded, voice, *lines)
  saved = json.loads(file.read_text())
  assert saved["settings"]["temperature"] == 0.9 and saved["settings"]["seed"] == 4
  first, second, _ = out.split("\n")
  assert first != second and visible(saved["messages"][-1]["content"]) == second
  assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant"]
  assert "[system: Be kind.]" in err
  out, err, chat = talk(loaded, voice, "hi", f"/save {file}", "/reset", "/nope", "/again", "/help")
  assert "already exists" in err and "/nope is not a command" in err and "say something" in err
  assert "/system TEXT" in err and not chat.messages and not chat.transcript
  bad = ["top_p=2", "top_k=x", "temperature=nan", "stop=a", "seed"]
  _, err, chat = talk(loaded, voice, *(f"/settings {b}" for b in bad))
  assert err.count("error: ") == len(bad)
  assert chat._settings == loaded.config.generate


def test_stop_strings_and_suppressed_tokens(folder, loaded, voice):
  """The text ends before the stop string; the suppressed token is not in it."""
  first = talk(loaded, voice, "hello")[2].messages[-1]["content"]
  [never, *_] = loaded.tokenizer.encode(first)
  changes = {**SMALL, "generate.suppress_tokens": (never,), "generate.min_new_tokens": 5}
  other = load_model(str(folder), changes)
  text = talk(other, ChatEngine(other, CONTEXT), "hello")[2].messages[-1]["content"]
  assert first[0] not in text and len(text) > 4
  stopping = {**changes, "generate.stop": (text[2:4],), "generate.strip_stop": True}
  stops = load_model(str(folder), stopping)
  out, _, chat = talk(stops, ChatEngine(stops, CONTEXT), "hello")
  before = text[: text.index(text[2:4])]
  assert out == f"{visible(before)}\n" and chat.messages[-1]["content"] == before


def test_logits_that_are_not_finite_are_an_error(loaded, voice, monkeypatch):
  params = {**voice._params, "lm_head": voice._params["lm_head"] * np.nan}
  with monkeypatch.context() as patch:
    patch.setattr(voice, "_params", params)
    with pytest.raises(UserError, match="logits of this answer, after 0 tokens, are not finite"):
      said(voice, FIRST)
    assert voice.finish == "nonfinite" and voice.count == 0
    assert "error: generation: the logits" in talk(loaded, voice, "hello")[1]
  voice.cached = []
  assert len(said(voice, FIRST)) == 12


def test_a_full_context_is_told_of(loaded, voice):
  out, err, chat = talk(loaded, voice, "a" * 60, "b" * 60, "c" * 60, "d" * 190)
  assert "the oldest 2 messages no longer fit into the context of 200" in err
  assert [m["content"][0] for m in chat.messages[::2]] == ["b", "c"]
  assert [m["content"][0] for m in chat.transcript[::2]] == ["a", "b", "c"]
  assert "error: this message takes" in err and out.count("\n") >= 3


def test_an_interrupt_ends_the_answer_and_not_the_chat(loaded, voice, one_at_a_time, monkeypatch):
  answer, before = ChatEngine.answer, signal.getsignal(signal.SIGINT)
  whole = talk(loaded, voice, "hello")[2].messages[-1]["content"]

  def interrupted(self, *args):
    for number, piece in enumerate(answer(self, *args)):
      if number == 1:
        os.kill(os.getpid(), signal.SIGINT)
      yield piece

  monkeypatch.setattr(ChatEngine, "answer", interrupted)
  with pytest.raises(KeyboardInterrupt):  # as nobody is there to go on
    talk(loaded, voice, "hello", "more")
  assert signal.getsignal(signal.SIGINT) is before

  def line(self, prompt):
    text = self._in.readline()
    if text == "^C\n":
      raise KeyboardInterrupt
    return text.rstrip("\n") or None

  monkeypatch.setattr(Terminal, "_line", line)
  out, err, chat = talk(loaded, voice, "hello", "^C", "more", live=True)
  assert out.count("[stopped]") == 2 and "/exit or ^D ends" in out
  assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
  part = chat.messages[1]["content"]
  assert part and whole.startswith(part) and len(part) < len(whole)


def test_a_terminal():
  """Lines, ^C and ^D as a real one sends them."""
  program = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its ^C is this process's
from simpo_jax.chat.terminal import Terminal
for line in Terminal().lines():
  print([line])
"""
  ours, theirs = pty.openpty()
  env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
  env.pop("NO_COLOR", None)
  process = subprocess.Popen(
    [sys.executable, "-c", program], stdin=theirs, stdout=theirs, env=env, start_new_session=True
  )
  os.close(theirs)
  seen, keys = "", ""
  for prompt, after in (("you: ", "hi\n"), ("you: ", "\x03"), ("you: ", "a\\\n"), ("... ", "b\n")):
    seen += until(ours, prompt, keys)
    keys = after
    os.write(ours, keys.encode())
  seen += until(ours, "you: ")
  os.write(ours, b"\x04")
  assert process.wait(60) == 0
  os.close(ours)
  said = re.findall(r"^\[.*\]", seen, re.M)
  assert list(dict.fromkeys(said)) == ["['hi']", "[None]", r"['a\nb']"]
  assert "\x1b[1m" in seen


def until(terminal, text, pressed=""):
  """Reads up to a text. A ^C that came in the instant before the wait for keys is pressed again."""
  seen, patience = "", 12
  while text not in seen:
    if select.select([terminal], [], [], 10)[0]:
      seen += os.read(terminal, 1024).decode()
      continue
    patience -= 1
    assert patience, f"after {seen!r} nothing came"
    if pressed == "\x03":
      os.write(terminal, pressed.encode())
  return seen


def test_colors_are_for_terminals(monkeypatch):
  class Screen(io.StringIO):
    def isatty(self):
      return True

  def noted(**env):
    for name in ("NO_COLOR", "TERM"):
      monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
      monkeypatch.setenv(name, value)
    screen = Screen()
    Terminal(Screen(), screen).note("\x1b]0;x")
    return screen.getvalue()

  assert noted() == "\x1b[2m\\x1b]0;x\x1b[0m\n"
  assert noted(NO_COLOR="1") == noted(TERM="dumb") == "\\x1b]0;x\n"


def test_without_a_template_it_completes(loaded, voice):
  tokenizer = dataclasses.replace(loaded.tokenizer, chat_template=None)
  plain = loaded._replace(tokenizer=tokenizer)
  out, err, chat = talk(plain, voice, "abc", "abc", "/system x")
  text = tokenizer.decode(said(voice, tokenizer.encode("abc")))
  assert out == f"{visible(text)}\n" * 2 and not chat.messages
  assert "no chat template" in err


@pytest.mark.slow
def test_from_a_pipe_on_two_devices(folder, loaded, voice):
  expected = talk(loaded, voice, "hello", "and now?")[0]
  flags = [f"--model={folder}", "--max_new_tokens=12", f"--context={CONTEXT}"]
  done = subprocess.run(
    [sys.executable, "-m", "simpo_jax.chat", *flags],
    input="hello\nand now?\n",
    capture_output=True,
    text=True,
    timeout=240,
    env={
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    },
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == expected
  assert "2 x cpu" in done.stderr and "context of 200 tokens" in done.stderr
