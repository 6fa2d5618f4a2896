"""What every model of ours tells transformers: how to initialize, load and save it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from retnet.kernels import Kernels
from retnet.models.initialization import initialize
from retnet.models.weights import (
    are_foreign,
    check_fit,
    find_files,
    read_names,
    read_weights,
    translate_weights,
)

HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
)


def refuse_fused(*arguments: Any) -> None:
    """Raises ValueError where an argument is kernels with fused projections: transformers fills a
    model name by name, and theirs are not the files'."""
    if any(isinstance(given, Kernels) and given.fused_projections for given in arguments):
        raise ValueError(
            "from_pretrained got kernels with fused_projections=True, and files hold the separate "
            "weights; pass select_kernels(KernelsConfig(fused_projections=False)), or build the "
            "model from its config with these kernels and give load_state_dict the state dict of "
            "one that was loaded without them"
        )


class RetentionPreTrainedModel(PreTrainedModel):
    """What every model of ours tells transformers."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state cannot be cropped: no assisted or contrastive decoding
    # Published checkpoints hold their angles and decays; ours are computed.
    _keys_to_ignore_on_load_unexpected = [r"rel_pos\.(angle|decay)$", r"decoder\.version"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers passes over modules of outside code that own no weights themselves, because
        # such code may overwrite loaded weights; ours initializes a layer's projections from the
        # layer, through transformers' own functions, which leave loaded weights alone.
        super()._initialize_weights(module, False)

    def initialize_weights(self) -> None:
        """Gives every weight that was not loaded its initial value, also inside
        `deepspeed.zero.Init`, which splits a module's weights among the ranks as soon as it is
        built: there rank 0 initializes one module at a time, gathered."""
        absent = (
            parameter.numel() == 0
            for parameter in self.parameters()
            if hasattr(parameter, "ds_id") and not getattr(parameter, "_is_hf_initialized", False)
        )
        if any(absent):
            # here, because an exported folder carries this file to older releases, which lack it
            from transformers.integrations.deepspeed import initialize_weights_zero3

            initialize_weights_zero3(self)
        else:
            super().initialize_weights()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args: Any,
        config: PreTrainedConfig | str | Path | None = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """As transformers', from the folder or repository of any published format.

        Raises ValueError where a foreign checkpoint and its config do not fit together, and for
        kernels with fused projections.
        """
        refuse_fused(*args, *kwargs.values())
        source = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        files = [] if source is None else find_files(source, kwargs.get("variant"), **hub)
        names = [name for file in files for name in read_names(file)]
        if not are_foreign(names, cls.config_class.model_type):
            return super().from_pretrained(source, *args, config=config, **kwargs)
        older, dtype = kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None)
        dtype = dtype or older or "auto"
        if not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_pretrained(
                config or source, return_unused_kwargs=True, **(hub | kwargs)
            )
        if "generation_config" not in kwargs and cls.can_generate():
            try:
                kwargs["generation_config"] = GenerationConfig.from_pretrained(source, **hub)
            except OSError:
                pass  # there is none, and the config's token ids suffice
        return cls.from_published(read_weights(files), config, *args, dtype=dtype, **kwargs)

    @classmethod
    def from_published(
        cls, weights: dict[str, Tensor], config: PreTrainedConfig, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        """A model from published weights under their own names; the rest as `from_pretrained`."""
        refuse_fused(*args, *kwargs.values())
        weights = translate_weights(weights, config)
        with torch.device("meta"):
            skeleton = cls(config)
        prefix = "" if hasattr(skeleton, cls.base_model_prefix) else f"{cls.base_model_prefix}."
        expected = {prefix + name: tensor for name, tensor in skeleton.state_dict().items()}
        any_shape = kwargs.get("ignore_mismatched_sizes", False)
        check_fit(weights, expected, config.tie_word_embeddings, any_shape)
        return super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)
