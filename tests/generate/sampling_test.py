"""Sampling against float64 references, and drawing at every uniform that there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from simpo_jax.generate.sampling.choose import choose, penalize, uniforms
from simpo_jax.generate.sampling.draw import draw, pick, weights
from simpo_jax.generate.sampling.settings import ONE_DEVICE, Across, Switches, launch_of
from simpo_jax.generate.sampling.truncation import cut
from simpo_jax.generate.sampling.vocabulary import tokens_at, view_of
from support.sampling import OFF, logits_of, probabilities, settings_of, switches_of
from support.tiers import sweep

GRID = 2**23  # the values of a uniform, its multiples of 1 / GRID
LLAMA_3 = 128_256


def _choose(logits, settings, u, **options):
  run = functools.partial(choose, switches=options.pop("switches", switches_of(settings)))
  return jax.jit(run)(jnp.asarray(logits), settings, jnp.asarray(u), **options)


def _picks(w, u):
  """The places that `pick` draws from one row of weights at many uniforms."""
  one = jax.vmap(lambda u: pick(jnp.asarray(w)[None], u[None])[0])
  return np.asarray(jax.jit(one)(jnp.asarray(u, jnp.float32)))


def _grid_counts(w):
  """How many of all uniforms draw each place: those below its running sum, of what is left."""
  w = jnp.asarray(w)
  running = np.asarray(jax.jit(lambda w: jnp.cumsum(w, axis=-1))(w))
  counts = np.zeros(w.shape, np.int64)
  uniform = np.arange(GRID, dtype=np.float32) / np.float32(GRID)
  for row, sums in enumerate(running):
    positive = np.flatnonzero(np.asarray(w[row]) > 0)
    targets = uniform * sums[-1]  # monotone
    below = np.searchsorted(targets, sums[positive], side="left")
    below = np.maximum.accumulate(below)
    below[-1:] = GRID
    counts[row, positive] = np.diff(below, prepend=0)
  return counts


HARD: dict[str, list[float]] = {
  "small between zeros": [0, 3e-7, 0, 0, 1, 0, 1e-7, 0, 2, 0, 0, 6e-8, 0],
  "ends in zeros": [0.1] * 9 + [1e-8, 0, 0, 0],
  "thirds": [1 / 3, 0, 1 / 3, 0, 1 / 3, 0, 1e-30],
  "decreasing": list(0.5 ** np.arange(32)),
  "large after small": [1e-35, 0, 1e-20, 0, 1e-7, 0, 1],
}


@sweep("name", HARD)
def test_no_uniform_at_all_draws_a_place_of_weight_0(name):
  w = np.asarray(HARD[name], np.float32)
  observed = np.zeros(len(w), np.int64)
  for chunk in np.split(np.arange(GRID, dtype=np.float32) / np.float32(GRID), 32):
    observed += np.bincount(_picks(w, chunk), minlength=len(w))
  assert not observed[w == 0].any()
  np.testing.assert_array_equal(observed, _grid_counts(w[None])[0])
  exact = w.astype(np.float64) / w.sum(dtype=np.float64)
  assert abs(observed / GRID - exact).sum() / 2 < 1e-7 * len(w)


@pytest.mark.parametrize("device", ("cpu", "others"))
def test_next_to_every_border_of_many_random_weights(device, monkeypatch):
  """Where rounding decides, among zeros; other devices' running sums are not monotone."""
  rng = np.random.default_rng(0)
  if device == "others":
    monkeypatch.setattr(jnp, "cumsum", functools.partial(jax.lax.associative_scan, jnp.add))
  for places in (32, 128, 167):
    w = np.exp(2 * rng.normal(size=(100, places))) * (rng.random((100, places)) < 0.3)
    w[:, rng.integers(places)] += 1e-3
    w = w.astype(np.float32)
    share = np.cumsum(w.astype(np.float64), axis=1) / w.sum(axis=1, dtype=np.float64)[:, None]
    near = np.rint(share * GRID)[:, :, None] + np.arange(-4, 5)
    u = (np.clip(near, 0, GRID - 1) / GRID).astype(np.float32).reshape(100, -1)
    drawn = np.asarray(jax.jit(jax.vmap(pick, in_axes=(None, 1), out_axes=1))(w, u))
    assert (np.take_along_axis(w, drawn, axis=1) > 0).all()


