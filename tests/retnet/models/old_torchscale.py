"""torchscale before October 2023, restated: weights under its names, and what they compute."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from retnet.models.rotary import log_decays

WIDTH, HEADS, INNER, LAYERS, VOCABULARY = 32, 2, 40, 2, 53
OLD_ARGUMENTS = dict(
    arch="retnet_base",
    label_smoothing=0.1,  # the criterion's, not the model's
    decoder_embed_dim=WIDTH,
    decoder_retention_heads=HEADS,
    decoder_ffn_embed_dim=INNER,
    decoder_layers=LAYERS,
    activation_fn="gelu",
    no_scale_embedding=False,
    layernorm_embedding=True,
    share_decoder_input_output_embed=False,
    max_target_positions=None,
)


def old_weights(deepnorm: bool = False) -> dict[str, Tensor]:
    """Random weights under torchscale's names before October 2023."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    weights = {"embed_tokens.weight": draw(VOCABULARY, WIDTH)}
    value = 2 * WIDTH
    shapes = {
        "retention.q_proj": (WIDTH, WIDTH),
        "retention.k_proj": (WIDTH, WIDTH),
        "retention.v_proj": (value, WIDTH),
        "retention.g_proj": (value, WIDTH),
        "retention.out_proj": (WIDTH, value),
        "ffn.fc1": (INNER, WIDTH),
        "ffn.fc2": (WIDTH, INNER),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            small = 0.3 if "q_proj" in name or "k_proj" in name else 1.0
            weights[f"layers.{layer}.{name}.weight"] = small * draw(*shape)
            weights[f"layers.{layer}.{name}.bias"] = small * 0.1 * draw(shape[0])
    norms = {
        f"layers.{i}.{name}_layer_norm": WIDTH
        for i in range(LAYERS)
        for name in ("retention", "final")
    }
    norms["layernorm_embedding"] = WIDTH
    if not deepnorm:
        norms |= {f"layers.{i}.ffn.ffn_layernorm": INNER for i in range(LAYERS)}
        norms["layer_norm"] = WIDTH
    for name, width in norms.items():
        weights[f"{name}.weight"] = 1 + draw(width)
        weights[f"{name}.bias"] = draw(width)
    weights["output_projection.weight"] = draw(VOCABULARY, WIDTH)
    weights["retnet_rel_pos.decay"] = log_decays(HEADS, False)
    weights["retnet_rel_pos.angle"] = torch.ones(WIDTH // HEADS, dtype=torch.float64)
    return weights


def old_logits(
    weights: dict[str, Tensor], ids: Tensor, eps: float, head_eps: float, deepnorm: bool
) -> Tensor:
    """What those weights compute, restated from the paper's parallel form (arXiv:2307.08621,
    equations 5 and 8): [B, T] -> [B, T, vocabulary], in float64."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        scaled = (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        steps = torch.arange(x.shape[1], dtype=torch.float64)
        angles = steps[:, None] / 10000 ** torch.linspace(
            0, 1, x.shape[-1] // 2, dtype=torch.float64
        )
        return torch.view_as_real(
            pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        ).flatten(-2)

    def retention(name: str, x: Tensor) -> Tensor:
        q, k, v = (linear(f"{name}.{p}_proj", x).unflatten(-1, (HEADS, -1)) for p in "qkv")
        q, k = rotate(q), rotate(k * q.shape[-1] ** -0.5)
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))
        decay = gamma[:, None, None] ** distance.clamp(min=0) * (distance >= 0)
        scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * decay / decay.sum(-1, True).sqrt()
        assert scores.sum(-1).abs().max() < 1, "its clamp, which ours does without, would be felt"
        o = torch.einsum("bhnm,bmhv->bnhv", scores, v)
        o = (o - o.mean(-1, True)) / (o.var(-1, correction=0, keepdim=True) + head_eps).sqrt()
        return linear(
            f"{name}.out_proj", functional.silu(linear(f"{name}.g_proj", x)) * o.flatten(-2)
        )

    def feed_forward(name: str, x: Tensor) -> Tensor:
        x = functional.gelu(linear(f"{name}.fc1", x))
        return linear(f"{name}.fc2", x if deepnorm else norm(f"{name}.ffn_layernorm", x))

    x = norm("layernorm_embedding", weights["embed_tokens.weight"][ids] * math.sqrt(WIDTH))
    for layer in range(LAYERS):
        for branch, name in ((retention, "retention"), (feed_forward, "final")):
            part, before = f"layers.{layer}.{name}", f"layers.{layer}.{name}_layer_norm"
            part = part.replace("final", "ffn")
            if deepnorm:
                x = norm(before, (2 * LAYERS) ** 0.25 * x + branch(part, x))
            else:
                x = x + branch(part, norm(before, x))
    return (x if deepnorm else norm("layer_norm", x)) @ weights["output_projection.weight"].T
