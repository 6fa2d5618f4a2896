"""Looking changes nothing, and what is seen is the cross entropy."""

from typing import Any

import pytest
import torch

from retnet import NucleusXConfig, NucleusXForCausalLM
from tests.retnet.training.processes import run
from tests.retnet.training.small_model import VOCABULARY, global_batch

FIELDS = dict(
    vocab_size=VOCABULARY,
    decoder_layers=2,
    decoder_embed_dim=32,
    decoder_retention_heads=2,
    decoder_value_embed_dim=48,
    decoder_ffn_embed_dim=40,
    dropout=0.1,
    z_loss_coeff=0.1,
    label_smoothing=0.2,
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run("evaluated", 2, tmp_path_factory.mktemp("evaluated"), fields=FIELDS)


def test_evaluation_leaves_training_as_it_was(ranks: list[dict[str, Any]]) -> None:
    for layouts in (rank["layouts"] for rank in ranks):
        for (stage, offload, often), seen in layouts.items():
            undisturbed = layouts[stage, offload, False]
            assert seen["results"] == undisturbed["results"], (stage, offload, often)
            assert seen["training"] and seen["same_numbers"], (stage, offload, often)
            for name, value in (seen["weights"] or {}).items():
                assert torch.equal(value, undisturbed["weights"][name]), (stage, offload, name)


def test_a_score_is_pure_cross_entropy_whatever_the_loss_adds(ranks: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model, batch = NucleusXForCausalLM(NucleusXConfig(**FIELDS)).eval(), global_batch(99, 4)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits.double()
    counted = batch["shift_labels"] != -100
    log_probabilities = logits.log_softmax(-1)[counted]
    nats = -log_probabilities.gather(-1, batch["shift_labels"][counted][:, None]).sum().item()
    for score in (rank["score"] for rank in ranks):
        assert score.tokens == counted.sum()
        assert abs(score.nats / nats - 1) < 1e-6
        assert score.loss == score.nats / score.tokens
