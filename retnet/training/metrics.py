"""What a run says about itself: numbers (metrics.jsonl), what happened (events.jsonl), and what
the model can do in full (evaluations.jsonl: texts, curves, grids).

The JSON lines are the truth; the console and the sinks (sinks.py) are views of them. Rank 0 alone
speaks, on other ranks every method does nothing. It measures nothing: every value comes from the
caller.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TextIO

from retnet.training.console import Console
from retnet.training.lines import LineFile, read_lines, truncate_after
from retnet.training.sinks import LoggingConfig, Sink, note_sent, open_sinks, sent

log = logging.getLogger(__name__)

Value = int | float | str | None


class Metrics:
    """The run's voice: `log` numbers, `detail` what is no number, `event` what happened, `say` a
    line on the console."""

    def __init__(
        self,
        folder: Path,
        config: LoggingConfig,
        *,
        console: TextIO,
        total_steps: int,
        run_name: str,
        resolved_config: dict[str, Any],
        rank: int,
    ) -> None:
        """Opens the files in `folder`; call `resume_at` before the first `log`. ValueError where
        nothing can be written there."""
        self._speaks = rank == 0
        if not self._speaks:
            return
        self._folder, self._troubled = folder, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._metrics = LineFile(folder / "metrics.jsonl")
            self._events = LineFile(folder / "events.jsonl")
            self._details = LineFile(folder / "evaluations.jsonl")
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written ({error.strerror}): a run keeps its record and its "
                "checkpoints there; make room or rights, or start elsewhere."
            ) from error
        self._console = Console(console, total_steps=total_steps, run_name=run_name)
        self._sinks = open_sinks(folder, config, run_name, resolved_config, self.say)

    def resume_at(self, step: int) -> None:
        """Forgets the lines of later steps, which a killed run wrote and this one writes again."""
        if not self._speaks:
            return
        self._metrics.close()
        self._details.close()
        truncate_after(self._folder / "metrics.jsonl", step)
        truncate_after(self._folder / "evaluations.jsonl", step)
        self._metrics = LineFile(self._folder / "metrics.jsonl")
        self._details = LineFile(self._folder / "evaluations.jsonl")
        if sent(self._folder) > step:
            note_sent(self._folder, step)
        self._show(lambda sink: sink.rewind(step))
        self._console.start(step)

    def log(self, step: int, values: dict[str, Value]) -> None:
        """Writes one line: the steps taken and what was measured. A number that is not finite
        becomes null, because JSON has no other word for it."""
        if not self._speaks:
            return
        self._note(self._metrics.add({"step": step, **values}))
        self._console.show(step, values)
        self._show(lambda sink: sink.log(step, values))

    def detail(self, step: int, kind: str, **fields: Any) -> None:
        """Writes one line of evaluations.jsonl: what was asked of the model at that step (a sample,
        a curve over positions, a grid) in full. Lists and strings stay as they are; a number in
        them that is not finite becomes null."""
        if not self._speaks:
            return
        self._note(self._details.add({"step": step, "kind": kind, **fields}))
        self._show(lambda sink: sink.detail(step, kind, fields))

    def event(self, kind: str, **fields: Any) -> None:
        """Writes what happened, with the time (UTC), and waits until all files are on the disk:
        events are few, and one marks every checkpoint."""
        if not self._speaks:
            return
        self._console.hear(kind, fields)
        failed = self._events.add({"time": _now(), "event": kind, **fields}, sync=True)
        synced = [file.flush(sync=True) for file in (self._metrics, self._details)]
        self._note(next(filter(None, [failed, *synced]), None))

    def has_event(self, kind: str, step: int) -> bool:
        """Whether events.jsonl says that this happened at that step; False on silent ranks."""
        return self._speaks and any(
            entry["event"] == kind and entry.get("step") == step
            for entry in read_lines(self._folder / "events.jsonl")
        )

    def say(self, text: str) -> None:
        """Prints a line above the live display."""
        if self._speaks:
            self._console.say(text)

    def _note(self, error: OSError | None) -> None:
        """Says once that lines wait for a disk that takes none, and once that they are written."""
        if error is not None and not self._troubled:
            self.say(f"{self._folder} takes no lines ({error.strerror}): they wait in memory")
        waiting = sum(file.waiting for file in self._files())
        if error is None and self._troubled and not waiting:
            self.say(f"{self._folder} takes lines again, and has those that waited")
        words = f"{self._folder} takes no lines: {waiting} wait" if waiting else None
        self._console.trouble("files", words)
        self._troubled = error is not None or (self._troubled and waiting > 0)

    def close(self) -> None:
        """Ends the display, the files and the sinks; harmless twice."""
        if not self._speaks:
            return
        self._speaks = False
        self._console.close()
        for file in self._files():
            file.close()
        self._show(lambda sink: sink.close())

    def _show(self, action: Callable[[Sink], None]) -> None:
        """A view that fails, for whatever reason, goes; the run does not."""
        for sink in list(self._sinks):
            try:
                action(sink)
            except Exception as error:
                log.exception("a view of the run failed")
                self._sinks.remove(sink)
                kind = type(sink).__name__.lower()
                self.say(f"{kind} shows no more of this run ({error}); the files have all of it")

    def _files(self) -> list[LineFile]:
        return [self._metrics, self._events, self._details]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
