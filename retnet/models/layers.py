"""Linear and embedding layers that draw no weights of their own.

All initial weights come from `initialization.py`, once the model is built. torch's layers draw some
too, while they are built: twice the work, and another model for the same seed where the layers are
built without numbers (on the meta device).
"""

from torch import nn


class Linear(nn.Linear):
    """torch's, with the weights undefined until the model initializes or loads them."""

    def reset_parameters(self) -> None:
        """Draws nothing."""


class Embedding(nn.Embedding):
    """torch's, with the weights undefined until the model initializes or loads them."""

    def reset_parameters(self) -> None:
        """Draws nothing."""
