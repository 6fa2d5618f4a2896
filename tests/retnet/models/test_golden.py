"""Parity with the original implementations: their weights in our modules give their outputs.

Tolerances are those that float32 rounding of the originals themselves demands
(tests/golden/README.md).
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retnet import NucleusXConfig, NucleusXForCausalLM, RetNetConfig, RetNetForCausalLM

GOLDEN = Path(__file__).parents[2] / "golden"
FORMATS = ("torchscale", "hf_add_retnet", "nucleusx")


def load(name: str, dtype: torch.dtype):
    fields = json.loads((GOLDEN / name / "config.json").read_text())
    weights = load_file(GOLDEN / name / "model.safetensors")
    config_class = NucleusXConfig if name == "nucleusx" else RetNetConfig
    known = {n: fields[n] for n in config_class.__dataclass_fields__ if n in fields}
    if name == "torchscale":
        known |= {"use_glu": True, "tie_word_embeddings": False}
        weights = {
            "lm_head.weight" if n == "output_projection.weight" else f"model.{n}": w
            for n, w in weights.items()
        }
    model = (NucleusXForCausalLM if name == "nucleusx" else RetNetForCausalLM)(
        config_class(**known)
    )
    wrong = model.load_state_dict(weights, strict=False)
    assert not wrong.missing_keys
    assert all(n.endswith(("rel_pos.angle", "rel_pos.decay")) for n in wrong.unexpected_keys)
    return model.to(dtype).eval(), load_file(GOLDEN / name / "expected.safetensors")


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
def test_logits_are_the_originals(name, mode):
    model, expected = load(name, torch.float32)
    logits = model(expected["input_ids"], forward_mode=mode, recurrent_chunk_size=8).logits
    assert error(logits, expected["logits_parallel"]) < 5e-6
    assert error(logits, expected["logits_recurrent"]) < 5e-6
    model, expected = load(name, torch.float64)
    logits = model(expected["input_ids"], forward_mode=mode, recurrent_chunk_size=8).logits
    assert error(logits, expected["logits_parallel_f64"]) < 1e-6


@pytest.mark.parametrize("name", FORMATS)
def test_loss_gradients_and_greedy_text_are_the_originals(name):
    model, expected = load(name, torch.float32)
    ids = expected["input_ids"]
    loss = model(ids, labels=ids).loss
    assert abs(loss - expected["loss"]) < 5e-6
    loss.backward()
    layer = model.model.layers[0].retention
    assert error(model.model.embed_tokens.weight.grad, expected["grad_embed"]) < 2e-5
    assert error(layer.q_proj.weight.grad, expected["grad_l0_q_proj"]) < 2e-5
    assert error(layer.v_proj.weight.grad, expected["grad_l0_v_proj"]) < 2e-5
    text = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(text[:, ids.shape[1] :], expected["greedy_tokens"])


@pytest.mark.parametrize("name", ["hf_add_retnet", "nucleusx"])
@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
def test_left_padding_gives_the_originals_logits(name, mode):
    model, expected = load(name, torch.float32)
    mask = expected["leftpad_attention_mask"]
    logits = model(
        expected["leftpad_input_ids"],
        attention_mask=mask,
        forward_mode=mode,
        recurrent_chunk_size=8,
    ).logits
    real = mask.bool()
    assert error(logits[real], expected["leftpad_logits_parallel"][real]) < 5e-6
