"""The multi-scale retention layer: project, rotate, retain, normalize each head, gate, project.

y = W_o( swish(W_g x) * norm_per_head(o) )   (arXiv:2307.08621, equation 8)
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import maybe_autocast

from retnet.kernels import Kernels
from retnet.kernels.reference import retention_scores
from retnet.models.configuration import FORWARD_MODES, RetentionConfig
from retnet.models.fused import FusibleProjections
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
    in_place: bool = False
    "Whether the recurrent form writes the state it returns over the one it is given."

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


class MultiScaleRetention(FusibleProjections):
    """Retention over H heads with one decay each; takes and returns its state.

    Its projections are q_proj, k_proj, v_proj and g_proj, or qkvg_proj with the rows of all four.
    """

    fused_name = "qkvg_proj"

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        hidden, value, bias = config.hidden_size, config.value_dim, config.retention_bias
        parts = {"q_proj": hidden, "k_proj": hidden, "v_proj": value, "g_proj": value}
        super().__init__(hidden, parts, bias, kernels.fused_projections)
        self.config = config
        self.kernels = kernels
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
        q, k, v, gate = self.project(x)  # [B, T, D], [B, T, D] and twice [B, T, H * V]
        q, k, v = q.view(per_head), k.view(per_head), v.view(per_head)  # [B, T, H, K or V]
        q, k = positions.rotate(q, k, self.kernels.rotate)
        where = positions.log_decay, state, positions.segment_start, positions.mask
        asked = {"return_state": form.return_state}
        if form.mode == "chunkwise":
            retain = self.kernels.retention_chunkwise
            asked["chunk_size"] = form.chunk_size
        elif form.mode == "parallel":
            retain = self.kernels.retention_parallel
        else:
            retain = self.kernels.retention_recurrent
            asked["in_place"] = form.in_place and form.return_state
        with maybe_autocast(x.device.type, enabled=False):  # autocast would cast the state
            o, state = retain(q, k, v, *where, **asked)
        y = self.out_proj(self.group_norm(o, gate))
        scores = None
        if form.return_scores:
            log_decay, _, segment_start, mask = where
            scores = retention_scores(q, k, log_decay, segment_start, mask)
        return y, state, scores
