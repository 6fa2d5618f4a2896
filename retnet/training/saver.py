"""Writes checkpoints beside the training: the loop stops to copy, threads write what was copied.

`Saver.save` copies the numbers that this rank owns into host memory and leaves the rest to its
thread, which is in writing.py; what a rank owns is pieces.py's to say. Nothing is read here: a run
goes on by checkpoint.py.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.copies import Copies
from retnet.training.housekeeping import name_of, remove_leftovers, step_of
from retnet.training.pieces import buffers, counter, pieces, scaler, shapes
from retnet.training.restore import BUFFER
from retnet.training.state import TrainState
from retnet.training.writing import Writing, cause

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# Seconds that a run which ends badly gives to what is under way; launchers kill after 30.
_CLOSING = 10.0


class SaveError(RuntimeError):
    """A checkpoint that the run cannot end without could not be saved; the sentence says all."""


class OnFailure(Enum):
    """What a run does when a checkpoint cannot be written."""

    go_on = "go_on"
    stop = "stop"


@dataclass
class CheckpointConfig:
    """How checkpoints are written and which stay; when is save_every's to say."""

    keep_last: int = 2
    """Newest checkpoints to keep; 0 keeps all. One goes only after a newer was read back."""
    keep_every: int = 0
    """Steps; checkpoints of their multiples are kept for ever. 0: none is."""
    asynchronous: bool = True
    """Write while the training goes on: the run stands still for a copy into host memory alone,
    which takes 12 bytes there for each parameter, shared by the ranks."""
    on_failure: OnFailure = OnFailure.go_on
    """Where a checkpoint cannot be written, as on a full disk: go_on trains and tries again at the
    next; stop ends the run. The older ones stay as they are."""
    copy_to: str = ""
    """A second place, s3://bucket/folder or a folder, where each checkpoint is copied to; a run
    without one of its own goes on from there. Empty: none."""
    copy_timeout: float = 60.0
    """Seconds that may pass there without an answer, and for which a request is repeated."""

    def __post_init__(self) -> None:
        for key, meaning in (("keep_last", "all"), ("keep_every", "none")):
            if (value := getattr(self, key)) < 0:
                raise ValueError(f"checkpoint.{key} is {value}; it must be 0 ({meaning}) or more.")
        if self.copy_timeout <= 0.0:
            raise ValueError(f"checkpoint.copy_timeout is {self.copy_timeout}; it must be above 0.")


class News(NamedTuple):
    """What became of a save, for rank 0 to tell."""

    kind: str
    """saved, save_failed, copied or copy_failed: what the event is called."""
    step: int
    path: str
    why: str = ""
    """The cause, where it failed, and what stands."""
    seconds: float = 0.0
    """That the writing or the copying took."""
    stall: float = 0.0
    """Seconds that the run stood still for it."""


