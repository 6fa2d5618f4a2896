"""The command that prepares shards.

    python -m data.prepare data=... out=FOLDER [workers=N] [shard_bytes=N]

Every other key is a run's own. After a kill, the same command goes on where that one stopped.
"""

import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from configs.explain import check_overrides
from data.opening import open_text
from data.prepare import SHARD_BYTES, Summary, prepare_shards

USER_ERROR, MACHINE_FAULT = 2, 1
OWN_KEYS = ("out", "workers", "shard_bytes")
SECONDS_BETWEEN_LINES = 30.0
log = logging.getLogger("data.prepare")


def main(arguments: list[str]) -> None:
    """Prepare; ValueError for what is wrong with the command or the text."""
    own, overrides = take_own(arguments)
    workers = number(own, "workers", os.cpu_count() or 1)
    shard_bytes = number(own, "shard_bytes", SHARD_BYTES)
    config = check_overrides(overrides)
    if config is None or not own.get("out"):
        raise ValueError("say where the shards are to be written, as out=shards/my-text")
    out = Path(own["out"]).expanduser()
    source, tokenizer = open_text(config.data, config.tokenizer)
    with Bar(source.documents_if_known()) as bar:
        summary = prepare_shards(
            source,
            tokenizer,
            out,
            workers=workers,
            longest=config.data.longest_document,
            shard_bytes=shard_bytes,
            report=bar.report,
        )
    if summary.taken_over:
        sys.stdout.write(f"{summary.taken_over:,} documents were there already\n")
    sys.stdout.write(f"{summary}\ntrain on them with data=prepared data.path={out}\n")


class Bar:
    """How far it is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int | None) -> None:
        """`total` documents; without it the bar only shows that something happens."""
        console = Console(stderr=True)
        columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("reading", total=total)
        self._said = 0.0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, summary: Summary) -> None:
        """Show where it stands."""
        words = f"{summary.documents:,} documents, {summary.shards} shards, {summary.speed()}"
        if not self._progress.disable:
            self._progress.start()  # only now: its thread must not be there when processes fork
            self._progress.update(self._task, completed=summary.documents, description=words)
        elif summary.seconds - self._said > SECONDS_BETWEEN_LINES:
            self._said = summary.seconds
            log.info("%s", words)


def take_own(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """(this command's keys, the overrides that are a run's)."""
    own: dict[str, str] = {}
    overrides = []
    for word in arguments:
        key, _, value = word.partition("=")
        if key in OWN_KEYS:
            own[key] = value
        else:
            overrides.append(word)
    return own, overrides


def number(own: dict[str, str], key: str, default: int) -> int:
    """A key's whole number; ValueError where it is none."""
    try:
        return int(own.get(key, default))
    except ValueError:
        raise ValueError(f"{key}={own[key]} must be a whole number") from None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(USER_ERROR if isinstance(error, ValueError) else MACHINE_FAULT)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on with what is missing\n")
        sys.exit(MACHINE_FAULT)
