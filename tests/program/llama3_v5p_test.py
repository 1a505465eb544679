"""The whole program with layers of Llama-3-8B, compiled for a TPU v5p-32: 4 hosts of 4 chips.

Eight layers for 32, of which each adds the same and takes the compiler as long.
"""

import collections
import json
import re
import runpy

import pytest

from simpo_jax.config_check import validate
from support.folders import ROOT

pytest.importorskip("libtpu")

from simpo_jax.generate import on_mesh
from simpo_jax.models.llama import count_params
from simpo_jax.models.sizes import layer_weights
from simpo_jax.plan import costs
from simpo_jax.program import build, configure, hlo
from simpo_jax.program.hlo import collectives, copies
from simpo_jax.program.ledger import Mode
from simpo_jax.runtime import resolve
from support import absent_tpu as tpu_topology
from support.overlap import crosses_hosts, overlap

pytestmark = [pytest.mark.tpu_compile, pytest.mark.slow]

M11 = runpy.run_path(str(ROOT / "configs" / "m11.py"))["get_config"]
HOSTS, CHIPS = 4, 4
HBM = 95 * 2**30
LAYERS, OF_THE_MODEL = 8, 32
LLAMA3_8B = dict(
  architectures=["LlamaForCausalLM"],
  model_type="llama",
  hidden_size=4096,
  intermediate_size=14336,
  num_hidden_layers=LAYERS,
  num_attention_heads=32,
  num_key_value_heads=8,
  vocab_size=128256,
  rope_theta=500000.0,
  rms_norm_eps=1e-5,
  max_position_embeddings=8192,
  tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """The program's config and executable: real generation sizes, short training rows."""
  folder = tmp_path_factory.mktemp("llama3")
  (folder / "config.json").write_text(json.dumps(LLAMA3_8B))
  config = M11("llama3_8b_v5p32")
  config.model.source = f"random:{folder}"
  config.data.update(
    train=("embedded",), embedded_pairs=256, max_length=512, max_prompt_length=256, row_length=512
  )
  settings = validate(config)
  devices = tpu_topology.devices("v5p:2x2x4")
  cfg = resolve.resolve(settings, configure.mesh_of(settings.mesh, devices, HOSTS)).program
  return cfg, build.compile_program(cfg)


def test_decoding_uses_the_kernel_and_crosses_hosts_for_its_own_check_alone(compiled):
  cfg, executable = compiled
  assert cfg.generate.attention == "tpu"
  text = executable.call.as_text()
  kernels = re.findall(r'custom_call_target="tpu_custom_call".*op_name="([^"]*)"', text)
  for scope in ("decode_32/while/body/attention", "prefill/"):
    calls = [name for name in kernels if scope in name and "paged_attention" in name]
    # The keys and values of the last layer are all that prefill needs of it.
    assert len(calls) == LAYERS - (scope == "prefill/"), scope

  decode = [c for c in collectives(text) if "/decode_32/while/" in c.scope]
  counts = collections.Counter(
    (c.kind, c.shapes, "across hosts" if crosses_hosts(c, CHIPS) else "in host") for c in decode
  )
  print("collectives of the decode loop:")
  for (kind, shapes, where), n in sorted(counts.items()):
    print(f"{n:4} {kind:20} {where:14} {shapes}")
  assert [c[:2] for c in counts if c[2] == "across hosts"] == [("all-reduce", "s32[3]")]
  # Two a layer, after attention and after the MLP, and one for the embedding.
  assert counts["all-reduce", "bf16[32,1,4096]", "in host"] == 2 * LAYERS + 1


def test_it_fits_and_the_pool_is_never_copied(compiled):
  cfg, executable = compiled
  memory, shape = executable.memory, cfg.generate
  page = on_mesh.page_bytes(cfg.step.model, cfg.mesh, cfg.mode, shape.page_size, cfg.step.dtype)
  pool = shape.num_pages * page
  peak = memory.arguments + memory.outputs - memory.aliased + memory.temporaries
  print(
    f"per chip: state and inputs {memory.arguments / 2**30:.2f} GiB, temporaries "
    f"{memory.temporaries / 2**30:.2f} GiB, of which KV pool {pool / 2**30:.2f} GiB and decode "
    f"weights {_decode_weights(cfg) / 2**30:.2f} GiB; peak {peak / 2**30:.2f} of 95 GiB"
  )
  # With all layers it is no more than so many times as much.
  assert peak * OF_THE_MODEL / LAYERS < HBM / 2
  lanes = 2 * 128 * 8 // CHIPS
  array = f"bf16[{LAYERS * shape.num_pages},{shape.page_size},{lanes}]"
  text = executable.call.as_text()
  assert array in text
  assert not copies(text, array)


def test_a_decode_step_reads_the_weights_once_and_little_else(compiled):
  cfg, executable = compiled
  module = hlo.parse(executable.call.as_text())
  generate = costs.region(module, hlo.branches(module, len(Mode))[Mode.GENERATE])
  [decode] = [r for r in costs.walk(generate) if r.scope.endswith("/decode_32/while")]
  model = cfg.step.model
  # Of the input embedding only some rows are read. The KV cache is the kernel's to read.
  weights = (layer_weights(model) + model.vocab_size * model.hidden_size) / CHIPS
  assert 0.99 < decode.flops / (2 * 32 * weights) < 1.01
  assert 1 < decode.bytes / (2 * weights) < 1.1


def test_training_moves_weights_and_gradients_once_in_bfloat16(compiled):
  cfg, executable = compiled
  assert cfg.step.attention == "tpu"
  module = hlo.parse(executable.call.as_text())
  name = hlo.branches(module, len(Mode))[Mode.TRAIN]
  train = costs.region(module, name)
  assert any("splash" in kernel for r in costs.walk(train) for kernel in r.kernels)
  exchanges = costs.total(train, lambda loop: 1).collectives
  large = [c for c, _ in exchanges if c.bytes > 2**21]
  # The compiler sums the output embedding's gradient over hosts once for all micro-batches.
  wide = [(c.kind, c.shapes) for c in large if not c.shapes.startswith("bf16")]
  assert wide in ([], [("reduce-scatter", "f32[128256,256]")])
  # No gradient is summed whole on every device.
  assert {c.kind for c in large if c.bytes > 2**26} <= {"all-gather", "reduce-scatter"}
  # Each matrix of a layer: gathered forward, and again backward, inside the host and across.
  gathered = collections.defaultdict[bool, float](float)
  for c, times in exchanges:
    if c.kind == "all-gather" and "14336" in c.shapes:
      gathered[crosses_hosts(c, CHIPS)] += times
  assert gathered == {True: 2 * 3 * LAYERS, False: 2 * 3 * LAYERS}
  in_loops = {
    inner
    for computation in hlo.reachable(module, name)
    for i in module.computations[computation].values()
    if i.opcode == "while"
    for loop in i.called
    for inner in hlo.reachable(module, loop)
  }
  copied = [
    (computation in in_loops, i.arrays[0].bytes)
    for computation in hlo.reachable(module, name)
    for i in module.computations[computation].values()
    if i.opcode == "copy"  # into nearer memory and back it is a copy-start
    and str(i.arrays[0]).startswith(f"f32[{LAYERS},")
    and i.arrays[0].bytes > 2**22
  ]
  # Weights, gradients and optimizer state. The compiler gives those of q, k and v another layout
  # for the step, once: cheaper than to transpose what goes into attention in every layer.
  assert not [size for inside, size in copied if inside]
  model = cfg.step.model
  of_layers = executable.memory.aliased * layer_weights(model) / count_params(model)
  assert sum(size for _, size in copied) < of_layers / 8


def test_what_training_waits_for(compiled):
  """On a v5p libtpu hides no gather and no scatter of its own accord: docs/plans.md has what may.

  Seven weights a layer, each gathered inside the host and across, forward and backward; the
  output embedding once more.
  """
  cfg, executable = compiled
  assert build.compiler_options(cfg.mesh) == {}
  module = hlo.parse(executable.call.as_text())
  loops = list(_loops(module, hlo.branches(module, len(Mode))[Mode.TRAIN]))
  gathers = [dict(found) for loop in loops if (found := overlap(module, loop, "all-gather"))]
  assert sorted(gathers, key=str) == [{"waited for": n} for n in (14, 14, 2)]
  scatters = [dict(found) for loop in loops if (found := overlap(module, loop, "reduce-scatter"))]
  assert sorted(scatters, key=str) == [{"waited for": n} for n in (2, 8)]


def _loops(module, name):
  """The bodies of all loops that a computation reaches."""
  for computation in hlo.reachable(module, name):
    for i in module.computations[computation].values():
      if i.opcode == "while":
        yield i.attribute("body").lstrip("%")


def _decode_weights(cfg):
  return on_mesh.weight_bytes(cfg.step.model, cfg.mesh, cfg.mode, cfg.step.dtype)
