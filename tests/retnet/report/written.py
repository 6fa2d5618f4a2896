"""Run folders with everything in them that a run may write, made of formulas: long in seconds."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

LENGTH, ROWS, LAYERS = 512, 8, 4
GROUPS = ["embedding", *(f"layer.{index:02d}" for index in range(LAYERS)), "norm", "head"]


def write_run(
    folder: Path,
    steps: int = 400,
    every: int = 5,
    rate: float = 4e-3,
    shift: float = 0.0,
    upto: int | None = None,
    **config: Any,
) -> Path:
    """A run of `steps`, or half of one, that stands at `upto`; its losses lie `shift` higher."""
    folder.mkdir(parents=True, exist_ok=True)
    upto = steps if upto is None else upto
    whole = {
        "name": folder.name,
        "steps": steps,
        "sequence_length": LENGTH,
        "global_batch_size": ROWS,
        "model": {
            "architecture": "retnet",
            "num_layers": LAYERS,
            "hidden_size": 192,
            "num_heads": 3,
            "use_lm_decay": False,
        },
        "optimizer": {"learning_rate": rate},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole | config, sort_keys=False))
    lines, details = [], []
    events = [_event("started", 0, steps, environment=ENVIRONMENT, parameters=2_964_096)]
    for step in range(every, upto + 1, every):
        lines.append(_line(step, steps, rate, shift))
        if step % (20 * every) == 0:
            lines.append(_held_out(step, steps, shift))
            details += _details(step, steps)
            events.append(_event("saved", step, steps, path=f"checkpoints/step-{step:08d}"))
    if upto > steps // 2:
        events.insert(
            2, _event("skipped", steps // 3, steps, why="the loss is far above", loss=None)
        )
        events.insert(
            3, _event("resumed", steps // 2, steps, environment=ENVIRONMENT | {"ranks": 4})
        )
    if upto == steps:
        details.append(
            {"step": steps, "kind": "yardsticks", "set": "held_out", "unigram": 3.2, "gzip": 1.7}
        )
        events.append(_event("finished", steps, steps))
    for name, entries in (("metrics", lines), ("events", events), ("evaluations", details)):
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


ENVIRONMENT = {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "ranks": 2}


def _event(kind: str, step: int, steps: int, **fields: Any) -> dict[str, Any]:
    minute, second = divmod(step // 2, 60)
    time = f"2026-11-22T08:{minute % 60:02d}:{second:02d}.000+00:00"
    return {"time": time, "event": kind, "step": step, "of": steps} | fields


def _loss(step: float, steps: int, shift: float) -> float:
    return 4.2 + 4.1 * math.exp(-6 * step / steps) + shift


def _line(step: int, steps: int, rate: float, shift: float) -> dict[str, Any]:
    noise = math.sin(step * 1.7) * math.sin(step * 0.37)
    line: dict[str, Any] = {
        "step": step,
        "tokens": step * LENGTH * ROWS,
        "learning_rate": rate * 0.5 * (1 + math.cos(math.pi * step / steps)),
        "loss": _loss(step, steps, shift) + 0.12 * noise,
        "grad_norm": 0.6 + 0.3 * noise**2,
        "tokens_per_second": 9000.0 + 500 * noise,
        "mfu": 0.31 + 0.01 * noise,
        "data_wait": 0.004 + 0.003 * noise**2,
        "peak_memory": 1_400_000_000,
        "step_time/median": 0.21,
        "step_time/slowest": 0.24 + 0.02 * noise,
        "step_time/slowest_rank": 3,
    }
    line |= {f"step_time/rank_{rank:02d}": 0.2 + 0.01 * rank for rank in range(4)}
    for depth, group in enumerate(GROUPS):
        line[f"grad_norm/{group}"] = 0.05 * (depth + 1) * (1.2 + noise)
        line[f"activation_rms/{group}"] = (depth + 1) * (1 + step / steps)
    return line


def _held_out(step: int, steps: int, shift: float) -> dict[str, Any]:
    loss = _loss(step, steps, shift) + 0.25
    found = {"step": step, "val/held_out/loss": loss, "val/held_out/bits_per_byte": 0.39 * loss}
    for times in (1, 2, 4, 8):
        found[f"position/{times}x/loss"] = loss - 0.1 * math.log2(times)
    return found | {"tasks/copying/acc": step / steps}


def _details(step: int, steps: int) -> list[dict[str, Any]]:
    loss, lengths = _loss(step, steps, 0.25), [LENGTH * times for times in (1, 2, 4, 8)]
    depths = [0.0, 0.25, 0.5, 0.75, 1.0]
    skill = step / steps
    curve = [loss + 1.6 * math.exp(-bucket / 3) - 0.02 * bucket**0.5 for bucket in range(64)]
    accuracy = [[round(skill / (1 + column) * (0.2 + 0.8 * depth), 2) for depth in depths]
                for column in range(len(lengths))]  # fmt: skip
    return [
        {"step": step, "kind": "samples", "prompt": "def ",
         "text": 'read(path):\n    """<script>alert(1)</script> & more"""\n    return path'},
        {"step": step, "kind": "samples", "prompt": "", "text": "import os\n\nclass Reader:"},
        {"step": step, "kind": "positions", "length": LENGTH, "bucket": LENGTH // 8,
         "joined": True, "loss": curve, "targets": [512] * 64},
        {"step": step, "kind": "passkey", "length": LENGTH, "lengths": lengths, "depths": depths,
         "accuracy": accuracy, "nats": [[9 * (1 - cell) for cell in row] for row in accuracy],
         "trials": 4},
        {"step": step, "kind": "tasks", "task": "copying", "metrics": {"acc": skill},
         "documents": 40},
    ]  # fmt: skip
