"""Sequence classification: the last real token decides, whatever the padding, with the three
losses."""

import pytest
import torch

from retnet import (
    NucleusXConfig,
    NucleusXForSequenceClassification,
    RetNetConfig,
    RetNetForSequenceClassification,
)
from tests.retnet.models import small_model

SIZES = small_model.SIZES | dict(vocab_size=53, pad_token_id=0)
KINDS = {
    "retnet": (RetNetForSequenceClassification, RetNetConfig),
    "nucleus x": (NucleusXForSequenceClassification, NucleusXConfig),
}
LENGTHS = (9, 4, 1, 7)


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


def build(kind, **changes):
    torch.manual_seed(0)
    model_class, config = kind
    return model_class(config(**SIZES | {"num_labels": 3} | changes)).double().eval()


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 53, (length,), generator=generator) for length in LENGTHS]


def batch(padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.long)
    for row, document in enumerate(documents()):
        where = slice(9 - len(document), 9) if padding == "left" else slice(0, len(document))
        ids[row, where], mask[row, where] = document, 1
    return ids, mask


@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_padded_batch_gives_what_each_row_gives_alone(kind, padding, mode):
    model = build(kind)
    alone = torch.cat([model(document[None]).logits for document in documents()])
    ids, mask = batch(padding)
    logits = model(ids, attention_mask=mask, forward_mode=mode).logits
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-10)


def test_padding_on_the_right_needs_no_mask(kind):
    model = build(kind)
    ids, mask = batch("right")
    with_mask = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(model(ids).logits, with_mask, rtol=0, atol=1e-10)


def test_embeddings_in_place_of_ids_are_read_the_same(kind):
    model = build(kind)
    ids, mask = batch("left")
    embeds = model.get_input_embeddings()(ids)
    want = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(
        model(inputs_embeds=embeds, attention_mask=mask).logits, want, rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="a batch of 4 needs an attention_mask"):
        model(inputs_embeds=embeds)


def test_a_batch_whose_ends_nothing_tells_is_refused(kind):
    model = build(kind, pad_token_id=None)
    ids, mask = batch("right")
    with pytest.raises(ValueError, match="a batch of 4 needs an attention_mask or config.pad_tok"):
        model(ids)
    assert model(ids[:1]).logits.shape == (1, 3)
    want = build(kind)(ids).logits
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, want, rtol=0, atol=1e-10)


def test_the_loss_fits_the_labels(kind):
    """Integers: cross entropy; zeros and ones: binary cross entropy; numbers: squared error."""
    ids, mask = batch("left")
    functional = torch.nn.functional
    single = torch.tensor([0, 2, 1, 1])
    out = build(kind)(ids, attention_mask=mask, labels=single)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, single))
    several = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.float64)
    out = build(kind)(ids, attention_mask=mask, labels=several)
    by_hand = functional.binary_cross_entropy_with_logits(out.logits, several)
    torch.testing.assert_close(out.loss, by_hand)
    numbers = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    out = build(kind, num_labels=1)(ids, attention_mask=mask, labels=numbers)
    torch.testing.assert_close(out.loss, (out.logits[:, 0] - numbers).square().mean())
    named = build(kind, problem_type="regression")
    targets = torch.zeros(4, 3, dtype=torch.float64)
    out = named(ids, attention_mask=mask, labels=targets)
    torch.testing.assert_close(out.loss, out.logits.square().mean())


def test_every_weight_learns_from_the_labels(kind):
    model = build(kind).train()
    ids, mask = batch("left")
    model(ids, attention_mask=mask, labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
