"""The loss by position in the context, up to many times the length that the model was trained on.

A row goes through the model in pieces, in the chunkwise form, with the carried state: the sum of a
piece's losses is one number of the curve, and memory does not grow with the length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retnet.evaluation.asked import Asked, Result

PIECES = 8
"""Points of the curve per trained length."""


def measure_positions(asked: Asked) -> Result:
    """The mean loss of each piece over the rows, and `position/<k>x/loss` over the last trained
    length of targets before each of the lengths. Rows are of the first validation set."""
    length, config = asked.length, asked.config
    texts = asked.validation[0]
    longest = min(config.lengths[-1], (texts.tokens - 1) // length)
    if longest == 0:
        return Result({}, [], f"the loss by position needs {length + 1} held-out tokens in a row")
    rows, joined = texts.long_rows(longest * length, config.rows)
    edges = piece_edges(length, longest)
    sums = asked.deal(rows, lambda row: loss_of_pieces(asked, row, edges))
    nats = torch.tensor(sums, dtype=torch.float64).sum(0)
    targets = sum(count_targets(row["shift_labels"], edges) for row in rows)
    per_length = len(edges) // longest
    values = {}
    for times in config.lengths:
        if times <= longest:
            last = slice((times - 1) * per_length, times * per_length)
            values[f"position/{times}x/loss"] = float(nats[last].sum() / targets[last].sum())
    detail = {
        "set": texts.name,
        "length": length,
        "bucket": length // PIECES if length % PIECES == 0 else length / per_length,
        "joined": joined,
        "rows": len(rows),
        "loss": (nats / targets).tolist(),
        "targets": targets.tolist(),
    }
    return Result(values, [detail], words_about(longest, joined, config.lengths[-1], length))


def piece_edges(length: int, times: int) -> list[int]:
    """Where each piece ends: as even as whole tokens allow, and at every trained length."""
    pieces = min(PIECES, length)
    return [
        copy * length + piece * length // pieces
        for copy in range(times)
        for piece in range(1, pieces + 1)
    ]


def loss_of_pieces(asked: Asked, row: dict[str, Tensor], edges: list[int]) -> list[float]:
    """The sum of the losses of each piece of one row, in nats. Collective."""
    state, sums, begin = None, [], 0
    for end in edges:
        ids, targets = row["input_ids"][:, begin:end], row["shift_labels"][:, begin:end]
        nats, state = asked.nats(ids, targets, state)
        sums.append(nats)
        begin = end
    return torch.stack(sums).tolist()


def count_targets(labels: Tensor, edges: list[int]) -> Tensor:
    """Targets in each piece of labels [1, T]: integers [pieces]."""
    counted = (labels[0] >= 0).long().cumsum(0)[torch.tensor(edges) - 1]
    return counted.diff(prepend=counted.new_zeros(1))


def words_about(longest: int, joined: bool, wanted: int, length: int) -> str:
    """What is not as asked for."""
    if longest < wanted:
        return (
            f"the loss by position ends at {longest * length:,} tokens: there is not more "
            "held-out text (data.validation_bytes)"
        )
    if joined:
        return (
            f"no held-out document has {longest * length:,} tokens: the loss by position is "
            "measured on documents laid end to end"
        )
    return ""
