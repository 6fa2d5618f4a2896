"""Chunkwise retention on Triton: float64's outputs, states and gradients for any shape, cut,
packing and mask, and the same bits each time.
"""

import pytest
import torch
from torch import Tensor

from retnet.kernels import reference
from retnet.kernels.triton import chunkwise, chunkwise_launch, chunkwise_tiles
from retnet.kernels.triton.chunkwise import retention_chunkwise
from retnet.kernels.triton.chunkwise_tiles import ANY, CONFIGS, Config, Tiles
from tests.retnet.kernels.triton.laws import (
    check_against_float64,
    check_custom_operator,
    check_one_graph,
    strided,
)

HEADS = 2
LOG_DECAY = torch.log1p(-(2.0 ** (-5 - torch.arange(HEADS).float())))
STARTS = (-3, 10, 11, 32, 64, 70, 128, 250)
"Of documents: before the piece, next to each other, at a chunk's edge and inside one."
TINY = Tiles(16, 16, 16, 4, 2)


@pytest.fixture
def tiny_tiles(monkeypatch):
    """Many tiles of every kind where shapes are small."""
    for family in ANY:
        monkeypatch.setitem(ANY, family, Config(TINY, TINY, TINY, TINY))


def draw(shape, dtype, device, state=True):
    """q, k, v whose rows lie apart as in one fused projection, and a state or None."""
    batch, time, heads, key, value = shape
    q, k = (strided((batch, time, heads, key), dtype, device) for _ in range(2))
    v = strided((batch, time, heads, value), dtype, device)
    before = torch.randn(batch, heads, key, value, device=device) if state else None
    return [q, k, v, before]


def documents(batch, time, device, starts=STARTS):
    segment_start = torch.zeros(batch, time, dtype=torch.int32, device=device)
    for start in starts:
        segment_start[0, max(start, 0) :] = start
    return segment_start  # the second row, if there is one, is one document from 0 on


def check(inputs, log_decay=LOG_DECAY, segment_start=None, mask=None, chunk_size=64):
    device, heads = inputs[0].device, inputs[0].shape[2]
    log_decay = log_decay[:heads].to(device)

    def ours(q, k, v, state):
        return retention_chunkwise(
            q, k, v, log_decay, state, segment_start, mask, chunk_size=chunk_size
        )

    def definition(q, k, v, state):
        return reference.retention_parallel(q, k, v, log_decay, state, segment_start, mask)

    check_against_float64(ours, definition, inputs, products=inputs[2].dtype)


@pytest.mark.parametrize(
    ("packed", "masked", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.float16),
        (False, True, torch.float16),
        (True, True, torch.float32),
    ],
    ids=["one document", "packed", "masked", "packed and masked"],
)
def test_outputs_state_and_gradients_are_those_of_float64(
    packed, masked, dtype, device, tiny_tiles
):
    """Three chunks, the last ragged, of two rows of tiles each; K and V no multiples of tiles."""
    batch = 2 if packed else 1
    inputs = draw((batch, 75, HEADS, 20, 24), dtype, device, state=packed != masked)
    segment_start = documents(batch, 75, device) if packed else None
    mask = torch.rand(batch, 75, device=device) > 0.3 if masked else None
    check(inputs, segment_start=segment_start, mask=mask, chunk_size=32)


@pytest.mark.parametrize(
    ("time", "starts", "masked"),
    [
        (400, None, False),
        (391, (-2, 380), False),
        (391, None, True),
        (400, (-3, 10, 130, 300), True),
    ],
    ids=["one document", "packed", "masked", "packed and masked"],
)
def test_a_scan_in_segments_is_the_same_scan(time, starts, masked, device, monkeypatch):
    """One sequence of 25 chunks: the segments' states, forward and backward, come together."""
    monkeypatch.setattr(chunkwise_launch, "CHUNKS_PER_SEGMENT", 6)
    monkeypatch.setattr(chunkwise_launch, "multiprocessors", lambda device: 64)
    assert chunkwise_launch._segments(device, 4, 25, TINY) == 4
    inputs = draw((1, time, 1, 16, 20), torch.float32, device, state=starts is not None)
    segment_start = None if starts is None else documents(1, time, device, starts)
    mask = torch.rand(1, time, device=device) > 0.2 if masked else None
    check(inputs, segment_start=segment_start, mask=mask, chunk_size=16)


