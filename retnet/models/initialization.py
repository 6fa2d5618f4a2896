"""All initial weights, in one function whose docstring is the table."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from transformers import initialization as init

from retnet.models.configuration import RetentionConfig
from retnet.models.feed_forward import FeedForward, GatedFeedForward
from retnet.models.norms import HeadNorm, RMSNorm
from retnet.models.retention import MultiScaleRetention

OUT_PROJECTION_GAIN = 2**-1


def initialize(module: nn.Module, config: RetentionConfig) -> None:
    """Initializes the weights that `module` answers for; called once for every module of a model.

    | weight                      | initial value                                               |
    |-----------------------------|-------------------------------------------------------------|
    | embedding                   | N(0, D^-1/2), so that times sqrt(D) it has unit variance    |
    | q, k, v, g projections      | xavier uniform, gain `initializer_factor` (2^-2.5)          |
    | out projection              | xavier uniform, gain 2^-1                                   |
    | feed-forward fc1, gate, fc2 | N(0, `initializer_range`)                                   |
    | output head                 | N(0, `lm_head_initializer_range`), by default D^-1/2 / 4    |
    | classification head         | N(0, `initializer_range`)                                   |
    | norms                       | weight 1, bias 0                                            |
    | biases                      | 0                                                           |

    v, out, fc1 and fc2 take the factor of `branch_factor` on top, each once. Gains are
    torchscale's. The head differs from the published D^-1/2, which starts half a nat above
    ln(vocabulary); a quarter of it starts 1/32 above. A tied head takes the same small scale, for
    the same reason. Projections are drawn one by one, in the same order, where they are rows of one
    weight too: the same numbers in both layouts.
    """
    factor = branch_factor(config)
    if isinstance(module, nn.Embedding):
        tied = config.tie_word_embeddings
        std = config.lm_head_initializer_range if tied else config.hidden_size**-0.5
        _draw(init.normal_, module.weight, std=std)
    elif isinstance(module, MultiScaleRetention):
        last = ("out_proj", module.out_proj.weight, module.out_proj.bias)
        for name, weight, bias in (*module.named_projections(), last):
            gain = OUT_PROJECTION_GAIN if name == "out_proj" else config.initializer_factor
            gain *= factor if name in ("v_proj", "out_proj") else 1.0
            _draw(init.xavier_uniform_, weight, gain=gain)
            _zero(bias)
    elif isinstance(module, FeedForward | GatedFeedForward):
        gated = isinstance(module, GatedFeedForward)
        first = (
            module.named_projections() if gated else [("fc1", module.fc1.weight, module.fc1.bias)]
        )
        for name, weight, bias in (*first, ("fc2", module.fc2.weight, module.fc2.bias)):
            std = config.initializer_range * (1.0 if name == "gate" else factor)
            _draw(init.normal_, weight, std=std)
            _zero(bias)
    elif isinstance(module, RMSNorm | HeadNorm | nn.LayerNorm):
        if module.weight is not None:
            init.ones_(module.weight)
        _zero(getattr(module, "bias", None))
    elif isinstance(getattr(module, "lm_head", None), nn.Linear):
        _draw(init.normal_, module.lm_head.weight, std=config.lm_head_initializer_range)
    elif isinstance(getattr(module, "score", None), nn.Linear):
        _draw(init.normal_, module.score.weight, std=config.initializer_range)


def branch_factor(config: RetentionConfig) -> float:
    """What the residual branches' v, out, fc1 and fc2 are multiplied by, for L layers.

    (8L)^(-1/4) with DeepNorm (arXiv:2203.00555); sqrt(ln 2L) with sub-LN (arXiv:2210.06423), the
    norm inside the feed-forward, which gated ones do not have; else 1.
    """
    if config.deepnorm:
        return (8 * config.num_layers) ** -0.25
    if config.subln and not config.use_glu:
        return math.log(2 * config.num_layers) ** 0.5
    return 1.0


def _draw(fill: Callable[..., Tensor], weight: Tensor, **arguments: float) -> None:
    """Draws in float32, so that a model built in bfloat16 is the float32 one, rounded."""
    if not getattr(weight, "_is_hf_initialized", False):  # loaded: transformers' mark
        weight.copy_(fill(weight.float(), **arguments))


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        init.zeros_(bias)
