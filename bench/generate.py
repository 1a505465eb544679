"""Benchmarks generation against transformers: same weights, same prompts, in one run.

  python bench/generate.py --model=SmolLM2-135M-Instruct.Q4_1.gguf --data=dpo_en_demo.json
  python bench/generate.py ... --cases=queue,batch16 --json=generate.json

The figures in docs/performance.md were measured with --cases=batch16,batch64,queue,short16.

Cases (greedy decoding; prompts from real pairs):

  batch16, batch64   16 or 64 prompts at once, exactly 128 new tokens each
  short16, short64   the same with prompts truncated to 40 tokens
  queue              128 prompts through 16 slots, up to 256 new tokens or an end token;
                     transformers gets them in the same order in batches of 16
  scale128, scale1024   128 or 1,024 short prompts through 16 slots, 64 new tokens each;
                     without transformers

Columns: tokens per second of both, their ratio, and two fractions of hardware limits
measured in the same run: `of_matmuls` is the time of the model's matmuls alone (decode
steps at this batch size, and prompt tokens) over our time; `of_memory` is the time to read
weights and KV cache once per step over our decoding time.
"""

import json
import time
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from rich.progress import track

from simpo_jax.data.rows.messages import to_messages
from simpo_jax.data.types import Prompt
from simpo_jax.generate import on_mesh
from simpo_jax.generate.assignment import round_robin
from simpo_jax.generate.requests import make_requests, pack_requests
from simpo_jax.generate.sizing import shape_for
from simpo_jax.generate.stop_automaton import stop_automaton
from simpo_jax.generate.types import Requests
from simpo_jax.kernels.paged_attention import select_impl
from simpo_jax.models import llama, sharding
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.weights import load_params, open_model
from simpo_jax.settings import GenerateSettings
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import Tokenizer, encode_with_bos

CASES = {  # prompts, slots, prompt tokens (0: not truncated), new tokens, stops at end tokens
  "short16": (16, 16, 40, 128, False),
  "batch16": (16, 16, 0, 128, False),
  "short64": (64, 64, 40, 128, False),
  "batch64": (64, 64, 0, 128, False),
  "queue": (128, 16, 0, 256, True),
  "scale128": (128, 16, 40, 64, False),
  "scale1024": (1024, 16, 40, 64, False),
}
LONGEST = 512  # tokens; longer prompts are not used

_MODEL = flags.DEFINE_string("model", None, "folder, .gguf file or hub id", required=True)
_DATA = flags.DEFINE_string("data", None, "a JSON file of preference pairs", required=True)
_CASES = flags.DEFINE_list("cases", ["short16", "batch16", "batch64", "queue"], "cases to run")
_PEER = flags.DEFINE_bool("peer", True, "also run transformers")
_RUNS = flags.DEFINE_integer("runs", 3, "timed runs per case; the median is reported")
_DTYPE = flags.DEFINE_string(
  "dtype", None, "float32 or bfloat16; default: float32 on CPU, else bfloat16"
)


def main(_: list[str]) -> None:
  """Runs the cases and prints their table."""
  platform = jax.default_backend()
  dtype = jnp.dtype(_DTYPE.value or ("float32" if platform == "cpu" else "bfloat16"))
  opened, tokenizer = open_model(_MODEL.value), load_tokenizer(_MODEL.value)
  mesh = sharding.make_mesh(devices=jax.devices()[:1], hosts=1)
  specs = sharding.param_specs(opened.config, mesh, sharding.TRAIN_RULES)
  params = load_params(opened, sharding.named(mesh, specs), dtype)
  peer = _Transformers(_MODEL.value, dtype) if _PEER.value else None
  bandwidth = common.read_bandwidth()
  rows = []
  for name in track(_CASES.value, "benchmark"):
    rows.append(_case(name, opened.config, params, mesh, dtype, tokenizer, peer, bandwidth))
  first, floor = rows[0], rows[0]["of_matmuls"]
  result = common.result(
    f"generation, {first['case']}",
    "tokens per second",
    rows,
    ours=first["ours_tok_s"],
    theirs=first["transformers_tok_s"],
    peer="transformers" if peer else None,
    floor=first["ours_tok_s"] / floor if floor else None,
  )
  common.report("generation", result)


