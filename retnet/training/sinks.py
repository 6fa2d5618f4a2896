"""Views of a run besides its console, each of which may be off: wandb and tensorboard.

They show what metrics.jsonl and evaluations.jsonl say; where they and the files differ, the files
are right. wandb's server keeps what it was sent: points of steps that a run took back stay in its
history, and sync.py makes a copy without them.
"""

import html
import math
import netrc
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from retnet.training.lines import read_lines

# Seconds that a run's beginning and its end wait for wandb's server: it alone would wait for days.
START, PATIENCE = 30.0, 60.0


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
    folder, and `python -m retnet.training.sync runs/NAME` sends it; off."""
    wandb_project: str = "retnet"
    """The wandb project that the run belongs to."""
    wandb_entity: str | None = None
    """The wandb user or team; null is the account's default."""
    peak_flops: float | None = None
    """Peak of one device in FLOP/s, for the MFU; null takes a known device's data sheet."""
    tensorboard: bool = False
    """Also into the run folder, in the form that tensorboard shows."""
    norms_every: int = 0
    """Steps between two looks at the norm of the gradient and of what comes out of each layer; 0:
    never. Those steps take a forward pass of one row more."""
    straggler: float = 1.25
    """A rank is told of where its forward passes take more than this many times what the others'
    do (their median), three logged lines in a row."""
    sample_tokens: int = 200
    """Tokens of the sample that the model writes at the end; 0 writes none."""

    def __post_init__(self) -> None:
        if self.peak_flops is not None and self.peak_flops <= 0.0:
            raise ValueError(f"logging.peak_flops is {self.peak_flops}; it must be above 0.")
        if self.norms_every < 0:
            raise ValueError(f"logging.norms_every is {self.norms_every}; it must be >= 0.")
        if self.straggler <= 1.0:
            raise ValueError(f"logging.straggler is {self.straggler}; it must be above 1.")
        if self.sample_tokens < 0:
            raise ValueError(f"logging.sample_tokens is {self.sample_tokens}; it must be >= 0.")


class Sink(Protocol):
    """A view of a run."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Numbers of one step; what is no number is left out."""

    def detail(self, step: int, kind: str, fields: dict[str, Any]) -> None:
        """What a line of evaluations.jsonl says."""

    def rewind(self, step: int) -> None:
        """The run goes on after `step`, whose files say so already; later steps come again. Once
        before the first `log`, and at each return to an older checkpoint."""

    def close(self) -> None:
        """Once."""


def open_sinks(
    folder: Path,
    config: LoggingConfig,
    run_name: str,
    resolved_config: dict[str, Any],
    say: Callable[[str], None],
) -> list[Sink]:
    """Those that `config` asks for; never asks anything. Without wandb's server a run begins all
    the same, and `say` gets the reason.

    Raises:
        ValueError: wandb without a key on this machine, or tensorboard without its package.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(Tensorboard(folder / "tensorboard"))
    try:
        if (run := open_wandb(folder, config, run_name, resolved_config)) is not None:
            sinks.append(Wandb(run, folder))
    except RuntimeError as error:
        say(f"{error}; the files have all of the run, and retnet.training.sync sends it later")
    return sinks


class Wandb:
    """wandb's run. A session that reaches the server first sends the lines that earlier ones could
    not, and notes in `wandb_sent` how far it came when it is closed: what a killed one sent comes
    again, so that nothing is missing."""

    def __init__(self, run: Any, folder: Path) -> None:
        """`run`: as `open_wandb` gives it; `folder`: the run's."""
        self._run = run
        self._folder = folder
        self._reaches = not run.offline
        self._begun = False
        self._last = sent(folder)

    def log(self, step: int, values: dict[str, Any]) -> None:
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._run.log({"step": step, **numbers})
        self._last = step

    def detail(self, step: int, kind: str, fields: dict[str, Any]) -> None:
        shown = _as_media(kind, fields)
        if shown:
            self._run.log({"step": step, **shown})

    def rewind(self, step: int) -> None:
        if self._reaches and not self._begun:
            self.replay(sent(self._folder), step)
        self._begun, self._last = True, step

    def replay(self, after: int, last: float = math.inf) -> tuple[int, int]:
        """Sends what the files say of the steps after `after` up to `last`; returns the number of
        lines and the last step."""
        lines = read_lines(self._folder / "metrics.jsonl")
        lines += read_lines(self._folder / "evaluations.jsonl")
        lines = [line for line in lines if after < line["step"] <= last]
        for line in sorted(lines, key=lambda line: line["step"]):
            fields = {key: value for key, value in line.items() if key not in ("step", "kind")}
            if "kind" in line:
                self.detail(line["step"], line["kind"], fields)
            else:
                self.log(line["step"], fields)
        return len(lines), max((line["step"] for line in lines), default=after)

    def close(self) -> None:
        self._run.finish()
        if self._reaches:
            note_sent(self._folder, self._last)


