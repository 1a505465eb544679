"""Assignment of requests to prompt groups and to positions in their queues."""

from simpo_jax.generate.types import Assignment, Request


def round_robin(requests: list[Request], groups: int, processes: int = 1) -> list[Assignment]:
  """Assigns requests to groups round robin, to balance the load.

  The samples of a prompt stay in one group, to share its KV pages, unless there are fewer
  prompts than groups. In `global_mesh` mode (one group) every process has all answers, and
  each process writes some of them.

  Returns:
    One assignment per request, in the same order.
  """
  prompts = list(dict.fromkeys(r.prompt.index for r in requests))
  ordinal = {index: i for i, index in enumerate(prompts)}
  filled = [0] * groups
  assignments: list[Assignment] = []
  for number, request in enumerate(requests):
    turn = ordinal[request.prompt.index] if len(prompts) >= groups else number
    group = turn % groups
    writer = (group if groups > 1 else number) % processes
    assignments.append(Assignment(group, filled[group], writer))
    filled[group] += 1
  return assignments
