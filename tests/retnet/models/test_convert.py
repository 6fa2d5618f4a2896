"""`python -m retnet.models.convert`: every published checkpoint becomes a folder of ours."""

import argparse
import json
import logging
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from retnet import RetNetForCausalLM
from retnet.models.convert import convert, main
from retnet.models.rotary import log_decays
from tests.retnet.models.old_torchscale import OLD_ARGUMENTS, VOCABULARY, old_logits, old_weights
from tests.retnet.models.test_golden import CLASSIFIERS, FORMATS, GOLDEN


@pytest.mark.parametrize("deepnorm", [False, True])
@pytest.mark.parametrize("head_eps", [None, 1e-6])
@torch.no_grad()
def test_old_torchscale_from_fairseq_computes_the_papers_formula(tmp_path, deepnorm, head_eps):
    weights = old_weights(deepnorm)
    arguments = OLD_ARGUMENTS | dict(
        deepnorm=deepnorm, subln=not deepnorm, decoder_normalize_before=not deepnorm
    )
    torch.save(
        {
            "model": {f"decoder.{name}": w for name, w in weights.items()},
            "args": argparse.Namespace(**arguments),
        },
        tmp_path / "checkpoint_last.pt",
    )
    overrides = {} if head_eps is None else {"groupnorm_eps": head_eps}
    convert(tmp_path / "checkpoint_last.pt", tmp_path / "ours", overrides)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.float64  # the tensors' own
    ids = torch.randint(0, VOCABULARY, (2, 19), generator=torch.Generator().manual_seed(3))
    expected = old_logits(weights, ids, 1e-5, head_eps or 1e-5, deepnorm)
    for mode in ("parallel", "chunkwise", "recurrent"):
        logits = model(ids, forward_mode=mode, recurrent_chunk_size=8).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_an_old_folder_loads_in_place(tmp_path):
    fields = {key: value for key, value in OLD_ARGUMENTS.items() if value is not None}
    fields = {key: fields[key] for key in fields.keys() - {"arch", "label_smoothing"}}
    (tmp_path / "config.json").write_text(
        json.dumps(fields | {"vocab_size": VOCABULARY, "moe_freq": 0})
    )
    save_file(old_weights(), tmp_path / "model.safetensors")
    ids = torch.arange(11)[None]
    logits = RetNetForCausalLM.from_pretrained(tmp_path)(ids).logits
    expected = old_logits(old_weights(), ids, 1e-5, 1e-5, deepnorm=False)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def same_files(one: Path, other: Path) -> bool:
    names = {path.name for path in one.iterdir()} | {path.name for path in other.iterdir()}
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


def as_classifier(name: str, target: Path) -> Path:
    """A golden classifier as a folder."""
    weights = load_file(GOLDEN / name / "model.safetensors")
    del weights["lm_head.weight"]
    score = load_file(GOLDEN / name / "expected_seqcls.safetensors")["score.weight"]
    target.mkdir()
    save_file(weights | {"score.weight": score}, target / "model.safetensors")
    (target / "config.json").write_text((GOLDEN / name / "config_seqcls.json").read_text())
    return target