class Saver:
    """The one writer of a run's checkpoints: every rank has one and saves at the same steps."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        folder: Path,
        config: CheckpointConfig,
        resolved: dict[str, Any],
        *,
        patience: float,
        copies: Copies | None = None,
    ) -> None:
        """`folder` is that of the checkpoints, `resolved` the run's config for the manifest,
        `patience` for how many seconds rank 0 waits for the other ranks' files, `copies` where
        rank 0 sends what was saved."""
        self._engine, self._folder, self._config = engine, folder, config
        self._resolved, self._patience, self._copies = resolved, patience, copies
        # Where numbers wait for their thread; kept, since new memory is slow at its first use.
        self._host: Tensor | None = None
        self._writing: Writing | None = None
        self._news: list[News] = []
        self.newest: int | None = None
        "On rank 0: the step that was last saved whole, or, said by who loads, that of the start."

    def save(self, state: TrainState, extra: dict[str, Any], *, wait: bool = False) -> Path:
        """Begins the checkpoint of this step and returns the path that it will have. What is saved
        is what the engine holds now, exactly. Collective.

        The save before is waited for. `extra` goes into the manifest as JSON. One of the same step
        is replaced. What became of it is told by `news`: later, or from now on where it was waited
        for, with `wait` or without checkpoint.asynchronous.

        Raises:
            SaveError: with `wait`, on every rank: it could not be saved.
        """
        began = time.monotonic()
        self.finish()
        final = self._folder / name_of(state.step)
        temporary, problem = self._make_folder(final)
        if problem:
            self._hear(final, problem, 0.0, time.monotonic() - began)
        else:
            self._writing = writing = Writing(
                temporary,
                final,
                rank=dist.get_rank(),
                world_size=dist.get_world_size(),
                patience=self._patience,
                keep=(self._config.keep_last, self._config.keep_every),
                copies=self._copies,
            )
            tensors, arrived = self._copy()
            writing.start(tensors, arrived, self._manifest(state, extra))
            writing.stall = time.monotonic() - began
            if wait or not self._config.asynchronous:
                self.finish()
                problem = writing.problem
        if wait:
            self._agree(final, problem)
        return final

    def news(self) -> list[News]:
        """What ended since the last call; waits for nothing. Rank 0's is about the whole."""
        self._look()
        found, self._news = self._news, []
        for path, seconds, problem in self._copies.news() if self._copies is not None else []:
            kind = "copy_failed" if problem else "copied"
            found.append(News(kind, step_of(path.name) or 0, str(path), problem, seconds))
        return found

    def finish(self) -> None:
        """Waits until the save under way, if there is one, has ended on every rank. Collective."""
        if self._writing is None:
            return
        began = time.monotonic()
        self._writing.join()
        dist.barrier()
        self._writing.stall += time.monotonic() - began
        self._look()
        self._writing = None

    def drain(self, alive: Callable[[], object] = lambda: None) -> None:
        """Waits until what was saved is copied to the second place too, or could not be; calls
        `alive` at the beginning and whenever a file has arrived."""
        if self._copies is not None:
            self._copies.drain(alive=alive)

    def close(self) -> None:
        """Gives what is under way some seconds, and then leaves it; a run that ends well has called
        `finish`, and `drain`. Not collective, since others may be gone."""
        end = time.monotonic() + _CLOSING
        if self._writing is not None:
            self._writing.join(_CLOSING)
            self._writing.abandon()
        if self._copies is not None:
            self._copies.drain(max(end - time.monotonic(), 0.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_folder(self, final: Path) -> tuple[Path, str]:
        """The folder to write into and "", or why there is none; the same on every rank. Its name
        is drawn: a rank that outlived its run cannot write into it."""
        made = [final.with_name(f"{final.name}.{secrets.token_hex(4)}.tmp"), ""]
        if dist.get_rank() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self._folder)
                made[0].mkdir()
            except OSError as error:
                made[1] = cause(error)
        dist.broadcast_object_list(made, src=0)
        return made[0], made[1]

    @torch.no_grad()
    def _copy(self) -> tuple[dict[str, Tensor], Callable[[], object]]:
        """This rank's numbers in host memory, by their names in the file, and what waits until they
        have come from a GPU. Copies are queued before whatever moves weights next."""
        owned = list(pieces(self._engine))
        size = sum(piece.tensor.numel() for piece in owned)
        gpu = next((piece.tensor.device for piece in owned if piece.tensor.is_cuda), None)
        if self._host is None or self._host.numel() < size:
            self._host = torch.empty(size, dtype=torch.float32, pin_memory=gpu is not None)
        tensors, used = {}, 0
        for piece in owned:
            room = self._host[used : used + piece.tensor.numel()]
            tensors[piece.key] = room.copy_(piece.tensor, non_blocking=True)
            used += room.numel()
        if dist.get_rank() == 0:
            for name, buffer in buffers(self._engine).items():
                tensors[f"{BUFFER}/{name}"] = buffer.detach().to("cpu", copy=True)
        if gpu is None:
            return tensors, lambda: None
        (event := torch.cuda.Event()).record(torch.cuda.current_stream(gpu))

        def arrived() -> None:
            torch.cuda.set_device(gpu)  # else the thread would open a context on the first GPU
            event.synchronize()

        return tensors, arrived

    def _manifest(self, state: TrainState, extra: dict[str, Any]) -> dict[str, Any]:
        """All of it but the files."""
        return {
            "state": state.as_dict(),
            "parameters": shapes(self._engine),
            "updates": counter(self._engine),
            "scaler": scaler(self._engine),
            "layout": layout(self._engine),
            "config": self._resolved,
            "extra": extra,
        }

    def _look(self) -> None:
        """Hears once of a save that has ended."""
        writing = self._writing
        if writing is not None and writing.done and not writing.heard:
            writing.heard = True
            self._hear(writing.final, writing.problem, writing.seconds, writing.stall)

    def _hear(self, final: Path, problem: str, seconds: float, stall: float) -> None:
        step, why = step_of(final.name) or 0, ""
        if problem:
            why = f"{problem}; {self._standing()}"
        else:
            self.newest = step
        kind = "save_failed" if problem else "saved"
        self._news.append(News(kind, step, str(final), why, seconds, stall))

    def _standing(self) -> str:
        if self.newest is None:
            return "there is no older one"
        return f"{name_of(self.newest)} stands"

    def _agree(self, final: Path, problem: str) -> None:
        """Raises on every rank what rank 0 knows."""
        dist.broadcast_object_list(words := [problem and f"{problem}; {self._standing()}"], src=0)
        if words[0]:
            raise SaveError(f"{final} could not be saved: {words[0]}")


def layout(engine: DeepSpeedEngine) -> dict[str, Any]:
    """How the work is shared out; a checkpoint says it, and any other layout reads it."""
    return {
        "world_size": dist.get_world_size(),
        "stage": engine.zero_optimization_stage(),
        "dtype": str(next(engine.module.parameters()).dtype).removeprefix("torch."),
    }
