"""A run in wandb brought up to its files: `python -m retnet.training.sync runs/NAME`.

metrics.jsonl and evaluations.jsonl have all that a run said, whatever wandb was told while it ran:
it may have been off, offline, unreachable or killed. What the server has is not sent again; what it
has of steps that the run took back stays there, and --fresh makes a copy without them.
"""

import argparse
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml

from retnet.training.sinks import (
    LoggingConfig,
    Wandb,
    WandbMode,
    is_logged_in,
    open_wandb,
    sent,
)


def sync(folder: Path, *, fresh: bool = False, offline: bool = False) -> str:
    """Sends what is missing and returns what it did, in a sentence. `fresh`: all of it, into a new
    run of wandb's; `offline`: all of it, into a file for `wandb sync`.

    Raises:
        ValueError: there is no run in `folder`, it still runs, or wandb has no key here.
        RuntimeError: wandb's server is not reached.
    """
    config = _config_of(folder)
    if not offline and not is_logged_in():
        raise ValueError(
            "wandb has no key on this machine: run `wandb login`, or write a file with --offline."
        )
    if fresh:
        (folder / "wandb_id").write_text(uuid.uuid4().hex[:12])
        (folder / "wandb_sent").unlink(missing_ok=True)
    keys = config.get("logging", {})
    logging = LoggingConfig(
        wandb=WandbMode.offline if offline else WandbMode.online,
        wandb_project=keys.get("wandb_project", "retnet"),
        wandb_entity=keys.get("wandb_entity"),
    )
    run = open_wandb(folder, logging, config.get("name", folder.name), config, patience=0.0)
    assert run is not None, "neither mode is off"
    sink, where = Wandb(run, folder), f"wandb's run {run.id} of {logging.wandb_project}"
    after = 0 if offline else sent(folder)
    lines, last = sink.replay(after)
    sink.close()
    if not lines:
        return f"{where} has all of {folder}, up to step {after}"
    if offline:
        written = Path(run.dir).parent
        return f"wrote {lines} lines, up to step {last}; `wandb sync {written}` alone sends them"
    also = ""
    if any((folder / "wandb").glob("offline-run-*")):
        also = "; the files of its offline sessions need no `wandb sync`"
    return f"sent {lines} lines, steps {after + 1} to {last}, to {where}{also}"


def _config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file() or not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} holds no run: needed its config.yaml and metrics.jsonl.")
    if (pid := _running(folder)) is not None:
        raise ValueError(f"{folder} still runs (process {pid}): it sends its lines by itself.")
    try:
        config = yaml.safe_load(file.read_text())
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no YAML: mend it, or resume the run, which writes it again.")
    return config


def _running(folder: Path) -> int | None:
    """The process that trains in `folder` on this machine, if one does."""
    file = folder / "logs" / "rank-0.pid"
    words = file.read_text().strip() if file.exists() else ""
    if not words.isdecimal():  # empty, of a disk that was full
        return None
    pid = int(words)
    try:
        return pid if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except OSError:  # a killed run left the file
        return None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m retnet.training.sync", description=__doc__)
    parser.add_argument("folder", type=Path, help="the run's, as runs/first-run")
    parser.add_argument("--fresh", action="store_true", help="all of it, under a new id")
    parser.add_argument("--offline", action="store_true", help="into a file for `wandb sync`")
    given = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        sys.stdout.write(sync(given.folder, fresh=given.fresh, offline=given.offline) + "\n")
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
