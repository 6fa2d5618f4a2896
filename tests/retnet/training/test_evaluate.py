"""Looking changes nothing."""

from pathlib import Path

import torch

from tests.retnet.training.processes import run


def test_evaluation_leaves_training_as_it_was(tmp_path: Path) -> None:
    for rank in run("evaluated", 2, tmp_path):
        for (stage, offload, often), seen in rank.items():
            undisturbed = rank[stage, offload, False]
            assert seen["results"] == undisturbed["results"], (stage, offload, often)
            assert seen["training"] and seen["same_numbers"], (stage, offload, often)
            for name, value in (seen["weights"] or {}).items():
                assert torch.equal(value, undisturbed["weights"][name]), (stage, offload, name)
