"""Configs of every published RetNet and NucleusX, told apart by their keys and put into ours.

A table of formats and pure functions on dicts; `our_fields` is what `configuration.py` calls. Not
here: weights and their names (`weights.py`).
"""

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

TRANSFORMERS_KEYS = frozenset(
    "add_cross_attention attn_implementation auto_map cls_token_id cross_attention_hidden_size "
    "custom_pipelines decoder_start_token_id experts_implementation finetuning_task fusion_config "
    "is_composition is_decoder mask_token_id model_type name_or_path num_labels output_attentions "
    "per_layer_config prefix pruned_heads quantization_config sep_token_id task_specific_params "
    "tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class torch_dtype "
    "torchscript transformers_weights unk_token_id use_bfloat16 use_return_dict".split()
)
"What transformers itself writes into a config.json, of any version, beside its fields."


@dataclass(frozen=True)
class Format:
    """One published config format."""

    name: str
    marks: frozenset[str]
    "Keys that no other format has."
    defaults: Callable[[dict], dict]
    "Its explicit fields, in our names where there are any -> our fields where it is silent."
    renamed: Mapping[str, str] = field(default_factory=dict)
    "Its key -> our field, where no alias of our config says so already."
    supported: Mapping[str, tuple] = field(default_factory=dict)
    "Key -> the values that our models can be."
    ignored: frozenset[str] = frozenset()
    "Keys that change nothing that is computed."

    @property
    def keys(self) -> frozenset[str]:
        """Every key of its own."""
        return self.marks | self.ignored | self.renamed.keys() | self.supported.keys()


def _gated(given: dict) -> dict:
    """The shared part of all formats with RMSNorm and a gated feed-forward: one eps for all."""
    return dict(use_glu=True, norm="rms_norm", groupnorm_eps=given.get("layernorm_eps", 1e-6))


def _first_torchscale(given: dict) -> dict:
    """torchscale before October 2023 and what was copied from it: biases, LayerNorm, values twice
    as wide as the hidden size. The head norm's eps was 1e-6 for a while (`convert.py` warns)."""
    width = given.get("decoder_embed_dim", 768)
    eps = given.get("layernorm_eps", 1e-5)
    return dict(
        decoder_value_embed_dim=int(given.get("value_factor", 2)) * width,
        decoder_ffn_embed_dim=1536,
        use_glu=False,
        norm="layer_norm",
        retention_bias=True,
        layernorm_eps=eps,
        groupnorm_eps=eps,
    )


def _torchscale(given: dict) -> dict:
    if given.get("vocab_size", -1) < 1:
        raise ValueError(
            f"vocab_size={given.get('vocab_size', -1)}: a torchscale config may leave the "
            "vocabulary to its caller; give vocab_size, the rows of the embedding"
        )
    sizes = dict(decoder_layers=12, decoder_embed_dim=768, decoder_retention_heads=3)
    widths = dict(decoder_value_embed_dim=1280, decoder_ffn_embed_dim=1280)
    switches = dict(activation_fn="gelu", layernorm_embedding=False, no_scale_embedding=True)
    tokens = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)  # the dictionary's
    first = given.get("retention_bias", "decoder_value_embed_dim" not in given)
    if not first and given.get("deepnorm") and given.get("decoder_normalize_before"):
        raise ValueError(
            "deepnorm=True with decoder_normalize_before=True: since December 2023 torchscale adds "
            "branches of the normalized input to a scaled residual, neither DeepNorm nor pre-norm; "
            "such weights cannot be loaded"
        )
    variant = _first_torchscale(given) if first else widths | _gated(given)
    form = dict(forward_mode="chunkwise" if given.get("chunkwise_recurrent") else "parallel")
    return sizes | switches | tokens | form | variant


def _syncdoth(given: dict) -> dict:
    sizes = dict(vocab_size=50257, decoder_layers=12, decoder_embed_dim=768)
    widths = dict(decoder_value_embed_dim=1280, decoder_ffn_embed_dim=1280)
    switches = dict(activation_fn="gelu", layernorm_embedding=False, no_scale_embedding=True)
    tokens = dict(bos_token_id=None, eos_token_id=0, pad_token_id=0)
    first = "value_factor" in given
    # its plain feed-forward keeps LayerNorm inside while all other norms are RMSNorm
    variant = _gated(given) | dict(use_ffn_rms_norm=False)
    if first:  # transformers ties where a class does not say
        variant = _first_torchscale(given) | dict(tie_word_embeddings=True)
    heads = dict(decoder_retention_heads=2 if first else 3)
    return sizes | heads | widths | switches | tokens | variant


