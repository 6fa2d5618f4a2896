"""Runs the points of a sweep: as many at once as there are places, each to its end.

One loop, no thread. A point that fails ends nothing but itself; a request to stop ends all of them,
saved. How a point is started is the caller's; what became of it, its folder says.
"""

import math
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

from launch.ending import events_written, how_it_ended
from launch.exits import note
from launch.stop import Stopped
from launch.supervise import STOP_SIGNALS
from launch.sweep.config import SweepConfig
from launch.sweep.display import Display
from launch.sweep.points import AGAIN, Point, state_of
from launch.sweep.pruning import history, hopeless
from launch.sweep.record import Record
from launch.sweep.session import LOG

LOOK = 0.2
"Seconds between two looks at the processes."
BETWEEN_LOOKS = 5.0
"Seconds between two looks at everybody's metrics."
BAD = ("failed", "killed", "refused")
"States at whose sight the sweep's own exit code is 1."


class Started(Protocol):
    """A point that was started: a session of this machine, or a job."""

    def poll(self) -> int | None:
        """Its exit code; None while any of it runs."""

    def end(self) -> None:
        """Asks it to save and to end."""

    def leave(self) -> str | None:
        """The same, since the sweep ends; or lets it go on, and says so."""

    def kill(self) -> None:
        """Ends it at once."""


Start = Callable[[Point, list[int]], Started]
"Starts a point on these devices."


class _Running(NamedTuple):
    point: Point
    started: Started
    place: list[int]
    since: int
    "Bytes of events.jsonl before this start."
    began: float
    tries: int


