"""The loss is the formula, in float32, of the targets and of nothing else."""

import math

import pytest
import torch
from torch import Tensor

from retnet.models.loss import causal_lm_loss
from tests.retnet.models.small_model import VOCABULARY, build_model

TERMS = [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.3, 0.1)]
"z_loss_coeff, label_smoothing"


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits [2, 5, 7] and targets [2, 5], four of which do not count."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 5, 7, generator=generator)).to(dtype)
    targets = torch.randint(0, 7, (2, 5), generator=generator)
    targets[0, 1:3], targets[1, 0], targets[1, 4] = -100, -100, -100
    return logits, targets


def by_hand(logits: Tensor, targets: Tensor, z_loss_coeff: float, smoothing: float) -> Tensor:
    """The sum over targets, in float64, one at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits.double().flatten(0, 1), targets.flatten().tolist(), strict=True):
        if target != -100:
            log_z = row.exp().sum().log()
            log_probabilities = row - log_z
            total = total - (1 - smoothing) * log_probabilities[target]
            total = total - smoothing * log_probabilities.mean()
            total = total + z_loss_coeff * log_z**2
    return total


@pytest.mark.parametrize("z_loss_coeff, smoothing", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_term_and_its_gradient_is_the_formula_whatever_the_dtype_of_the_logits(
    z_loss_coeff, smoothing, dtype
):
    logits, targets = batch(dtype)
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    loss = causal_lm_loss(logits, targets, None, z_loss_coeff, smoothing)
    expected = by_hand(exact, targets, z_loss_coeff, smoothing) / 6
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    # float32 arithmetic, then one rounding to the logits' own dtype
    torch.testing.assert_close(
        logits.grad.double(), exact.grad, rtol=torch.finfo(dtype).eps, atol=2e-7
    )


@pytest.mark.parametrize("z_loss_coeff, smoothing", TERMS)
def test_positions_without_a_target_count_for_nothing(z_loss_coeff, smoothing):
    logits, targets = batch()
    changed = logits.clone()
    changed[targets == -100] = 1e30  # its square is infinite in float32
    changed.requires_grad_()
    loss = causal_lm_loss(changed, targets, None, z_loss_coeff, smoothing)
    assert loss == causal_lm_loss(logits, targets, None, z_loss_coeff, smoothing)
    loss.backward()
    assert (changed.grad[targets == -100] == 0).all()


def test_the_sum_is_divided_by_the_number_given():
    logits, targets = batch()
    mean = causal_lm_loss(logits, targets, None, 0.1, 0.1)
    for count in (3, 2.5, 0.5):
        share = causal_lm_loss(logits, targets, torch.tensor(count), 0.1, 0.1)
        torch.testing.assert_close(share, mean * 6 / count)
    torch.testing.assert_close(causal_lm_loss(logits, targets, 12, 0.1, 0.1), mean / 2)


@pytest.mark.parametrize("count", [None, 0, torch.tensor(0), torch.tensor(5.0)], ids=str)
def test_a_batch_without_targets_has_a_loss_and_a_gradient_of_zero(count):
    logits, targets = batch()
    logits.requires_grad_()
    loss = causal_lm_loss(logits, torch.full_like(targets, -100), count, 0.1, 0.1)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary():
    loss = causal_lm_loss(torch.zeros(1, 4, 50), torch.arange(4)[None], None, 0.5, 0.3)
    assert loss.item() == pytest.approx(math.log(50) + 0.5 * math.log(50) ** 2)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_model_takes_the_terms_from_its_config_unless_they_are_given(architecture, training):
    model = build_model(architecture, z_loss_coeff=0.1, label_smoothing=0.2).train(training)
    ids = torch.randint(0, VOCABULARY, (2, 9))
    labels = ids.clone()
    labels[0, 3:6] = -100
    logits, targets = model(ids).logits[:, :-1], labels[:, 1:]
    count = (targets != -100).sum()

    def costs(expected: tuple[float, float], **given: float) -> None:
        wanted = (by_hand(logits, targets, *expected) / count).float()
        torch.testing.assert_close(model(ids, labels=labels, **given).loss, wanted)
        shifted = torch.nn.functional.pad(targets, (0, 1), value=-100)
        share = model(ids, shift_labels=shifted, num_items_in_batch=2 * count, **given).loss
        torch.testing.assert_close(share, wanted / 2)

    costs((0.1, 0.2))
    costs((0.0, 0.0), z_loss_coeff=0.0, label_smoothing=0.0)
    costs((0.3, 0.2), z_loss_coeff=0.3)