def _fla(given: dict) -> dict:
    heads = given.get("decoder_retention_heads", 8)
    kv_heads = given.get("num_kv_heads", given.get("num_key_value_heads"))
    if kv_heads not in (None, heads):
        raise ValueError(
            f"num_kv_heads={kv_heads} with num_heads={heads}: every retention head needs keys and "
            "values of its own; needed num_kv_heads=null"
        )
    width = given.get("decoder_embed_dim", 2048)
    ratio = given.get("hidden_ratio", 2)
    intermediate = int(width * (4 if ratio is None else ratio) * 2 / 3)
    mode = given.get("attn_mode", "chunk")
    return _gated(given) | dict(
        decoder_layers=24,
        decoder_embed_dim=width,
        decoder_retention_heads=heads,
        decoder_value_embed_dim=int(width * given.get("expand_v", 2)),
        decoder_ffn_embed_dim=256 * math.ceil(intermediate / 256),
        layernorm_embedding=False,
        no_scale_embedding=True,
        head_norm_affine=bool(given.get("elementwise_affine", True)),
        rotary_interleaved=False,
        rope_frequencies=True,
        score_norm=False,
        forward_mode={"parallel": mode, "fused_recurrent": "recurrent"}.get(mode, "chunkwise"),
    )


def _nucleus_retnet(given: dict) -> dict:
    return dict(use_glu=True, norm="rms_norm", layernorm_embedding=True, no_scale_embedding=False)


def _nucleus_first(given: dict) -> dict:
    return dict(groupnorm_eps=given.get("rms_norm_eps", 1e-6))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORMATS = {
    "retnet": (
        Format(
            "flash-linear-attention",
            _words(
                "attn_mode expand_k expand_v hidden_ratio elementwise_affine num_kv_heads "
                "fuse_norm fuse_swiglu fuse_cross_entropy fuse_linear_cross_entropy"
            ),
            _fla,
            {"hidden_act": "activation_fn", "rms_norm_eps": "layernorm_eps"},
            {
                "attn_mode": ("chunk", "fused_chunk", "parallel", "fused_recurrent"),
                "expand_k": (1,),
                "use_output_gate": (True,),
                "hidden_act": ("swish",),
                **dict.fromkeys(_words("feature_map attn attnres_block_size"), (None,)),
                **dict.fromkeys(_words("use_short_conv use_gk use_gv use_l2warp"), (False,)),
            },
            _words("conv_size share_conv_kernel max_position_embeddings num_key_value_heads"),
        ),
        Format(
            "syncdoth/RetNet in NucleusX's names",
            _words("rms_norm_eps rms_norm_embedding"),
            _nucleus_retnet,
            {"rms_norm_eps": "layernorm_eps", "rms_norm_embedding": "layernorm_embedding"},
        ),
        Format(  # after the one above, which has output_retentions too
            "syncdoth/RetNet",
            _words("forward_impl output_retentions value_factor"),
            _syncdoth,
            ignored=_words("disable_fused_ops"),
        ),
        Format(
            "torchscale",
            _words(
                "share_decoder_input_output_embed chunkwise_recurrent encoder_normalize_before "
                "moe_freq moe_expert_count no_output_layer multiway xpos_rel_pos xpos_scale_base "
                "max_target_positions checkpoint_activations"
            ),
            _torchscale,
            {
                "share_decoder_input_output_embed": "tie_word_embeddings",
                "norm_embedding": "layernorm_embedding",
            },
            {
                "moe_freq": (0,),
                "multiway": (False,),
                "xpos_rel_pos": (False,),
                "no_output_layer": (False,),
            },
            _words(
                "moe_top1_expert moe_gating_use_fp32 moe_eval_capacity_token_fraction use_xmoe "
                "moe_second_expert_policy moe_normalize_gate_prob_before_dropping rel_pos_buckets "
                "max_rel_pos fsdp ddp_rank"
            ),
        ),
    ),
    "nucleus_x": (Format("NucleusX, first revision", _words("is_decoder subln"), _nucleus_first),),
}
OURS = Format("Hugging Face", frozenset(), lambda given: {})
FROM_FAIRSEQ = _words(
    "decoder_embed_dim decoder_value_embed_dim decoder_retention_heads decoder_ffn_embed_dim "
    "decoder_layers decoder_normalize_before activation_fn dropout drop_path_rate deepnorm subln "
    "activation_dropout no_scale_embedding layernorm_embedding norm_embedding layernorm_eps "
    "norm_eps recurrent_chunk_size chunkwise_recurrent share_decoder_input_output_embed moe_freq "
    "multiway xpos_rel_pos no_output_layer"
)
"What torchscale takes from fairseq's arguments and what of it matters here."


