"""torch.compile and torch.export take the forward pass whole and change nothing.

`fullgraph=True` raises at a graph break. The recurrent form unrolls its loop over time, so it is
compiled for one token, which is what decoding feeds it.
"""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.export import Dim, export

from retnet import RetentionCache
from retnet.kernels import KernelsConfig, select_kernels
from tests.retnet.models.small_model import build_model

TIMES = {"parallel": 21, "chunkwise": 21, "recurrent": 1}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def tokens(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 400, (batch, time), generator=torch.Generator().manual_seed(seed))


def arguments(model, forward_mode: str, everything: bool) -> dict:
    """A forward pass with a loss and, with `everything`, a state, padding and two documents."""
    ids = tokens(2, TIMES[forward_mode])
    targets = "labels" if ids.shape[1] > 1 else "shift_labels"  # one token predicts no other
    simple = {"input_ids": ids, targets: ids, "forward_mode": forward_mode}
    if not everything:
        return simple
    mask, starts = torch.ones_like(ids), torch.full_like(ids, -5)
    if ids.shape[1] > 1:
        mask[1, :4], starts[0, 9:] = 0, 9
    past = model(tokens(2, 5, seed=1), use_cache=True).past_key_values
    past.states = [state.detach() for state in past.states]
    return simple | dict(
        attention_mask=mask, segment_start=starts, past_key_values=past, use_cache=True
    )


def results(forward, model, given: dict) -> dict[str, torch.Tensor]:
    """Loss, logits, states and gradients."""
    model.zero_grad()
    out = forward(**given)
    out.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {name: out[name] for name in ("loss", "logits") if name in out}
    if out.past_key_values is not None:
        found |= {f"state {i}": x for i, x in enumerate(out.past_key_values.states)}
    return found


def assert_same(compiled: dict, eager: dict, **tolerance: float) -> None:
    assert compiled.keys() == eager.keys()
    for name, expected in eager.items():
        torch.testing.assert_close(
            compiled[name], expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize(
    "architecture, dtype, forward_mode, everything",
    [  # every two of architecture, form and arguments meet
        ("retnet", torch.float32, "parallel", True),
        ("retnet", torch.float32, "chunkwise", False),
        ("retnet", torch.float32, "recurrent", True),
        ("nucleus_x", torch.bfloat16, "parallel", False),
        ("nucleus_x", torch.bfloat16, "chunkwise", True),
        ("nucleus_x", torch.bfloat16, "recurrent", False),
    ],
    ids=str,
)
def test_compiling_changes_neither_results_nor_gradients(
    architecture, dtype, forward_mode, everything
):
    model = build_model(architecture, decoder_layers=1).to(dtype).train()
    given = arguments(model, forward_mode, everything)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_same(results(compiled, model, given), results(model, model, given))


def test_generated_code_trains_like_the_eager_model():
    model = build_model("nucleus_x", decoder_layers=1).train()
    ids = tokens(2, 16)
    given = dict(input_ids=ids, labels=ids, forward_mode="chunkwise")
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    # Fused loops add in another order.
    assert_same(results(compiled, model, given), results(model, model, given), rtol=1e-3, atol=1e-4)


def test_the_parallel_form_is_compiled_once_for_every_length_and_batch(architecture):
    model, counter = build_model(architecture, decoder_layers=1), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for batch, time in ((2, 9), (3, 16), (2, 33), (5, 50)):
        ids = tokens(batch, time)
        out = compiled(ids, forward_mode="parallel")
        torch.testing.assert_close(out.logits, model(ids, forward_mode="parallel").logits)
    assert counter.frame_count == 1


def test_the_chunkwise_form_is_compiled_once_for_every_batch(architecture):
    """Its chunks are part of the graph: one graph for each length, which training keeps fixed."""
    model, counter = build_model(architecture, decoder_layers=1), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        ids = tokens(batch, 21)
        torch._dynamo.mark_dynamic(ids, 0)
        out = compiled(ids, forward_mode="chunkwise")
        torch.testing.assert_close(out.logits, model(ids, forward_mode="chunkwise").logits)
    assert counter.frame_count == 1


@torch.no_grad()
def test_decoding_is_compiled_at_most_twice(architecture):
    """The second time with the number of tokens so far as a variable."""
    model, counter = build_model(architecture, decoder_layers=1), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    eager_past = past = model(tokens(2, 9), use_cache=True).past_key_values
    for step in range(6):
        token = tokens(2, 1, seed=step)
        out = compiled(token, past_key_values=past, forward_mode="recurrent", use_cache=True)
        expected = model(token, past_key_values=eager_past, use_cache=True)
        torch.testing.assert_close(out.logits, expected.logits)
        past, eager_past = out.past_key_values, expected.past_key_values
    assert counter.frame_count <= 2


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
def test_layers_that_drop_paths_more_often_with_depth_share_one_graph(architecture, fused):
    kernels = select_kernels(KernelsConfig(fused_projections=fused))
    noise = dict(drop_path_rate=0.6, dropout=0.1)
    model = build_model(architecture, kernels, decoder_layers=4, **noise).train()
    counter = CompileCounter()
    rates = [layer.drop_path.item() for layer in model.model.layers]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6])
    for layer in model.model.layers:
        layer.compile(backend=counter, fullgraph=True, dynamic=False)
    ids = tokens(2, 16)
    compiled = []
    for _ in range(2):
        torch.manual_seed(0)
        compiled.append(model(ids, labels=ids, forward_mode="chunkwise").loss)
    assert counter.frame_count == 1
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    torch.manual_seed(0)
    eager = model(ids, labels=ids, forward_mode="chunkwise").loss
    assert torch.equal(compiled[0], eager) and torch.equal(compiled[1], eager)


