"""Reading what W&B keeps offline."""

from __future__ import annotations

import json
import struct
import time

import pytest


def started(records):
    """What W&B knows of the run: id, name, group, job type, config ..."""
    return next(record.run for record in records if record.WhichOneof("record_type") == "run")


def configured(records):
    """Its config."""
    return {item.key: json.loads(item.value_json) for item in started(records).config.update}


def history(records):
    """What was logged, a dict for each step."""
    steps = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{name(item): json.loads(item.value_json) for item in step.item} for step in steps]


def summary(records):
    """What W&B shows of the run beside its config."""
    updates = [record.summary.update for record in records if record.WhichOneof("record_type") == "summary"]
    return {name(item): json.loads(item.value_json) for update in updates for item in update}


def name(item):
    return item.key or "/".join(item.nested_key)


def read_back(folder):
    """Records of the one W&B run below a folder; those of `read` if there is more than one."""
    (path,) = files(folder)
    return read(path)


def files(folder):
    """What W&B keeps offline below a folder, the oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def read(path):
    """Records of one file. W&B writes it from another process, shortly after `finish` returned."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        records = parse(path)
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    pytest.fail(f"{path} was never completed")


def parse(path):
    """A LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0:  # the rest of the block is padding
            position += left
            continue
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records