def find_format(given: Collection[str], model_type: str) -> Format:
    """The format of a config with these keys."""
    return next((form for form in FORMATS[model_type] if form.marks & set(given)), OURS)


def format_keys(model_type: str) -> frozenset[str]:
    """Every key that only published formats have."""
    return frozenset().union(*(form.keys for form in FORMATS[model_type]))


def our_fields(
    given: Mapping[str, Any],
    model_type: str,
    fields: Collection[str],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """A published config, or ours, in our fields, with what the format leaves unsaid filled in.

    given: keys as written; fields: our config's; aliases: other names of these. Keys of
    transformers stay as they are. Raises ValueError for what our models cannot be, for unknown keys
    and for contradictions.
    """
    form = find_format(given, model_type)
    names = {**aliases, **form.renamed}
    for key, value in given.items():
        if value not in form.supported.get(key, (value,)):
            needed = " or ".join(map(str, form.supported[key]))
            raise ValueError(f"{key}={value!r} ({form.name}): our models need {key}={needed}")
        _refuse_unknown(key, names.get(key, key), form, fields, aliases)
    explicit = rename(given, names)
    if explicit.get("decoder_ffn_embed_dim", 0) is None:
        del explicit["decoder_ffn_embed_dim"]  # flash-linear-attention: derive it
    if form.name == "torchscale" and explicit.get("use_glu", "decoder_value_embed_dim" in explicit):
        explicit.pop("subln", None)  # written always, and without a meaning for a gated model
    try:
        result = form.defaults(explicit) | explicit
    except TypeError as error:
        raise ValueError(f"a size in this {form.name} config is no number: {error}") from error
    _refuse_contradictions(explicit)
    if result.get("deepnorm"):
        result["decoder_normalize_before"] = False
    if result.get("decoder_normalize_before") is False:
        result["subln"] = False
    gone = (form.keys - fields) | {"use_return_dict"} | ({"subln"} - fields)
    return {key: value for key, value in result.items() if key not in gone}


def rename(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`given` under its `names`; ValueError where two keys of it differ over one."""
    result: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in given.items():
        name = names.get(key, key)
        if result.setdefault(name, value) != value:
            raise ValueError(
                f"{key}={value!r} and {written[name]}={result[name]!r} are one field under two "
                "names; give one of them"
            )
        written[name] = key
    return result


def _refuse_unknown(
    key: str, ours: str, form: Format, fields: Collection[str], aliases: Mapping[str, str]
) -> None:
    if ours in fields or key in form.keys | TRANSFORMERS_KEYS or key.startswith("_"):
        return
    near = difflib.get_close_matches(key, [*fields, *aliases, *form.keys], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{key} is not a field of this config{hint}")


def _refuse_contradictions(explicit: Mapping[str, Any]) -> None:
    before = explicit.get("decoder_normalize_before")
    if explicit.get("deepnorm") and before:
        raise ValueError(
            "deepnorm=True normalizes after every branch, decoder_normalize_before=True before it; "
            "leave one of them out"
        )
    if explicit.get("subln") and explicit.get("deepnorm"):
        raise ValueError(
            "deepnorm=True and subln=True are two ways to steady the same branches; leave one out"
        )
    if explicit.get("subln") and before is False:
        raise ValueError(
            "subln=True needs normalization before every branch; set decoder_normalize_before=True "
            "or subln=False"
        )
