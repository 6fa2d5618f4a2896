"""A look into single steps on demand: a trace of torch's profiler and what lies in the memory.

A trace slows the steps that it looks at and changes none of their numbers. It is each rank's own
business: nobody waits for another rank's look, but for how long it takes.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Self

import torch

from retnet.training.metrics import Metrics

log = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR2
MEMORY_EVENTS = 100_000  # allocations and releases that a snapshot tells the history of, at most


@dataclass
class ProfileConfig:
    """Which steps are looked into."""

    at: list[int] = field(default_factory=list)
    """[first, last]: the steps after `first` up to `last` are traced on every rank; []: none.
    At any time: SIGUSR2 to a rank's process (its number is in logs/rank-N.pid), of that rank; but
    for rank 0, the log of the rank alone says that it is written."""
    steps: int = 3
    """Steps that a signal asks for."""
    memory: bool = True
    """Also write what lay where in the memory of a GPU."""

    def __post_init__(self) -> None:
        if self.at and (len(self.at) != 2 or not 0 <= self.at[0] < self.at[1]):
            raise ValueError(
                f"profile.at={self.at}: needed two steps, the second after the first, as "
                "profile.at=[100,105]"
            )
        if self.steps < 1:
            raise ValueError(f"profile.steps={self.steps}: needed at least 1")


class Profiler:
    """Traces the steps that the config names, and the next ones where this process gets SIGUSR2."""

    def __init__(
        self,
        folder: Path,
        config: ProfileConfig,
        device: torch.device,
        rank: int,
        metrics: Metrics,
    ) -> None:
        """`folder`: the run's. From here to `close` the signal asks for a trace; nobody else may
        handle it, and without a handler it would end the process."""
        self._folder = folder
        self._config = config
        self._device = device
        self._rank = rank
        self._metrics = metrics
        self._asked = False
        self._profile: torch.profiler.profile | None = None
        self._first = self._last = 0
        signal.signal(SIGNAL, self._ask)
        self._pid = folder / "logs" / f"rank-{rank}.pid"
        with suppress(OSError):  # a run may begin on a full disk, without being asked
            self._pid.parent.mkdir(parents=True, exist_ok=True)
            self._pid.write_text(f"{os.getpid()}\n")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def look(self, step: int) -> bool:
        """Before the step that follows `step` steps taken: begins a trace that is due, and writes
        one that has its steps. Whether it did either, which takes its time."""
        at = self._config.at
        if self._profile is not None:
            if self._first <= step < self._last:  # below: the run went back to older weights
                return False
            self._write(step)
        elif at and at[0] <= step < at[1]:
            self._begin(step, at[1])
        elif self._asked:
            self._begin(step, step + self._config.steps)
        else:
            return False
        return True

    def close(self, step: int | None = None) -> None:
        """Writes a trace that the run's end, after `step` steps, cut short; the signal asks for
        nothing any more. Harmless twice."""
        signal.signal(SIGNAL, signal.SIG_IGN)
        self._pid.unlink(missing_ok=True)
        if self._profile is not None:
            self._write(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _remembers(self) -> bool:
        return self._config.memory and self._device.type == "cuda"

    def _begin(self, step: int, last: int) -> None:
        self._asked, self._first, self._last = False, step, last
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.synchronize(self._device)  # what was queued before is not these steps'
        profile = torch.profiler.profile(activities=kinds, record_shapes=True)
        try:
            profile.start()
            if self._remembers:
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        except RuntimeError as error:  # as where another tool has the device's counters
            self._tell(f"no trace of step {step + 1}: {error}")
            self._config = replace(self._config, at=[])  # nor one of the next step
            return
        self._profile = profile

    def _write(self, step: int | None) -> None:
        """`step`: the steps taken, None where the run ends here."""
        profile, self._profile = self._profile, None
        name = self._folder / "profile" / f"step-{self._first:08d}-rank-{self._rank}"
        trace, memory = Path(f"{name}.json.gz"), Path(f"{name}.memory.pickle")
        try:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            profile.stop()
            trace.parent.mkdir(exist_ok=True)
            profile.export_chrome_trace(str(trace))
            if self._remembers:
                torch.cuda.memory._dump_snapshot(str(memory))
        except (OSError, RuntimeError) as error:  # a full disk costs the trace, not the run
            with suppress(OSError):
                trace.unlink()  # the half of it
            self._tell(f"no trace of step {self._first + 1}: {error}")
            return
        finally:
            if self._remembers:
                torch.cuda.memory._record_memory_history(enabled=None)
        first = self._first + 1
        steps = f"step {first}" if step == first else f"steps {first} to {step}"
        if step is None or step < first:
            steps = f"step {first} and those after it"
        also = f", memory in {memory.name} (pytorch.org/memory_viz)" if self._remembers else ""
        self._tell(f"traced {steps}: {trace}{also}; ui.perfetto.dev opens it")
        self._metrics.event("profiled", step=self._first, path=str(trace))

    def _tell(self, words: str) -> None:
        log.info(words)  # of other ranks, this is all
        self._metrics.say(words)
