"""The size of the KV pool: all that may be needed, or what fits, or a clear refusal."""

import jax
import pytest

from simpo_jax.errors import UserError
from simpo_jax.generate.kv_pool_size import device_bytes, pool_size


@pytest.mark.parametrize(
  "asked,room,pages,reason",
  (
    (0, None, 100, "every slot at its longest"),
    (0, 10**6, 100, "every slot at its longest"),
    (0, 999, 99, "what memory allows; every slot at its longest would take 100"),
    (0, 70, 7, "what memory allows"),
    (40, None, 40, "as configured, 100 would hold every slot"),
    (400, 1, 400, "as configured"),
  ),
)
def test_the_pool_is_what_was_asked_or_what_fits(asked, room, pages, reason):
  pool = pool_size(asked, worst=100, largest=7, page_bytes=10, room=room)
  assert pool.pages == pages
  assert reason in pool.reason


@pytest.mark.parametrize(
  "asked,room,message",
  (
    (6, None, "takes 7 KV pages, and --config.generate.num_pages=6; set it to at least 7"),
    (0, 69, "takes 7 KV pages, and there is memory for 6; lower --config.generate.max_new_tokens"),
    (0, 5, "there is memory for 0"),
    (0, -5, "train state and the weights for decoding take all memory"),
  ),
)
def test_a_request_that_never_fits_is_refused(asked, room, message):
  with pytest.raises(UserError, match=message):
    pool_size(asked, worst=100, largest=7, page_bytes=10, room=room)


def test_the_memory_of_this_machine_is_known():
  [device] = jax.devices()[:1]
  known = device_bytes(device)
  assert known and 2**28 < known < 2**45
