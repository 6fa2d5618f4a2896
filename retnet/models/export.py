"""From weights to a Hugging Face folder."""

from pathlib import Path

import torch
from torch import Tensor

from retnet.models.configuration import NucleusXConfig, RetentionConfig
from retnet.models.nucleus_x import NucleusXForCausalLM
from retnet.models.retnet import RetNetForCausalLM


def export_model(config: RetentionConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors for `from_pretrained`.

    weights: as the model's `state_dict()` names them, all of one dtype, which the files keep.
    """
    model_class = NucleusXForCausalLM if isinstance(config, NucleusXConfig) else RetNetForCausalLM
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
