"""A model on Triton alone: what one on plain torch gives, and one graph for all its layers."""

import pytest
import torch

from retnet.kernels import Backend, KernelsConfig, select_kernels
from tests.retnet.models.small_model import build_model

GROUPS = ("retention", "rms_norm", "elementwise", "loss")


def results(model, forward_mode: str = "chunkwise") -> list[torch.Tensor]:
    """Logits, states and gradients for packed, padded tokens."""
    device = next(model.parameters()).device
    ids = torch.randint(3, 400, (2, 24), generator=torch.Generator().manual_seed(0)).to(device)
    mask, starts = torch.ones_like(ids), torch.full_like(ids, -5)
    mask[1, :4], starts[0, 9:] = 0, 9
    out = model(
        ids,
        attention_mask=mask,
        segment_start=starts,
        labels=ids,
        use_cache=True,
        forward_mode=forward_mode,
    )
    gradients = torch.autograd.grad(out.loss, list(model.parameters()))
    return [out.logits, *out.past_key_values.states, *gradients]


@pytest.mark.parametrize("architecture", ["retnet", "nucleus_x"])
def test_a_model_gives_what_it_gives_on_plain_torch(architecture, device):
    found = []
    for backend in (Backend.torch, Backend.triton):
        config = KernelsConfig(**dict.fromkeys(GROUPS, backend))
        kernels = select_kernels(config, device)
        assert f"retention={backend.value}" in kernels.description
        torch.manual_seed(0)
        found.append(results(build_model(architecture, kernels=kernels).to(device)))
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_its_layers_are_one_graph(device):
    config = KernelsConfig(**dict.fromkeys(GROUPS, Backend.triton))
    model = build_model("retnet", kernels=select_kernels(config, device)).to(device)
    expected = results(model)
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
