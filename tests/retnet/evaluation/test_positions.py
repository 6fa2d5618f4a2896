"""A curve by position is a partition of the loss of whole rows."""

import pytest
import torch

from retnet.evaluation.config import EvaluationConfig
from retnet.evaluation.positions import measure_positions, piece_edges
from tests.retnet.evaluation.questions import LENGTH, VOCABULARY, asked_of, held_out
from tests.retnet.models.small_model import build_model

CONFIG = EvaluationConfig(rows=3, lengths=[1, 2, 4, 8])


@pytest.mark.parametrize("sizes", [[600, 700, 90, 1000], [90] * 30], ids=["long", "joined"])
def test_the_pieces_add_up_to_the_loss_of_whole_rows(architecture: str, sizes: list[int]) -> None:
    model = build_model(architecture, vocab_size=VOCABULARY).requires_grad_(False)
    texts = held_out(sizes)
    result = measure_positions(asked_of(model, validation=[texts], config=CONFIG))
    (detail,) = result.details
    loss, targets = torch.tensor([detail["loss"], detail["targets"]], dtype=torch.float64)
    rows, joined = texts.long_rows(8 * LENGTH, 3)
    assert joined == detail["joined"] == bool(result.words) and len(rows) == 3
    whole = [model(**row, num_items_in_batch=1).loss.double() for row in rows]
    torch.testing.assert_close((loss * targets).sum(), sum(whole), rtol=1e-6, atol=0)
    assert targets.sum() == sum((row["shift_labels"] >= 0).sum() for row in rows)
    assert len(loss) == 64 and detail["bucket"] == LENGTH / 8
    for times in CONFIG.lengths:  # a row of that length, its last LENGTH targets
        alone = last = 0.0
        for row in rows:
            ids, labels = row["input_ids"][:, : times * LENGTH], row["shift_labels"]
            labels = labels[:, : times * LENGTH].clone()
            labels[:, : (times - 1) * LENGTH] = -100
            last += (labels >= 0).sum()
            alone += model(ids, shift_labels=labels, num_items_in_batch=1).loss.double()
        assert result.values[f"position/{times}x/loss"] == pytest.approx(
            float(alone / last), rel=1e-5
        )


def test_with_too_little_text_the_curve_ends_earlier_and_says_so() -> None:
    model = build_model("retnet", vocab_size=VOCABULARY)
    result = measure_positions(asked_of(model, validation=[held_out([200])], config=CONFIG))
    assert set(result.values) == {"position/1x/loss", "position/2x/loss"}
    assert len(result.details[0]["loss"]) == 24 and "ends at 192 tokens" in result.words
    nothing = measure_positions(asked_of(model, validation=[held_out([40])], config=CONFIG))
    assert not nothing.values and not nothing.details and "65 held-out tokens" in nothing.words


@pytest.mark.parametrize("length", [1, 5, 8, 13, 512])
def test_every_trained_length_is_an_edge(length: int) -> None:
    edges = piece_edges(length, 3)
    assert {length, 2 * length, 3 * length} <= set(edges) and edges == sorted(set(edges))
    assert len(edges) == 3 * min(8, length)
    widths = [after - before for before, after in zip([0, *edges], edges, strict=False)]
    assert max(widths) - min(widths) <= 1
