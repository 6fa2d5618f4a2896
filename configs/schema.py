"""The typed config of a run: it nests the dataclasses that each room declares beside its code.

Hydra composes YAML groups and overrides into it (`configs/train.yaml` puts it first, so that each
value is checked against its type); `plain` then gives the run one object that knows no Hydra.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from configs.redact import redact
from data.config import DataConfig
from data.presence import check_presence
from data.share import Share, check_ranks
from data.tokenizer import TokenizerConfig
from data.uploads import open_upload
from launch.limits import LimitsConfig
from launch.sweep.config import SweepConfig
from retnet.evaluation.config import EvaluationConfig
from retnet.kernels import KernelsConfig, select_kernels
from retnet.models.build import ModelConfig
from retnet.plan.config import PlanConfig
from retnet.training.engine import EngineConfig
from retnet.training.optimizer import OptimizerConfig
from retnet.training.profile import ProfileConfig
from retnet.training.saver import CheckpointConfig
from retnet.training.schedule import ScheduleConfig
from retnet.training.sinks import LoggingConfig
from retnet.training.stability import StabilityConfig


@dataclass
class Config:
    """One run."""

    name: str = "first-run"
    "Names the run's folder, runs/<name>; the same name goes on where that run stopped."
    steps: int = 100
    "Optimizer steps in all, earlier sessions of the run counted."
    seed: int = 0
    "Decides the initial weights, the order of the data and dropout."
    sequence_length: int = 512
    "Tokens a row of the batch predicts."
    global_batch_size: int = 16
    "Rows of one optimizer step, over all ranks."
    micro_batch_size: int | None = None
    "Rows that one rank computes at once, accumulating up to its share; null: its whole share."
    log_every: int = 10
    "Steps between lines of metrics."
    evaluate_every: int = 100
    "Steps between evaluations on the held-out rows; 0: only at the end."
    save_every: int = 100
    "Steps between checkpoints; 0: only at the end and when asked to stop."

    model: ModelConfig = field(default_factory=ModelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or Path(self.name).is_absolute() or ".." in parts:
            raise ValueError(f"name={self.name!r} must be a folder's name below runs/")
        if parts[0] == "runs":
            raise ValueError(
                f"name={self.name}: the folder is runs/<name>; write name={self.name[5:] or '...'}"
            )
        for key in ("steps", "sequence_length", "global_batch_size", "micro_batch_size"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: needed at least 1")
        for key in ("seed", "evaluate_every", "save_every"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)}: needed at least 0")
        if self.log_every < 1:
            raise ValueError(f"log_every={self.log_every}: needed at least 1")
        if self.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size={self.tokenizer.vocab_size} does not fit into "
                f"model.vocab_size={self.model.vocab_size}; raise model.vocab_size or take a "
                "smaller tokenizer"
            )

        if 0.0 < self.limits.hang <= self.data.retry_seconds:
            raise ValueError(
                f"limits.hang={self.limits.hang:g} must be above "
                f"data.retry_seconds={self.data.retry_seconds:g}, for which a store is asked "
                "again while the run stands still"
            )

    def check(self, world_size: int) -> None:
        """Raises ValueError where the batch or the data do not divide over the launched ranks, or
        where the run's folder belongs to another model. Touches no device."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        select_kernels(self.kernels, device)  # refuses what is not there
        open_upload(self.checkpoint.copy_to, self.checkpoint.copy_timeout)  # and so does this
        if world_size > self.global_batch_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} has no row for each of {world_size} "
                "ranks: raise global_batch_size or start fewer processes"
            )
        self.evaluation.check()
        check_ranks(self.data, self.global_batch_size, self.micro_batch_size, world_size)
        check_presence(self.data, self.tokenizer)
        _check_folder(self.folder)
        _check_place(Path(self.data.cache).expanduser(), "data.cache")
        earlier = self.folder / "config.yaml"
        if not earlier.exists() or not any((self.folder / "checkpoints").glob("step-*")):
            return
        old, new = _model_of(earlier), as_dict(self)["model"]
        changed = [f"model.{key}={old.get(key)}" for key in new if old.get(key) != new[key]]
        changed = [text for text in changed if text.split("=")[0] not in FREE_TO_CHANGE]
        if changed:
            some = ", ".join(changed[:3])
            more = f" and {len(changed) - 3} keys more" if len(changed) > 3 else ""
            raise ValueError(
                f"{self.folder} holds a run with {some}{more}, and this command asks for another "
                "model; go on with that one, or start a new run with name=..."
            )

    def rows_at_once(self, world_size: int) -> int:
        """The micro-batch of one rank, in rows."""
        return self.micro_batch_size or self.global_batch_size // world_size

    def share(self, rank: int, world_size: int) -> Share:
        """What of each step's rows is one rank's."""
        micro = self.rows_at_once(world_size)
        return Share(self.sequence_length, self.global_batch_size, micro, rank, world_size)

    @property
    def tokens(self) -> int:
        """Of the whole run, over all ranks."""
        return self.steps * self.global_batch_size * self.sequence_length

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path("runs") / self.name


def _check_folder(folder: Path) -> None:
    """Raises ValueError where a run cannot have this folder."""
    _check_place(folder, "name")
    if (folder / "points.jsonl").exists():
        raise ValueError(
            f"{folder} holds a sweep, whose points are runs; give another name=, or go on with a "
            f"point of it, as name={folder.relative_to('runs')}/POINT"
        )


def _check_place(folder: Path, key: str) -> None:
    """Raises ValueError where a folder that `key` names can neither be there nor be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(
            f"{there} is a file, and the run needs a folder there; give another {key}="
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{there} may not be written to by this user, and the run needs to; give another {key}="
        )


def _model_of(file: Path) -> dict[str, Any]:
    """The model of an earlier run's config.yaml."""
    try:
        return dict(yaml.safe_load(file.read_text())["model"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no config of a run, and there are checkpoints beside it: start a new run "
            "with name=..., or put the file back"
        ) from error


FREE_TO_CHANGE = {
    f"model.{key}"
    for key in (
        *("forward_mode", "chunk_size", "dropout", "activation_dropout", "drop_path", "z_loss"),
        *("label_smoothing", "initializer_range"),
    )
}
"Keys of a model that neither shape its weights nor what they mean; a resumed run may change them."


def plain(composed: DictConfig) -> Config:
    """Hydra's composed config as one typed object; ValueError from the configs' own checks."""
    return OmegaConf.to_object(composed)


def as_dict(config: Config) -> dict[str, Any]:
    """The config as plain YAML values, without what would let others in."""
    return redact(OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True))


def write_config(config: Config) -> None:
    """Writes the resolved config into the run's folder, whole or not at all; ValueError where that
    cannot be. One that says the same stays: on a full disk, too, a run goes on."""
    file, text = config.folder / "config.yaml", yaml.safe_dump(as_dict(config), sort_keys=False)
    if file.exists() and file.read_text() == text:
        return
    partial = file.with_suffix(".yaml.tmp")
    try:
        partial.write_text(text)
        partial.replace(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}): make room there") from error


ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(group="hydra/launcher", name="processes", node=SweepConfig)
