"""Configs of published formats become ours: their own defaults, their structure, and refusals."""

import json

import pytest
from transformers import AutoConfig

from retnet import NucleusXConfig, RetNetConfig
from tests.retnet.models.test_golden import FORMATS, GOLDEN

SYNCDOTH = {"forward_impl": "parallel", "decoder_retention_heads": 2}
FLA = {"attn_mode": "chunk"}
TORCHSCALE = {"chunkwise_recurrent": False, "vocab_size": 101}
NEW_TORCHSCALE = TORCHSCALE | {"decoder_value_embed_dim": 1281}


def fields_of(config, *keys):
    return {key: getattr(config, key) for key in keys}


STRUCTURE = {
    "torchscale": dict(use_glu=True, norm="rms_norm", no_scale_embedding=False, bos_token_id=None),
    "syncdoth_retnet": dict(use_glu=True, norm="rms_norm", eos_token_id=0, bos_token_id=None),
    "hf_add_retnet": dict(use_glu=False, norm="layer_norm", subln=True, no_scale_embedding=True),
    "nucleusx_reva": dict(no_scale_embedding=False, rms_norm_embedding=True, pad_token_id=0),
    "nucleusx": dict(no_scale_embedding=False, rms_norm_embedding=True, pad_token_id=0),
    "fla": dict(
        use_glu=True,
        norm="rms_norm",
        layernorm_embedding=False,
        no_scale_embedding=True,
        head_norm_affine=True,
        rotary_interleaved=False,
        rope_frequencies=True,
        score_norm=False,
        forward_mode="chunkwise",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_file_and_its_fields_are_the_same_config_of_ours(name, tmp_path):
    written = json.loads((GOLDEN / name / "config.json").read_text())
    config_class = NucleusXConfig if "nucleus" in name else RetNetConfig
    config = config_class.from_pretrained(GOLDEN / name)
    assert config.to_diff_dict() == config_class(**written).to_diff_dict()
    if "model_type" in written:
        assert AutoConfig.from_pretrained(GOLDEN / name).to_diff_dict() == config.to_diff_dict()
    sizes = fields_of(config, "hidden_size", "value_dim", "intermediate_size", "num_heads")
    assert list(sizes.values()) == [64, 96, 96, 2]
    assert fields_of(config, *STRUCTURE[name]) == STRUCTURE[name]
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    # what is saved is ours alone
    strangers = json.loads((tmp_path / "config.json").read_text()).keys() & (
        {"forward_impl", "attn_mode", "expand_v", "hidden_size", "moe_freq", "output_retentions"}
    )
    assert not strangers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            SYNCDOTH,
            dict(
                vocab_size=50257,
                decoder_embed_dim=768,
                decoder_value_embed_dim=1280,
                decoder_layers=12,
                activation_fn="gelu",
                layernorm_embedding=False,
                no_scale_embedding=True,
                use_glu=True,
                pad_token_id=0,
                eos_token_id=0,
                bos_token_id=None,
            ),
        ),
        (
            SYNCDOTH | {"use_glu": False, "pad_token_id": None},
            dict(norm="rms_norm", use_ffn_rms_norm=False, subln=True, pad_token_id=None),
        ),
        (
            SYNCDOTH | {"value_factor": 2, "decoder_embed_dim": 64},
            dict(
                decoder_value_embed_dim=128,
                norm="layer_norm",
                use_glu=False,
                retention_bias=True,
                groupnorm_eps=1e-5,
                tie_word_embeddings=True,
            ),
        ),
        (
            SYNCDOTH | {"value_factor": 2, "tie_word_embeddings": False},
            dict(tie_word_embeddings=False),
        ),
        (
            NEW_TORCHSCALE,
            dict(
                decoder_ffn_embed_dim=1280,
                activation_fn="gelu",
                layernorm_eps=1e-6,
                use_glu=True,
                retention_bias=False,
                eos_token_id=None,
            ),
        ),
        (
            TORCHSCALE | {"decoder_embed_dim": 96, "share_decoder_input_output_embed": True},
            dict(
                decoder_value_embed_dim=192,
                decoder_ffn_embed_dim=1536,
                norm="layer_norm",
                use_glu=False,
                retention_bias=True,
                subln=True,
                layernorm_eps=1e-5,
                groupnorm_eps=1e-5,
                tie_word_embeddings=True,
            ),
        ),
        (TORCHSCALE | {"groupnorm_eps": 1e-6}, dict(groupnorm_eps=1e-6, layernorm_eps=1e-5)),
        (NEW_TORCHSCALE | {"norm_eps": 1e-4}, dict(layernorm_eps=1e-4, groupnorm_eps=1e-4)),
        (NEW_TORCHSCALE | {"norm_embedding": True}, dict(layernorm_embedding=True)),
        (NEW_TORCHSCALE | {"chunkwise_recurrent": True}, dict(forward_mode="chunkwise")),
        # a gated model has no inner norm: torchscale's subln says nothing about it
        (
            NEW_TORCHSCALE | {"subln": True, "decoder_normalize_before": False},
            dict(decoder_normalize_before=False, deepnorm=False, subln=False),
        ),
        (
            FLA,
            dict(
                decoder_embed_dim=2048,
                decoder_layers=24,
                decoder_retention_heads=8,
                decoder_value_embed_dim=4096,
                decoder_ffn_embed_dim=2816,
                vocab_size=32000,
            ),
        ),
        (FLA | {"hidden_ratio": 4, "intermediate_size": None}, dict(decoder_ffn_embed_dim=5632)),
        (FLA | {"hidden_ratio": None, "hidden_size": 64}, dict(decoder_ffn_embed_dim=256)),
        (FLA | {"elementwise_affine": False}, dict(head_norm_affine=False)),
        (FLA | {"norm_eps": 1e-5, "expand_v": 1}, dict(groupnorm_eps=1e-5, value_dim=2048)),
        (FLA | {"num_kv_heads": 8, "max_position_embeddings": 9, "fuse_norm": False}, {}),
        (
            FLA | dict(use_gk=False, use_gv=False, num_key_value_heads=8, rms_norm_eps=1e-5),
            dict(layernorm_eps=1e-5, groupnorm_eps=1e-5),
        ),
        ({"attn_mode": "fused_recurrent"}, dict(forward_mode="recurrent")),
        ({"attn_mode": "parallel"}, dict(forward_mode="parallel")),
        (
            {"rms_norm_eps": 1e-5, "groupnorm_eps": 1e-6, "rms_norm_embedding": False},
            dict(layernorm_eps=1e-5, layernorm_embedding=False, use_glu=True, norm="rms_norm"),
        ),
    ],
)
def test_what_a_format_leaves_unsaid_is_its_own_default(given, expected):
    config = RetNetConfig(**given)
    assert fields_of(config, *expected) == expected


