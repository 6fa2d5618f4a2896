"""How the kernels of chunkwise retention are launched: grids, strides, tiles, and into how many
segments a scan is cut. Not here: what is computed of what (`chunkwise.py`).
"""

from math import gcd

import torch
import triton
from torch import Tensor

from retnet.kernels.triton.chunkwise_products import outputs_kernel, scores_kernel
from retnet.kernels.triton.chunkwise_states import join_kernel, states_kernel
from retnet.kernels.triton.chunkwise_tiles import Tiles, config_for, multiprocessors
from retnet.kernels.triton.tiles import launching_on, neighboring

CHUNKS_PER_SEGMENT = 8
"A scan is not cut into segments of fewer: joining them costs another pass over the states."
LARGE_TILE = 128 * 128
"Elements; a program with more has a multiprocessor to itself, others share one by two."
MOST_HEADS = 65535
"Of all sequences together: axis 1 of a grid."
JOINED_ELEMENTS = 2048


def states_dtype(v: Tensor) -> torch.dtype:
    """What the states between chunks are kept in: the dtype of the product that reads them, but a
    state grows with its document, and float16 ends at 65,504."""
    return torch.float32 if v.dtype == torch.float16 else v.dtype


class Launch:
    """What all launches of one call share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        segment_start: Tensor | None,
        age: Tensor | None,
        chunk: int,
    ) -> None:
        self.q, self.k, self.v = neighboring(q), neighboring(k), neighboring(v)
        self.batch, self.time, self.heads, key_dim = q.shape
        if self.batch * self.heads > MOST_HEADS:
            raise ValueError(
                f"retention of {self.batch} sequences of {self.heads} heads at once: the Triton "
                f"kernels take {MOST_HEADS} heads of all sequences together; use a smaller batch, "
                "or kernels.retention=torch"
            )
        self.chunk, self.chunks = chunk, -(-self.time // chunk)
        self.log_decay = log_decay.to(v.device).contiguous()
        self.segment_start = None if segment_start is None else segment_start.contiguous()
        self.age = None if age is None else age.contiguous()
        self.precision = _precision(v)
        self.config = config_for(v.device, key_dim, v.shape[-1], chunk, v.dtype, states_dtype(v))

    def scores(self, x: Tensor, y: Tensor, scores: Tensor) -> None:
        """scores [B, H, N, C, C] of x and y [B, T, H, X]."""
        tiles = self.config.scores
        side = self.chunk // tiles.rows
        grid = (self.chunks * (side * (side + 1) // 2), self.batch * self.heads)
        aligned, strides = _aligned(x, y)
        with launching_on(x):
            scores_kernel[grid](
                x,
                y,
                self.log_decay,
                self.segment_start,
                self.age,
                scores,
                self.time,
                self.chunks,
                *strides,
                HEADS=self.heads,
                ALIGNED=aligned,
                X=x.shape[-1],
                CHUNK=self.chunk,
                ROWS=tiles.rows,
                STEP=tiles.step,
                PRECISION=self.precision,
                STAGES=tiles.stages,
                num_warps=tiles.warps,
            )

    def scan(
        self,
        x: Tensor,
        y: Tensor,
        initial: Tensor | None,
        states: Tensor,
        final: Tensor | None,
        backward: bool = False,
    ) -> None:
        """states [B, H, N, X, Y], and the one after them all, of x [B, T, H, X], y [B, T, H, Y]."""
        tiles, shape = self.config.states, states.shape[-2:]
        blocks = triton.cdiv(shape[0], tiles.rows) * triton.cdiv(shape[1], tiles.columns)
        heads = self.batch * self.heads
        segments = _segments(x.device, blocks * heads, self.chunks, tiles)
        length = triton.cdiv(self.chunks, segments)  # chunks of a segment
        segments = triton.cdiv(self.chunks, length)
        last = final
        if segments > 1:
            last = states.new_empty((segments, heads, *shape), dtype=torch.float32)
        aligned, strides = _aligned(x, y)
        with launching_on(x):
            states_kernel[blocks, heads, segments](
                x,
                y,
                self.log_decay,
                None if initial is None else initial.to(torch.float32).contiguous(),
                self.segment_start,
                self.age,
                states,
                last,
                self.time,
                self.chunks,
                length,
                *strides,
                HEADS=self.heads,
                ALIGNED=aligned,
                X=shape[0],
                Y=shape[1],
                CHUNK=self.chunk,
                BLOCK_X=tiles.rows,
                BLOCK_Y=tiles.columns,
                STEP=tiles.step,
                BACKWARD=backward,
                PRECISION=self.precision,
                STAGES=tiles.stages,
                num_warps=tiles.warps,
            )
            if segments > 1:
                self._join(states, last, final, segments, length, backward)

    def _join(
        self,
        states: Tensor,
        last: Tensor,
        final: Tensor | None,
        segments: int,
        length: int,
        backward: bool,
    ) -> None:
        size, heads = states.shape[-2] * states.shape[-1], self.batch * self.heads
        join_kernel[triton.cdiv(size, JOINED_ELEMENTS), heads, segments](
            self.log_decay,
            self.segment_start,
            self.age,
            states,
            last,
            final,
            self.time,
            self.chunks,
            length,
            HEADS=self.heads,
            SIZE=size,
            CHUNK=self.chunk,
            BLOCK=JOINED_ELEMENTS,
            BACKWARD=backward,
            num_warps=8,
        )

    def outputs(
        self,
        x: Tensor,
        states: Tensor,
        scores: Tensor,
        y: Tensor,
        out: Tensor,
        backward: bool = False,
    ) -> None:
        """out [B, T, H, Y] of x [B, T, H, X], states [B, H, N, X, Y], also transposed, scores
        [B, H, N, C, C] and y [B, T, H, Y]."""
        tiles = self.config.values if out.shape == self.v.shape else self.config.keys
        tiles_of_chunk = triton.cdiv(out.shape[-1], tiles.columns) * (self.chunk // tiles.rows)
        aligned, strides = _aligned(x, y)
        with launching_on(x):
            outputs_kernel[self.chunks * tiles_of_chunk, self.batch * self.heads](
                x,
                states,
                scores,
                y,
                self.log_decay,
                self.segment_start,
                self.age,
                out,
                self.time,
                self.chunks,
                *strides,
                HEADS=self.heads,
                ALIGNED=aligned,
                STATE_ROW=states.stride(-2),
                STATE_COLUMN=states.stride(-1),
                X=x.shape[-1],
                Y=out.shape[-1],
                CHUNK=self.chunk,
                ROWS=tiles.rows,
                BLOCK_Y=tiles.columns,
                STEP=tiles.step,
                BACKWARD=backward,
                PRECISION=self.precision,
                STAGES=tiles.stages,
                num_warps=tiles.warps,
            )


def _segments(device: torch.device, programs: int, chunks: int, tiles: Tiles) -> int:
    """Into how many segments a scan of `chunks` chunks is cut, each `programs` programs: as many as
    a device holds at once, so that cutting pays for joining."""
    large = tiles.rows * tiles.columns > LARGE_TILE
    at_once = multiprocessors(device) * (1 if large else 2)
    return max(1, min(at_once // programs, chunks // CHUNKS_PER_SEGMENT))


def _precision(v: Tensor) -> str:
    """How float32 operands are multiplied. float16 ones meet float32 states in TF32, whose fraction
    is as long as theirs."""
    exact = v.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact or torch.version.hip is not None else "tf32"


def _aligned(x: Tensor, y: Tensor) -> tuple[int, list[int]]:
    """The largest power of two, up to 16, that divides the strides of sequences, tokens and heads
    of x and y, and those strides in such units."""
    strides = [*x.stride()[:3], *y.stride()[:3]]
    aligned = gcd(16, *strides)
    return aligned, [stride // aligned for stride in strides]