@pytest.mark.parametrize("name", FORMATS)
def test_converting_is_loading_and_saving_and_loses_nothing(name, tmp_path):
    convert(GOLDEN / name, tmp_path / "converted")
    loader = RetNetForCausalLM if name == "torchscale" else AutoModelForCausalLM
    model = loader.from_pretrained(GOLDEN / name)
    model.save_pretrained(tmp_path / "saved")
    assert same_files(tmp_path / "converted", tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    again.save_pretrained(tmp_path / "again")
    assert same_files(tmp_path / "converted", tmp_path / "again")
    published = load_file(GOLDEN / name / "model.safetensors")
    buffers = [key for key in published if "rel_pos" in key]
    assert sum(p.numel() for p in again.parameters()) == sum(
        w.numel() for key, w in published.items() if key not in buffers
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_stays_one(name, tmp_path):
    source = as_classifier(name, tmp_path / "source")
    convert(source, tmp_path / "converted")
    AutoModelForSequenceClassification.from_pretrained(source).save_pretrained(tmp_path / "saved")
    assert same_files(tmp_path / "converted", tmp_path / "saved")


def test_tokenizer_and_generation_settings_come_along_and_dtype_may_change(tmp_path):
    source = Path(copytree(GOLDEN / "fla", tmp_path / "source"))
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").write_text('{"top_k": 7, "do_sample": true}')
    convert(source, tmp_path / "ours", {"initializer_range": 0.5}, dtype="bfloat16")
    assert (tmp_path / "ours/tokenizer.json").read_text() == "{}"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.generation_config.top_k == 7 and model.config.initializer_range == 0.5
    assert model.dtype == torch.bfloat16


def torchscale_file(path: Path, *without: str, **arguments) -> Path:
    weights = load_file(GOLDEN / "torchscale/model.safetensors")
    weights = {name: w for name, w in weights.items() if name not in without}
    torch.save({"model": weights, "cfg": {"model": arguments}} if arguments else weights, path)
    return path


KNOWN = {"activation_fn": "swish", "no_scale_embedding": False, "layernorm_eps": 1e-6}


def test_a_file_alone_needs_only_what_its_tensors_do_not_show(tmp_path, caplog):
    convert(torchscale_file(tmp_path / "a.pt"), tmp_path / "ours", KNOWN)
    convert(GOLDEN / "torchscale", tmp_path / "expected")
    assert not warnings(caplog)
    assert same_files(tmp_path / "ours", tmp_path / "expected")
    # the same from what fairseq stores, and from a config file
    convert(torchscale_file(tmp_path / "b.pt", **KNOWN), tmp_path / "stored")
    assert same_files(tmp_path / "stored", tmp_path / "expected")
    config = GOLDEN / "torchscale/config.json"
    convert(torchscale_file(tmp_path / "c.pt"), tmp_path / "given", config_file=config)
    assert same_files(tmp_path / "given", tmp_path / "expected")


def test_what_is_taken_on_trust_is_said(tmp_path, caplog):
    convert(torchscale_file(tmp_path / "a.pt"), tmp_path / "ours", {"activation_fn": "swish"})
    said = warnings(caplog)
    assert any("says nothing of layernorm_eps" in line for line in said)
    assert any("says nothing of no_scale_embedding" in line for line in said)


@pytest.mark.parametrize("doubled", [True, False])
def test_a_tied_head_shows_in_the_tensors(tmp_path, doubled):
    weights = load_file(GOLDEN / "torchscale/model.safetensors")
    del weights["output_projection.weight"]
    if doubled:
        weights["output_projection.weight"] = weights["embed_tokens.weight"]
    torch.save(weights, tmp_path / "tied.pt")
    convert(tmp_path / "tied.pt", tmp_path / "ours", KNOWN)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_lm_decays_show_in_the_tensors(tmp_path):
    weights = load_file(GOLDEN / "torchscale/model.safetensors")
    weights["retnet_rel_pos.decay"] = log_decays(2, True).float()
    torch.save(weights, tmp_path / "lm.pt")
    convert(tmp_path / "lm.pt", tmp_path / "ours", KNOWN)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.use_lm_decay


def test_what_cannot_be_converted_is_refused_with_a_sentence(tmp_path):
    taken = Path(copytree(GOLDEN / "fla", tmp_path / "taken"))
    with pytest.raises(OSError, match="is there already and not empty"):
        convert(GOLDEN / "fla", taken)
    with pytest.raises(OSError, match=r"holds no model\.safetensors"):
        convert(tmp_path, tmp_path / "ours")
    with pytest.raises(ValueError, match="num_hedas is not a field .* did you mean num_heads"):
        convert(GOLDEN / "fla", tmp_path / "ours", {"num_hedas": 2})
    file = torchscale_file(tmp_path / "a.pt", "retnet_rel_pos.decay")
    with pytest.raises(ValueError, match="give decoder_retention_heads=N or --config"):
        convert(file, tmp_path / "ours", KNOWN)
    file = torchscale_file(tmp_path / "b.pt", "embed_tokens.weight")
    with pytest.raises(ValueError, match=r"lacks model\.embed_tokens\.weight"):
        convert(file, tmp_path / "ours", KNOWN)
    torch.save(load_file(GOLDEN / "fla/model.safetensors"), tmp_path / "fla.pt")
    with pytest.raises(ValueError, match="no torchscale weights; give their config with --config"):
        convert(tmp_path / "fla.pt", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, True), ({"groupnorm_eps": 1e-5}, False), ({"layernorm_eps": 1e-6}, False)],
)
def test_the_doubt_about_the_head_norms_eps_is_said(tmp_path, caplog, arguments, said):
    torch.save(old_weights(), tmp_path / "old.pt")
    known = {"activation_fn": "gelu", "no_scale_embedding": False, "layernorm_eps": 1e-5}
    convert(tmp_path / "old.pt", tmp_path / "ours", known | arguments)
    lines = [line for line in warnings(caplog) if "give groupnorm_eps=1e-6 for weights" in line]
    assert len(lines) == said == len(warnings(caplog))
    assert all("layernorm_eps=1e-05 is taken" in line for line in lines)


