"""What a model is: the public Hugging Face configs of RetNet and NucleusX.

The public classes keep the published field names (`decoder_embed_dim`, ...) so that published
config.json files load, and answer to the field's standard names through `attribute_map`. Not here:
modules, and the `model=` group (`build.py`).
"""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from retnet.models.published import FORMATS, format_keys, our_fields, rename

FORWARD_MODES = ("parallel", "chunkwise", "recurrent")
SIZES = (
    "vocab_size",
    "decoder_layers",
    "decoder_embed_dim",
    "decoder_retention_heads",
    "decoder_value_embed_dim",
    "decoder_ffn_embed_dim",
    "recurrent_chunk_size",
)
SHARES = ("dropout", "activation_dropout", "drop_path_rate", "label_smoothing")


def accepts_published(config_class: type) -> type:
    """Lets a config class take the fields of every published format, from files and from the
    constructor; see `published.our_fields`, also for what is refused."""
    own_init: Callable = config_class.__init__
    aliases = config_class.attribute_map
    # transformers takes generation settings out of a config again
    known = {field.name for field in fields(config_class)} | vars(GenerationConfig()).keys()

    @wraps(own_init)
    def __init__(self: Any, **given: Any) -> None:
        try:
            own_init(self, **our_fields(given, config_class.model_type, known, aliases))
        except StrictDataclassFieldValidationError as error:  # a wrong type, and no ValueError
            raise ValueError(str(error)) from error

    config_class.__init__ = __init__
    return config_class


@strict
class RetentionConfig(PreTrainedConfig):
    """Fields that RetNet and NucleusX share.

    vocab_size, decoder_layers (L), decoder_embed_dim (D), decoder_retention_heads (H),
    decoder_value_embed_dim (H * V), decoder_ffn_embed_dim: sizes; key width per head K = D / H,
    which must be even. forward_mode: "parallel", "chunkwise" or "recurrent": how sequences of
    several tokens are computed. recurrent_chunk_size: tokens per chunk of the chunkwise form.
    use_lm_decay: decays 1 - exp(linspace(ln 1/32, ln 1/512, H)) instead of 1 - 2^(-5-h).
    no_scale_embedding: leave out the factor sqrt(D) on embeddings.
    deepnorm: post-norm with the residual scaled by (2L)^(1/4) (arXiv:2203.00555); implies not
    decoder_normalize_before. groupnorm_eps: eps of the norm over each head's output.
    z_loss_coeff: weight of mean(logsumexp(logits)^2) in the loss (arXiv:2204.02311, section 5).
    label_smoothing: share of the target's probability spread over the vocabulary.
    lm_head_initializer_range: None becomes D^-1/2 / 4.
    """

    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "decoder_embed_dim",
        "num_layers": "decoder_layers",
        "num_hidden_layers": "decoder_layers",
        "num_heads": "decoder_retention_heads",
        "num_attention_heads": "decoder_retention_heads",
        "value_dim": "decoder_value_embed_dim",
        "intermediate_size": "decoder_ffn_embed_dim",
        "forward_impl": "forward_mode",
        "output_retentions": "output_attentions",
    }

    vocab_size: int = 32000
    decoder_layers: int = 32
    decoder_embed_dim: int = 4096
    decoder_retention_heads: int = 16
    decoder_value_embed_dim: int = 6912
    decoder_ffn_embed_dim: int = 6912
    activation_fn: str = "swish"
    dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    decoder_normalize_before: bool = True
    no_scale_embedding: bool = False
    forward_mode: str = "parallel"
    recurrent_chunk_size: int = 512
    use_lm_decay: bool = False
    z_loss_coeff: float | int = 0.0
    label_smoothing: float | int = 0.0
    deepnorm: bool = False
    groupnorm_eps: float | int = 1e-6
    initializer_factor: float | int = 2**-2.5
    initializer_range: float | int = 0.02
    lm_head_initializer_range: float | int | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self._auto_class is None:
            # An exported folder's map to the code that it carries; this class is the package's, and
            # what it saves carries no code.
            kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        self.validate_architecture()  # here too: transformers' own call wraps what is raised
        if self.lm_head_initializer_range is None:
            self.lm_head_initializer_range = self.decoder_embed_dim**-0.5 / 4

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PreTrainedConfig:
        """As transformers'; overrides of fields count as in `override`."""
        known = {field.name for field in fields(cls)} | cls.attribute_map.keys()
        known |= format_keys(cls.model_type)
        overrides = {key: kwargs.pop(key) for key in (known - {"dtype"}) & kwargs.keys()}
        return super().from_dict(cls.override(config_dict, overrides), **kwargs)

    @classmethod
    def override(cls, written: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """A published config with fields replaced.

        An override counts as written there, whatever the field's name is, so that what follows from
        the one follows from the other; a field that is not there gets our name, because a format's
        own would make the config one of that format.
        """
        names = dict(cls.attribute_map)
        for form in FORMATS[cls.model_type]:
            names |= form.renamed
        there = {names.get(key, key): key for key in written}
        return written | rename(rename(overrides, names), there)

    def validate_architecture(self):
        """Raises ValueError on fields out of range and on sizes that do not fit together (called by
        transformers too)."""
        for key in SIZES:
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: needed at least 1")
        for key in SHARES:
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: needed 0 <= {key} < 1")
        for key in ("groupnorm_eps", self.attribute_map["norm_eps"]):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)}: needed at least 0")
        for key in ("is_encoder_decoder", "add_cross_attention"):
            if getattr(self, key, False):
                raise ValueError(f"{key}=True: our models are decoders alone; needed {key}=False")
        if self.activation_fn not in ACT2FN:
            known = ", ".join(sorted(ACT2FN))
            raise ValueError(f"activation_fn={self.activation_fn!r}: needed one of {known}")
        check_sizes(
            self.decoder_embed_dim,
            self.decoder_value_embed_dim,
            self.decoder_retention_heads,
            ("decoder_embed_dim", "decoder_value_embed_dim", "decoder_retention_heads"),
        )
        if self.forward_mode not in FORWARD_MODES:
            raise ValueError(
                f"forward_mode={self.forward_mode!r}: needed one of {', '.join(FORWARD_MODES)}"
            )

    @property
    def key_dim(self) -> int:
        """Key width per head, K."""
        return self.decoder_embed_dim // self.decoder_retention_heads


