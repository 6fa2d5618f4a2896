"""What is computed: RetNet and NucleusX on transformers, registered with its Auto classes on
import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from retnet.models.configuration import NucleusXConfig, RetNetConfig
from retnet.models.nucleus_x import (
    NucleusXForCausalLM,
    NucleusXForSequenceClassification,
    NucleusXModel,
)
from retnet.models.retnet import RetNetForCausalLM, RetNetForSequenceClassification, RetNetModel
from retnet.models.state import RetentionCache

for _config, _model, _causal, _classifier in (
    (RetNetConfig, RetNetModel, RetNetForCausalLM, RetNetForSequenceClassification),
    (NucleusXConfig, NucleusXModel, NucleusXForCausalLM, NucleusXForSequenceClassification),
):
    # exist_ok: another library registers the model type "retnet" too
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _causal, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _classifier, exist_ok=True)

__all__ = [
    "NucleusXConfig",
    "NucleusXForCausalLM",
    "NucleusXForSequenceClassification",
    "NucleusXModel",
    "RetNetConfig",
    "RetNetForCausalLM",
    "RetNetForSequenceClassification",
    "RetNetModel",
    "RetentionCache",
]
