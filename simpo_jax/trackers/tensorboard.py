"""Writes TensorBoard event files with TensorBoard's record writer, without TensorFlow."""

# Protobuf message classes are created at import, so pyright cannot see their fields.
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
from simpo_jax.trackers.rows import Entry, group, read_rows, tag

_NAME = "events.out.tfevents.{}.{}"  # seconds since 1970, host name
_BINS = 30  # of histograms
_WIDTH = 100  # characters per line of text
_CONFIG = "config"  # tag of the config, which is written once, as are the hyperparameters
_METRICS = ("train/loss", "train/rewards/margins", "train/rewards/accuracies")
_METRICS += tuple(name.replace("train", "eval") for name in _METRICS)


class EventFiles:
  """A `tracker.Writer` for event files in `tensorboard/`; each start of a run adds a file.

  Args:
    workdir: a local folder.
    config: contents of config.json.
    size: of metrics.jsonl in bytes at the start of the run; later rows come through `write`.
  """

  def __init__(self, workdir: pathlib.Path, config: dict[str, Any], size: int):
    self._workdir, self._config, self._size = workdir, config, size
    self._folder = workdir / "tensorboard"
    self._file: RecordWriter  # set by `open`

  def open(self) -> int:
    """Removes events that metrics.jsonl does not have; returns the number of the last row kept."""
    self._folder.mkdir(exist_ok=True)  # not parents=True: a deleted workdir stays deleted
    rows = {
      (group(row), row["step"]): number for number, row in read_rows(self._workdir, self._size)
    }
    last_row, last_step = _truncate_files(self._folder, rows)
    # TensorBoard reads files in name order, so timestamps must increase even if the clock does not.
    earlier = [int(path.name.split(".")[3]) for path in self._folder.glob(_NAME.format("*", "*"))]
    timestamp = max([int(time.time()), *(t + 1 for t in earlier)])
    name = _NAME.format(f"{timestamp:010d}", socket.gethostname())
    self._file = RecordWriter(open(self._folder / name, "xb"))
    self._write(file_version="brain.Event:2")
    if earlier:
      # Makes a running TensorBoard drop the events that were removed.
      self._write(step=last_step + 1, session_log=SessionLog(status=SessionLog.START))
    else:
      self._write(summary=Summary(value=_hyperparameters(self._config)))
      settings = json.dumps(self._config, indent=2, ensure_ascii=False)
      self._write(summary=Summary(value=[_text(_CONFIG, code_block(settings))]))
    return last_row

  def write(self, entry: Entry) -> None:
    """Writes an entry as a single record, so that it is stored completely or not at all."""
    values = [Summary.Value(tag=t, simple_value=v) for t, v in entry.scalars.items()]
    values += [Summary.Value(tag=t, histo=histogram(v)) for t, v in entry.histograms.items()]
    values += [_text(sample_tag(entry.row, s), sample_text(s)) for s in entry.samples]
    self._write(step=entry.row["step"], summary=Summary(value=values))

  def close(self, status: str) -> None:
    """Writes the final status, unless the run was stopped and may be resumed."""
    if status != "stopped":
      code = api_pb2.STATUS_SUCCESS if status == "done" else api_pb2.STATUS_FAILURE
      end = plugin_data_pb2.SessionEndInfo(status=code, end_time_secs=time.time())
      self._write(
        summary=Summary(value=[_hparams(hparams.SESSION_END_INFO_TAG, session_end_info=end)])
      )
    self._file.close()

  def abandon(self) -> None:
    """Does nothing: local file writes need no cancellation."""

  def _write(self, **fields: Any) -> None:
    self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())
    self._file.flush()


def histogram(values: np.ndarray) -> HistogramProto:
  """Returns a histogram with bins of equal width; `values` are finite, float64 [n]."""
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
  """Returns a tag that is the same at every step, so that TensorBoard groups a prompt's answers."""
  number = f"_sample_{sample['sample_index']}" if sample["sample_index"] else ""
  return tag(row, f"prompt_{sample['prompt_index']:04d}{number}")


def sample_text(sample: dict[str, Any]) -> str:
  """Formats a sample as Markdown."""
  return (
    f"**Prompt**\n\n{code_block(sample['prompt'])}\n\n"
    f"**Answer**: {sample['generated_token_count']} tokens, {sample['finish_reason']}, "
    f"log-probability {sample['logprob_sum']:.2f}\n\n{code_block(sample['generated_text'])}"
  )


def code_block(untrusted: str) -> str:
  """Formats text as an indented code block, in which Markdown and HTML have no effect.

  Not a fenced block, since a fence in the text would end it. Long lines are wrapped; control
  characters, two of which the Markdown renderer uses internally, become Unicode control pictures.
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
  """Returns the config and the metrics to compare for TensorBoard's HParams dashboard."""
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


def _truncate_files(folder: pathlib.Path, rows: dict[tuple[str, int], int]) -> tuple[int, int]:
  """Truncates each event file before its final status or its first row not in metrics.jsonl.

  Rows are written in order, so later rows are not in metrics.jsonl either. The config, the
  hyperparameters and events without a summary (such as the file's version) are kept.

  Args:
    folder: the folder of the event files.
    rows: row numbers by (group, step).

  Returns:
    Number and step of the last row kept; 0 and 0 if there is none.
  """
  last = (0, 0)
  for path in sorted(folder.glob(_NAME.format("*", "*"))):
    kept = 0
    for end, event in _events(path):
      name = event.summary.value[0].tag if event.summary.value else _CONFIG
      tag_group = name.partition("/")[0]
      if name == hparams.SESSION_END_INFO_TAG:
        break
      if tag_group not in (_CONFIG, hparams.EXPERIMENT_TAG.partition("/")[0]):
        if (tag_group, event.step) not in rows:
          break
        last = max(last, (rows[tag_group, event.step], event.step))
      kept = end
    if kept < path.stat().st_size:
      os.truncate(path, kept)
    if not kept:
      path.unlink()
  return last


def _events(path: pathlib.Path) -> Iterator[tuple[int, Event]]:
  """Yields (end offset of the record, event) for all complete events of a file."""
  end, size = 0, path.stat().st_size
  with open(path, "rb") as f:
    while len(header := f.read(12)) == 12:
      length, crc = struct.unpack("<QI", header)
      end += 12 + length + 4
      if crc != masked_crc32c(header[:8]) or end > size:
        return
      data = f.read(length + 4)[:-4]
      try:
        yield end, Event.FromString(data)
      except DecodeError:
        return
