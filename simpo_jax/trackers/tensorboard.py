"""TensorBoard's event files, by its own record writer and messages, without TensorFlow."""

# The messages' classes are made when their modules are imported.
# pyright: reportAttributeAccessIssue=false

import json
import os
import pathlib
import socket
import struct
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.text import metadata as text
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c

from simpo_jax.config import flatten
from simpo_jax.trackers.rows import Entry, group, rows_of, tag

_NAME = "events.out.tfevents.{}.{}"  # seconds since 1970, host
_BINS = 30
_WIDTH = 100  # characters of a line of text
_CONFIG = "config"  # the tag of the config, written once, as are hyperparameters
_METRICS = ("train/loss", "train/rewards/margins", "train/rewards/accuracies")
_METRICS += tuple(name.replace("train", "eval") for name in _METRICS)


class EventFiles:
  """The event files of a run in a folder, one for each time that it was started.

  Args:
    workdir: the folder lies in it.
    config: of the run, as config.json has it.
    size: of metrics.jsonl as this start of the run has found it, in bytes.
  """

  def __init__(self, workdir: pathlib.Path, config: dict[str, Any], size: int):
    self._workdir, self._config, self._size = workdir, config, size
    self._folder = workdir / "tensorboard"
    self._file: RecordWriter  # from `open` on

  def open(self) -> int:
    """Cuts off what metrics.jsonl does not have; returns the number of the last row left."""
    self._folder.mkdir(exist_ok=True)  # not its parents: a workdir that is gone stays so
    rows = {(group(row), row["step"]): number for number, row in rows_of(self._workdir, self._size)}
    last, step = _cut(self._folder, rows)
    # Readers go by the names, whatever the clock of this start says.
    before = [int(path.name.split(".")[3]) for path in self._folder.glob(_NAME.format("*", "*"))]
    moment = max([int(time.time()), *(number + 1 for number in before)])
    name = _NAME.format(f"{moment:010d}", socket.gethostname())
    self._file = RecordWriter(open(self._folder / name, "xb"))
    self._write(file_version="brain.Event:2")
    if before:
      # A TensorBoard that has been watching drops what was cut off.
      self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    else:
      self._write(summary=Summary(value=_hyperparameters(self._config)))
      settings = json.dumps(self._config, indent=2, ensure_ascii=False)
      self._write(summary=Summary(value=[_text(_CONFIG, code_block(settings))]))
    return last

  def write(self, entry: Entry) -> None:
    """Writes a row and its company as one record, so that there is all of it or nothing."""
    values = [Summary.Value(tag=t, simple_value=v) for t, v in entry.scalars.items()]
    values += [Summary.Value(tag=t, histo=histogram(v)) for t, v in entry.histograms.items()]
    values += [_text(sample_tag(entry.row, s), sample_text(s)) for s in entry.samples]
    self._write(step=entry.row["step"], summary=Summary(value=values))

  def close(self, status: str) -> None:
    """Writes how the run has ended, unless it is to go on."""
    if status != "stopped":
      code = api_pb2.STATUS_SUCCESS if status == "done" else api_pb2.STATUS_FAILURE
      end = plugin_data_pb2.SessionEndInfo(status=code, end_time_secs=time.time())
      self._write(
        summary=Summary(value=[_hparams(hparams.SESSION_END_INFO_TAG, session_end_info=end)])
      )
    self._file.close()

  def abandon(self) -> None:
    """Nothing is to be ended by force."""

  def _write(self, **fields: Any) -> None:
    self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())
    self._file.flush()


def histogram(values: np.ndarray) -> HistogramProto:
  """Counts in bins of one width; `values` are finite, float64 `[n]`."""
  counts, edges = np.histogram(values, _BINS)
  return HistogramProto(
    min=values.min(),
    max=values.max(),
    num=values.size,
    sum=values.sum(),
    sum_squares=values.dot(values),
    bucket_limit=edges[1:],
    bucket=counts,
  )


def sample_tag(row: dict[str, Any], sample: dict[str, Any]) -> str:
  """The same at every step, so that TensorBoard shows a prompt's answers one after the other."""
  number = f"_sample_{sample['sample_index']}" if sample["sample_index"] else ""
  return tag(row, f"prompt_{sample['prompt_index']:04d}{number}")


