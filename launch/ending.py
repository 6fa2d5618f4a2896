"""How a run ended, as the run itself wrote it down: exit codes get lost on the way from other
machines, the last line of `events.jsonl` does not.

    python -m launch.ending runs/NAME       says it, and exits with what a scheduler should do

exits with 0 where the run is finished or was stopped by somebody, with 2 or 3 where starting it
again would end alike, and with 75 (BSD's "try again") where the same command would go on.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

AGAIN = 75
"Exit code, here only: start the same command again."
FINAL = (0, 2, 3)
"Exit codes of a run after which another start helps nobody: done, a mistake, diverged."
# A scheduler's time was up: nobody wants the run to end there.
OUT_OF_TIME = ("SIGUSR1", "wall clock")
# The machine shut down, the connection or the launcher was lost (launch/stop.py's word for it): all
# of them faults, for a run that is looked after. Who wants it to end asks who looks after it.
UNWANTED = ("SIGTERM", "SIGHUP", "the deepspeed command ended")


class Ending(NamedTuple):
    """How a run ended."""

    code: int
    "As its rank 0 would exit: 0 finished or saved, 1 machine, 2 mistake, 3 diverged, 4 hung."
    why: str
    "In words."
    out_of_time: bool = False
    "Whether it was stopped, saved, because its time was up."
    unwanted: bool = False
    "Whether it was stopped, saved, by what is a fault where nobody has asked for it."


def events_written(folder: Path) -> int:
    """The size of a run's events.jsonl in bytes; 0 where there is none."""
    try:
        return (folder / "events.jsonl").stat().st_size
    except OSError:
        return 0


def how_it_ended(folder: Path, since: int = 0) -> Ending | None:
    """The ending that a run wrote as its last event, among those after byte `since` of its
    events.jsonl. None where it wrote none: it still runs, or was killed."""
    try:
        written = (folder / "events.jsonl").read_bytes()
    except OSError:
        return None
    last = next(_events_backwards(written[since:]), {})
    if last.get("event") == "resumed":
        # A finished run that is started again says only that; a run that was killed between its
        # last save and its end says the same, and is not finished.
        over = {"event": "finished", "step": last.get("step")}
        told = any(over.items() <= event.items() for event in _events_backwards(written))
        done = told and last["step"] >= last.get("of", float("inf"))
        return Ending(0, "it is finished") if done else None
    return _ending(last)


def _events_backwards(written: bytes) -> Iterator[dict]:
    for line in reversed(written.splitlines()):
        try:
            yield json.loads(line)
        except ValueError:  # a kill may cut the last line
            continue


def _ending(event: dict) -> Ending | None:
    kind, why = event.get("event"), str(event.get("why") or "")
    if kind == "finished":
        return Ending(0, "it is finished")
    if kind == "stopped":
        where = "before its first step" if event.get("step") is None else "and is saved"
        return Ending(0, f"it was stopped ({why}) {where}", why in OUT_OF_TIME, why in UNWANTED)
    if kind == "diverged":
        return Ending(3, why)
    if kind == "hung":
        return Ending(4, why or "it hung")
    if kind == "failed":
        return Ending(int(event.get("code", 1)), why)
    return None


def main(arguments: list[str]) -> int:
    """Says how the run of the folder given ended; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m launch.ending runs/NAME\n")
        return 2
    ending = how_it_ended(Path(arguments[0]))
    if ending is None:
        sys.stdout.write(f"{arguments[0]}: it was killed without a word\n")
        return AGAIN
    sys.stdout.write(f"{arguments[0]}: code {ending.code}, {ending.why}\n")
    return ending.code if ending.code in FINAL and not ending.out_of_time else AGAIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