def _distribution(logits, settings):
  """The probability of every token of one row, of all 2**69 triples of uniforms: [V]."""
  switches = switches_of(settings)
  view = view_of(jnp.asarray(logits)[None])
  peak = jnp.max(view, axis=(1, 2, 3))
  threshold = peak + settings.temperature * np.log(1e-35)
  if switches.top_k or switches.top_p:
    threshold = jnp.maximum(threshold, cut(view, peak, settings, switches, ONE_DEVICE))
  w = np.asarray(weights(view, peak, settings.temperature, threshold))[0]
  blocks = np.asarray(jnp.sum(jnp.asarray(w), axis=-1))
  parts = np.asarray(jnp.sum(jnp.asarray(blocks), axis=-1))
  some = w.reshape(-1, w.shape[-1])
  # A border is off by rounding alone; places of one value would all be off alike.
  of_part = _grid_counts(parts[None])[0] / GRID
  of_block = _grid_counts(blocks) / GRID
  entries = np.zeros(some.shape)
  order = np.argsort(-blocks.ravel())[:200]  # the rest as they should be
  entries[:] = some / np.maximum(some.sum(axis=1, dtype=np.float64), 1e-300)[:, None]
  entries[order] = _grid_counts(some[order]) / GRID
  out = of_part[:, None, None] * of_block[:, :, None] * entries.reshape(w.shape)
  return out.reshape(w.shape[0], -1)[:, : len(logits) // w.shape[0]].ravel()


@sweep("spread", (1.0, 0.0, 3.0))
def test_the_distribution_over_a_large_vocabulary(spread):
  """One uniform of 23 bits cannot reach most of these tokens; its total variation is 1e-3."""
  logits = logits_of(1, LLAMA_3, spread=spread)[0]
  drawn = _distribution(logits, settings_of(1, temperature=0.8))
  exact = probabilities(logits, **OFF | dict(temperature=0.8))
  assert drawn.sum() == pytest.approx(1, abs=1e-12)
  assert abs(drawn - exact).sum() / 2 < 2.5e-5


def test_top_k_of_a_large_vocabulary_draws_what_it_keeps_alone():
  for seed in range(3):
    logits = logits_of(1, LLAMA_3, seed)[0]
    drawn = _distribution(logits, settings_of(1, top_k=50))
    exact = probabilities(logits, **OFF | dict(top_k=50))
    np.testing.assert_array_equal(drawn > 0, exact > 0)
    assert abs(drawn - exact).sum() / 2 < 1e-5
    edge = np.asarray([0, 1 / GRID, 0.5, 1 - 1 / GRID], np.float32)
    u = np.stack(np.meshgrid(edge, edge, edge), axis=-1).reshape(-1, 3)
    n = len(u)
    tokens, _ = _choose(np.broadcast_to(logits, (n, LLAMA_3)), settings_of(n, top_k=50), u)
    assert (exact[np.asarray(tokens)] > 0).all()


@sweep("vocab", (97, 4100, 5, 128, 1000, 4096), default=2)
def test_places_are_tokens(vocab):
  """With one weight, its token; of two, one or the other as the uniforms say."""
  token = np.random.default_rng(0).integers(vocab, size=64)
  scores = np.full((64, vocab), -50.0, np.float32)
  scores[np.arange(64), token] = 3.0
  view, peak = view_of(jnp.asarray(scores)), jnp.full(64, 3.0)
  u = jnp.asarray(np.random.default_rng(1).random((64, 3)), jnp.float32)
  place = draw(view, peak, jnp.ones(64), jnp.full(64, 0.0), u, ONE_DEVICE)
  np.testing.assert_array_equal(tokens_at(place, view, vocab), token)


def _chi_square(observed, expected):
  """Asserts that counts are those of a multinomial; rare ones count together."""
  rare = expected < 5
  observed = np.append(observed[~rare], observed[rare].sum())
  expected = np.append(expected[~rare], expected[rare].sum())
  assert observed[expected == 0].sum() == 0
  observed, expected = observed[expected > 0], expected[expected > 0]
  freedom = max(1, len(expected) - 1)
  chi = ((observed - expected) ** 2 / expected).sum()
  assert chi < freedom + 4 * np.sqrt(2 * freedom) + 4, (chi, freedom)


CASES = (
  dict(temperature=0.5),
  dict(temperature=2.0),
  dict(top_k=7),
  dict(top_p=0.8),
  dict(min_p=0.05),
  dict(repetition_penalty=1.8),
  dict(temperature=0.7, top_k=100, top_p=0.9, min_p=0.01, repetition_penalty=1.3),
  dict(temperature=5.0, top_p=0.95),  # more tokens than candidates
)


def test_frequencies_of_all_settings_in_one_batch():
  """Rows of all settings mix, greedy ones too, at consecutive positions of several prompts."""
  cases = [OFF | case for case in (*CASES, dict(temperature=0.0))]
  n, vocab = 4000, 300
  logits = logits_of(1, vocab, spread=2.0)
  seen = np.random.default_rng(1).random(vocab) < 0.3
  each = {name: [case[name] for case in cases] for name in OFF}
  settings = settings_of(len(cases), **each)
  switches, key = switches_of(settings), jax.random.key(3)

  def draw_all(position):
    rows = jnp.arange(len(cases), dtype=jnp.int32)
    u = uniforms(key, rows, rows % 2, jnp.full(len(cases), position))
    both = (
      jnp.broadcast_to(logits, (len(cases), vocab)),
      jnp.broadcast_to(seen, (len(cases), vocab)),
    )
    return choose(both[0], settings, u, switches, both[1])

  tokens, logprobs = map(np.asarray, jax.jit(lambda p: jax.lax.map(draw_all, p))(jnp.arange(n)))
  model = np.asarray(jax.nn.log_softmax(logits[0]))
  np.testing.assert_allclose(logprobs, model[tokens], atol=1e-5)
  for row, case in enumerate(cases):
    expected = probabilities(logits[0], **case, seen=seen) * n
    observed = np.bincount(tokens[:, row], minlength=vocab)
    assert not observed[expected == 0].any(), case
    _chi_square(observed, expected)


def test_neighbors_are_independent():
  """Positions, samples, prompts, and the three uniforms of a draw: pairs fill a table evenly."""
  n, key = 20_000, jax.random.key(1)
  index = jnp.arange(n, dtype=jnp.int32)
  zeros = jnp.zeros(n, jnp.int32)
  draws = jax.jit(uniforms)
  at = [np.asarray(draws(key, *place)) for place in
        ((zeros, zeros, index), (zeros, zeros + 1, index), (zeros + 1, zeros, index),
         (index, zeros, zeros), (zeros, index, zeros))]  # fmt: skip
  pairs = [(at[0][1:, i], at[0][:-1, j]) for i in range(3) for j in range(3)]
  pairs += [(at[0][:, i], at[0][:, j]) for i in range(3) for j in range(i)]
  pairs += [(at[0][:, i], at[k][:, i]) for k in (1, 2) for i in range(3)]
  pairs += [(at[k][1:, i], at[k][:-1, i]) for k in (3, 4) for i in range(3)]
  for x, y in pairs:
    table = np.bincount((x * 8).astype(int) * 8 + (y * 8).astype(int), minlength=64)
    _chi_square(table, np.full(64, len(x) / 64))


def test_a_draw_depends_on_its_own_indices_alone():
  key = jax.random.key(0)
  draw_at = lambda *a: np.asarray(uniforms(key, *map(jnp.asarray, a)))  # noqa: E731
  base = draw_at([4, 7], [0, 1], [10, 12])
  np.testing.assert_array_equal(draw_at([7, 4], [1, 0], [12, 10]), base[::-1])
  others = [draw_at([5], [0], [10]), draw_at([4], [1], [10]), draw_at([4], [0], [11])]
  assert len({*np.concatenate(others).ravel(), *base[0]}) == 12


def test_greedy_rows_are_those_of_a_greedy_program():
  """The first token of the highest score, of many that tie."""
  logits = np.round(logits_of(64, 4096, spread=0.5))
  u = np.random.default_rng(0).random((64, 3)).astype(np.float32)
  temperature = np.arange(64) % 2
  mixed = settings_of(64, temperature=temperature, top_k=3, top_p=0.9, min_p=0.1)
  tokens, logprobs = _choose(logits, mixed, u)
  best, greedy = _choose(logits, settings_of(64, temperature=0.0), u)
  np.testing.assert_array_equal(best, logits.argmax(axis=1))
  np.testing.assert_array_equal(tokens[::2], best[::2])
  np.testing.assert_array_equal(logprobs[::2], greedy[::2])
  assert (np.asarray(tokens)[1::2] != np.asarray(best)[1::2]).any()


def test_logits_that_are_not_finite_stay_in_their_row():
  logits = logits_of(6, 1000)
  logits[1, 7], logits[2], logits[3, 999] = np.nan, np.nan, np.inf
  u = np.random.default_rng(0).random((6, 3)).astype(np.float32)
  whole = [0, 4, 5]
  for changes in (dict(), dict(top_k=5), dict(top_p=0.9), dict(temperature=0.0), dict(min_p=0.1)):
    tokens, logprobs = map(np.asarray, _choose(logits, settings_of(6, **changes), u))
    assert ((tokens >= 0) & (tokens < 1000)).all()
    assert not np.isfinite(logprobs[[1, 2, 3]]).any() and np.isnan(logprobs[[1, 2]]).all()
    alone = _choose(logits[whole], settings_of(3, **changes), u[whole])
    np.testing.assert_array_equal(tokens[whole], alone[0])


@sweep("temperature", (1e-30, 1e30, 1e-3, 1e3), default=2)
def test_any_temperature(temperature):
  logits = logits_of(8, 1000)
  u = np.random.default_rng(0).random((8, 3)).astype(np.float32)
  tokens, _ = _choose(logits, settings_of(8, temperature=temperature, top_p=0.9), u)
  if temperature < 1e-2:
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
  assert len(set(np.asarray(tokens).tolist())) > 4


def test_what_is_off_is_not_in_the_program_or_not_executed():
  logits, u = jnp.asarray(logits_of(4, 4096)), jnp.full((4, 3), 0.7)
  text = {
    switches: str(jax.make_jaxpr(functools.partial(choose, switches=switches))(
      logits, settings_of(4), u))
    for switches in (Switches(False, 0, False), Switches(True, 0, False), Switches(True, 9, True))
  }  # fmt: skip
  words = ("cumsum", "top_k", "while", "argmax")
  used = [[word for word in words if word in t] for t in text.values()]
  assert used == [[], ["cumsum"], ["cumsum", "top_k", "while"]]

  def launched(settings):
    switches, launch = Switches(True, 9, True), launch_of(settings, Across())
    return jax.jit(choose, static_argnums=3)(logits, settings, u, switches, launch=launch)

  for changes in (dict(temperature=0.0, top_k=9), dict(), dict(top_k=9), dict(top_p=0.5)):
    settings = settings_of(4, **changes)
    np.testing.assert_array_equal(launched(settings), _choose(logits, settings, u))


def test_the_repetition_penalty_equals_transformers_and_leaves_the_log_probability():
  torch = pytest.importorskip("torch")
  logits = logits_of(5, 60)
  ids = np.random.default_rng(1).integers(0, 60, (5, 20))
  penalties = [1.0, 1.3, 2.0, 0.5, 5.0]
  seen = np.zeros(logits.shape, bool)
  np.put_along_axis(seen, ids, True, axis=1)
  settings = settings_of(5, temperature=0.0, repetition_penalty=penalties)
  tokens, logprob = _choose(logits, settings, jnp.zeros((5, 3)), seen=jnp.asarray(seen))
  for row, penalty in enumerate(penalties):
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.tensor(ids[row][None]), torch.tensor(logits[row][None])).numpy()[0]
    mine = penalize(*(jnp.asarray(x)[None] for x in (logits[row], seen[row], penalty)))[0]
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert tokens[row] == theirs.argmax()
  model = np.asarray(jax.nn.log_softmax(logits))[np.arange(5), tokens]
  np.testing.assert_allclose(logprob, model, atol=1e-5)
  assert (tokens != logits.argmax(axis=1)).sum() >= 2
