"""Assignment of requests to hosts and to positions in their queues."""

from simpo_jax.generate.types import Assignment, Request


def round_robin(requests: list[Request], groups: int, processes: int = 1) -> list[Assignment]:
  """Assigns the requests to groups in turn, so that the groups' loads match.

  The samples of a prompt stay together, to share its pages, unless there are fewer
  prompts than groups. In the global mesh (one group) every process has every answer
  and each writes its part.

  Returns:
    An assignment for each request, in their order.
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
