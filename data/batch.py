"""Rows as tensors: the micro-batch that a step computes on. It does not choose rows."""

import numpy as np
import torch

from data.packing import Row

Batch = dict[str, torch.Tensor]


def as_batch(made: list[Row]) -> Batch:
    """Rows as one batch: input_ids and shift_labels int64 [b, L], segment_start int32 [b, L]."""
    inputs = np.stack([row.tokens[:-1] for row in made]).astype(np.int64)
    return {
        "input_ids": torch.from_numpy(inputs),
        "shift_labels": torch.from_numpy(np.stack([row.labels for row in made])),
        "segment_start": torch.from_numpy(np.stack([row.segment_start for row in made])),
    }
