"""Reads the file that wandb writes of a run: the record log of LevelDB, its header "\\x00:W&B" and
two more bytes and a version, blocks of 32 KiB, protobuf records. wandb brings no reader."""

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK = 7, 32768


def records(file: Path) -> list[Any]:
    """Every record of a closed session: a process of wandb's writes it behind the session's back,
    and is waited for, half a minute at most."""
    deadline = time.monotonic() + 30
    while not any(record.HasField("exit") for record in _read(file)):
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.05)
    return _read(file)


def _read(file: Path) -> list[Any]:
    content = file.read_bytes()
    found, whole, place = [], b"", _HEADER
    while place + 7 <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < 7:  # a block ends in zeros where no head fits
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def history(file: Path) -> list[dict[str, Any]]:
    """What was logged, line by line, without wandb's own keys."""
    lines = []
    for record in records(file):
        if record.HasField("history"):
            items = {(item.key or ".".join(item.nested_key)): item for item in record.history.item}
            values = {key: json.loads(item.value_json) for key, item in items.items()}
            lines.append({key: value for key, value in values.items() if key[0] != "_"})
    return lines
