"""Reads model files that nobody vouches for in a process of its own, whose limits the kernel keeps.

Why not in the tests' process, with a look at its size before and after: hypothesis keeps what it
has tried, modules are imported when first needed, the allocator keeps what was freed, and files
that are mapped count as resident, all of it some hundred MB that say nothing about the reader.
Here the limit is on writable memory of the reader alone (RLIMIT_DATA), after it has read a valid
file; it holds at every moment, not only between two looks, and a mapped file is not in it.
"""

import contextlib
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback

# Of writable memory, beyond what reading a valid file takes. The files have some kB, of which
# readers make objects of some hundred times that; a claim that is believed takes GB.
ROOM = 64 * 2**20
CPU_SECONDS = 10.0  # for one folder; it takes a hundredth of one
_SILENCE = 300  # seconds without an answer, however slow the machine is


@contextlib.contextmanager
def reading(valid):
  """Gives `read(kind, files)` -> (outcome, words), in a process that is started anew if it ends.

  outcome: "read", "refused" (a UserError), or what must not be: "crashed", "ended".
  files: the contents, bytes, of the files of a folder, by name.
  valid: files of every kind that can be read.
  """
  process: subprocess.Popen | None = None
  begun: set[str] = set()  # kinds that this process has read

  def ask(child, begin, kind, files):
    texts = {name: data.decode("latin-1") for name, data in files.items()}
    child.stdin.write(json.dumps([begin, kind, texts]).encode() + b"\n")
    child.stdin.flush()
    if not select.select([child.stdout], [], [], _SILENCE)[0]:
      child.kill()
    return child.stdout.readline()

  def read(kind, files):
    nonlocal process
    if process is None:
      process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
      )
      begun.clear()
    if kind not in begun:
      begun.add(kind)
      answer = json.loads(ask(process, True, kind, valid[kind]))
      assert answer[0] == "read", answer
    try:
      answer = ask(process, False, kind, files)
    except BrokenPipeError:
      answer = b""
    if answer:
      return tuple(json.loads(answer))
    code, process = process.wait(), None
    return "ended", f"exit code {code}"

  yield read
  if process:
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def _read_all(opened):
  import jax
  import numpy as np

  from simpo_jax.models.llama import tensors

  for tensor in jax.tree.leaves(tensors(opened.config)):
    shape = tensor.shape[1:] if tensor.stacked else tensor.shape
    shape = shape[::-1] if tensor.transposed else shape
    for layer in range(opened.config.num_hidden_layers if tensor.stacked else 1):
      values = opened.read(tensor.hf_name.format(layer), tuple(slice(0, n) for n in shape))
      assert values.shape == shape and np.dtype(values.dtype).kind in "fV", tensor.hf_name


def _open_model(source):
  import numpy as np

  from simpo_jax.models import weights
  from simpo_jax.models.config import rope_frequencies

  opened = weights.open_model(source)
  frequencies = rope_frequencies(opened.config)
  assert np.isfinite(frequencies).all() and (frequencies > 0).all()
  assert np.isfinite([opened.config.rms_norm_eps, opened.config.rope_theta]).all()
  return opened


def _tokenizer(source):
  from simpo_jax.tokenizer.chat_template import TemplateFailed
  from simpo_jax.tokenizer.load import load_tokenizer
  from simpo_jax.tokenizer.tokenizer import encode_with_bos

  tokenizer = load_tokenizer(str(source))
  texts = ["", "ab: cde<|im_end|>\n", "\u00e9\U0001f600\x00 <s>"]
  with contextlib.suppress(TemplateFailed):
    if tokenizer.chat_template is not None:
      texts.append(tokenizer.render([{"role": "user", "content": "ab"}], True))
  for text in texts:
    ids = encode_with_bos(tokenizer, text)
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids), ids
    tokenizer.decode(ids)
  assert tokenizer.eos_ids and min(tokenizer.eos_ids) >= 0 and tokenizer.pad_id >= 0
  if tokenizer.vocab_size < 10_000:  # the model's size is compared before this is asked for
    assert all(type(b) is bytes for b in tokenizer.token_bytes())


_KINDS = {
  "config": lambda folder: _open_model(f"random:{folder}"),
  "weights": lambda folder: _read_all(_open_model(str(folder))),
  "gguf": lambda folder: _read_all(_open_model(str(folder / "m.gguf"))),
  "tokenizer": _tokenizer,
  "gguf tokenizer": lambda folder: _tokenizer(folder / "m.gguf"),
}
_REPEATS = 3  # until a reader has all that it keeps


def _outcome(kind, folder, seen) -> tuple[str, str]:
  from simpo_jax.errors import UserError

  words = ""
  try:
    _KINDS[kind](folder)
    outcome = "read"
  except UserError as error:
    outcome, words = "refused", str(error)
    cause = error
    while cause := cause.__cause__ or cause.__context__:
      if isinstance(cause, MemoryError):
        outcome = "crashed"
  except BaseException:
    outcome, words = "crashed", traceback.format_exc()
  if seen:
    outcome, words = "crashed", f"code was run: {seen}"
  return outcome, words


def _written(folder, files):
  for name, text in files.items():
    (folder / name).write_bytes(text.encode("latin-1"))


def _main():
  answers = os.dup(1)
  os.dup2(2, 1)
  seen = []
  place = [""]

  def watch(event, args):
    if event == "pickle.find_class":
      seen.append(str(args))
    elif event == "exec" and place[0] and args[0].co_filename.startswith(place[0]):
      seen.append(args[0].co_filename)

  sys.addaudithook(watch)
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  for line in sys.stdin:
    begin, kind, files = json.loads(line)
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      place[0] = name
      seen.clear()
      _written(folder, files)
      if begin:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for _ in range(_REPEATS):
          answer = _outcome(kind, folder, seen)
        resource.setrlimit(resource.RLIMIT_DATA, (_writable() + ROOM, resource.RLIM_INFINITY))
      else:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = _outcome(kind, folder, seen)
        signal.setitimer(signal.ITIMER_PROF, 0)
    os.write(answers, json.dumps(answer).encode() + b"\n")


def _writable() -> int:
  """Bytes of this process's memory that RLIMIT_DATA counts."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmData:"):
      return int(line.split()[1]) * 1024
  raise AssertionError("Linux")


if __name__ == "__main__":
  _main()
