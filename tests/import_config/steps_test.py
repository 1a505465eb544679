"""Steps of an epoch, warmup and intervals, against transformers' own Trainer and accelerate."""

import itertools

import numpy as np
import pytest

from simpo_jax.config_check import validate
from simpo_jax.import_config.parts import RunFacts
from simpo_jax.import_config.translate import make_config, translate
from simpo_jax.train.optimizer import make_schedule

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

TRL = {"model_name_or_path": "org/model", "loss_type": "simpo", "dataset_name": "org/pairs"}


def config_of(fields, facts):
  return validate(make_config(translate({**TRL, **fields}, "trl", facts, "r.yaml").settings))


class Loader:
  """A loader of one device among several, as accelerate divides the batches."""

  def __init__(self, pairs, each, devices, drop_last):
    sampler = torch.utils.data.BatchSampler(range(pairs), each, drop_last)
    data = accelerate.data_loader
    self.batches = sampler if devices == 1 else data.BatchSamplerShard(sampler, devices, 0)
    self.dataset = range(pairs)

  def __len__(self):
    return len(self.batches)


def trainer(tmp_path, **fields):
  """A Trainer of a model that is never run."""
  args = transformers.TrainingArguments(
    str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, **fields
  )
  return transformers.Trainer(torch.nn.Linear(1, 1), args)


def theirs(tmp_path, fields, facts):
  """(steps of an epoch, all steps) of transformers."""
  drop_last = fields.get("dataloader_drop_last", False)
  each = fields["per_device_train_batch_size"]
  loader = Loader(facts.pairs, each, facts.devices, drop_last)
  t = trainer(tmp_path, **fields)
  values = t.set_initial_training_values(t.args, loader)
  return values[1], values[6]


CASES = list(itertools.product((1, 7, 64, 101), (1, 3), (1, 2, 8), (1, 4), (1, 0.3, 2.5)))


@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_are_transformers_own(tmp_path, drop_last):
  for pairs, each, devices, times, epochs in CASES:
    if drop_last and pairs < each * devices:
      continue  # no batch at all
    fields = {
      "per_device_train_batch_size": each,
      "gradient_accumulation_steps": times,
      "num_train_epochs": epochs,
      "dataloader_drop_last": drop_last,
    }
    facts = RunFacts(devices, pairs)
    per_epoch, total = theirs(tmp_path, fields, facts)
    c = config_of({**fields, "save_strategy": "epoch"}, facts)
    assert (c.train.steps, c.checkpoint.every) == (total, per_epoch), (fields, facts)
    assert c.train.batch_size == each * devices * times


def test_max_steps_takes_precedence(tmp_path):
  fields = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 5,
    "max_steps": 4,
  }
  facts = RunFacts(2, 101)
  assert theirs(tmp_path, fields, facts) == (9, 4)
  c = config_of({**fields, "eval_strategy": "epoch"}, facts)
  assert (c.train.steps, c.evaluate.every) == (4, 9)


@pytest.mark.parametrize("warmup", [0, 1, 7, 0.031, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("total", [1, 10, 33, 100])
def test_warmup_is_transformers_own(tmp_path, warmup, total):
  t = trainer(tmp_path, warmup_steps=warmup)
  count = t.args.get_warmup_steps(total)
  if count > total:
    return  # refused
  names = ("warmup_steps", "warmup_ratio") if 0 < warmup < 1 else ("warmup_steps",)
  for name in names:  # both count a share
    fields = {name: warmup, "max_steps": total, "learning_rate": 1, "lr_scheduler_type": "cosine"}
    train = config_of(fields, RunFacts(1)).train
    optimizer = torch.optim.SGD(t.model.parameters(), lr=1.0)
    expected = transformers.get_scheduler("cosine", optimizer, count, total)
    schedule = make_schedule(train)
    for step in range(total):
      np.testing.assert_allclose(schedule(step), expected.get_last_lr()[0], atol=1e-6)
      optimizer.step()
      expected.step()


@pytest.mark.parametrize("eval_steps", [None, 0.1, 0.001, 3])
@pytest.mark.parametrize("logging_steps", [None, 5, 0.25])
def test_intervals_are_transformers_own(tmp_path, eval_steps, logging_steps):
  fields = {"eval_steps": eval_steps, "logging_steps": logging_steps, "save_steps": 0.07}
  fields = {name: value for name, value in fields.items() if value is not None}
  args = transformers.TrainingArguments(
    str(tmp_path),
    eval_strategy="steps",
    report_to=[],
    use_cpu=True,
    **({"logging_steps": 10} | fields),  # TRL's default
  )
  state = transformers.TrainerState()
  state.compute_steps(args, 333)
  c = config_of({**fields, "eval_strategy": "steps", "max_steps": 333}, RunFacts(1))
  assert (c.evaluate.every, c.checkpoint.every) == (state.eval_steps, state.save_steps)
  c = config_of({**fields, "max_steps": 333}, RunFacts(1))
  assert c.evaluate.every == 0 and not c.evaluate.at_end