@accepts_published
@strict
class RetNetConfig(RetentionConfig):
    """RetNet (arXiv:2307.08621), in both published variants.

    use_glu False: LayerNorm and a two-matrix feed-forward with biases, with a LayerNorm inside it
    when `subln` (the transformers port). use_glu True: RMSNorm and a gated feed-forward without
    biases (torchscale since September 2023). norm: "layer_norm" or "rms_norm" overrules that
    pairing.

    What flash-linear-attention's weights need: rotary_interleaved False rotates pairs (i, i + K/2)
    instead of (2i, 2i+1); rope_frequencies takes 10000^(-2i/K); score_norm False leaves out
    Z_n^-1/2; head_norm_affine gives the norm over each head's output a weight [V], shared by the
    heads. retention_bias: biases in the retention's projections (torchscale before October 2023).
    use_ffn_rms_norm: RMSNorm inside the plain feed-forward, whatever `norm` is.

    Given here, forward_impl and output_retentions mean a config of syncdoth/RetNet, with its
    defaults; `from_pretrained` and `from_dict` take them for what they are called here.
    """

    model_type = "retnet"
    attribute_map = RetentionConfig.attribute_map | {
        "embedding_norm": "layernorm_embedding",
        "norm_eps": "layernorm_eps",
    }

    use_glu: bool = False
    norm: str | None = None
    subln: bool = True
    use_ffn_rms_norm: bool | None = None
    retention_bias: bool = False
    head_norm_affine: bool = False
    rotary_interleaved: bool = True
    rope_frequencies: bool = False
    score_norm: bool = True
    layernorm_embedding: bool = True
    layernorm_eps: float | int = 1e-6
    no_scale_embedding: bool = True

    def __post_init__(self, **kwargs):
        if self.norm is None:
            self.norm = "rms_norm" if self.use_glu else "layer_norm"
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raises ValueError on sizes or names that do not fit together (called by transformers)."""
        super().validate_architecture()
        if self.norm not in ("layer_norm", "rms_norm"):
            raise ValueError(f"norm={self.norm!r}: needed layer_norm or rms_norm")


@accepts_published
@strict
class NucleusXConfig(RetentionConfig):
    """NucleusX: RetNet with SwiGLU and RMSNorm everywhere."""

    model_type = "nucleus_x"
    attribute_map = RetentionConfig.attribute_map | {
        "embedding_norm": "rms_norm_embedding",
        "norm_eps": "rms_norm_eps",
    }
    use_glu: ClassVar[bool] = True
    norm: ClassVar[str] = "rms_norm"
    subln: ClassVar[bool] = False
    retention_bias: ClassVar[bool] = False
    head_norm_affine: ClassVar[bool] = False
    rotary_interleaved: ClassVar[bool] = True
    rope_frequencies: ClassVar[bool] = False
    score_norm: ClassVar[bool] = True

    rms_norm_embedding: bool = True
    rms_norm_eps: float | int = 1e-6


def check_sizes(hidden: int, value: int, heads: int, keys: tuple[str, str, str]) -> None:
    """Raises ValueError, naming the keys given, where widths do not divide into heads."""
    if hidden % heads or (hidden // heads) % 2:
        raise ValueError(
            f"{keys[0]}={hidden} does not give {keys[2]}={heads} heads of an even key width; "
            f"make {keys[0]} a multiple of {2 * heads} or change {keys[2]}"
        )
    if value % heads:
        raise ValueError(
            f"{keys[1]}={value} does not divide into {keys[2]}={heads} heads; "
            f"make {keys[1]} a multiple of {heads} or change {keys[2]}"
        )
