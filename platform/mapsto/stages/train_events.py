"""A training history as a TensorBoard event file."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from typing import Any


def events(history: Sequence[Mapping[str, float]]) -> bytes:
    """One scalar per figure and epoch, by optimizer step, at the epoch's time of day."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    event: Any = event_pb2
    summary: Any = summary_pb2
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    first = history[0]["time"] if history else time.time()
    writer.write(event.Event(wall_time=first, file_version="brain.Event:2").SerializeToString())
    for record in history:
        scalars = {name: value for name, value in record.items() if name not in ("step", "time")}
        values = [summary.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        written = event.Event(wall_time=record["time"], step=int(record["step"]), summary=summary.Summary(value=values))
        writer.write(written.SerializeToString())
    return buffer.getvalue()
