"""What every model of ours tells transformers: how to initialize, load and save it."""

from torch import nn
from transformers import PreTrainedModel

from retnet.models.initialization import initialize


class RetentionPreTrainedModel(PreTrainedModel):
    """What every model of ours tells transformers."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state cannot be cropped: no assisted or contrastive decoding
    # Published checkpoints hold their angles and decays; ours are computed.
    _keys_to_ignore_on_load_unexpected = [r"rel_pos\.(angle|decay)$", r"decoder\.version"]

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers passes over modules of outside code that own no weights themselves, because
        # such code may overwrite loaded weights; ours initializes a layer's projections from the
        # layer, through transformers' own functions, which leave loaded weights alone.
        super()._initialize_weights(module, is_custom_code=False)