ENTRIES = [*((f"{k[0]}", *k[1:]) for k in CONFIGS), ("wide", 96, 200, 256), ("small", 96, 72, 128)]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_every_entry_of_the_table_covers_its_heads(entry, device, monkeypatch):
    """In float32, whose tiles are others: here they are those of the entry."""
    architecture, key, value, chunk = entry
    config = ANY.get(architecture) or CONFIGS[entry]
    doubled = Config(*(tiles._replace(step=2 * tiles.step) for tiles in config))
    monkeypatch.setitem(ANY, "small", doubled)
    taken = chunkwise_tiles.config_for(device, key, value, chunk, *[torch.float32] * 2)
    assert taken.scores.step == config.scores.step and taken.values.rows == config.scores.rows
    inputs = draw((1, chunk - 7, 1, key, value), torch.float32, device)
    check(inputs, chunk_size=chunk, segment_start=documents(1, chunk - 7, device))


@pytest.mark.parametrize("shape", [(9, 3, 1, 4, 8), (1, 1, 2, 8, 16), (2, 17, 1, 64, 64)])
def test_batches_may_be_large_and_sequences_short(shape, device):
    check(draw(shape, torch.float32, device))


@pytest.mark.parametrize("log_decay", [-5.0, -1e-6], ids=["forgets at once", "never forgets"])
def test_any_decay_is_finite(log_decay, device):
    inputs = draw((1, 70, 1, 16, 16), torch.float32, device)
    check(inputs, torch.tensor([log_decay]), chunk_size=32)


def test_no_token_at_all_leaves_the_state(device):
    q, k, v, state = draw((2, 0, HEADS, 8, 8), torch.float32, device)
    state.requires_grad_()
    o, after = retention_chunkwise(q, k, v, LOG_DECAY.to(device), state)
    assert o.shape == v.shape and torch.equal(after, state)
    assert torch.autograd.grad(after.sum(), state)[0].eq(1).all()
    assert retention_chunkwise(q, k, v, LOG_DECAY.to(device))[1].eq(0).all()


def test_a_cut_between_documents_or_inside_one_changes_nothing(device):
    """Rounding alone: a piece begins its chunks anew."""
    q, k, v, state = draw((2, 90, HEADS, 16, 16), torch.float32, device)
    segment_start, log_decay = documents(2, 90, device), LOG_DECAY.to(device)
    whole, last = retention_chunkwise(q, k, v, log_decay, state, segment_start, chunk_size=32)
    outputs = []
    for piece in (slice(0, 11), slice(11, 50), slice(50, 90)):
        parts = (x[:, piece] for x in (q, k, v))
        start = segment_start[:, piece] - piece.start
        o, state = retention_chunkwise(*parts, log_decay, state, start, chunk_size=32)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_the_parallel_form_is_the_same_by_chunks(device):
    q, k, v, state = draw((1, 150, 1, 16, 16), torch.float32, device)
    given = (q, k, v, LOG_DECAY[:1].to(device), state, documents(1, 150, device))
    expected = reference.retention_parallel(*given)
    torch.testing.assert_close(chunkwise.retention_parallel(*given), expected)


def test_what_is_not_wanted_is_not_there(device):
    q, k, v, _ = draw((1, 20, HEADS, 16, 16), torch.float32, device)
    q.requires_grad_()
    o, state = retention_chunkwise(q, k, v, LOG_DECAY.to(device), return_state=False)
    assert state is None
    assert torch.autograd.grad(o.sum(), q)[0].isfinite().all()
    _, state = retention_chunkwise(q, k, v, LOG_DECAY.to(device))
    assert torch.autograd.grad(state.sum(), q, allow_unused=True)[0].eq(0).all()


