"""Names of other trainers' optimizers, with what AdamW does in their place."""

from simpo_jax.config import did_you_mean
from simpo_jax.import_config.parts import Part, Recipe, printable

_SAME = "the same update"
_EIGHT_BIT = "keeps the moments in 8 bits, in blocks with a scale each; here they are float32"
# Implementations of AdamW: how their arithmetic relates to `train.optimizer`, whose moments are
# float32 and whose epsilon is added after the bias correction, as in PyTorch.
ADAMW = {
  "adamw_torch": _SAME,
  "adamw_torch_fused": _SAME,
  "adamw_torch_npu_fused": _SAME,
  "adamw_torch_xla": _SAME,
  "adamw_apex_fused": _SAME,
  "optimi_adamw": _SAME,
  "paged_adamw": f"{_SAME}; paging moves its float32 moments to the host's memory",
  "paged_adamw_32bit": f"{_SAME}; paging moves its float32 moments to the host's memory",
}
# AdamW with other arithmetic.
NEARLY_ADAMW = {
  "adamw_hf": "adds epsilon before the bias correction; here it is added after it",
  "adamw_anyprecision": "may keep the moments in bfloat16; here they are float32",
  "adamw_8bit": _EIGHT_BIT,
  "adamw_bnb_8bit": _EIGHT_BIT,
  "adamw_torch_8bit": _EIGHT_BIT,
  "ao_adamw_8bit": _EIGHT_BIT,
  "paged_adamw_8bit": f"pages, and {_EIGHT_BIT}",
  "adamw_torch_4bit": _EIGHT_BIT.replace("8 bits", "4 bits"),
  "ao_adamw_4bit": _EIGHT_BIT.replace("8 bits", "4 bits"),
  "ao_adamw_fp8": _EIGHT_BIT.replace("8 bits", "8-bit floats"),
}
# Families of optimizers with other updates, by a part of the name.
_OTHERS = {
  "galore": "keeps the moments of a low-rank projection of the gradient",
  "apollo": "scales the gradient by a low-rank estimate of the moments",
  "ademamix": "adds a second, slower moment",
  "adafactor": "factors the second moment into rows and columns, and scales by the weights",
  "lion": "steps by the sign of a moment, whatever the size of the gradient",
  "adalomo": "updates within the backward pass, with a factored second moment",
  "lomo": "updates within the backward pass, without moments",
  "grokadamw": "amplifies slow gradients",
  "schedule_free": "averages the weights in place of a schedule",
  "stable_adamw": "clips the update by its own size",
  "adagrad": "sums squared gradients without decay",
  "rmsprop": "has no first moment",
  "muon": "orthogonalizes the update of matrices",
  "dion": "orthogonalizes the update of matrices",
  "sgd": "has no second moment",
  "adopt": "normalizes the gradient before the first moment",
  "adamc": "scales the weight decay by the learning rate",
  "came": "factors the second moment, and weights it by confidence",
  "sinkgd": "has no moments",
  "polora": "is made for adapters",
  "flash_adam": "keeps weights and moments in fewer bits",
}


def optimizer(r: Recipe) -> Part:
  """Translates the optimizer: any implementation of AdamW."""
  name, settings = r.values["optim"], {"train.optimizer": "adamw"}
  if name in ADAMW:
    return Part(settings, {"optim": f"train.optimizer = adamw: {ADAMW[name]}"})
  if name in NEARLY_ADAMW:
    text = f"train.optimizer = adamw; {name} {NEARLY_ADAMW[name]}"
    return Part(settings, differs={"optim": text})
  supported = [*ADAMW, *NEARLY_ADAMW]
  family = next((text for part, text in _OTHERS.items() if part in name), None)
  reason = f"{printable(name)} {family}" if family else f"unknown{did_you_mean(name, supported)}"
  text = f"{reason}; only AdamW is supported: {', '.join(supported)}"
  return Part(settings, problems={"optim": text})
