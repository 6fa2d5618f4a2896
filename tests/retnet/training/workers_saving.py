"""What one rank does in the tests of saving and of choosing what to load: see workers.py."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.uploads import open_upload
from retnet.training.checkpoint import load_checkpoint
from retnet.training.copies import Copies
from retnet.training.engine import Precision, gather_weights
from retnet.training.housekeeping import checkpoints
from retnet.training.manifest import verify
from retnet.training.pieces import pieces
from retnet.training.saver import CheckpointConfig, Saver
from retnet.training.state import TrainState
from tests.retnet.training.small_model import SmallModel, make_model
from tests.retnet.training.workers import main, start, take_steps
from tests.small_disk import fill

BALLAST = 1_500_000
"""Numbers that make a model large enough to be caught while it is saved: 18 MB in all."""


def saver(
    engine: Any, folder: Path, config: CheckpointConfig, copies: Copies | None = None
) -> Saver:
    """One that writes into a run's folder."""
    checkpoints = folder / "checkpoints"
    return Saver(engine, checkpoints, config, {"a": 1}, patience=30, copies=copies)


def heavy_model() -> SmallModel:
    """With `BALLAST` numbers that are all the step of the last save."""
    module = make_model()
    module.ballast = torch.nn.Parameter(torch.zeros(BALLAST))
    return module


def names(folder: Path) -> list[str]:
    """What is in the folder of the checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def saved(folder: Path, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each run, its config and `steps`: checkpoints of those steps, one after the other; what
    is left of them and what was told. They are copied where the config says so, and the newest
    copy is then loaded into a folder of its own."""
    engine = start(make_model(), 1, False, Precision.float32, 1)
    found = {}
    for name, values in runs.items():
        config = CheckpointConfig(**{key: values[key] for key in values if key != "steps"})
        copies = None
        if config.copy_to:
            copies = Copies(open_upload(config.copy_to, config.copy_timeout), 1, 0)
        one = saver(engine, folder / name, config, copies)
        for step in values["steps"]:
            one.save(TrainState(step=step), {"cursors": [1, 2]})
        one.finish()
        one.drain()
        found[name] = {"names": names(folder / name), "news": one.news()}
        if config.copy_to:
            again = folder / name / "again"
            found[name]["loaded"] = load_checkpoint(engine, again, copies=copies)
            found[name]["brought"] = [path.name for path in checkpoints(again)]
    return found


def loaded(folder: Path, runs: list[str]) -> dict[str, dict[str, Any]]:
    """What loading from each run folder gives: the state and what was passed over, or the error,
    and whether a weight moved."""
    found = {}
    for run in runs:
        engine = start(make_model(), 1, False, Precision.float32, 1)
        before = gather_weights(engine)
        result: dict[str, Any] = {"loaded": None, "error": None}
        try:
            result["loaded"] = load_checkpoint(engine, Path(run) / "checkpoints")
        except (ValueError, RuntimeError) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        after = gather_weights(engine)
        result["moved"] = any(
            not torch.equal(value, after[name]) for name, value in (before or {}).items()
        )
        found[run] = result
        engine.destroy()
    return found


def exact(folder: Path) -> dict[str, Any]:
    """A save that is written while three more steps are taken: the weights at the save, those that
    a new engine loads, and what was told meanwhile."""
    engine = start(make_model(), 2, False, Precision.bfloat16, 1)
    one = saver(engine, folder, CheckpointConfig())
    take_steps(engine, 0, 2)
    first = gather_weights(engine)
    one.save(TrainState(step=2), {})
    take_steps(engine, 2, 5)
    moved = gather_weights(engine)
    one.save(TrainState(step=5), {}, wait=True)
    news = one.news()
    engine.destroy()
    found = {"at the save": first, "later": moved, "news": news}
    for step in (2, 5):
        engine = start(make_model(), 2, False, Precision.bfloat16, 1)
        load_checkpoint(engine, folder / "checkpoints", before=step)
        found[step] = gather_weights(engine)
        engine.destroy()
    return found


def until_killed(folder: Path, last: int) -> int:
    """Loads the newest checkpoint if there is one, as a run does, and saves one after the other up
    to that of step `last`; it leaves the files `loading` as it begins to and
    `saving` in the second save. Returns the step that it began with."""
    engine = start(heavy_model(), 2, False, Precision.float32, 1)
    (folder / "loading").touch()
    found = load_checkpoint(engine, folder / "checkpoints")
    began = found.state.step if found else 0
    one = saver(engine, folder, CheckpointConfig())
    for step in range(began + 1, last + 1):
        fill_ballast(engine, step)
        one.save(TrainState(step=step), {})
        if step > began + 1:  # the first is whole
            (folder / "saving").touch()
    one.finish()
    return began


def fill_ballast(engine: Any, step: int) -> None:
    """Sets every number of the ballast that is this rank's, and its moments, to the step."""
    for piece in pieces(engine):
        if piece.name == "ballast":
            piece.tensor.fill_(step)


def full_disk(folder: Path) -> dict[str, Any]:
    """Saves into a folder whose disk is full at the second and third save, and has room again at
    the fourth and fifth; what was told of each, and what verified after it. The third and the fifth
    are waited for."""
    engine = start(heavy_model(), 1, False, Precision.float32, 1)
    one = saver(engine, folder, CheckpointConfig(keep_last=1))
    found: dict[str, Any] = {}
    for step in (1, 2, 3, 4, 5):
        if dist.get_rank() == 0 and step == 2:
            fill(folder / "in the way")
            with (folder / "in the way").open("r+b") as stream:
                stream.truncate((folder / "in the way").stat().st_size - 2_000_000)
        if dist.get_rank() == 0 and step == 4:
            (folder / "in the way").unlink()
        dist.barrier()
        error = ""
        try:
            one.save(TrainState(step=step), {}, wait=step in (3, 5))
        except RuntimeError as failure:
            error = str(failure)
        one.finish()
        good = checkpoints(folder / "checkpoints")
        for path in good:
            verify(path)
        told = {"news": one.news(), "error": error}
        found[step] = told | {"good": [path.name for path in good], "names": names(folder)}
        dist.barrier()
    return found


if __name__ == "__main__":
    main(globals())
