"""Small models with clear preferences."""

import torch

from retnet import NucleusXConfig, NucleusXForCausalLM, RetNetConfig, RetNetForCausalLM
from retnet.kernels import Kernels

VOCABULARY = 400
PLAIN_PIECES = 3 + 256
"Ids below are <unk>, <bos>, <eos> and the bytes; from here on pieces are whole text."
SIZES = dict(
    vocab_size=VOCABULARY,
    decoder_layers=2,
    decoder_embed_dim=32,
    decoder_retention_heads=2,
    decoder_value_embed_dim=48,
    decoder_ffn_embed_dim=40,
    recurrent_chunk_size=8,
)


def build_model(
    architecture: str, kernels: Kernels | None = None, **changes
) -> RetNetForCausalLM | NucleusXForCausalLM:
    """ "retnet" or "nucleus_x" in evaluation mode, with the same weights every time.

    Its head is large, so that the best token leads clearly and rounding decides nothing.
    """
    config_class, model_class = {
        "retnet": (RetNetConfig, RetNetForCausalLM),
        "nucleus_x": (NucleusXConfig, NucleusXForCausalLM),
    }[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_class(**SIZES | dict(lm_head_initializer_range=1.0) | changes)
        return model_class(config, kernels).eval()
