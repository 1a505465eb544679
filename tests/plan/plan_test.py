"""Plans: the run's own program, priced; slices that are not there; what does not fit."""

import json
import math
import os
import subprocess
import sys

import huggingface_hub.constants
import jax
import numpy as np
import pytest

from simpo_jax.config import default_config, replace_fields
from simpo_jax.config_check import validate
from simpo_jax.data.packing import pack
from simpo_jax.data.types import PairTokens, Prompt
from simpo_jax.distributed.chips import CHIPS, exchange_seconds, links
from simpo_jax.errors import UserError
from simpo_jax.generate.assignment import round_robin
from simpo_jax.generate.requests import make_requests
from simpo_jax.generate.sizing import shape_for
from simpo_jax.models import weights
from simpo_jax.models.llama import count_params
from simpo_jax.models.sizes import layer_weights
from simpo_jax.plan import advice, planning
from simpo_jax.plan.known_models import NAMES, known_model
from simpo_jax.plan.text import render
from simpo_jax.plan.topology import topology_devices
from simpo_jax.plan.workload import attention_flops, generation_work, model_flops, step_work
from simpo_jax.program import configure
from simpo_jax.run import run
from simpo_jax.runtime import resolve
from simpo_jax.train.batch import BatchShape
from support.folders import ROOT

CONTRACT = (
  "compile_seconds",
  "fits",
  "peak_bytes_per_chip",
  "hbm_bytes_per_chip",
  "alias_bytes",
  "modes",
)


def config(**changes):
  c = default_config()
  c.train.steps = 2
  c.train.remat = "none"
  c.data.max_length, c.data.max_prompt_length, c.data.row_length = 256, 128, 256
  c.data.embedded_pairs = 64
  c.generate.at_steps = (2,)
  c.generate.count, c.generate.max_new_tokens, c.generate.page_size = 6, 16, 32
  c.generate.ignore_eos = True
  c.update_from_flattened_dict(changes)
  return validate(c)


def wide_model(folder, ffn, layers):
  """The config of a run of random weights of this shape, whose config.json is written."""
  hf = dict(model_type="llama", vocab_size=262, hidden_size=2**14, intermediate_size=ffn)
  hf |= dict(num_hidden_layers=layers, num_attention_heads=128, rms_norm_eps=1e-5)
  (folder / "config.json").write_text(json.dumps(hf))
  return config(**{"model.source": f"random:{folder}"})


# --- the program -----------------------------------------------------------------------------


@pytest.mark.program
def test_the_program_planned_here_is_the_one_that_runs_here(tmp_path):
  c = config()
  plan = planning.make_plan(c)
  _, folder = run(c, str(tmp_path / "run"))
  record = json.loads((folder / "run.json").read_text())
  assert plan["program"] == record["program"]
  assert plan["assumed"] == []
  assert plan["peak_bytes_per_chip"] == record["peak_bytes"]["program"]
  assert plan["alias_bytes"] == record["memory"]["aliased"]
  # A CPU's peak rates are not known: figures, but no times.
  assert plan["modes"]["train"]["flops"] > 0
  assert plan["modes"]["train"]["roofline_seconds"] is None
  text = render(plan)
  assert "the peak rates of this device are unknown" in text and "fits: " in text


@pytest.fixture(scope="module")
def v5p():
  pytest.importorskip("libtpu")
  return planning.make_plan(config(), topology_devices("v5p:2x2x1"), topology="v5p:2x2x1")


@pytest.mark.tpu_compile
def test_a_slice_that_is_not_there(v5p):
  assert [name for name in CONTRACT if name not in v5p] == []
  assert json.loads(json.dumps(v5p)) == v5p
  assert v5p["devices"]["chip"] == "TPU v5p" and v5p["devices"]["count"] == 4
  assert v5p["fits"] and v5p["hbm_bytes_per_chip"] == CHIPS["TPU v5"].hbm_bytes
  memory = v5p["memory"]
  state = memory["params"] + memory["optimizer_state"]
  assert v5p["alias_bytes"] >= state
  for mode in memory["modes"].values():
    assert state < mode["peak"] <= v5p["peak_bytes_per_chip"]
  # 32 lanes of a page take 128 of the chip's.
  assert memory["modes"]["generate"]["kinds"]["kv_pool"] % (32 * 128 * 2) == 0
  for name in ("train", "generate", "evaluate"):
    mode = v5p["modes"][name]
    assert mode["roofline_seconds"] > 0 and mode["bytes"] > 0 and mode["collectives"], name
    assert not any(x["crosses_hosts"] for x in mode["collectives"])