SYNCDOTH_FILE = dict(
    activation_dropout=0.0,
    activation_fn="gelu",
    decoder_embed_dim=64,
    decoder_ffn_embed_dim=96,
    decoder_layers=2,
    decoder_normalize_before=True,
    decoder_retention_heads=2,
    decoder_value_embed_dim=96,
    deepnorm=False,
    drop_path_rate=0.0,
    dropout=0.0,
    initializer_range=0.02,
    is_decoder=True,
    model_type="retnet",
    no_scale_embedding=False,
    output_retentions=False,
    recurrent_chunk_size=8,
    subln=True,
    tie_word_embeddings=False,
    transformers_version="4.29.1",
    use_cache=True,
    use_lm_decay=False,
    vocab_size=101,
)
BRANCHES = dict(
    main=dict(
        eos_token_id=0,
        forward_impl="parallel",
        layernorm_embedding=True,
        layernorm_eps=1e-5,
        pad_token_id=0,
    ),
    nucleusx_pr=dict(
        bos_token_id=1,
        eos_token_id=2,
        forward_mode="parallel",
        groupnorm_eps=1e-6,
        initializer_factor=2**-2.5,
        lm_head_initializer_range=0.01,
        pad_token_id=None,
        rms_norm_embedding=True,
        rms_norm_eps=1e-5,
    ),
)
BRANCHES["dev"] = BRANCHES["main"] | dict(disable_fused_ops=True, torch_dtype="bfloat16")
EXTRAS = [dict(unk_token_id=0), dict(use_ffn_rms_norm=False, use_glu=True, z_loss_coeff=0.0)]