def reloaded(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """The program after a trip through a file."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.serialization.safe_globals([RetentionCache]):  # the file holds example arguments
        return torch.export.load(file).module()


@pytest.mark.parametrize(
    "forward_mode, time",
    [("parallel", Dim("time", min=2)), ("chunkwise", 8 * Dim("chunks", min=2, max=64))],
    ids=["parallel", "chunkwise, in whole chunks"],
)
def test_an_exported_prompt_pass_takes_any_batch_and_length(architecture, forward_mode, time):
    model = build_model(architecture, decoder_layers=1)
    fixed = dict(forward_mode=forward_mode, use_cache=False)
    ids, shape = tokens(3, 24), {0: Dim("batch", min=1), 1: time}
    program = export(
        model,
        (ids,),
        dict(attention_mask=torch.ones_like(ids), **fixed),
        dynamic_shapes=dict(input_ids=shape, attention_mask=shape, **dict.fromkeys(fixed)),
    )
    module = reloaded(program)
    for batch, length in ((3, 24), (2, 16), (5, 40)):
        ids = tokens(batch, length)
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        out = module(ids, attention_mask=mask, **fixed)
        expected = model(ids, attention_mask=mask, **fixed).logits
        torch.testing.assert_close(out.logits, expected)


@torch.no_grad()
def test_an_exported_decoding_step_takes_and_returns_the_state(architecture):
    model = build_model(architecture)
    fixed = dict(forward_mode="recurrent", use_cache=True)
    rows = {0: Dim("batch", min=1)}
    program = export(
        model,
        (tokens(3, 1),),
        dict(past_key_values=model(tokens(3, 9), use_cache=True).past_key_values, **fixed),
        dynamic_shapes=dict(
            input_ids=rows,
            past_key_values=[rows, rows, rows, Dim.DYNAMIC],  # two layers' states, position, length
            **dict.fromkeys(fixed),
        ),
    )
    module = reloaded(program)
    for batch, time in ((3, 9), (2, 14)):
        eager_past = past = model(tokens(batch, time), use_cache=True).past_key_values
        for step in range(3):
            token = tokens(batch, 1, seed=step)
            out = module(token, past_key_values=past, **fixed)
            expected = model(token, past_key_values=eager_past, **fixed)
            torch.testing.assert_close(out.logits, expected.logits)
            past, eager_past = out.past_key_values, expected.past_key_values
        assert past.get_seq_length() == time + 3
