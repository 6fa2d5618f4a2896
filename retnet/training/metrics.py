"""What a run says about itself: metrics.jsonl and events.jsonl, and two views of them.

The JSON lines are the truth; the console and wandb are views that may be off. Rank 0 alone speaks,
on other ranks every method does nothing. It measures nothing: every value comes from the caller.
"""

import logging
import netrc
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Self, TextIO

from retnet.training.console import Console
from retnet.training.lines import LineFile, read_lines, truncate_after

log = logging.getLogger(__name__)

Value = int | float | str | None


class WandbMode(Enum):
    """Whether wandb shows the run too. Lower case, because that is how YAML says it."""

    auto = "auto"
    online = "online"
    offline = "offline"
    off = "off"


@dataclass
class LoggingConfig:
    """What is shown, and where."""

    wandb: WandbMode = WandbMode.auto
    """auto: online if this machine is logged in to wandb, else off; online; offline: into the run
    folder, for `wandb sync`; off."""
    wandb_project: str = "retnet"
    """The wandb project that the run belongs to."""
    wandb_entity: str | None = None
    """The wandb user or team; null is the account's default."""
    peak_flops: float | None = None
    """Peak of one device in FLOP/s, for the MFU; null takes a known device's data sheet."""
    sample_tokens: int = 200
    """Tokens of the sample that the model writes at the end; 0 writes none."""

    def __post_init__(self) -> None:
        if self.peak_flops is not None and self.peak_flops <= 0.0:
            raise ValueError(f"logging.peak_flops is {self.peak_flops}; it must be above 0.")
        if self.sample_tokens < 0:
            raise ValueError(f"logging.sample_tokens is {self.sample_tokens}; it must be >= 0.")


class Metrics:
    """The run's voice: `log` numbers, `event` what happened, `say` a line on the console."""

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
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written ({error.strerror}): a run keeps its record and its "
                "checkpoints there; make room or rights, or start elsewhere."
            ) from error
        self._console = Console(console, total_steps=total_steps, run_name=run_name)
        self._wandb = open_wandb(folder, config, run_name, resolved_config)

    def resume_at(self, step: int) -> None:
        """Forgets the lines of later steps, which a killed run wrote and this one writes again."""
        if not self._speaks:
            return
        self._metrics.close()
        truncate_after(self._folder / "metrics.jsonl", step)
        self._metrics = LineFile(self._folder / "metrics.jsonl")
        self._console.start(step)

    def log(self, step: int, values: dict[str, Value]) -> None:
        """Writes one line: the steps taken and what was measured. A number that is not finite
        becomes null, because JSON has no other word for it."""
        if not self._speaks:
            return
        self._note(self._metrics.add({"step": step, **values}))
        self._console.show(step, values)
        if self._wandb is not None:
            self._wandb.log({"step": step, **values})

    def event(self, kind: str, **fields: Any) -> None:
        """Writes what happened, with the time (UTC), and waits until both files are on the disk:
        events are few, and one marks every checkpoint."""
        if not self._speaks:
            return
        failed = self._events.add({"time": _now(), "event": kind, **fields}, sync=True)
        self._note(self._metrics.flush(sync=True) or failed)

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
        waiting = self._metrics.waiting + self._events.waiting
        if error is None and self._troubled and not waiting:
            self.say(f"{self._folder} takes lines again, and has those that waited")
        self._troubled = error is not None or (self._troubled and waiting > 0)

    def close(self) -> None:
        """Ends the display, the files and wandb's run; harmless twice."""
        if not self._speaks:
            return
        self._speaks = False
        self._console.close()
        self._metrics.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_wandb(
    folder: Path, config: LoggingConfig, run_name: str, resolved_config: dict[str, Any]
) -> Any | None:
    """wandb's run, or None; never asks anything. The run's id is kept in `folder`, so that a
    resumed run goes on in the same place.

    Raises:
        ValueError: logging.wandb is online and there is no key on this machine.
    """
    mode = config.wandb
    if mode is WandbMode.auto:
        mode = WandbMode.online if is_logged_in() else WandbMode.off
    if mode is WandbMode.off:
        return None
    if mode is WandbMode.online and not is_logged_in():
        raise ValueError(
            "logging.wandb is online and this machine has no wandb key; run `wandb login`, "
            "or set logging.wandb to offline or off."
        )
    import wandb

    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:12])
    try:
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=run_name,
            id=id_file.read_text(),
            resume="allow",
            dir=folder,
            config=resolved_config,
            mode=mode.value,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        if config.wandb is not WandbMode.auto:
            raise
        log.warning("wandb is off, because it could not be reached: %s", error)
        return None
    # Its own step may only grow, and a run that went back to a checkpoint comes by again.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def is_logged_in() -> bool:
    """Whether wandb has a key here, in its variable or in the netrc file; asks no server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = address.split("://")[-1].split("/")[0]
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