class Points:
    """The points of one call of a sweeper on their way."""

    def __init__(
        self,
        points: list[Point],
        options: SweepConfig,
        states: dict[str, str],
        *,
        start: Start,
        places: list[list[int]],
        record: Record,
        display: Display,
    ) -> None:
        """`states`, by name, are written to; `places` are the devices of each of the points that
        may run at once."""
        self._waiting = list({point.name: point for point in points}.values())
        self._histories: dict[str, dict[int, float]] = {}
        self._states, self._options = states, options
        self._start, self._record = start, record
        self._say, self._show = display.say, display.show
        self._free = list(places)
        self._running: list[_Running] = []
        self._asked: signal.Signals | None = None
        self._told = self._hurry = False
        self._looked = time.monotonic()

    def run(self) -> None:
        """Until all of them are where they can come. Raises Stopped, once everything has ended,
        where a signal asked to stop."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup: SIGHUP stays ignored
                signal.signal(number, self._receive)
        try:
            # what still runs from before comes first: it has devices, nobody knows which
            self._waiting.sort(key=lambda point: self._state(point) != "running")
            while (self._waiting and self._asked is None) or self._running:
                self._look()
                now = [(one.point.name, one.point.folder, one.point.steps) for one in self._running]
                self._show(now, len(self._waiting))
                if self._running or self._waiting:
                    time.sleep(LOOK)
        finally:
            for one in self._running:  # there are some only where this loop itself failed
                one.started.leave()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._asked is not None:
            raise Stopped

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._hurry |= self._asked is not None and number == signal.SIGINT
        self._asked = self._asked or signal.Signals(number)

    def _look(self) -> None:
        """One round."""
        if self._asked is not None and not self._told:
            self._told = True
            self._say(f"asked to stop by {self._asked.name}; a second Ctrl-C kills what runs")
        for one in list(self._running):
            if self._asked is not None and (goes_on := one.started.leave()):
                self._running.remove(one)
                self._say(f"{one.point.name}: {goes_on}")
                continue
            if self._hurry:
                one.started.kill()
            if (code := one.started.poll()) is not None:
                self._running.remove(one)
                self._free.append(one.place)
                self._settle(one, code)
        if self._asked is None:
            self._prune()
            self._fill()

    def _fill(self) -> None:
        """Starts points on free places."""
        for point in list(self._waiting):
            state = self._state(point)
            # from an earlier session of this sweep, or by hand; a job of ours is only watched again
            watched = self._options.cluster and point.name in self._record.jobs
            if state == "running" and not watched:
                if self._states.get(point.name) != state:
                    self._say(f"{point.name}: still runs from before, and is waited for")
                self._states[point.name] = state
                return
            again = state in (*AGAIN, "running")
            if again or (state == "diverged" and self._options.retry_diverged):
                if not self._free:
                    return
                before = "" if state == "new" else f" again: {state} before"
                self._say(f"{point.name}: starts{before}")
                self._begin(point, 0)
            else:
                self._states[point.name] = state
                self._say(f"{point.name}: {state} before{self._value_in_words(point)}")
            self._waiting.remove(point)

    def _begin(self, point: Point, tries: int) -> None:
        since, place = events_written(point.folder), self._free[0]
        try:
            started = self._start(point, place)
        except (OSError, RuntimeError) as error:  # a full disk, a full queue: no reason for others
            self._states[point.name] = "failed"
            self._say(f"{point.name}: failed: {error}")
            return
        self._free.pop(0)
        self._states[point.name] = "running"
        self._running.append(_Running(point, started, place, since, time.monotonic(), tries))

    def _settle(self, one: _Running, code: int) -> None:
        """Notes what became of a point that has ended, and starts it again where that may help."""
        point, state = one.point, self._state(one.point)
        if state == "running" and not self._options.cluster:
            # an earlier session of this sweep had started it, and it was not at its folder yet
            del self._states[point.name]
            self._waiting.append(point)
            return
        if events_written(point.folder) == one.since and state not in ("finished", "pruned"):
            state = "stopped"  # before it could say so
            if self._asked is None:
                state = "refused" if code == 2 else "failed"
                why = last_words(point.folder, code)
                note(point.folder, "failed", code=2 if code == 2 else 1, why=why)  # for the table
        ending = how_it_ended(point.folder, one.since)
        self._states[point.name] = state
        self._histories.pop(point.name, None)  # it is longer now
        if state in (*BAD, "diverged"):
            words = f"{state}: {ending.why if ending else last_words(point.folder, code)}"
        else:
            minutes = (time.monotonic() - one.began) / 60
            words = f"{state}{self._value_in_words(point)}, in {minutes:.1f} minutes"
        self._say(f"{point.name}: {words}")
        if self._asked is None and one.tries < self._options.restarts:
            if state in ("failed", "killed", "stopped"):
                self._say(
                    f"{point.name}: starts again, {one.tries + 1} of {self._options.restarts}"
                )
                self._begin(point, one.tries + 1)

    def _prune(self) -> None:
        after = self._options.prune_after
        if not after or time.monotonic() < self._looked + BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        running = {one.point.name: one for one in self._running}
        # all of the sweep's: an Optuna sweep asks for a few points at a time
        for name in {*self._record.points, *running}:
            if name in running or name not in self._histories:
                folder = self._record.folder / name
                self._histories[name] = history(folder, self._options.objective)
        for name, step in hopeless(self._histories, running, after).items():
            if name not in self._record.pruned and step < running[name].point.steps:
                self._record.add(name, pruned=step, objective=self._histories[name][step])
                self._say(f"{name}: ends at step {step}, where more than half were better")
                running[name].started.end()

    def _state(self, point: Point) -> str:
        return state_of(point.folder, point.steps, pruned=point.name in self._record.pruned)

    def _value_in_words(self, point: Point) -> str:
        metric, state = self._options.objective, self._states[point.name]
        value = point.value(state, metric, self._record.pruned)
        if math.isfinite(value):
            return f", {metric or 'validation loss'} {value:.4f}"
        return f", but its metrics.jsonl has no {metric}" if metric and state == "finished" else ""


def run_points(
    points: list[Point], options: SweepConfig, states: dict[str, str], **how: Any
) -> None:
    """Runs what is not done of them, and writes into `states` what became of each."""
    Points(points, options, states, **how).run()


def last_words(folder: Path, code: int) -> str:
    """What is known of a point that wrote down no ending: the last line that its launcher
    printed."""
    log = folder / LOG
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    # DeepSpeed's begin with the time: that a rank has ended is known
    own = (line.strip() for line in reversed(lines) if not re.match(r"\[\d{4}-", line))
    last = next(filter(None, own), "")
    return f"code {code}, see {log}: {last[:200]}" if last else f"code {code}, and no word"
