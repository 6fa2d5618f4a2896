"""Config classes: published defaults, names, what is implied and what is refused."""

import json

import pytest
from transformers import AutoConfig

from retnet import NucleusXConfig, RetNetConfig

PUBLISHED = dict(
    vocab_size=32000,
    decoder_layers=32,
    decoder_embed_dim=4096,
    decoder_retention_heads=16,
    decoder_value_embed_dim=6912,
    decoder_ffn_embed_dim=6912,
    activation_fn="swish",
    dropout=0.0,
    activation_dropout=0.0,
    drop_path_rate=0.0,
    decoder_normalize_before=True,
    forward_mode="parallel",
    recurrent_chunk_size=512,
    use_lm_decay=False,
    z_loss_coeff=0.0,
    deepnorm=False,
    groupnorm_eps=1e-6,
    initializer_factor=2**-2.5,
    initializer_range=0.02,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
    use_cache=True,
    tie_word_embeddings=False,
)


@pytest.mark.parametrize("config_class", [RetNetConfig, NucleusXConfig])
def test_defaults_are_the_published_ones(config_class):
    config = config_class()
    for key, value in PUBLISHED.items():
        assert getattr(config, key) == value, key
    assert config.lm_head_initializer_range == 4096**-0.5 / 4
    assert config.norm_eps == 1e-6 and config.embedding_norm
    assert config.no_scale_embedding == (config_class is RetNetConfig)
    assert config.norm == ("layer_norm" if config_class is RetNetConfig else "rms_norm")


def test_standard_names_mean_the_published_fields():
    names = {
        "hidden_size": "decoder_embed_dim",
        "num_hidden_layers": "decoder_layers",
        "num_layers": "decoder_layers",
        "num_heads": "decoder_retention_heads",
        "num_attention_heads": "decoder_retention_heads",
        "intermediate_size": "decoder_ffn_embed_dim",
        "value_dim": "decoder_value_embed_dim",
    }
    for name, field in names.items():
        config = NucleusXConfig(**{name: 32})
        assert getattr(config, name) == getattr(config, field) == 32
    assert RetNetConfig(norm_eps=1e-4).layernorm_eps == 1e-4
    assert NucleusXConfig(norm_eps=1e-4).rms_norm_eps == 1e-4


def test_an_older_name_is_the_same_attribute():
    config = NucleusXConfig(forward_impl="chunkwise", output_retentions=True)
    assert config.forward_mode == config.forward_impl == "chunkwise"
    assert config.output_attentions and config.output_retentions


