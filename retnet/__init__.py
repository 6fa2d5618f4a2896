"""Retentive language models: `import retnet` registers RetNet and NucleusX with transformers' Auto
classes."""

from retnet.models import (
    NucleusXConfig,
    NucleusXForCausalLM,
    NucleusXForSequenceClassification,
    NucleusXModel,
    RetentionCache,
    RetNetConfig,
    RetNetForCausalLM,
    RetNetForSequenceClassification,
    RetNetModel,
)

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
