"""The multi-scale retention layer: project, rotate, retain, normalize each head, gate, project.

y = W_o( swish(W_g x) * norm_per_head(o) )   (arXiv:2307.08621, equation 8)
"""

from torch import Tensor, nn

from retnet.kernels import Kernels
from retnet.models.configuration import RetentionConfig
from retnet.models.norms import head_norm
from retnet.models.rotary import Positions


class MultiScaleRetention(nn.Module):
    """Retention over H heads with one decay each; takes and returns its state."""

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        super().__init__()
        hidden, value = config.hidden_size, config.value_dim
        self.config = config
        self.kernels = kernels
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, value, bias=False)
        self.g_proj = nn.Linear(hidden, value, bias=False)
        self.out_proj = nn.Linear(value, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        state: Tensor | None,
        forward_mode: str,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D], state [B, H, K, V] or None -> y [B, T, D], state after the last token."""
        per_head = (*x.shape[:2], self.config.num_heads, -1)
        q, k = positions.rotate(self.q_proj(x).view(per_head), self.k_proj(x).view(per_head))
        v = self.v_proj(x).view(per_head)  # [B, T, H, V]
        arguments = (q, k, v, positions.log_decay, state, positions.segment_start, positions.mask)
        if forward_mode == "chunkwise":
            o, state = self.kernels.retention_chunkwise(*arguments, chunk_size=chunk_size)
        elif forward_mode == "parallel":
            o, state = self.kernels.retention_parallel(*arguments)
        else:
            o, state = self.kernels.retention_recurrent(*arguments)
        o = head_norm(o, self.config, self.kernels).flatten(-2)  # [B, T, H * V]
        return self.out_proj(nn.functional.silu(self.g_proj(x)) * o), state
