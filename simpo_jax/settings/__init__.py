"""All settings; each field is declared once, with its type, default, meaning and limits.

`default_config()`, the config checks, `--help`, docs/configuration.md and the flags of `chat` and
`sample` derive from these dataclasses. The code of a run receives a `Settings` or one of its
groups.
"""

import dataclasses

from simpo_jax.settings.field import Field, declared, group, integer, text
from simpo_jax.settings.generate import EvaluateSettings, GenerateSettings
from simpo_jax.settings.model_and_data import DataSettings, ModelSettings
from simpo_jax.settings.operation import (
  CheckpointSettings,
  ExportSettings,
  LogSettings,
  MeshSettings,
  ProfileSettings,
  ReportSettings,
  TrackingSettings,
  WatchdogSettings,
)
from simpo_jax.settings.train import SimPOSettings, TrainSettings


@dataclasses.dataclass(frozen=True)
class Settings:
  """A validated, typed config."""

  name: str = text("default", "Run name, used in the workdir name, the banner and config.json.")
  seed: int = integer(
    0, "Seed for the order and split of pairs and for random weights.", 0, 2**32 - 1
  )
  model: ModelSettings = group(ModelSettings)
  data: DataSettings = group(DataSettings)
  train: TrainSettings = group(TrainSettings)
  simpo: SimPOSettings = group(SimPOSettings)
  generate: GenerateSettings = group(GenerateSettings)
  evaluate: EvaluateSettings = group(EvaluateSettings)
  checkpoint: CheckpointSettings = group(CheckpointSettings, resumable=True)
  export: ExportSettings = group(ExportSettings, resumable=True)
  mesh: MeshSettings = group(MeshSettings, resumable=True)
  watchdog: WatchdogSettings = group(WatchdogSettings, resumable=True)
  profile: ProfileSettings = group(ProfileSettings, resumable=True)
  log: LogSettings = group(LogSettings, resumable=True)
  tracking: TrackingSettings = group(TrackingSettings, resumable=True)
  report: ReportSettings = group(ReportSettings, resumable=True)


FIELDS: dict[str, Field] = declared(Settings)
