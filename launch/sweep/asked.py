"""What the command line of a sweep asks for: its name, and which keys are swept."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf

from launch.sweep.overrides import parsed
from launch.sweep.points import short_names


class Asked(NamedTuple):
    """A sweep, without its points."""

    name: str
    "Its folder below runs/."
    swept: set[str]
    "Keys and groups that have several values."
    grid: bool
    "Whether all points are known before the first is run."

    @property
    def folder(self) -> Path:
        """Above those of its points."""
        return Path("runs") / self.name


def read_asked(config: DictConfig) -> Asked:
    """Reads Hydra's composition of the whole command, and makes sweepers write into the sweep's
    folder. ValueError for what is no sweep."""
    hydra = config.hydra
    task = parsed(hydra.overrides.task)
    named = parsed(f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items())
    given = named | task
    swept = {key for key, one in given.items() if one.is_sweep_override()}
    if not swept:
        raise ValueError("-m has nothing to sweep here: say key=a,b or sweep=NAME")
    grid = str(hydra.sweeper._target_).endswith(".BasicSweeper")
    for key in swept:
        if grid and given[key].is_interval_sweep():
            raise ValueError(
                f"{given[key].input_line}: only Optuna looks between two values; say {key}=a,b, or "
                "hydra/sweeper=optuna"
            )
    if both := {"name", "sweep"} & swept:
        raise ValueError(f"{task[min(both)].input_line}: a sweep has one {min(both)}")
    _check_file(config)
    name = str(config.name)
    if not {"name", "sweep"} & set(task):  # the name is that of a single run
        short = short_names(swept)
        name = "-".join(["sweep", *(short[key] for key in sorted(swept))])
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name):
        raise ValueError(f"name={name}: that of a sweep may hold letters, digits and . - _")
    asked = Asked(name, swept, grid)
    if (asked.folder / "events.jsonl").exists():
        raise ValueError(f"{asked.folder} holds a single run: take another name=... for the sweep")
    OmegaConf.set_readonly(hydra, False)
    hydra.sweep.dir = str(asked.folder)
    return asked


def _check_file(config: DictConfig) -> None:
    """Refuses a named sweep that sets what its points would not hear of: each is given overrides
    alone."""
    name = config.hydra.runtime.choices.get("sweep")
    for source in config.hydra.runtime.config_sources:
        file = Path(source.path) / "sweep" / f"{name}.yaml"
        if source.schema != "file" or not file.is_file():
            continue
        more = set(yaml.safe_load(file.read_text()) or {}) - {"defaults", "name", "hydra"}
        if more:
            raise ValueError(
                f"{file} sets {', '.join(sorted(more))}: what all points of a sweep have in "
                "common belongs into its hydra.sweeper.params"
            )