def test_flops_of_the_text_are_those_of_the_formula(v5p):
  """Embedded rows are padded: every row is computed whole, whatever it holds."""
  model = weights.open_model("embedded").config
  train, batch = v5p["modes"]["train"], v5p["batch"]
  tokens = train["micro_batches"] * batch["rows"] * batch["row_length"]
  layers = 6 * layer_weights(model) * tokens / 4
  assert layers < train["flops"] < 3 * layers  # and logits and attention
  decode = v5p["modes"]["generate"]["parts"]["decode_step_6"]
  assert decode["times"] == 16
  layers = 2 * layer_weights(model)
  logits = 2 * model.vocab_size * model.hidden_size  # 262 rows are not cut over four chips
  assert 6 * (layers / 4 + logits) <= decode["flops"] < 6 * (layers / 2 + 2 * logits)


def test_a_plan_in_words(v5p):
  text = render(v5p)
  for part in (
    "v5p:2x2x1: 4 x TPU v5p, 1 host(s)",
    "peak of the mode",
    "KV pool",
    "generate: decode step 6",
    "generation: 6 requests, 96 tokens at the most",
    "exchanges, train, one step",
    "fits: ",
  ):
    assert part in text, part
  assert max(map(len, text.splitlines())) < 250


@pytest.mark.slow
def test_what_does_not_fit_says_what_to_change(tmp_path):
  """One layer of 4.3 billion weights: 16 bytes each, cut over four chips of 15.75 GiB."""
  pytest.importorskip("libtpu")
  c = wide_model(tmp_path, ffn=2**16, layers=1)
  plan = planning.make_plan(c, topology_devices("v5e:2x2"), topology="v5e:2x2")
  assert not plan["fits"] and "RESOURCE_EXHAUSTED" in plan["refused"]
  hbm, modes = plan["hbm_bytes_per_chip"], plan["memory"]["modes"]
  assert plan["peak_bytes_per_chip"] > hbm and modes["train"]["peak"] > hbm
  said = plan["advice"]
  assert "over by" in said[0] and "train" in said[0]
  assert not any("param_dtype" in line for line in said), "weights that train are float32"
  assert "does not fit: " in render(plan)


def test_frozen_weights_may_be_halved():
  """Of 1,000 bytes of them, beside adapters, bfloat16 saves 500."""
  c = config(**{"train.lora_rank": 4, "model.source": "embedded"})
  planned = planning.describe(c, configure.mesh_of(c.mesh), 100, 80)
  plan = {
    "fits": False,
    "hbm_bytes_per_chip": 1,
    "peak_bytes_per_chip": 2,
    "memory": {
      "params": 1000,
      "optimizer_state": 10_000,
      "modes": {
        name: {"peak": 2, "kinds": {"other": 0, "kv_pool": 0, "decode_weights": 0}}
        for name in ("train", "generate", "evaluate")
      },
    },
  }
  said = advice.advise(c, planned, plan)
  lever = "--config.model.param_dtype=bfloat16 (the frozen weights; adapters stay float32)"
  assert f"500 B: {lever}" in said
  c = replace_fields(c, {"train.lora_rank": 0, "model.param_dtype": "float32"})
  assert not any("param_dtype" in line for line in advice.advise(c, planned, plan))


# --- what is not at hand -----------------------------------------------------------------------


