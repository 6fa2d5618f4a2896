"""Published checkpoints in whatever files and spellings they come: same tensors, or a refusal."""

import argparse
import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from retnet import RetNetConfig, RetNetForCausalLM, RetNetModel
from retnet.models.rotary import log_decays
from retnet.models.weights import find_files, read_pickle, read_weights
from tests.retnet.models.test_golden import GOLDEN, error


def change(folder: Path, weights: dict[str, Tensor] | None = None, **fields) -> None:
    """Other weights and config fields in a folder."""
    if weights is not None:
        save_file({k: w.contiguous() for k, w in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.fixture
def folder(request, tmp_path) -> Path:
    """A copy of the golden folder that the test names."""
    return Path(copytree(GOLDEN / request.param, tmp_path / request.param))


golden = pytest.mark.parametrize(
    "folder", ["syncdoth_retnet", "fla", "nucleusx_reva"], indirect=True
)
torchscale = pytest.mark.parametrize("folder", ["torchscale"], indirect=True)
fla = pytest.mark.parametrize("folder", ["fla"], indirect=True)
syncdoth = pytest.mark.parametrize("folder", ["syncdoth_retnet"], indirect=True)


def assert_same(model, expected) -> None:
    weights, wanted = model.state_dict(), expected.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def split(weights: dict[str, Tensor], folder: Path, suffix: str) -> None:
    """In two files with an index, in place of the one."""
    (folder / "model.safetensors").unlink()
    names = list(weights)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = {f"{stem}-{i + 1:05}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, part in files.items():
        (save_file if suffix == "safetensors" else torch.save)(
            {name: weights[name] for name in part}, folder / file
        )
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@golden
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(folder, suffix):
    expected = AutoModelForCausalLM.from_pretrained(folder)
    split(load_file(folder / "model.safetensors"), folder, suffix)
    assert len(find_files(folder)) == 2
    assert_same(AutoModelForCausalLM.from_pretrained(folder), expected)


@torchscale
def test_a_pickle_with_fairseqs_wrapping_loads_in_place(folder):
    expected = RetNetForCausalLM.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights = {f"decoder.{name}": tensor for name, tensor in weights.items()}
    weights["decoder.version"] = torch.ones(1)
    torch.save({"model": weights}, folder / "pytorch_model.bin")
    assert_same(RetNetForCausalLM.from_pretrained(folder), expected)


@fla
def test_a_fused_gate_is_split_with_the_activated_branch_first(folder):
    expected = AutoModelForCausalLM.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        up = weights.pop(f"{mlp}.up_proj.weight")
        weights[f"{mlp}.gate_proj.weight"] = torch.cat((weights[f"{mlp}.gate_proj.weight"], up))
    change(folder, weights)
    assert_same(AutoModelForCausalLM.from_pretrained(folder), expected)


@fla
def test_an_unfused_head_norm_is_the_same_head_norm(folder):
    expected = AutoModelForCausalLM.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("g_norm_swish_gate", "g_norm"): w for name, w in weights.items()}
    change(folder, weights, fuse_norm=False)
    assert_same(AutoModelForCausalLM.from_pretrained(folder), expected)


@torchscale
@pytest.mark.parametrize("doubled", [True, False])
def test_a_tied_head_may_be_doubled_or_absent(folder, doubled, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["output_projection.weight"] = weights["embed_tokens.weight"].clone()
    if not doubled:
        del weights["output_projection.weight"]
    change(folder, weights, share_decoder_input_output_embed=True)
    model = RetNetForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights["embed_tokens.weight"])
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_same(again, model)


@syncdoth
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_decays_must_be_the_configs(folder, dtype):
    with pytest.raises(ValueError, match="contradict use_lm_decay=True; needed use_lm_decay=False"):
        AutoModelForCausalLM.from_pretrained(folder, use_lm_decay=True)
    weights = load_file(folder / "model.safetensors")
    name = "model.retnet_rel_pos.decay"
    change(folder, weights | {name: log_decays(2, True).to(dtype)}, use_lm_decay=True)
    assert AutoModelForCausalLM.from_pretrained(folder).config.use_lm_decay
    change(folder, use_lm_decay=False)
    with pytest.raises(ValueError, match="contradict use_lm_decay=False; needed use_lm_decay=True"):
        AutoModelForCausalLM.from_pretrained(folder)
    change(folder, weights | {name: torch.tensor([-0.5, -0.1])})
    with pytest.raises(ValueError, match="belong to neither value of use_lm_decay"):
        AutoModelForCausalLM.from_pretrained(folder)
    change(folder, weights | {name: log_decays(4, False).float()})
    with pytest.raises(ValueError, match="decays of 4 heads .* decoder_retention_heads=2"):
        AutoModelForCausalLM.from_pretrained(folder)


@golden
def test_a_weight_left_over_or_missing_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    change(folder, weights | {"model.layers.0.adapter.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"has model\.layers\.0\.adapter\.weight, against"):
        AutoModelForCausalLM.from_pretrained(folder)
    change(folder, {name: w for name, w in weights.items() if "layers.1" not in name})
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\..* \(and \d+ more\)"):
        AutoModelForCausalLM.from_pretrained(folder)
    change(folder, {name: w for name, w in weights.items() if name != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight"):
        AutoModelForCausalLM.from_pretrained(folder)


@golden
def test_a_weight_of_another_shape_is_named(folder):
    sentence = r"lm_head\.weight has shape \[101, 64\] in the checkpoint and \[102, 64\] by"
    with pytest.raises(ValueError, match=sentence):
        AutoModelForCausalLM.from_pretrained(folder, vocab_size=102)


@torchscale
def test_a_head_that_differs_is_not_tied(folder):
    change(folder, share_decoder_input_output_embed=True)
    with pytest.raises(ValueError, match="tie_word_embeddings=True, but .* output head differs"):
        RetNetForCausalLM.from_pretrained(folder)


@torchscale
def test_two_names_for_one_weight_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    change(folder, weights | {"lm_head.weight": torch.ones(101, 64)})
    with pytest.raises(ValueError, match=r"another weight are both lm_head\.weight"):
        RetNetForCausalLM.from_pretrained(folder)


@golden
def test_what_from_pretrained_takes_it_still_takes(folder):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, forward_impl="chunkwise"
    )
    assert model.dtype == torch.bfloat16 and model.config.forward_mode == "chunkwise"
    assert not any(report.values()) and not model.training
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 7, "do_sample": True}))
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.top_k == 7
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert classifier.score.weight.shape == (5, 64) and classifier.score.weight.std() > 0


@pytest.mark.parametrize("folder", ["nucleusx"], indirect=True)
def test_a_retnet_in_nucleus_xs_names_is_a_retnet(folder):
    expected = load_file(GOLDEN / "nucleusx/expected.safetensors")
    change(folder, model_type="retnet")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, RetNetForCausalLM)
    logits = model(expected["input_ids"]).logits
    assert error(logits, expected["logits_parallel"]) < 5e-6


@fla
@pytest.mark.parametrize("files", ["model.safetensors", "shards of model.bin"])
def test_a_repository_loads_from_the_cache_without_a_network(folder, files, tmp_path):
    expected = AutoModelForCausalLM.from_pretrained(folder)
    if files != "model.safetensors":
        split(load_file(folder / "model.safetensors"), folder, "bin")
    repository, commit = tmp_path / "cache/models--someone--retnet", "0" * 40
    copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    model = RetNetForCausalLM.from_pretrained(
        "someone/retnet", cache_dir=tmp_path / "cache", local_files_only=True
    )
    assert_same(model, expected)


@fla
def test_a_variant_is_its_own_files(folder):
    expected = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert_same(AutoModelForCausalLM.from_pretrained(folder, variant="fp16"), expected)


@golden
def test_a_saved_folder_carries_our_names_alone(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved/model.safetensors").keys() == model.state_dict().keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same(again, model)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


def test_a_bare_model_of_ours_is_loaded_by_transformers_itself(tmp_path):
    sizes = dict(vocab_size=11, hidden_size=16, value_dim=16, intermediate_size=8, num_layers=1)
    model = RetNetModel(RetNetConfig(**sizes, num_heads=2))
    model.save_pretrained(tmp_path)
    assert_same(RetNetForCausalLM.from_pretrained(tmp_path).model, model)


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "sprung")


def test_a_pickle_that_runs_something_is_refused_and_does_not_run(tmp_path):
    trap = tmp_path / "sprung"
    torch.save({"model": {"w": torch.ones(1)}, "extra": Trap(trap)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="wants to run .*, which was not done"):
        read_weights([tmp_path / "checkpoint.pt"])
    assert not trap.exists()


def test_a_pickle_gives_fairseqs_arguments_in_both_of_its_layouts(tmp_path):
    arguments = {"decoder_layers": 2, "arch": "retnet"}
    for number, extra in enumerate(
        ({"args": argparse.Namespace(**arguments)}, {"args": None, "cfg": {"model": arguments}})
    ):
        torch.save({"model": {"w": torch.ones(1)}} | extra, tmp_path / f"{number}.pt")
        weights, found = read_pickle(tmp_path / f"{number}.pt")
        assert list(weights) == ["w"] and found == arguments
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_pickle(tmp_path / "list.pt")