def sample_text(sample: dict[str, Any]) -> str:
  """A sample as Markdown."""
  return (
    f"**Prompt**\n\n{code_block(sample['prompt'])}\n\n"
    f"**Answer**: {sample['generated_token_count']} tokens, {sample['finish_reason']}, "
    f"log-probability {sample['logprob_sum']:.2f}\n\n{code_block(sample['generated_text'])}"
  )


def code_block(untrusted: str) -> str:
  """Text as an indented block of code, in which Markdown and HTML mean nothing.

  Fences would end at a fence in the text. Long lines are broken; control characters, two of
  which are Markdown's own marks, are shown as signs.
  """
  shown = untrusted.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
  shown = "".join(c if c == "\n" or ord(c) >= 32 else chr(0x2400 + ord(c)) for c in shown)
  lines = []
  for line in shown.splitlines():
    lines += textwrap.wrap(line, _WIDTH, drop_whitespace=False, break_on_hyphens=False) or [""]
  return "\n".join("    " + line for line in lines or [""])


def _text(name: str, markdown: str) -> Summary.Value:
  return Summary.Value(
    tag=name,
    metadata=text.create_summary_metadata(name, ""),
    tensor=TensorProto(dtype=DT_STRING, string_val=[markdown.encode(errors="replace")]),
  )


def _hparams(name: str, **data: Any) -> Summary.Value:
  metadata = hparams.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**data))
  return Summary.Value(tag=name, metadata=metadata, tensor=hparams.NULL_TENSOR)


def _hyperparameters(config: dict[str, Any]) -> list[Summary.Value]:
  """The config for TensorBoard's table of runs, and what to compare them by."""
  start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
  infos = []
  for name, value in flatten(config).items():
    info = api_pb2.HParamInfo(name=name)
    if isinstance(value, bool):
      start.hparams[name].bool_value, info.type = value, api_pb2.DATA_TYPE_BOOL
    elif isinstance(value, (int, float)):
      start.hparams[name].number_value, info.type = value, api_pb2.DATA_TYPE_FLOAT64
    else:
      start.hparams[name].string_value, info.type = str(value), api_pb2.DATA_TYPE_STRING
    infos.append(info)
  metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in _METRICS]
  experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
  return [
    _hparams(hparams.EXPERIMENT_TAG, experiment=experiment),
    _hparams(hparams.SESSION_START_INFO_TAG, session_start_info=start),
  ]


def _cut(folder: pathlib.Path, rows: dict[tuple[str, int], int]) -> tuple[int, int]:
  """Ends each file before the first of its events that is no row.

  A run writes its rows in their order, so what follows such an event is none either.

  Args:
    rows: group and step of each row, and its number.

  Returns:
    Number and step of the last row that is left; 0 and 0 if none is.
  """
  last = (0, 0)
  for path in sorted(folder.glob(_NAME.format("*", "*"))):
    kept = 0
    for end, event in _events(path):
      name = event.summary.value[0].tag if event.summary.value else _CONFIG
      first = name.partition("/")[0]
      if name == hparams.SESSION_END_INFO_TAG:
        break
      if first not in (_CONFIG, hparams.EXPERIMENT_TAG.partition("/")[0]):
        if (first, event.step) not in rows:
          break
        last = max(last, (rows[first, event.step], event.step))
      kept = end
    if kept < path.stat().st_size:
      os.truncate(path, kept)
    if not kept:
      path.unlink()
  return last


def _events(path: pathlib.Path) -> Iterator[tuple[int, Event]]:
  """The events that are whole, each with the place where its record ends."""
  end, size = 0, path.stat().st_size
  with open(path, "rb") as f:
    while len(header := f.read(12)) == 12:
      length, check = struct.unpack("<QI", header)
      end += 12 + length + 4
      if check != masked_crc32c(header[:8]) or end > size:
        return
      data = f.read(length + 4)[:-4]
      try:
        yield end, Event.FromString(data)
      except DecodeError:
        return
