"""TRL's side of bench/train.py, run in a separate process that never imports jax.

  python bench/train_trl.py JOB.json

`work: convert` converts a GGUF file to the Hugging Face folder that TRL needs. `work: train`
runs CPOTrainer as documented (loss_type simpo, cpo_alpha 0) on given token ids in the given
order, so that both sides have the same tokens in the same steps; CPOTrainer's tokenization
would add a newline and a second end token after the template's. Exit code 137: out of memory.
"""

import contextlib
import json
import os
import pathlib
import resource
import sys
import time
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers

OUT_OF_MEMORY = 137  # a shell's exit code for a process killed by SIGKILL


def main(path: str) -> None:
  """Runs the job of a JSON file and writes its result to the job's `out` path."""
  with contextlib.suppress(OSError):  # if memory runs out, the kernel kills this process first
    pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
  job = json.loads(pathlib.Path(path).read_text())
  try:
    result = {"convert": _convert, "train": _train}[job["work"]](job)
  except (MemoryError, RuntimeError) as e:  # torch raises RuntimeError on CPU
    if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(e):
      raise
    print(e, file=sys.stderr)
    sys.exit(OUT_OF_MEMORY)
  pathlib.Path(job["out"]).write_text(json.dumps(result))


def _convert(job: dict[str, Any]) -> dict[str, Any]:
  from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

  path = pathlib.Path(job["model"])
  config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
  net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
  # A model from from_pretrained(gguf_file=...) counts as quantized and cannot be saved.
  stored = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=net)["tensors"]
  net.load_state_dict(stored, strict=False)
  net.save_pretrained(job["folder"])
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  tokenizer.save_pretrained(job["folder"])
  return {"parameters": net.num_parameters()}


def _train(job: dict[str, Any]) -> dict[str, Any]:
  """Trains; returns seconds, loss and gradient norm of each step, and peak memory in bytes."""
  # Installed by the extra `bench`, which the type checker's environment lacks.
  from datasets import Dataset  # pyright: ignore[reportMissingImports]
  from trl.experimental.cpo import CPOConfig, CPOTrainer  # pyright: ignore[reportMissingImports]

  cuda = torch.cuda.is_available()
  torch.set_num_threads(job["threads"])
  if cuda and job["dtype"] == "float32":
    torch.set_float32_matmul_precision("high")  # TF32, JAX's default
  losses, clock = [], _Clock(cuda)

  class Trainer(CPOTrainer):
    """CPOTrainer on pre-tokenized pairs, recording its losses."""

    def tokenize_row(self, feature: dict[str, Any], model: object = None) -> dict[str, Any]:
      return feature

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
      loss = super().compute_loss(*args, **kwargs)
      losses.append(loss.detach())
      return loss

  rows = [_columns(*pair) for pairs in job["steps"] for pair in pairs]
  trainer = Trainer(
    model=transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
    args=CPOConfig(**_settings(job, cuda)),
    train_dataset=Dataset.from_list(rows),
    processing_class=transformers.AutoTokenizer.from_pretrained(job["model"]),
    callbacks=[clock],
  )
  trainer.train()
  by_step = torch.stack(losses).reshape(len(job["steps"]), job["accumulate"]).mean(1).tolist()
  peak = torch.cuda.max_memory_allocated() if cuda else _peak_rss()
  steps = zip(clock.seconds, by_step, clock.grad_norms, strict=True)
  return {
    "steps": [{"seconds": s, "loss": loss, "grad_norm": norm} for s, loss, norm in steps],
    "peak_bytes": peak,
    "device": torch.cuda.get_device_name() if cuda else "cpu",
    "attention": trainer.model.config._attn_implementation,
  }


def _settings(job: dict[str, Any], cuda: bool) -> dict[str, Any]:
  """CPOTrainer's settings, as documented."""
  return dict(
    output_dir=job["folder"],
    loss_type="simpo",
    cpo_alpha=0.0,
    beta=job["beta"],
    simpo_gamma=job["beta"] * job["gamma_beta_ratio"],
    max_length=job["max_length"],
    per_device_train_batch_size=job["micro"],
    gradient_accumulation_steps=job["accumulate"],
    max_steps=len(job["steps"]),
    train_sampling_strategy="sequential",
    learning_rate=job["learning_rate"],
    lr_scheduler_type="constant",
    max_grad_norm=job["max_grad_norm"],
    bf16=job["dtype"] == "bfloat16",  # weights stay float32, as on our side
    gradient_checkpointing=job["checkpointing"],
    use_cpu=not cuda,
    dataloader_pin_memory=cuda,
    logging_steps=1,
    disable_tqdm=True,
    report_to="none",
    save_strategy="no",
  )


def _columns(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict:
  """A row with the columns that CPOTrainer's tokenization would produce."""
  columns = {"prompt": "", "chosen": "", "rejected": "", "prompt_input_ids": prompt}
  columns["prompt_attention_mask"] = [1] * len(prompt)
  for name, response in (("chosen", chosen), ("rejected", rejected)):
    ids = prompt + response
    columns[f"{name}_input_ids"] = ids
    columns[f"{name}_attention_mask"] = [1] * len(ids)
    columns[f"{name}_labels"] = [-100] * len(prompt) + response
  return columns


class _Clock(transformers.TrainerCallback):
  """Records the wall time of each optimizer step, including data loading and logging."""

  def __init__(self, cuda: bool):
    self._cuda = cuda
    self.seconds, self.grad_norms = [], []

  def on_train_begin(self, *_: Any, **__: Any) -> None:
    self._last = time.perf_counter()

  def on_step_end(self, *_: Any, **__: Any) -> None:
    if self._cuda:
      torch.cuda.synchronize()
    now = time.perf_counter()
    self.seconds.append(now - self._last)
    self._last = now

  def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
    if "grad_norm" in logs:
      self.grad_norms.append(float(logs["grad_norm"]))
      print(f"step {len(self.seconds)}: {self.seconds[-1]:.2f} s, {logs}", flush=True)


def _peak_rss() -> int:
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
  main(sys.argv[1])
