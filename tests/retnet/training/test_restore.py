"""What was saved in any layout is loaded in any other bit by bit, and the same layout goes on as if
it had never stopped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.retnet.training.processes import run
from tests.retnet.training.workers import DTYPES
from tests.retnet.training.workers_layouts import EVERY_LAYOUT

Seen = dict[Any, dict[str, Any]]
KINDS = {"master", "exp_avg", "exp_avg_sq"}
GROUPS = ["embedding", "layer.00", "layer.01", "norm"]  # of the model's weights; tied is once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks put their checkpoints."""
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Seen]:
    """What each of two ranks saw in every layout and dtype."""
    return run("resumed", 2, folder, module="workers_layouts")


def test_resume_is_exact_in_every_layout(ranks: list[Seen]) -> None:
    """Every loss and norm, and at the end every weight and moment, with dropout."""
    for rank in ranks:
        assert len(rank) == len(DTYPES) * len(EVERY_LAYOUT)
        for key, seen in rank.items():
            (straight, left), (again, left_again) = seen["straight"], seen["again"]
            assert again == straight, key
            assert [name for name in left if not torch.equal(left[name], left_again[name])] == []


def test_the_norms_of_the_layers_add_up_to_the_steps_norm_in_every_layout(
    ranks: list[Seen],
) -> None:
    """To 1e-6; that they leave no trace in the steps, with dropout, is said above: the steps that
    go on are watched, those that never stopped are not."""
    for key, seen in ranks[0].items():
        results, _ = seen["again"]
        for result, norms in zip(results, seen["norms"], strict=True):
            gradients = {name: value for name, value in norms.items() if name[:9] == "grad_norm"}
            assert list(gradients) == [f"grad_norm/{group}" for group in GROUPS], key
            assert math.hypot(*gradients.values()) == pytest.approx(result.grad_norm, rel=1e-6), key
        assert ranks[1][key]["norms"] == seen["norms"]


def test_what_comes_out_of_the_layers_is_the_same_in_every_layout(ranks: list[Seen]) -> None:
    """Of the first row of each rank, without dropout: to 1 % in bfloat16, to 1e-5 in float32."""
    for (dtype, layout), seen in ranks[0].items():
        expected = ranks[0][dtype, EVERY_LAYOUT[0]]["norms"]
        for norms, others in zip(seen["norms"], expected, strict=True):
            found = {name: value for name, value in norms.items() if name[:10] == "activation"}
            assert set(found) == {f"activation_rms/{group}" for group in GROUPS[:3]}
            same = {name: others[name] for name in found}
            assert found == pytest.approx(same, rel=1e-2 if dtype == "bfloat16" else 1e-5), layout


def test_every_layout_reads_every_other_bit_by_bit(ranks: list[Seen]) -> None:
    for rank in ranks:
        for key, seen in rank.items():
            for made, load in seen["loads"].items():
                assert load["differing"] == [] and load["stood"], (key, made)
        for layout in EVERY_LAYOUT:
            assert set(rank["float32", layout]["loads"]) == set(EVERY_LAYOUT)
            assert len(rank["bfloat16", layout]["loads"]) == 2


def test_every_layout_computes_the_same_from_the_same_checkpoint(ranks: list[Seen]) -> None:
    """To 1e-6 of the loss: the same numbers, summed in the order of a layout."""
    for rank in ranks:
        for (dtype, layout), seen in rank.items():
            for made, load in seen["loads"].items():
                expected = rank[dtype, made]["evaluation"]
                assert load["evaluation"] == pytest.approx(expected, rel=1e-6), (layout, made)


def test_the_ranks_together_hold_every_element_once(ranks: list[Seen]) -> None:
    for key, seen in ranks[0].items():
        stops = {(kind, name): 0 for kind in KINDS for name in seen["shapes"] if name != "scale"}
        places = seen["places"] + ranks[1][key]["places"]
        for kind, name, start, count in sorted(places, key=lambda place: place[2]):
            assert start == stops[kind, name], (key, kind, name)
            stops[kind, name] += count
        for (_, name), stop in stops.items():
            assert stop == torch.Size(seen["shapes"][name]).numel(), (key, name)


def test_what_the_optimizer_is_asked_for_is_not_overwritten(ranks: list[Seen]) -> None:
    for key, seen in ranks[0].items():
        assert seen["decays"] == [0.7, 0.0], f"{key}: the saved run's weight decay came back"


def test_three_ranks_in_another_layout_and_dtype_read_the_same(
    ranks: list[Seen], folder: Path, tmp_path: Path
) -> None:
    """Three cut every tensor elsewhere; a third of the layouts, after which the others' code is no
    other."""
    how = dict(made=str(folder), dtype="float32", every=3)
    for found in run("elastic", 3, tmp_path, module="workers_layouts", **how):
        assert found["elastic"] == {layout: [] for layout in EVERY_LAYOUT[::3]}


def test_one_rank_reads_the_same_and_what_does_not_fit_is_refused_before_anything_moves(
    ranks: list[Seen], folder: Path, tmp_path: Path
) -> None:
    how = dict(made=str(folder), dtype="bfloat16", every=2)
    (found,) = run("elastic", 1, tmp_path, module="workers_layouts", **how)
    assert found["elastic"] == {layout: [] for layout in EVERY_LAYOUT[::2]}
    sentence, moved = found["refused"]["other model"]
    assert sentence.startswith("ValueError") and moved == []
    assert "norms.0.weight has the shape [16] there and has the shape [1] here" in sentence
    assert "layers.2.weight is missing there and has the shape [2, 2] here, and 1 more" in sentence
    assert "set model.* and kernels.fused_projections as they were" in sentence
    sentence, moved = found["refused"]["less"]
    assert sentence.startswith("RuntimeError") and moved == []
    assert "does not hold all of master/" in sentence