@pytest.mark.parametrize("extra", EXTRAS, ids=["300m", "others"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_every_file_of_every_branch_of_syncdoth_loads(branch, extra, tmp_path):
    written = SYNCDOTH_FILE | BRANCHES[branch] | extra
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.to_diff_dict() == RetNetConfig(**written).to_diff_dict()
    assert config.use_glu and config.norm == "rms_norm" and config.layernorm_embedding
    assert config.layernorm_eps == 1e-5
    assert config.groupnorm_eps == (1e-6 if branch == "nucleusx_pr" else 1e-5)
    assert config.bos_token_id == (1 if branch == "nucleusx_pr" else None)


def test_the_first_revision_of_nucleus_x_has_one_eps():
    assert NucleusXConfig(is_decoder=True, subln=True, rms_norm_eps=1e-5).groupnorm_eps == 1e-5
    assert NucleusXConfig(rms_norm_eps=1e-5).groupnorm_eps == 1e-6


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (FLA | {"num_kv_heads": 2}, "num_kv_heads=2 with num_heads=8: .* needed num_kv_heads=null"),
        (FLA | {"num_key_value_heads": 4}, "num_kv_heads=4 with num_heads=8"),
        (FLA | {"use_gk": True}, "use_gk=True .* need use_gk=False"),
        (FLA | {"expand_k": 0.5}, r"expand_k=0.5 \(flash-linear-attention\): .* expand_k=1"),
        (FLA | {"feature_map": "relu"}, "feature_map='relu' .* need feature_map=None"),
        (FLA | {"use_short_conv": True}, "use_short_conv=True .* need use_short_conv=False"),
        (FLA | {"use_output_gate": False}, "use_output_gate=False .* need use_output_gate=True"),
        (FLA | {"attn": {"layers": [1]}}, "attn={'layers'.* need attn=None"),
        (FLA | {"attnres_block_size": 2}, "attnres_block_size=2 .* need attnres_block_size=None"),
        (FLA | {"hidden_act": "gelu"}, "hidden_act='gelu' .* need hidden_act=swish"),
        (FLA | {"use_l2warp": True}, "use_l2warp=True .* need use_l2warp=False"),
        ({"attn_mode": "chnk"}, "attn_mode='chnk' .* need attn_mode=chunk or fused_chunk"),
        (FLA | {"fuse_nrom": True}, "fuse_nrom is not a field .* did you mean fuse_norm"),
        (NEW_TORCHSCALE | {"moe_freq": 2}, r"moe_freq=2 \(torchscale\): .* moe_freq=0"),
        (NEW_TORCHSCALE | {"multiway": True}, "multiway=True .* need multiway=False"),
        (NEW_TORCHSCALE | {"xpos_rel_pos": True}, "xpos_rel_pos=True .* need xpos_rel_pos=False"),
        (NEW_TORCHSCALE | {"no_output_layer": True}, "no_output_layer=True .* no_output_layer=Fal"),
        (NEW_TORCHSCALE | {"vocab_size": -1}, "vocab_size=-1: .* give vocab_size"),
        (
            NEW_TORCHSCALE | {"deepnorm": True, "decoder_normalize_before": True},
            "neither DeepNorm nor pre-norm; such weights cannot be loaded",
        ),
        (
            TORCHSCALE | {"deepnorm": True, "decoder_normalize_before": True},
            "deepnorm=True normalizes after every branch, .* leave one of them out",
        ),
        (TORCHSCALE | {"vocab_size": "many"}, "a size in this torchscale config is no number"),
        (SYNCDOTH | {"moe_freq": 0}, "moe_freq is not a field of this config"),
    ],
)
def test_what_our_models_cannot_be_is_refused_with_a_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        RetNetConfig(**given)
