"""NucleusX under its published names: RetNet with RMSNorm everywhere and SwiGLU."""

from retnet.models.configuration import NucleusXConfig
from retnet.models.decoder import DecoderLayer, DecoderModel
from retnet.models.heads import DecoderForCausalLM, DecoderForSequenceClassification


class NucleusXDecoderLayer(DecoderLayer):
    """One layer of NucleusX."""

    norm_names = ("retention_rms_norm", "final_rms_norm")


class NucleusXModel(DecoderModel):
    """NucleusX without a head: token ids [B, T] to hidden states [B, T, D]."""

    config_class = NucleusXConfig
    layer_class = NucleusXDecoderLayer
    norm_names = ("rms_norm_embedding", "rms_norm")
    _no_split_modules = ["NucleusXDecoderLayer"]


class NucleusXForCausalLM(DecoderForCausalLM):
    """NucleusX with a language modeling head."""

    config_class = NucleusXConfig
    model_class = NucleusXModel


class NucleusXForSequenceClassification(DecoderForSequenceClassification):
    """NucleusX with a classification head on the last real token."""

    config_class = NucleusXConfig
    model_class = NucleusXModel