def test_products_run_in_the_dtype_of_v_or_of_autocast(device):
    q, k, v, state = draw((1, 40, HEADS, 16, 16), torch.float32, device)
    log_decay = LOG_DECAY.to(device)
    expected, _ = retention_chunkwise(q.half(), k.half(), v.half(), log_decay, state)
    mixed, after = retention_chunkwise(q, k, v.half(), log_decay, state)
    assert torch.equal(mixed, expected) and after.dtype == torch.float32
    with torch.autocast(device.type, dtype=torch.float16):
        under, after = retention_chunkwise(q, k, v, log_decay, state)
    assert torch.equal(under, expected) and after.dtype == torch.float32
    wide, after = retention_chunkwise(q.double(), k.double(), v.double(), log_decay, state)
    assert wide.dtype == after.dtype == torch.float64


def test_states_beyond_float16_stay_finite(device):
    """A key that repeats for long: the state's numbers pass 65,504, the outputs do not."""
    k = torch.full((1, 64, 1, 16), 30.0, dtype=torch.float16, device=device)
    v = torch.full((1, 64, 1, 16), 60.0, dtype=torch.float16, device=device)
    o, state = retention_chunkwise(
        k / 30000, k, v, torch.tensor([-1e-4], device=device), chunk_size=16
    )
    assert state.max() > 65_504 and o.isfinite().all()


def test_it_is_a_custom_operator_of_one_graph(device):
    q, k, v, state = draw((1, 40, HEADS, 16, 20), torch.float32, device)
    log_decay, segment_start = LOG_DECAY.to(device), documents(1, 40, device)
    leaves = [x.requires_grad_() for x in (q, k, v, state)]
    for before, start, final in ((leaves[3], segment_start, True), (None, None, False)):
        given = (*leaves[:3], log_decay, before, start, None, 32, final)
        check_custom_operator(chunkwise._retention, *given)
    q, k, v, state = (x.detach() for x in leaves)
    scores, states = chunkwise._retention(q, k, v, log_decay, state, segment_start, None, 32, True)[
        2:
    ]
    given = (v.clone(), state, q, k, v, log_decay, segment_start, None)
    # above the diagonal scores are what memory held
    check_custom_operator(chunkwise._retention_backward, *given, scores.tril(), states, True)

    def around(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return retention_chunkwise(q, k, v, log_decay, state, segment_start, chunk_size=32)

    check_one_graph(around, [q, k, v, state])


def test_a_second_derivative_is_refused(device):
    q, k, v, _ = draw((1, 20, 1, 16, 16), torch.float32, device)
    o, _ = retention_chunkwise(q.requires_grad_(), k, v, LOG_DECAY[:1].to(device))
    with pytest.raises(RuntimeError, match="differentiated once; create_graph=True"):
        torch.autograd.grad(o.square().sum(), q, create_graph=True)


def test_a_decay_that_learns_is_refused_by_chunks_and_has_its_gradient_in_parallel(device):
    q, k, v, _ = draw((1, 20, 1, 16, 16), torch.float32, device)
    log_decay = LOG_DECAY[:1].to(device).requires_grad_()
    with pytest.raises(ValueError, match="no gradient of log_decay"):
        retention_chunkwise(q, k, v, log_decay)
    found, expected = (
        torch.autograd.grad(form(q, k, v, log_decay)[0].sum(), log_decay)
        for form in (chunkwise.retention_parallel, reference.retention_parallel)
    )
    assert torch.equal(*found, *expected)


@pytest.mark.parametrize(
    ("wanted", "time", "chunk"), [(512, 999, 256), (128, 999, 128), (100, 999, 64), (256, 33, 64)]
)
def test_chunks_are_those_the_kernels_know(wanted, time, chunk):
    assert chunkwise_tiles.chunk_for(wanted, time) == chunk


def test_shapes_that_do_not_go_together_are_refused(device):
    q, k, v, _ = draw((1, 20, HEADS, 16, 16), torch.float32, device)
    with pytest.raises(ValueError, match=r"needs log_decay \[2\], got \[3\]"):
        retention_chunkwise(q, k, v, torch.zeros(3))
    with pytest.raises(ValueError, match=r"needs mask \[1, 20\], got \[1, 19\]"):
        retention_chunkwise(q, k, v, LOG_DECAY, mask=torch.ones(1, 19, dtype=torch.bool))