@pytest.mark.parametrize("config_class", [RetNetConfig, NucleusXConfig])
def test_deepnorm_implies_normalizing_after_the_branches(config_class):
    config = config_class(deepnorm=True)
    assert not config.decoder_normalize_before and not config.subln
    assert not RetNetConfig(decoder_normalize_before=False).subln


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"fogward_mode": "parallel"}, "fogward_mode is not a field .* mean forward_mode"),
        ({"nonsense": 1}, "nonsense is not a field of this config$"),
        ({"forward_mode": "paralel"}, "forward_mode='paralel': needed one of parallel"),
        ({"recurrent_chunk_size": 0}, "recurrent_chunk_size=0: needed at least 1"),
        ({"decoder_embed_dim": 30}, "decoder_embed_dim=30 .* decoder_retention_heads=16"),
        ({"deepnorm": True, "decoder_normalize_before": True}, "deepnorm=True .* leave one"),
        ({"deepnorm": True, "subln": True}, "deepnorm=True and subln=True .* leave one out"),
        ({"decoder_normalize_before": False, "subln": True}, "set decoder_normalize_before=True"),
        (
            {"forward_mode": "recurrent", "forward_impl": "parallel"},
            "forward_impl='parallel' and forward_mode='recurrent' are one field",
        ),
        (
            {"hidden_size": 64, "decoder_embed_dim": 32},
            "decoder_embed_dim=32 and hidden_size=64 are one field",
        ),
    ],
)
@pytest.mark.parametrize("config_class", [RetNetConfig, NucleusXConfig])
def test_what_cannot_be_is_refused_with_a_sentence(config_class, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_class(**fields)


OUT_OF_RANGE = [
    *((key, 0, "needed at least 1") for key in (*list(PUBLISHED)[:6], "recurrent_chunk_size")),
    ("decoder_embed_dim", -64, "needed at least 1"),
    ("dropout", 1, "needed 0 <= dropout < 1"),
    ("activation_dropout", -0.1, "needed 0 <= activation_dropout < 1"),
    ("drop_path_rate", 1.5, "needed 0 <= drop_path_rate < 1"),
    ("label_smoothing", 1.0, "needed 0 <= label_smoothing < 1"),
    ("groupnorm_eps", -1e-6, "needed at least 0"),
    ("activation_fn", "swsh", "needed one of .*gelu.*swish"),
    ("is_encoder_decoder", True, "our models are decoders alone; needed is_encoder_decoder=False"),
    ("add_cross_attention", True, "our models are decoders alone; needed add_cross_attention=Fal"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), OUT_OF_RANGE)
@pytest.mark.parametrize("config_class", [RetNetConfig, NucleusXConfig])
def test_a_value_out_of_range_is_refused_under_its_key(config_class, key, value, sentence):
    with pytest.raises(ValueError, match=f"^{key}={value!r}: {sentence}"):
        config_class(**{key: value})


@pytest.mark.parametrize("config_class", [RetNetConfig, NucleusXConfig])
def test_an_eps_may_be_an_integer_and_a_wrong_type_is_a_value_error(config_class):
    config = config_class(groupnorm_eps=0, norm_eps=1)
    assert config.groupnorm_eps == 0 and config.norm_eps == 1
    own = config_class.attribute_map["norm_eps"]
    with pytest.raises(ValueError, match=f"{own}=-1: needed at least 0"):
        config_class(norm_eps=-1)
    with pytest.raises(ValueError, match="'decoder_layers'.* expected int, got str"):
        config_class(decoder_layers="two")
    config_class(is_encoder_decoder=False, add_cross_attention=False)


def test_a_norm_of_another_name_is_refused():
    with pytest.raises(ValueError, match="norm='batch_norm': needed layer_norm or rms_norm"):
        RetNetConfig(norm="batch_norm")


def test_what_transformers_writes_is_accepted(tmp_path):
    fields = dict(
        architectures=["RetNetForCausalLM"],
        _name_or_path="somewhere",
        torch_dtype="bfloat16",
        transformers_version="4.29.1",
        is_decoder=True,
        id2label={"0": "no", "1": "yes", "2": "perhaps"},
        label2id={"no": 0, "yes": 1, "perhaps": 2},
        problem_type="single_label_classification",
        unk_token_id=0,
        tokenizer_class="LlamaTokenizer",
        use_return_dict=True,
        torchscript=False,
        max_length=50,
        temperature=0.7,
        quantization_config={"quant_method": "none"},
    )
    config = RetNetConfig(**fields)
    assert config.num_labels == 3 and str(config.dtype) == "torch.bfloat16"
    assert not hasattr(config, "temperature")  # a setting of generation, not of a model
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


VARIANTS = [
    RetNetConfig(),
    RetNetConfig(use_glu=True, pad_token_id=0, eos_token_id=[2, 3], output_attentions=True),
    RetNetConfig(deepnorm=True, use_lm_decay=True, forward_mode="chunkwise"),
    RetNetConfig(norm="rms_norm", use_ffn_rms_norm=False, retention_bias=True, num_labels=3),
    RetNetConfig(rotary_interleaved=False, rope_frequencies=True, score_norm=False, use_glu=True),
    NucleusXConfig(bos_token_id=None, tie_word_embeddings=True, rms_norm_eps=1e-5),
    NucleusXConfig(deepnorm=True, lm_head_initializer_range=4096**-0.5),
]


@pytest.mark.parametrize("config", VARIANTS, ids=range(len(VARIANTS)))
def test_saving_and_loading_is_the_identity(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_an_override_counts_as_written_in_the_file(tmp_path):
    fields = dict(forward_impl="parallel", layernorm_eps=1e-6, decoder_retention_heads=2)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "retnet"}))
    config, unused = AutoConfig.from_pretrained(
        tmp_path, forward_mode="recurrent", layernorm_eps=1e-4, kernels=1, return_unused_kwargs=True
    )
    assert config.forward_mode == "recurrent" and unused == {"kernels": 1}
    assert config.groupnorm_eps == 1e-4  # in this format one eps serves all norms
    assert RetNetConfig.from_pretrained(tmp_path, hidden_size=96).decoder_embed_dim == 96
    with pytest.raises(ValueError, match="deepnorm=True and subln=True"):
        RetNetConfig.from_pretrained(tmp_path, deepnorm=True, subln=True)


@pytest.mark.parametrize("config_class", [RetNetConfig, NucleusXConfig])
def test_an_override_under_an_older_name_does_not_make_it_another_format(config_class, tmp_path):
    config_class(decoder_layers=2).save_pretrained(tmp_path)
    expected = config_class(decoder_layers=2, output_attentions=True, forward_mode="recurrent")
    older = dict(output_retentions=True, forward_impl="recurrent")
    assert config_class.from_pretrained(tmp_path, **older).to_diff_dict() == expected.to_diff_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert config_class.from_dict(written, **older).to_diff_dict() == expected.to_diff_dict()
    with pytest.raises(ValueError, match="are one field under two names"):
        config_class.from_dict(written, forward_impl="recurrent", forward_mode="parallel")


def test_an_override_in_other_formats_words_counts_for_the_field(tmp_path):
    RetNetConfig(use_glu=True).save_pretrained(tmp_path)
    config = RetNetConfig.from_pretrained(
        tmp_path, rms_norm_eps=1e-4, share_decoder_input_output_embed=True, hidden_act="gelu"
    )
    changed = dict(layernorm_eps=1e-4, tie_word_embeddings=True, activation_fn="gelu")
    assert config.to_diff_dict() == RetNetConfig(use_glu=True, **changed).to_diff_dict()
