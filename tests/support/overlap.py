"""Which exchanges of a compiled program cross hosts, and which go on behind matrix products."""

from collections import Counter

from simpo_jax.program import hlo

LARGE = 2**20  # bytes of a result: smaller ones are not worth hiding


def overlap(module: hlo.Module, name: str, kind: str) -> Counter:
  """The large exchanges of a kind in a computation, counted as "hidden", "bare" or "waited for".

  Hidden: between its start and its end there is a matrix product, or a kernel. Bare: it has a
  start and an end, and nothing of that between them. Waited for: it has none.
  """
  order = list(module.computations[name].values())
  found = Counter()
  for at, i in enumerate(order):
    if not _holds(module, i, kind) or i.opcode.endswith(("-update", "-done")):
      continue
    if i.opcode.endswith("-start"):
      begin, end = _span(order, at)
      between = order[begin + 1 : end]
      found["hidden" if any(_computes(module, x) for x in between) else "bare"] += 1
    elif i.opcode == "fusion":
      # A chain of fusions, of which the one in the middle has the product.
      found["hidden"] += _has(module, i, "AsyncCollectiveStart")
    elif max(a.bytes for a in i.arrays) >= LARGE:
      found["waited for"] += 1
  return found


def _holds(module, i, kind) -> bool:
  if i.opcode.removesuffix("-start") == kind:
    return True
  # Handed to a SparseCore, or fused.
  return i.opcode in ("call-start", "async-start", "fusion") and any(
    x.opcode == kind for x in _inside(module, i)
  )


def _span(order, at) -> tuple[int, int]:
  """Where an exchange has all its operands, and where its end is waited for."""
  name, begin = order[at].name, at
  for n, i in enumerate(order[at + 1 :], at + 1):
    if i.operands[:1] == (name,):
      if i.opcode.endswith("-done"):
        return begin, n
      if i.opcode.endswith("-update"):
        name, begin = i.name, n
  raise ValueError(f"{order[at].name} has no end")


def _computes(module, i) -> bool:
  found = (i, *_inside(module, i)) if i.opcode == "fusion" else (i,)
  return any(
    x.opcode in ("convolution", "dot")
    or (x.opcode == "custom-call" and "tpu_custom_call" in x.rest)
    for x in found
  )


def _has(module, i, target) -> bool:
  return any(target in (x.attribute("custom_call_target") or "") for x in _inside(module, i))


def _inside(module, i):
  for called in i.called:
    for name in hlo.reachable(module, called):
      yield from module.computations[name].values()


def crosses_hosts(collective: hlo.Collective, devices: int) -> bool:
  """Whether devices of different hosts exchange, `devices` to a host, in order."""
  return any(len({d // devices for d in group}) > 1 for group in collective.groups())