def test_known_sizes_stand_in_for_a_model_that_is_not_here(monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  c = config(**{"model.source": "meta-llama/Llama-3.2-1B-Instruct", "data.train": ("no.jsonl",)})
  planned = planning.describe(c, configure.mesh_of(c.mesh), 100, 80)
  assert planned.model.hidden_size == 2048
  assert planned.program.generate.prompt_tokens == 100
  assert [len(x) for x in planned.pairs[0][1:]] == [100, 78, 78]  # what a row of 256 holds
  said = "; ".join(planned.assumed)
  assert "could not be resolved here" in said and "6 prompts of 100 tokens" in said
  c = replace_fields(c, {"model.source": "someone/unheard-of"})
  with pytest.raises(UserError, match="someone/unheard-of.*models it knows: meta-llama"):
    planning.describe(c, configure.mesh_of(c.mesh), 100, 80)


def test_a_model_far_too_large_is_still_planned(tmp_path):
  """Its state alone takes more than the slice has; a run would be refused."""
  pytest.importorskip("libtpu")
  c = wide_model(tmp_path, ffn=2**17, layers=2)
  mesh = configure.mesh_of(c.mesh, topology_devices("v5e:2x2"), 1)
  with pytest.raises(UserError, match="take all memory of a device"):
    resolve.resolve(c, mesh)
  planned = planning.describe(c, mesh, 40, 30)
  assert not planned.assumed and planned.pool_reason.startswith("as configured, ")


def test_missing_data_alone_is_assumed():
  c = config(**{"data.train": ("no.jsonl",)})
  planned = planning.describe(c, configure.mesh_of(c.mesh), 40, 30)
  assert "no.jsonl" in planned.assumed[0]
  assert planned.model == weights.open_model("embedded").config


def test_a_mistake_in_the_config_is_still_one():
  with pytest.raises(UserError, match="--config.train.micro_batch_rows"):
    c = config(**{"mesh.fsdp": jax.device_count(), "mesh.data": 3, "train.micro_batch_rows": 2})
    planning.describe(c, configure.mesh_of(c.mesh, jax.devices() * 3, 1), 40, 30)


PARAMETERS = {  # of the models' own pages
  "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
  "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
  "meta-llama/Llama-3.2-1B": 1_235_814_400,
  "meta-llama/Llama-3.2-3B": 3_212_749_824,
  "mistralai/Mistral-7B-v0.1": 7_241_732_096,
  "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
  "google/gemma-2-2b": 2_614_341_888,
  "google/gemma-2-9b": 9_241_705_984,
  "google/gemma-2-27b": 27_227_128_320,
  "Qwen/Qwen2.5-0.5B": 494_032_768,
  "Qwen/Qwen2.5-1.5B": 1_543_714_304,
  "Qwen/Qwen2.5-7B": 7_615_616_512,
  "HuggingFaceTB/SmolLM2-135M": 134_515_008,
  "HuggingFaceTB/SmolLM2-360M": 361_821_120,
  "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}


def test_known_models_have_their_number_of_parameters():
  models = {name: known_model(name) for name in PARAMETERS}
  assert {name: model and count_params(model) for name, model in models.items()} == PARAMETERS
  assert all(known_model(name.upper()) for name in NAMES)
  assert known_model("meta-llama/Llama-9") is None


# --- slices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name,chip,count,hosts",
  (
    ("v5p:2x2x4", "TPU v5p", 16, 4),
    ("v4:2x2x2", "TPU v4", 8, 2),
    ("v5e:4x4", "TPU v5e", 16, 4),
    ("v6e:2x4", "TPU v6e", 8, 2),
    ("v5e:1x1", "TPU v5e", 1, 1),
  ),
)
def test_slices(name, chip, count, hosts):
  pytest.importorskip("libtpu")
  devices = topology_devices(name)
  assert len(devices) == count
  assert len({d.process_index for d in devices}) == hosts
  assert CHIPS[devices[0].device_kind].name == chip


SIDES = "these are not the sides of a slice"


@pytest.mark.parametrize(
  "name,reason",
  (
    ("v5p-32", SIDES),
    ("nonsense", SIDES),
    ("v5p:", SIDES),
    (":2x2x4", SIDES),
    ("v5p:2x2x-1", SIDES),
    ("v5p:2x2x+4", SIDES),
    ("v5p:2x2xfour", SIDES),
    ("v5p:2x2x", SIDES),
    ("v5p:2x2x1.5", SIDES),
    ("v5p:2x2x²", SIDES),
    ("v5p:2x2x" + 30 * "9", SIDES),
    ("v5p:0x2x2", "every side has at least 1 chip"),
    ("v5e:4x0", "every side has at least 1 chip"),
    ("v9:00x2", "every side has at least 1 chip"),
    ("v5p:4x4", "a v5p slice has 3 sides, not 2"),
    ("v5p:2x2x4x1", "a v5p slice has 3 sides, not 4"),
    ("V5E:2x2x1", "a V5E slice has 2 sides, not 3"),
    ("v6e:8", "a v6e slice has 2 sides, not 1"),
    ("tpu7x:2x2", "a tpu7x slice has 3 sides, not 2"),
    ("v3:2x2x2x2", "a slice has 2 or 3 sides, not 4"),
    ("v5p:1000x1000x1000", "1,000,000,000 chips are more than the largest pod has, 9,216"),
    ("v5e:2x999999999", "1,999,999,998 chips are more than the largest pod has, 9,216"),
  ),
)
def test_sides_are_checked_before_the_compiler_sees_them(monkeypatch, name, reason):
  """A side of 0 would end the process in libtpu, which is not even imported here."""
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(UserError) as caught:
    topology_devices(name)
  right = "write GENERATION:SIDES in chips, such as v5p:2x2x4, v5e:4x4, v6e:4x4, v4:2x2x4"
  assert str(caught.value) == f"--topology={name}: {reason}; {right}"


@pytest.mark.parametrize("name", ("v9:2x2", "v5p:3x3x3"))
def test_a_slice_that_does_not_exist(name):
  pytest.importorskip("libtpu")
  with pytest.raises(UserError, match=f"--topology={name}: libtpu knows no such slice; .*v5e:4x4"):
    topology_devices(name)


def test_gpus_are_planned_where_they_are():
  with pytest.raises(UserError, match="TPU slices only; .*without --topology"):
    topology_devices("h100:8")


def test_without_libtpu(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(UserError, match=r"needs the TPU compiler, libtpu: pip install -e '.\[tpu\]'"):
    topology_devices("v5p:2x2x4")


def test_links_of_a_torus():
  v5p, v5e = CHIPS["TPU v5"], CHIPS["TPU v5 lite"]
  host = [(x, y, 0) for x in (0, 1) for y in (0, 1)]
  assert links(v5p, host, (2, 2, 4)) == (2, 2)
  line = [(0, 0, z) for z in range(4)]
  assert links(v5p, line, (2, 2, 4)) == (1, 3)  # no ring in a slice smaller than a cube
  assert links(v5p, line, (4, 4, 4)) == (2, 2)
  assert links(v5e, [(x, 0) for x in range(16)], (16, 4)) == (2, 8)
  gathered = exchange_seconds(v5p, "all-gather", 2**30, 4, 2, 2)
  assert math.isclose(gathered, 2**30 * 3 / 4 / 180e9)
  assert exchange_seconds(v5p, "all-reduce", 2**30, 4, 2, 2) == 2 * gathered
  assert exchange_seconds(v5p, "all-reduce", 4, 4, 2, 2) == 4e-6  # hops there and back


# --- work ------------------------------------------------------------------------------------


def test_work_of_a_step():
  ids = lambda n: np.zeros(n, np.int32)  # noqa: E731
  pairs = [PairTokens("a", ids(10), ids(5), ids(7)), PairTokens("b", ids(20), ids(3), ids(300))]
  shape = BatchShape(micro=2, rows=1, row_length=512, slots=4, pairs=2)
  work = step_work(pairs, pack(pairs, shape), shape, 256)
  assert (work.micro, work.rows, work.tokens, work.targets) == (1, 1, 345, 315)
  assert work.chunks == 2
  # Every token sees the prompt and its own response up to itself.
  seen = sum(range(1, 18)) + sum(range(11, 16)) + sum(range(1, 321)) + sum(range(21, 24))
  assert work.keys == seen
  model = weights.open_model("embedded").config
  attention = attention_flops(model, work.keys)
  assert attention == 4 * 2 * 4 * 16 * seen
  # Frozen weights have no gradients, keys and queries do.
  spared = model_flops(model, work) - model_flops(model, work, frozen=True)
  assert spared == 2 * (layer_weights(model) * 345 + model.vocab_size * model.hidden_size * 315)
  # Half of the layers see 12 tokens at most.
  ranges = (range(1, 18), range(11, 16), range(1, 321), range(21, 24))
  windowed = sum(min(n, 12) for tokens in ranges for n in tokens)
  work = step_work(pairs, pack(pairs, shape), shape, 256, (12, None))
  assert work.keys == (seen + windowed) / 2


def test_work_of_a_queue():
  c = config(**{"generate.max_slots": 2, "generate.prefill_chunk": 4, "generate.prefill_rows": 2})
  prompts = [
    Prompt(i, "", np.zeros(n, np.int32), {"max_new_tokens": budget})
    for i, (n, budget) in enumerate(((9, 4), (5, 2), (1, 3)))
  ]
  requests = make_requests(prompts, c.generate)
  shape = shape_for(requests, round_robin(requests, 1), c.generate, groups=1)
  work = generation_work(requests, round_robin(requests, shape.groups), shape)
  # 0 and 1 start; 1 ends after 2 steps; 2 starts then, ends after 3 more, 0 in between.
  assert sum(work.steps.values()) == 5 and work.rounds == 3
  assert (work.tokens, work.prompt_tokens) == (9, 8 + 4 + 0)
  assert work.passes == 2  # three chunks of 4 tokens, two a pass
  assert work.context == sum(range(9, 13)) + sum(range(5, 7)) + sum(range(1, 4))
  windowed = generation_work(requests, round_robin(requests, shape.groups), shape, (4,))
  assert (windowed.context, windowed.prompt_keys) == (4 * 4 + 2 * 4 + 6, 26 + 10)


# --- the command -----------------------------------------------------------------------------


def plan(*arguments):
  done = subprocess.run(
    [sys.executable, "-m", "simpo_jax.plan", *arguments],
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    text=True,
    capture_output=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def test_mistakes_are_one_line():
  code, _, error = plan("--config=configs/m11.py", "--topolgy=v5p:2x2x4")
  assert code == 2 and error.splitlines() == [
    "error: --topolgy: there is no such flag; did you mean 'topology'?"
  ]
  code, _, error = plan("--config=configs/m11.py", "--json=nowhere/plan.json")
  assert code == 2 and "there is no folder nowhere" in error and len(error.splitlines()) == 1


def test_help_names_the_flags():
  code, text, _ = plan("--help")
  assert code == 0
  for part in (
    "--topology: ",
    "--prompt_tokens: ",
    "--json: ",
    "v5p:2x2x4",
    "--config.train.steps",
  ):
    assert part in text
