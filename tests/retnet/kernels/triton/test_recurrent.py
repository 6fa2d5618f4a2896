"""Retention token by token: float64's outputs and states from any past, dtype and strides, in
memory of its own or over the state it was given, and a decoding step that can be replayed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retnet import RetentionCache
from retnet.kernels import reference, select_kernels
from retnet.kernels.chunkwise import retention_chunkwise
from retnet.kernels.triton import recurrent
from retnet.kernels.triton.recurrent import retention_recurrent, tile_of_state
from tests.retnet.kernels.triton.laws import (
    TOLERANCE,
    check_custom_operator,
    poisoned_outputs,
    strided,
)
from tests.retnet.models.small_model import build_model

# (B, T, H, K, V): one token of one sequence and of several; ragged columns; ragged rows
SHAPES = [(1, 1, 2, 16, 32), (5, 1, 1, 37, 21), (1, 3, 1, 160, 44), (2, 3, 2, 20, 12)]


def draw(shape, dtype, device) -> dict[str, Tensor]:
    """Inputs by name: rows further apart than wide, documents that begin anywhere, a mask."""
    batch, time, heads, key_dim, value_dim = shape
    start = torch.randint(-1, time, (batch, time)).cummax(dim=1).values
    return {
        "q": strided((batch, time, heads, key_dim), dtype, device),
        "k": strided((batch, time, heads, key_dim), dtype, device),
        "v": strided((batch, time, heads, value_dim), dtype, device),
        "log_decay": torch.log1p(-(2.0 ** (-1 - torch.arange(heads, device=device)))),
        "state": torch.randn(batch, heads, key_dim, value_dim, device=device),
        "segment_start": start.to(device),
        "mask": (torch.rand(batch, time) > 0.3).to(device),
    }


def choices(x: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """With and without a past, documents and a mask."""
    optional = ("state", "segment_start", "mask")
    return [
        {name: y for name, y in x.items() if name not in optional or name in kept}
        for kept in ((), ("state",), ("mask",), ("state", "segment_start"), optional)
    ]


def define(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    wide = {name: y.double() if y.is_floating_point() else y for name, y in x.items()}
    return reference.retention_recurrent(**wide)


def assert_near(ours: Tensor, exact: Tensor) -> None:
    assert ours.shape == exact.shape
    error = (ours.double() - exact).norm() / exact.norm().clamp(min=1e-3)
    assert error <= TOLERANCE[ours.dtype], f"{ours.dtype} {list(ours.shape)}: {error:.2e}"


def check(x: dict[str, Tensor]) -> None:
    """Outputs and state are float64's, whether the state is kept, returned or overwritten."""
    o_exact, state_exact = define(x)
    with poisoned_outputs():
        o, state = retention_recurrent(**x)
        alone, nothing = retention_recurrent(**x, return_state=False)
    assert o.dtype == x["v"].dtype and state.dtype == torch.float32 and nothing is None
    assert_near(o, o_exact)
    assert_near(state, state_exact)
    assert torch.equal(alone, o)
    if "state" in x:
        given = x["state"].clone()
        again, overwritten = retention_recurrent(**x | {"state": given}, in_place=True)
        assert overwritten is given
        assert torch.equal(again, o) and torch.equal(given, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_states_are_those_of_float64(shape, dtype, device):
    for x in choices(draw(shape, dtype, device)):
        check(x)


def test_bfloat16_holds_it_too_and_dtypes_may_differ(device):
    x = draw((2, 3, 2, 20, 12), torch.bfloat16, device)
    check(x)
    check(x | {"v": x["v"].float()})
    check(x | {"q": x["q"].half(), "log_decay": x["log_decay"].double()})


@pytest.mark.parametrize("enough", [1, 10**9], ids=["wide tiles", "narrow tiles"])
def test_however_wide_the_tiles(enough, monkeypatch, device):
    monkeypatch.setattr(recurrent, "ENOUGH_PROGRAMS", enough)
    check(draw((2, 3, 1, 8, 75), torch.float32, device))


def test_a_small_batch_is_cut_into_more_tiles_which_always_fit_registers():
    assert 132 <= 8 * 512 // tile_of_state(256, 512, 8)[1]  # one sequence of a 1.3B model
    for key_dim in (1, 37, 64, 160, 256, 512):
        for value_dim in (1, 53, 64, 428, 432, 512):
            cuts = [tile_of_state(key_dim, value_dim, heads) for heads in (1, 16, 8 * 512)]
            assert [columns for _, columns, _ in cuts] == sorted(columns for _, columns, _ in cuts)
            for rows, columns, warps in cuts:
                assert key_dim <= rows < 2 * key_dim and columns < 2 * value_dim and warps <= 16
                assert rows * columns <= max(32, 32 * warps) * recurrent.ELEMENTS_PER_THREAD


def test_inputs_may_lie_anyhow(device):
    """Heads before tokens, a state inside a wider one, tables of other integers and strides."""
    x = draw((2, 2, 3, 8, 20), torch.float32, device)
    heads_first = strided((2, 3, 2, 20), torch.float32, device).transpose(1, 2)
    wider = torch.full((2, 3, 9, 20), torch.nan, device=device)
    wider[:, :, 1:] = x["state"]
    starts = torch.stack((x["segment_start"].int(),) * 2, dim=-1)[..., 0]
    x |= {"v": heads_first, "segment_start": starts, "mask": x["mask"].T.contiguous().T}
    x["k"] = torch.randn(2, 2, 3, 16, device=device)[..., ::2]
    expected = define(x)
    state = wider[:, :, 1:]
    o, after = retention_recurrent(**x | {"state": state}, in_place=True)
    assert_near(o, expected[0])
    assert_near(after, expected[1])
    assert after is state and wider[:, :, 0].isnan().all()


def test_what_a_token_does_not_see_may_be_anything(device):
    """A document that begins here does not see the past, and nobody sees masked tokens."""
    x = draw((1, 3, 2, 8, 16), torch.float32, device)
    x["segment_start"] = torch.zeros(1, 3, dtype=torch.long, device=device)
    x["mask"] = torch.tensor([[True, False, True]], device=device)
    expected = define(x)
    for name in "qkv":
        x[name][:, 1] = torch.nan
    x["state"][:] = torch.inf
    o, state = retention_recurrent(**x)
    assert_near(o, expected[0])
    assert_near(state, expected[1])


def test_it_goes_on_from_any_other_form(device):
    x = draw((2, 12, 2, 8, 20), torch.float32, device)
    q, k, v, log_decay = (x[name] for name in ("q", "k", "v", "log_decay"))
    whole, end = retention_chunkwise(q, k, v, log_decay, chunk_size=4)
    _, state = retention_chunkwise(q[:, :9], k[:, :9], v[:, :9], log_decay, chunk_size=4)
    o, state = retention_recurrent(q[:, 9:], k[:, 9:], v[:, 9:], log_decay, state)
    assert_near(o, whole[:, 9:].double())
    assert_near(state, end.double())


def test_the_decay_is_exact_over_a_long_text(device):
    """gamma = 1 - 2^-12 is a number of float32; what an exp in float32 is off by adds up."""
    zeros = torch.zeros(1, 300, 1, 1, device=device)
    state = torch.ones(1, 1, 1, 1, device=device)
    log_decay = torch.log1p(torch.tensor([-(2.0**-12)], dtype=torch.float64, device=device))
    _, state = retention_recurrent(zeros, zeros, zeros, log_decay, state)
    assert_near(state, (300 * log_decay).exp()[None, None, None])


def test_no_tokens_leave_the_state_as_it_was(device):
    x = draw((2, 1, 2, 8, 20), torch.float32, device)
    x |= {name: x[name][:, :0] for name in ("q", "k", "v", "segment_start", "mask")}
    o, state = retention_recurrent(**x)
    assert o.shape == (2, 0, 2, 20) and torch.equal(state, x["state"])
    del x["state"]
    assert torch.equal(retention_recurrent(**x)[1], torch.zeros_like(state))


def test_gradients_and_float64_are_those_of_the_torch_form(device):
    x = draw((2, 3, 2, 4, 6), torch.float64, device)
    x["state"] = x["state"].double().requires_grad_()
    o, state = retention_recurrent(**x)
    o_exact, state_exact = define(x)
    torch.testing.assert_close(o, o_exact, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(o.sum() + state.sum(), x["state"])
    exact = torch.autograd.grad(o_exact.sum() + state_exact.sum(), x["state"])
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_overwriting_is_refused_without_a_state_and_where_a_gradient_needs_it(device):
    x = draw((1, 1, 1, 4, 6), torch.float32, device)
    with pytest.raises(ValueError, match="requires? a gradient.*no_grad"):
        retention_recurrent(**x | {"v": x["v"].clone().requires_grad_()}, in_place=True)
    with pytest.raises(ValueError, match="no state to overwrite"):
        retention_recurrent(**x | {"state": None}, in_place=True)
    with pytest.raises(ValueError, match=r"a state \[1, 1, 4, 6\], got \[1, 1, 4, 5\]"):
        retention_recurrent(**x | {"state": x["state"][..., 1:]})


def test_they_are_custom_operators_of_one_graph(device):
    x = draw((2, 1, 1, 4, 6), torch.float32, device)
    for given in (x, x | {"state": None, "segment_start": None, "mask": None}):
        for wanted in (True, False):
            check_custom_operator(recurrent._retention_recurrent, *given.values(), wanted)
    check_custom_operator(recurrent._retention_recurrent_, *x.values())

    def step(in_place: bool, state: Tensor) -> tuple[Tensor, Tensor]:
        given = x | {"q": x["q"] * 2, "state": state}
        o, after = retention_recurrent(**given, in_place=in_place)
        return o + 1, after

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    o, state = step(False, x["state"])
    for in_place in (False, True):
        given = x["state"].clone()
        found = compiled(in_place, given)
        assert torch.equal(found[0], o) and torch.equal(found[1], state)
        assert torch.equal(given, state if in_place else x["state"])


def recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Does `step` as its CUDA graph; without a GPU, as itself. It is done twice to warm up."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def test_a_recorded_step_of_a_model_samples_what_a_model_samples(device):
    kernels = select_kernels(device=device)
    kernels = replace(kernels, retention_recurrent=retention_recurrent)
    model = build_model("retnet", kernels, decoder_layers=1).to(device)
    prompt = torch.randint(3, 400, (2, 6), device=device)
    past = RetentionCache.empty(model.config, 2, device).fixed()
    token = torch.zeros(2, 1, dtype=torch.long, device=device)

    def step() -> None:
        logits = model(token, past_key_values=past, forward_mode="recurrent").logits
        token.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))

    replay = recorded(step, device)
    past.reset()
    token.copy_(model(prompt, past_key_values=past).logits[:, -1:].argmax(dim=-1))
    replayed = []
    for _ in range(3):
        replayed.append(token.clone())
        replay()
    settings = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(torch.cat(replayed, dim=1), model.generate(prompt, **settings)[:, 6:])
    assert past.get_seq_length() == 9
