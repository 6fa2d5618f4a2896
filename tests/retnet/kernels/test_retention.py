"""The law of retention: any form, any cut, any chunk size, the same outputs, states and
gradients."""

import pytest
import torch

from retnet.kernels import chunkwise, recurrent, reference

TIME, HEADS, KEY, VALUE = 67, 3, 8, 12
LOG_DECAY = torch.log1p(-(2.0 ** (-5 - torch.arange(HEADS).double())))

FORMS = {
    "parallel": reference.retention_parallel,
    "recurrent by definition": reference.retention_recurrent,
    "recurrent": recurrent.retention_recurrent,
    **{
        f"{module.__name__.rsplit('.', 1)[1]} by {size}": (
            lambda *args, retain=module.retention_chunkwise, size=size: retain(
                *args, chunk_size=size
            )
        )
        for module, sizes in ((reference, (7,)), (chunkwise, (1, 2, 7, 16, 64, 67, 128)))
        for size in sizes
    },
}


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    """q, k, v, an initial state, packed documents that begin anywhere (one before this piece), and
    a mask."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    segment_start = torch.zeros(2, TIME, dtype=torch.int32)
    for row, starts in enumerate(((-3, 10, 11, 40), (-5, 16, 32, 60))):
        for start in starts:
            segment_start[row, max(start, 0) :] = start
    return {
        "q": normal(2, TIME, HEADS, KEY),
        "k": normal(2, TIME, HEADS, KEY),
        "v": normal(2, TIME, HEADS, VALUE),
        "state": normal(2, HEADS, KEY, VALUE),
        "segment_start": segment_start,
        "mask": torch.rand(2, TIME, generator=draw) > 0.3,
    }


def outputs_and_gradients(retain, x: dict, state: bool, packed: bool, masked: bool) -> list:
    o, after = retain(
        x["q"],
        x["k"],
        x["v"],
        LOG_DECAY,
        x["state"] if state else None,
        x["segment_start"] if packed else None,
        x["mask"] if masked else None,
    )
    weigh = torch.Generator().manual_seed(7)
    loss = (o * torch.randn(o.shape, generator=weigh, dtype=o.dtype)).sum()
    loss = loss + (after * torch.randn(after.shape, generator=weigh, dtype=after.dtype)).sum()
    wanted = [x["q"], x["k"], x["v"]] + ([x["state"]] if state else [])
    return [o, after, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("state", [False, True], ids=["from nothing", "from a state"])
def test_all_forms_agree_in_outputs_state_and_gradients(state, packed, masked):
    x = inputs()
    expected = outputs_and_gradients(FORMS["parallel"], x, state, packed, masked)
    for name, retain in FORMS.items():
        got = outputs_and_gradients(retain, x, state, packed, masked)
        for what, a, b in zip(("o", "S", "dq", "dk", "dv", "dS"), got, expected, strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=f"{name}: {what} differs")


@pytest.mark.parametrize("cut", [1, 10, 11, 32, 66])
@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
def test_a_cut_anywhere_changes_nothing_whatever_form_each_piece_takes(cut, masked):
    x = inputs(1)
    names = ["parallel", "recurrent", "chunkwise by 16"]

    def piece(retain, part: slice, state):
        mask = x["mask"][:, part] if masked else None
        return retain(
            *(x[name][:, part] for name in "qkv"),
            LOG_DECAY,
            state,
            x["segment_start"][:, part] - part.start,
            mask,
        )

    whole, end = piece(FORMS["parallel"], slice(0, TIME), x["state"])
    expected = torch.autograd.grad(whole.sum() + end.sum(), [x["q"], x["v"], x["state"]])
    for first in names:
        for second in names:
            before, state = piece(FORMS[first], slice(0, cut), x["state"])
            after, last = piece(FORMS[second], slice(cut, TIME), state)
            both = torch.cat((before, after), dim=1)
            got = torch.autograd.grad(both.sum() + last.sum(), [x["q"], x["v"], x["state"]])
            for a, b in zip((both, last, *got), (whole, end, *expected), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_document_gives_what_it_gives_alone():
    x = inputs(2)
    packed, _ = FORMS["chunkwise by 16"](
        x["q"], x["k"], x["v"], LOG_DECAY, None, x["segment_start"], None
    )
    alone, _ = FORMS["parallel"](*(x[name][:1, 11:40] for name in "qkv"), LOG_DECAY)
    torch.testing.assert_close(packed[:1, 11:40], alone, rtol=0, atol=1e-10)


def test_masked_tokens_are_not_in_the_stream():
    x = inputs(3)
    keep = x["mask"][0]
    o, state = FORMS["chunkwise by 16"](
        x["q"], x["k"], x["v"], LOG_DECAY, x["state"], None, x["mask"]
    )
    dense, dense_state = FORMS["parallel"](
        *(x[name][:1, keep] for name in "qkv"), LOG_DECAY, x["state"][:1]
    )
    torch.testing.assert_close(o[:1, keep], dense, rtol=0, atol=1e-10)
    torch.testing.assert_close(state[:1], dense_state, rtol=0, atol=1e-10)
    assert not o[0, ~keep].any()


@pytest.mark.parametrize("name", list(FORMS))
def test_the_future_is_not_seen(name):
    x = inputs(4)
    o, _ = FORMS[name](x["q"], x["k"], x["v"], LOG_DECAY)
    later = torch.autograd.grad(o[:, :30].sum(), [x["q"], x["k"], x["v"]])
    for gradient in later:
        assert gradient[:, :30].any() and not gradient[:, 30:].any()


def test_more_chunks_than_a_block_holds_change_nothing(monkeypatch):
    x = inputs(5)
    expected = outputs_and_gradients(FORMS["parallel"], x, True, True, True)
    monkeypatch.setattr(chunkwise, "CHUNKS_PER_BLOCK", 3)
    got = outputs_and_gradients(FORMS["chunkwise by 7"], x, True, True, True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunkwise_form_rounds_little_more_than_the_definition(dtype):
    """Measured against float64: at most four times the rounding of the definition on the same
    inputs, which does all its arithmetic in float32 and so rounds bfloat16 once, at the end (the
    batched form, which multiplies in bfloat16, is allowed the few roundings of its operands)."""
    exact = inputs(6)
    rounded = inputs(6, dtype)
    exact = {n: rounded[n].double() if n in "qkv" else exact[n] for n in exact}
    truth = FORMS["parallel"](exact["q"], exact["k"], exact["v"], LOG_DECAY)[0]
    scale = truth.abs().max()
    definition = FORMS["parallel"](rounded["q"], rounded["k"], rounded["v"], LOG_DECAY)[0]
    batched = FORMS["chunkwise by 16"](rounded["q"], rounded["k"], rounded["v"], LOG_DECAY)[0]
    assert batched.dtype == dtype
    allowed = 4 * max((definition - truth).abs().max() / scale, torch.finfo(dtype).eps)
    assert (batched - truth).abs().max() / scale <= allowed


def test_the_state_is_float32_for_bfloat16_inputs():
    x = inputs(7, torch.bfloat16)
    for name, retain in FORMS.items():
        assert retain(x["q"], x["k"], x["v"], LOG_DECAY)[1].dtype == torch.float32, name


def test_float16_holds_the_state_of_a_long_document():
    """A state sums thousands of products; in float16 it would pass 65,504 before q shrinks it."""
    time, heads = 4096, 12
    log_decay = torch.log1p(-(2.0 ** (-5 - torch.arange(heads).double())))
    q = torch.full((1, time, heads, 8), 0.01, dtype=torch.float16)
    k, v = (torch.full((1, time, heads, 8), 5.0, dtype=torch.float16) for _ in range(2))
    o, state = chunkwise.retention_chunkwise(q, k, v, log_decay, chunk_size=64)
    exact, _ = reference.retention_parallel(q, k, v, log_decay)
    assert state.max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(o, exact, rtol=5e-3, atol=0)


def test_the_chunkwise_form_never_makes_a_square_tensor():
    """Every tensor saved for the backward pass at T = 4096 is far smaller than one head's T x T
    scores."""
    time, chunk = 4096, 64
    q, k, v = (torch.randn(1, time, 1, 8, requires_grad=True) for _ in range(3))
    biggest = 0

    def measure(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal biggest
        biggest = max(biggest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        chunkwise.retention_chunkwise(q, k, v, LOG_DECAY[:1], chunk_size=chunk)
    assert 0 < biggest <= time * chunk


def test_wrong_shapes_are_refused_with_a_sentence():
    x = inputs(8)
    with pytest.raises(ValueError, match=r"retention needs a state \[2, 3, 8, 12\]"):
        FORMS["parallel"](x["q"], x["k"], x["v"], LOG_DECAY, x["state"][:, :2])
    with pytest.raises(ValueError, match=r"retention needs log_decay \[3\]"):
        FORMS["recurrent"](x["q"], x["k"], x["v"], LOG_DECAY[:2])
    with pytest.raises(ValueError, match=r"retention needs segment_start \[2, 67\]"):
        FORMS["chunkwise by 7"](x["q"], x["k"], x["v"], LOG_DECAY, None, x["segment_start"][:, 1:])


def test_a_second_derivative_is_refused_not_made_up():
    q = torch.randn(1, 5, 1, 4, requires_grad=True)
    o, _ = chunkwise.retention_chunkwise(q, q, q, torch.tensor([-0.1]), chunk_size=2)
    with pytest.raises(RuntimeError, match="chunkwise form of retention is differentiated once"):
        torch.autograd.grad(o.sum(), q, create_graph=True)


def test_no_tokens_leave_the_state_as_it_was():
    empty, state = torch.zeros(1, 0, 1, 4), torch.randn(1, 1, 4, 4, requires_grad=True)
    o, after = chunkwise.retention_chunkwise(empty, empty, empty, torch.tensor([-0.1]), state)
    assert o.shape == empty.shape and torch.equal(after, state)
    assert torch.equal(torch.autograd.grad(after.sum(), state)[0], torch.ones_like(state))
