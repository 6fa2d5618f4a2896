"""Parity with the original implementations: their folders load in place and give their outputs.

Tolerances are relative to the largest value of the whole tensor: what float32 rounding of the
originals demands, and for their chunkwise form the difference that their own normalizers make
(tests/golden/README.md).
"""

from pathlib import Path
from shutil import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from retnet import RetNetForCausalLM, RetNetModel

GOLDEN = Path(__file__).parents[2] / "golden"
FORMATS = ("torchscale", "syncdoth_retnet", "hf_add_retnet", "nucleusx_reva", "nucleusx", "fla")
PADDED = FORMATS[1:]  # torchscale's takes no mask
CLASSIFIERS = FORMATS[1:5]
FLOAT64 = {"syncdoth_retnet": 2e-6}
CHUNKWISE = {"nucleusx": 2e-5, "fla": 5e-6}
MODES = ("parallel", "chunkwise", "recurrent")


def load(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, dict]:
    """Through Auto classes; torchscale has no model type that these could go by."""
    loader = RetNetForCausalLM if name == "torchscale" else AutoModelForCausalLM
    model = loader.from_pretrained(GOLDEN / name, dtype=dtype)
    return model, load_file(GOLDEN / name / "expected.safetensors")


def error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_logits_are_the_originals(name, mode):
    model, expected = load(name)
    logits = model(expected["input_ids"], forward_mode=mode, recurrent_chunk_size=8).logits
    assert error(logits, expected["logits_parallel"]) < 5e-6
    assert error(logits, expected["logits_recurrent"]) < 5e-6
    # the original's chunkwise form: its first 32 tokens, or 70 others where it has a kernel for it
    ids = expected.get("chunk_input_ids", expected["input_ids"][:, :32])
    logits = model(ids, forward_mode=mode, recurrent_chunk_size=8).logits
    assert error(logits, expected["logits_chunkwise"]) < CHUNKWISE.get(name, 5e-5)


@pytest.mark.parametrize("name", FORMATS[:5])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_logits_in_float64_are_the_originals(name, mode):
    model, expected = load(name, torch.float64)
    logits = model(expected["input_ids"], forward_mode=mode, recurrent_chunk_size=8).logits
    assert logits.dtype == torch.float64
    assert error(logits, expected["logits_parallel_f64"]) < FLOAT64.get(name, 1e-6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_the_originals(name, mode):
    model, expected = load(name)
    ids = expected["input_ids"]
    loss = model(ids, labels=ids, forward_mode=mode, recurrent_chunk_size=8).loss
    assert abs(loss - expected["loss"]) < 5e-6
    loss.backward()
    layer = model.model.layers[0].retention
    assert error(model.model.embed_tokens.weight.grad, expected["grad_embed"]) < 2e-5
    assert error(layer.q_proj.weight.grad, expected["grad_l0_q_proj"]) < 2e-5
    assert error(layer.v_proj.weight.grad, expected["grad_l0_v_proj"]) < 2e-5


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_text_is_the_originals(name):
    model, expected = load(name)
    ids = expected["input_ids"]
    text = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(text[:, ids.shape[1] :], expected["greedy_tokens"])


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_left_padding_gives_the_originals_logits(name, mode):
    model, expected = load(name)
    mask = expected["leftpad_attention_mask"]
    logits = model(
        expected["leftpad_input_ids"],
        attention_mask=mask,
        forward_mode=mode,
        recurrent_chunk_size=8,
    ).logits
    real = mask.bool()
    assert error(logits[real], expected["leftpad_logits_parallel"][real]) < 5e-6


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_classification_is_the_originals(name, tmp_path):
    expected = load_file(GOLDEN / name / "expected_seqcls.safetensors")
    body = load_file(GOLDEN / name / "model.safetensors")
    body = {key: tensor for key, tensor in body.items() if key.startswith("model.")}
    save_file(body | {"score.weight": expected["score.weight"]}, tmp_path / "model.safetensors")
    copy(GOLDEN / name / "config_seqcls.json", tmp_path / "config.json")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    outputs = model(expected["input_ids"], labels=expected["labels"])
    assert error(outputs.logits, expected["pooled_logits"]) < 5e-6
    assert abs(outputs.loss - expected["loss"]) < 5e-6
    mask = expected["leftpad_attention_mask"]
    logits = model(expected["leftpad_input_ids"], attention_mask=mask).logits
    assert error(logits, expected["leftpad_pooled_logits"]) < 5e-6


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_the_bare_model_loads_too(name):
    whole, expected = load(name)
    loader = RetNetModel if name == "torchscale" else AutoModel
    hidden = loader.from_pretrained(GOLDEN / name)(expected["input_ids"]).last_hidden_state
    assert torch.equal(whole.lm_head(hidden), whole(expected["input_ids"]).logits)
