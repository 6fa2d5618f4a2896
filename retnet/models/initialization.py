"""All initial weights, in one function whose docstring is the table."""

from torch import nn
from transformers import initialization as init

from retnet.models.configuration import RetentionConfig
from retnet.models.feed_forward import FeedForward, GatedFeedForward
from retnet.models.norms import RMSNorm
from retnet.models.retention import MultiScaleRetention

OUT_PROJECTION_GAIN = 2**-1


def initialize(module: nn.Module, config: RetentionConfig) -> None:
    """Initializes the weights that `module` owns; called once for every module of a model.

    | weight                      | initial value                                               |
    |-----------------------------|-------------------------------------------------------------|
    | embedding                   | N(0, D^-1/2), so that times sqrt(D) it has unit variance    |
    | q, k, v, g projections      | xavier uniform, gain `initializer_factor` (2^-2.5)          |
    | out projection              | xavier uniform, gain 2^-1                                   |
    | feed-forward fc1, gate, fc2 | N(0, `initializer_range`); biases 0                         |
    | output head                 | N(0, `lm_head_initializer_range`), by default D^-1/2 / 4    |
    | classification head         | N(0, `initializer_range`)                                   |
    | norms                       | weight 1, bias 0                                            |

    With deepnorm, v, out, fc1, gate and fc2 are divided by (8L)^(1/4), once (arXiv:2203.00555).
    Gains are torchscale's. The head differs from the published D^-1/2, which starts half a nat
    above ln(vocabulary); a quarter of it starts 1/32 above. A tied head takes the same small scale,
    for the same reason.
    """
    deepnorm = (8 * config.num_layers) ** -0.25 if config.deepnorm else 1.0
    head_std = config.lm_head_initializer_range
    if isinstance(module, nn.Embedding):
        init.normal_(
            module.weight, std=head_std if config.tie_word_embeddings else config.hidden_size**-0.5
        )
    elif isinstance(module, MultiScaleRetention):
        gain = config.initializer_factor
        for projection in (module.q_proj, module.k_proj, module.g_proj):
            init.xavier_uniform_(projection.weight, gain=gain)
        init.xavier_uniform_(module.v_proj.weight, gain=gain * deepnorm)
        init.xavier_uniform_(module.out_proj.weight, gain=OUT_PROJECTION_GAIN * deepnorm)
    elif isinstance(module, FeedForward | GatedFeedForward):
        for layer in module.children():
            if isinstance(layer, nn.Linear):
                init.normal_(layer.weight, std=config.initializer_range * deepnorm)
                if layer.bias is not None:
                    init.zeros_(layer.bias)
    elif isinstance(module, RMSNorm | nn.LayerNorm):
        init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)
    elif isinstance(getattr(module, "lm_head", None), nn.Linear):
        init.normal_(module.lm_head.weight, std=head_std)
    elif isinstance(getattr(module, "score", None), nn.Linear):
        init.normal_(module.score.weight, std=config.initializer_range)
