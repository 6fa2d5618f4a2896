"""The multi-scale retention layer: project, rotate, retain, normalize each head, gate, project.

y = W_o( swish(W_g x) * norm_per_head(o) )   (arXiv:2307.08621, equation 8)
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from retnet.kernels import Kernels
from retnet.kernels.reference import retention_scores
from retnet.models.configuration import FORWARD_MODES, RetentionConfig
from retnet.models.layers import Linear
from retnet.models.norms import HeadNorm
from retnet.models.rotary import Positions


@dataclass(frozen=True)
class Form:
    """How one pass computes retention, and what it hands back beside its output."""

    mode: str
    "parallel, chunkwise or recurrent"
    chunk_size: int
    "Tokens per chunk of the chunkwise form."
    return_state: bool = True
    "Whether to return the state after the last token."
    return_scores: bool = False
    "Whether to return the scores [B, H, T, T]; the parallel form alone has them."

    def __post_init__(self) -> None:
        if self.mode not in FORWARD_MODES:
            raise ValueError(
                f"forward_mode={self.mode!r}: needed one of {', '.join(FORWARD_MODES)}"
            )
        if self.chunk_size < 1:
            raise ValueError(f"recurrent_chunk_size={self.chunk_size}: needed at least 1")
        if self.return_scores and self.mode != "parallel":
            raise ValueError(
                f"output_attentions with forward_mode={self.mode!r}: only the parallel form has "
                'scores [T, T]; pass forward_mode="parallel" or leave output_attentions out'
            )


class MultiScaleRetention(nn.Module):
    """Retention over H heads with one decay each; takes and returns its state."""

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        super().__init__()
        hidden, value = config.hidden_size, config.value_dim
        self.config = config
        self.kernels = kernels
        bias = config.retention_bias
        self.q_proj = Linear(hidden, hidden, bias=bias)
        self.k_proj = Linear(hidden, hidden, bias=bias)
        self.v_proj = Linear(hidden, value, bias=bias)
        self.g_proj = Linear(hidden, value, bias=bias)
        self.group_norm = HeadNorm(config, kernels)
        self.out_proj = Linear(value, hidden, bias=bias)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        state: Tensor | None,
        form: Form,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, T, D], state [B, H, K, V] or None -> y [B, T, D], and, where the form asks for
        them, the state after the last token and the scores."""
        per_head = (*x.shape[:2], self.config.num_heads, -1)
        q, k = positions.rotate(self.q_proj(x).view(per_head), self.k_proj(x).view(per_head))
        v = self.v_proj(x).view(per_head)  # [B, T, H, V]
        where = positions.log_decay, state, positions.segment_start, positions.mask
        asked = {"return_state": form.return_state}
        if form.mode == "chunkwise":
            retain = self.kernels.retention_chunkwise
            asked["chunk_size"] = form.chunk_size
        elif form.mode == "parallel":
            retain = self.kernels.retention_parallel
        else:
            retain = self.kernels.retention_recurrent
        with maybe_autocast(x.device.type, enabled=False):  # autocast would cast the state
            o, state = retain(q, k, v, *where, **asked)
        o = self.group_norm(o).flatten(-2)  # [B, T, H * V]
        y = self.out_proj(nn.functional.silu(self.g_proj(x)) * o)
        scores = None
        if form.return_scores:
            log_decay, _, segment_start, mask = where
            scores = retention_scores(q, k, log_decay, segment_start, mask)
        return y, state, scores
