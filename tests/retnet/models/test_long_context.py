"""Length costs what it must and no more: memory and arithmetic grow with the length in the
chunkwise form, and a decoding step does not know how much came before."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from retnet import RetNetConfig, RetNetForCausalLM
from tests import forked

SIZES = dict(
    vocab_size=53,
    decoder_layers=6,
    decoder_embed_dim=64,
    decoder_retention_heads=2,
    decoder_value_embed_dim=96,
    decoder_ffn_embed_dim=96,
    recurrent_chunk_size=128,
    forward_mode="chunkwise",
    use_glu=True,
)

PEAKS = f"""
import re, torch
from pathlib import Path
from retnet import RetNetConfig, RetNetForCausalLM

def peak():  # not getrusage's, which a child inherits from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10

model = RetNetForCausalLM(RetNetConfig(**{SIZES})).eval()
peaks = [peak()]
for time in (16384, 65536):
    with torch.no_grad():
        out = model(torch.zeros(1, time, dtype=torch.long), logits_to_keep=1, use_cache=True)
    assert out.logits.isfinite().all()
    peaks.append(peak())
print(*peaks)
"""


def test_64k_tokens_through_six_layers_need_memory_in_proportion(tmp_path):
    """In MiB, in a process of its own. One head's [T, T] scores alone would be 16 GiB."""
    run = forked.run("-c", PEAKS, folder=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    before, short, long = map(float, run.stdout.split())
    assert long - before < 1024
    assert long - before < 6 * (short - before)


def flops(model, *args, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*args, **kwargs)
    return counter.get_total_flops()


def test_arithmetic_grows_with_the_length_in_the_chunkwise_form():
    model = RetNetForCausalLM(RetNetConfig(**SIZES)).eval()
    once, fourfold = (flops(model, torch.zeros(1, t, dtype=torch.long)) for t in (256, 1024))
    assert fourfold < 4.5 * once
    quadratic = flops(model, torch.zeros(1, 1024, dtype=torch.long), forward_mode="parallel")
    assert quadratic > 1.5 * fourfold


def test_a_decoding_step_costs_the_same_after_any_context():
    model = RetNetForCausalLM(RetNetConfig(**SIZES)).eval()
    step, costs, sizes = torch.tensor([[7]]), set(), set()
    for context in (3, 700):
        past = model(torch.zeros(1, context, dtype=torch.long), use_cache=True).past_key_values
        arguments = dict(past_key_values=past, forward_mode="recurrent", use_cache=True)
        costs.add(flops(model, step, **arguments))
        after = model(step, **arguments).past_key_values
        sizes.add(sum(state.numel() * state.element_size() for state in after.states))
    assert len(costs) == 1 and len(sizes) == 1


def test_generation_feeds_one_token_a_step():
    """The whole prompt once, then single tokens: the published models passed everything again."""
    model, widths = RetNetForCausalLM(RetNetConfig(**SIZES)).eval(), []
    model.model.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    prompt = torch.zeros(1, 50, dtype=torch.long)
    model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert widths == [50, 1, 1, 1, 1, 1]
