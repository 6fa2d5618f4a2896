"""RetNet (arXiv:2307.08621) under its published names, in both published variants (see
`RetNetConfig`)."""

from retnet.models.configuration import RetNetConfig
from retnet.models.decoder import DecoderLayer, DecoderModel
from retnet.models.heads import DecoderForCausalLM, DecoderForSequenceClassification


class RetNetDecoderLayer(DecoderLayer):
    """One layer of RetNet."""

    norm_names = ("retention_layer_norm", "final_layer_norm")


class RetNetModel(DecoderModel):
    """RetNet without a head: token ids [B, T] to hidden states [B, T, D]."""

    config_class = RetNetConfig
    layer_class = RetNetDecoderLayer
    norm_names = ("layernorm_embedding", "layer_norm")
    _no_split_modules = ["RetNetDecoderLayer"]


class RetNetForCausalLM(DecoderForCausalLM):
    """RetNet with a language modeling head."""

    config_class = RetNetConfig
    model_class = RetNetModel


class RetNetForSequenceClassification(DecoderForSequenceClassification):
    """RetNet with a classification head on the last real token."""

    config_class = RetNetConfig
    model_class = RetNetModel
