"""What is swept, and under which name, stands on the command line and in a named sweep alone."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from launch.sweep.asked import read_asked


def composed(
    *task: str, folder: Path, params: dict[str, str] | None = None, sweep: str | None = None
) -> DictConfig:
    """The part of Hydra's composition that is read."""
    names = [word.removeprefix("name=") for word in task if word.startswith("name=")]
    hydra = {
        "overrides": {"task": list(task)},
        "sweeper": {"params": params, "_target_": "hydra.core.BasicSweeper"},
        "sweep": {"dir": "runs/first-run"},
        "runtime": {
            "choices": {"sweep": sweep},
            "config_sources": [{"path": str(folder), "schema": "file", "provider": "main"}],
        },
    }
    config = OmegaConf.create({"name": [sweep or "first-run", *names][-1], "hydra": hydra})
    OmegaConf.set_readonly(config.hydra, True)
    return config


@pytest.mark.parametrize(
    "task, params, name, swept",
    [
        (["optimizer.learning_rate=1,2"], None, "sweep-learning_rate", "optimizer.learning_rate"),
        (["seed=1,2", "model=a,b", "steps=4"], None, "sweep-model-seed", "model seed"),
        (["seed=range(3)", "name=mine/too"], None, "mine/too", "seed"),
        (["sweep=rates"], {"seed": "1,2", "steps": "4"}, "rates", "seed"),
        (["sweep=rates", "seed=3", "model=a,b"], {"seed": "1,2"}, "rates", "model"),
    ],
)
def test_a_sweep_has_a_name_and_keys(
    task: list[str], params: dict | None, name: str, swept: str, tmp_path: Path
) -> None:
    sweep = "rates" if params else None
    config = composed(*task, folder=tmp_path, params=params, sweep=sweep)
    asked = read_asked(config)
    assert (asked.name, asked.swept) == (name, set(swept.split()))
    assert config.hydra.sweep.dir == f"runs/{name}" and asked.grid


def test_between_two_values_only_optuna_looks(tmp_path: Path) -> None:
    config = composed("seed=tag(log, interval(1, 2))", folder=tmp_path)
    with pytest.raises(ValueError, match=r"interval\(1, 2\)\): only Optuna .* seed=a,b, or hydra/"):
        read_asked(config)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.sweeper._target_ = "hydra_plugins.hydra_optuna_sweeper.OptunaSweeper"
    assert not read_asked(config).grid


def test_a_named_sweep_that_sets_what_its_points_would_not_hear_of_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "rates.yaml").write_text("name: rates\nsteps: 4\nmodel: {dropout: 0}\n")
    config = composed("sweep=rates", folder=tmp_path, params={"seed": "1,2"}, sweep="rates")
    with pytest.raises(ValueError, match=r"rates.yaml sets model, steps: .*sweeper.params"):
        read_asked(config)