def sent(folder: Path) -> int:
    """The step up to which wandb's server has what the files say; 0 where it has nothing, or
    nobody knows."""
    file = folder / "wandb_sent"
    words = file.read_text().strip() if file.exists() else ""
    return int(words) if words.isdecimal() else 0


def note_sent(folder: Path, step: int) -> None:
    """The inverse of `sent`. On a full disk nobody knows any more: all is sent again some day."""
    file = folder / "wandb_sent"
    try:
        file.write_text(f"{step}\n")
    except OSError:
        file.unlink(missing_ok=True)


def _as_media(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A line of evaluations.jsonl as wandb shows it; {} where metrics.jsonl says all of it."""
    import wandb

    if kind == "samples":
        prompt, text = html.escape(fields["prompt"]), html.escape(fields["text"])
        name = fields["prompt"].strip() or "nothing"
        page = f"<pre style='white-space: pre-wrap'><b>{prompt}</b>{text}</pre>"
        return {f"samples/after {name}": wandb.Html(page, inject=False)}
    if kind == "positions":
        rows = [[place * fields["bucket"], loss] for place, loss in enumerate(fields["loss"])]
        table = wandb.Table(columns=["position", "loss"], data=rows)
        return {f"position/{fields['length']}": table}
    if kind == "passkey":
        columns = ["length", *(f"depth {depth:.2f}" for depth in fields["depths"])]
        pairs = zip(fields["lengths"], fields["accuracy"], strict=True)
        rows = [[length, *accuracy] for length, accuracy in pairs]
        return {"passkey": wandb.Table(columns=columns, data=rows)}
    return {}


class Tensorboard:
    """Event files that tensorboard reads; one after each beginning, which tells it to forget the
    steps that come again."""

    def __init__(self, folder: Path) -> None:
        """Writes nothing before `rewind`; ValueError without the package."""
        try:
            import torch.utils.tensorboard as tensorboard
        except ImportError as error:
            raise ValueError(
                "logging.tensorboard is true and tensorboard is not installed: "
                "pip install 'retnet[tensorboard]', or set logging.tensorboard=false."
            ) from error
        self._open = tensorboard.SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value, step)

    def detail(self, step: int, kind: str, fields: dict[str, Any]) -> None:
        if kind == "samples":
            text = "".join(f"    {line}\n" for line in fields["text"].splitlines())
            name = fields["prompt"].strip() or "nothing"
            self._writer.add_text(f"samples/after {name}", text, step)

    def rewind(self, step: int) -> None:
        self.close()
        # Also a new run may find the files of an old one here: of one whose checkpoints are gone.
        again = step + 1 if self._folder.exists() else None
        self._writer = self._open(str(self._folder), purge_step=again, flush_secs=30)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def open_wandb(
    folder: Path,
    config: LoggingConfig,
    run_name: str,
    resolved_config: dict[str, Any],
    patience: float = PATIENCE,
) -> Any | None:
    """wandb's run, or None; never asks anything. The run's id is kept in `folder`, so that a
    resumed run goes on in the same place. `patience`: seconds that its end may wait for the server
    before it raises a TimeoutError; 0: as long as it takes.

    Raises:
        ValueError: logging.wandb is online and there is no key on this machine.
        RuntimeError: wandb does not start, as without its server.
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

    id_file, waits = folder / "wandb_id", {"init_timeout": START, "finish_timeout": patience}
    try:
        if not id_file.exists() or not id_file.read_text():  # of a disk that was full
            id_file.write_text(uuid.uuid4().hex[:12])
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=run_name,
            group=run_name.rpartition("/")[0] or None,  # the points of a sweep stand together
            id=id_file.read_text(),
            resume="allow",
            dir=folder,
            config=resolved_config,
            mode=mode.value,
            settings=wandb.Settings(
                silent=True, console="off", finish_timeout_raises=True, **waits
            ),
        )
    except Exception as error:  # its server, its process, the disk
        raise RuntimeError(f"wandb does not start: {' '.join(str(error).split())}") from error
    # Its own step may only grow, and a run that went back to a checkpoint comes by again.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    run.define_metric("val/*", step_metric="step", summary="min,last")
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
    except (netrc.NetrcParseError, OSError):
        return False