def _case(
  name: str,
  cfg: ModelConfig,
  params: llama.Params,
  mesh: Mesh,
  dtype: np.dtype,
  tokenizer: Tokenizer,
  peer: "_Transformers | None",
  bandwidth: float,
) -> dict:
  count, slots, cut, new, ends = CASES[name]
  prompts = _prompts(tokenizer, count, cut)
  stop_ids = tokenizer.eos_ids if ends else ()
  ours = _Ours(cfg, params, mesh, dtype, prompts, slots, new, stop_ids)
  first = _Ours(cfg, params, mesh, dtype, prompts, slots, 1, stop_ids)
  theirs = peer if not name.startswith("scale") else None
  times, prefill, their_times = [], [], []
  for _ in range(_RUNS.value):  # interleaved, so that load on the machine affects both sides
    times.append(ours.seconds())
    prefill.append(first.seconds())
    if theirs:
      their_times.append(theirs.seconds(prompts, slots, new, stop_ids))
  seconds, start = float(np.median(times)), float(np.median(prefill))
  tokens = sum(map(len, ours.answers))
  row = {
    "case": name,
    "tokens": tokens,
    "seconds": seconds,
    "prefill_seconds": start,
    "ours_tok_s": tokens / seconds,
    "transformers_tok_s": None,
    "ratio": None,
    "same_tokens": None,
  }
  if theirs:
    their_tokens = sum(map(len, theirs.answers))
    row["transformers_tok_s"] = their_tokens / float(np.median(their_times))
    row["ratio"] = row["ours_tok_s"] / row["transformers_tok_s"]
    row["same_tokens"] = sum(a == b for a, b in zip(ours.answers, theirs.answers, strict=True))
  if not ends and count == slots:
    prompt_tokens = sum(len(p.tokens) - 1 for p in prompts)
    step = _matmul_seconds(cfg, ours.weights, slots, dtype)
    chunk = _matmul_seconds(cfg, ours.weights, 256, dtype, logits=False) / 256
    row["of_matmuls"] = (new * step + prompt_tokens * chunk) / seconds
    row["decode_of_matmuls"] = (new - 1) * step / (seconds - start)
    cached = prompt_tokens + count * new / 2
    lanes = 2 * cfg.num_key_value_heads * cfg.head_dim * cfg.num_hidden_layers
    weights = sum(x.size for x in jax.tree.leaves(ours.weights))
    read = (weights + cached * lanes) * dtype.itemsize
    row["of_memory"] = (new - 1) * read / bandwidth / (seconds - start)
  else:
    row |= {"of_matmuls": None, "decode_of_matmuls": None, "of_memory": None}
  return row


def _prompts(tokenizer: Tokenizer, count: int, cut: int) -> list[Prompt]:
  with open(_DATA.value) as f:
    rows = json.load(f)
  messages = (to_messages(row["conversations"]) for row in rows)
  ids = [encode_with_bos(tokenizer, tokenizer.render(m, True)) for m in messages]
  ids = [x for x in ids if len(x) <= LONGEST and len(x) >= cut]
  return [
    Prompt(i, "", np.asarray(ids[i % len(ids)][-cut:], np.int32)) for i in range(count)
  ]  # truncated prompts keep their end, which starts the assistant's turn