def test_a_post_norm_checkpoint_must_say_whether_it_is_deepnorm(tmp_path):
    torch.save(old_weights(deepnorm=True), tmp_path / "old.pt")
    with pytest.raises(ValueError, match="give deepnorm=true or deepnorm=false"):
        convert(tmp_path / "old.pt", tmp_path / "ours")
    for deepnorm in (True, False):
        target = tmp_path / f"ours-{deepnorm}"
        convert(tmp_path / "old.pt", target, {"deepnorm": deepnorm})
        config = AutoModelForCausalLM.from_pretrained(target).config
        assert config.deepnorm == deepnorm and not config.decoder_normalize_before


def test_a_file_in_a_folder_is_asked_for_by_its_name(tmp_path):
    torchscale_file(tmp_path / "checkpoint_best.pt")
    with pytest.raises(OSError, match=r"give the file itself: .*checkpoint_best\.pt"):
        convert(tmp_path, tmp_path / "ours")


def test_a_vocabulary_left_to_the_caller_is_the_embeddings_rows(tmp_path):
    source = Path(copytree(GOLDEN / "torchscale", tmp_path / "source"))
    fields = json.loads((source / "config.json").read_text()) | {"vocab_size": -1}
    (source / "config.json").write_text(json.dumps(fields))
    convert(source, tmp_path / "ours")
    convert(GOLDEN / "torchscale", tmp_path / "expected")
    assert same_files(tmp_path / "ours", tmp_path / "expected")


@pytest.mark.parametrize(
    "field", ["decoder_layers=two", "vocab_size=null", "add_cross_attention=1"]
)
def test_a_wrong_value_on_the_command_line_is_answered_with_a_sentence(
    tmp_path, monkeypatch, field
):
    arguments = ["convert", str(GOLDEN / "fla"), str(tmp_path / "ours"), field]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match=f"convert: .*{field.partition('=')[0]}"):
        main()


def test_an_older_name_on_the_command_line_leaves_the_format_as_it_is(tmp_path, caplog):
    caplog.set_level(logging.INFO, "retnet.models.convert")
    convert(GOLDEN / "hf_add_retnet", tmp_path / "ours", {"forward_impl": "chunkwise"})
    assert "(Hugging Face)" in caplog.messages[-1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.norm == "layer_norm"


def test_the_command_line_says_in_one_line_what_it_read_and_wrote(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "retnet.models.convert")
    arguments = ["convert", str(GOLDEN / "fla"), str(tmp_path / "ours"), "recurrent_chunk_size=64"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.recurrent_chunk_size == 64
    (line,) = [r.getMessage() for r in caplog.records if r.name == "retnet.models.convert"]
    assert "(flash-linear-attention)" in line and "103,456 parameters in float32" in line
    with pytest.raises(SystemExit, match="convert: .* is there already and not empty"):
        main()
