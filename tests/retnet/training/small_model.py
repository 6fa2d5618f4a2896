"""The module that the training tests train: small, and true to the contract of `train_step`.

It knows the contract alone (keyword arguments in, an object with `.loss` out) and is no model of
ours. Its embedding is tied to its head, so that tied weights pass through everything.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

VOCABULARY = 61
WIDTH = 16
LENGTH = 12


class Output(NamedTuple):
    """What the module returns."""

    loss: Tensor


class SmallModel(nn.Module):
    """Embedding, two residual layers with norms and biases, tied head, one float32 buffer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(0.1234567))

    def forward(
        self,
        input_ids: Tensor,
        shift_labels: Tensor,
        num_items_in_batch: Tensor,
        z_loss_coeff: float | None = None,
        label_smoothing: float | None = None,
    ) -> Output:
        """Adds the token losses up and divides by `num_items_in_batch`; ids are [b, T]. It has no
        z-loss and no label smoothing that could be left out."""
        hidden = self.embedding(input_ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = hidden + self.dropout(torch.tanh(layer(norm(hidden))))
        logits = self.head(hidden).float()
        loss = cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum")
        return Output(loss / num_items_in_batch)


class Spoiled(SmallModel):
    """A finite loss whose gradient is infinite where a row begins with the token 0, or a loss
    that is nan where it begins with the token 1."""

    def forward(
        self, input_ids: Tensor, shift_labels: Tensor, num_items_in_batch: Tensor, **kwargs: float
    ) -> Output:
        """As above; the square root has the value 0 and an infinite slope at 0."""
        loss = super().forward(input_ids, shift_labels, num_items_in_batch, **kwargs).loss
        if bool((input_ids[:, 0] == 0).any()):
            weight = self.layers[0].weight.float()
            loss = loss + ((weight - weight.detach()).sum() ** 2).sqrt()
        if bool((input_ids[:, 0] == 1).any()):
            loss = loss + float("nan")  # a constant: the gradient stays finite
        return Output(loss)


class Skipping(SmallModel):
    """Every second time it leaves its second layer out, and so without a gradient."""

    calls = 0

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Output:
        """As above."""
        layers, norms = self.layers, self.norms
        if self.calls % 2:
            self.layers, self.norms = layers[:1], norms[:1]
        output = super().forward(*args, **kwargs)
        self.layers, self.norms = layers, norms
        self.calls += 1
        return output


def make_model(kind: type[SmallModel] = SmallModel, dropout: float = 0.0) -> SmallModel:
    """A model with the same weights in every process."""
    torch.manual_seed(7)
    return kind(dropout)


def global_batch(step: int, rows: int) -> dict[str, Tensor]:
    """The rows of a step, [rows, T], the same in every process; some labels are no targets, and
    not equally many in each row."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(2, VOCABULARY, (rows, LENGTH + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    for row in range(rows):
        labels[row, : (row * 3 + step) % (LENGTH - 1)] = -100
    return {"input_ids": tokens[:, :-1].clone(), "shift_labels": labels}


def share(
    batch: dict[str, Tensor], rank: int, world_size: int, micro_batch_size: int
) -> list[dict[str, Tensor]]:
    """A rank's micro-batches of a global batch."""
    mine = {name: value[rank::world_size] for name, value in batch.items()}
    count = mine["input_ids"].shape[0] // micro_batch_size
    chunks = {name: value.chunk(count) for name, value in mine.items()}
    return [{name: chunks[name][index] for name in chunks} for index in range(count)]