class _Ours:
  """A compiled generation, the same as in the program's generate branch."""

  def __init__(
    self,
    cfg: ModelConfig,
    params: llama.Params,
    mesh: Mesh,
    dtype: np.dtype,
    prompts: list[Prompt],
    slots: int,
    new: int,
    stop_ids: tuple[int, ...],
  ):
    page = 64 if jax.default_backend() == "cpu" else 128
    settings = GenerateSettings(max_slots=slots, max_new_tokens=new, page_size=page)
    self.requests = make_requests(prompts, settings)
    assignments = round_robin(self.requests, 1)
    shape = shape_for(self.requests, assignments, settings, 1, jax.default_backend())
    impl, _ = select_impl(
      "auto",
      jax.default_backend(),
      heads=cfg.num_attention_heads,
      kv_heads=cfg.num_key_value_heads,
      head_dim=cfg.head_dim,
      page_size=shape.page_size,
      dtype=dtype,
      queries=shape.chunk,
      slots=slots,
      pages_per_seq=shape.pages_per_seq,
    )
    shape = shape._replace(attention=impl)
    stops = stop_automaton(cfg.vocab_size, stop_ids)
    self.packed: Requests = jax.device_put(
      pack_requests(self.requests, assignments, shape, stops, 0)
    )
    self.params = params
    self.weights = jax.jit(lambda p: llama.unstack(p, cfg, dtype))(params)
    self.run = jax.jit(
      lambda p, r: on_mesh.generate(p, r, cfg, mesh, "host_data_parallel", shape, dtype)
    )
    jax.block_until_ready(self.run(params, self.packed))

  def seconds(self) -> float:
    start = time.perf_counter()
    out = jax.block_until_ready(self.run(self.params, self.packed))
    elapsed = time.perf_counter() - start
    tokens, count = np.asarray(out.tokens[0]), np.asarray(out.count[0])
    self.answers = [tokens[i, : count[i]].tolist() for i in range(len(self.requests))]
    return elapsed


def _matmul_seconds(
  cfg: ModelConfig, weights: llama.Params, rows: int, dtype: np.dtype, logits: bool = True
) -> float:
  """Measures the seconds of the model's matmuls in one forward pass over `rows` tokens."""
  steps = 8

  def one(x: jax.Array, w: llama.Params) -> jax.Array:
    for p in w["layers"]:
      q, k, v = (x @ p[n] for n in "qkv")
      x = q @ p["o"] + jnp.sum(k + v) * 1e-9
      gate, up = x @ p["gate"], x @ p["up"]
      x = (gate * up) @ p["down"] * 1e-6
    if logits:
      x = x + jnp.max(llama.unembed(w, x, cfg)) * 1e-9
    return x

  x = jnp.ones((rows, cfg.hidden_size), dtype)
  loop = jax.jit(lambda x, w: jax.lax.fori_loop(0, steps, lambda _, x: one(x, w), x))
  return common.seconds(loop, x, weights) / steps


class _Transformers:
  """transformers' generate on the same weights, used as documented."""

  def __init__(self, source: str, dtype: np.dtype):
    import pathlib

    import torch
    import transformers

    self.torch = torch
    kind = getattr(torch, dtype.name)
    path = pathlib.Path(source)
    if path.suffix == ".gguf":
      from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

      config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
      net = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
      # Same as from_pretrained(gguf_file=...), which needs accelerate.
      stored = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=net)["tensors"]
      net.load_state_dict(stored, strict=False)
    else:
      net = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=kind)
    self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    self.net: Any = net.eval()  # its decorators lose the types of its methods
    self.net.to(self.device)
    self.net.generation_config.pad_token_id = 0

  def seconds(
    self, prompts: list[Prompt], batch: int, new: int, stop_ids: tuple[int, ...]
  ) -> float:
    batches = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    self.answers = []
    start = time.perf_counter()
    for batch_prompts in batches:
      self.answers += self._answers(batch_prompts, new, stop_ids)
    return time.perf_counter() - start

  def _answers(self, prompts: list[Prompt], new: int, stop_ids: tuple[int, ...]) -> list[list[int]]:
    torch = self.torch
    longest = max(len(p.tokens) for p in prompts)
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)  # padded on the left
    present = torch.zeros_like(ids)
    for row, mask, prompt in zip(ids, present, prompts, strict=True):
      row[-len(prompt.tokens) :] = torch.from_numpy(prompt.tokens)
      mask[-len(prompt.tokens) :] = 1
    self.net.generation_config.eos_token_id = list(stop_ids) or None
    out = self.net.generate(
      ids.to(self.device),
      attention_mask=present.to(self.device),
      do_sample=False,
      max_new_tokens=new,
    )
    answers = out[:, longest:].tolist()
    return [next((a[: i + 1] for i, t in enumerate(a) if t in stop_ids), a) for a in answers]


if __name__ == "__main__":
  app.run(common.with_user_errors(main))
