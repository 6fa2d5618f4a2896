"""Back to an older checkpoint, and on with the data that comes after: for a run whose steps of late
were refused. The loader is not touched, so no row is served twice and those since are passed over.

The checkpoint that it went back to is saved again with the position that reading stands at, by the
caller, and then the newer ones go: a run that is killed before that comes to the same decision
again, one that is killed after it cannot fall back into the same rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from retnet.training.checkpoint import load_checkpoint
from retnet.training.housekeeping import checkpoints, remove, step_of
from retnet.training.metrics import Metrics
from retnet.training.stability import Mode, StabilityConfig
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def struck_out(state: TrainState, config: StabilityConfig) -> bool:
    """Whether the run has to go back."""
    return config.mode is Mode.rollback and len(state.strikes) >= config.strikes


def go_back(
    engine: DeepSpeedEngine,
    folder: Path,
    state: TrainState,
    config: StabilityConfig,
    metrics: Metrics,
) -> None:
    """Loads the newest good checkpoint of `folder` from before the first strike, or where that one
    was not kept, before the last, and moves `state` to it, but for its position. Collective.

    Raises:
        NonFiniteError: the run went back as often as it may; nothing was loaded.
    """
    first, last, now = state.strikes[0], state.strikes[-1], state.step
    why = f"{len(state.strikes)} steps were refused, the first of them step {first + 1}"
    loaded = None
    if state.rollbacks < config.max_rollbacks:
        loaded = load_checkpoint(engine, folder, before=first)
        loaded = loaded or load_checkpoint(engine, folder, before=last)
        reason = "and there is no checkpoint from before them"
    else:
        reason = f"and the run went back {state.rollbacks} times (stability.max_rollbacks)"
    if loaded is None:
        error = NonFiniteError(last, f"{why}, {reason}")
        metrics.event("diverged", step=now, why=str(error))
        raise error
    old = loaded.state
    state.step, state.tokens, state.recent = old.step, old.tokens, old.recent
    state.rollbacks += 1
    state.strikes = []
    metrics.resume_at(old.step)
    rows = [old.position, state.position - 1]  # of the run, from 0, over all ranks
    metrics.event("rolled_back", step=now, to=old.step, passed_over=rows, why=why)
    metrics.say(
        f"{why}: back from step {now} to {loaded.path}, and on with the data after row {rows[1]}; "
        f"{rows[1] - rows[0] + 1} rows are passed over"
    )


def forget_later(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps than this one, which must be whole. Collective."""
    if dist.get_rank() == 0:
        for path in checkpoints(folder):
            if (step_of(path.name) or 0) > step:
                remove(path)
    dist.barrier()
