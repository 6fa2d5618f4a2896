"""Brings a step's micro-batches to a GPU beside the work: pinned memory, a stream of its own.

It neither reads nor orders rows. Who does calls `begin` one step early, and what it returns when
the step is due: the copy is done by then, and the host waits for nothing. A CPU needs none of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Batches = list[dict[str, Tensor]]


def placing(device: torch.device) -> Callable[[Batches], Callable[[], Batches]] | None:
    """What begins a copy to `device`; None where batches on the host are where they are used."""
    return DeviceCopy(device).begin if device.type == "cuda" else None


class DeviceCopy:
    """Copies to one CUDA device, on a stream that no kernel of the step runs on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, batches: Batches) -> Callable[[], Batches]:
        """Queues the copy. What it returns gives the tensors on the device, to be used on the
        stream that is current then; the host does not wait in either."""
        with torch.cuda.stream(self._stream):
            # From pageable memory a copy is not asynchronous. torch keeps the pinned memory until
            # the stream has read it, and uses it again.
            copies = [
                {
                    name: value.pin_memory().to(self._device, non_blocking=True)
                    for name, value in batch.items()
                }
                for batch in batches
            ]
        copied = self._stream.record_event()

        def take() -> Batches:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for batch in copies:
                for value in batch.values():
                    # Without it the memory would be free for the next copy as soon as Python drops
                    # the tensor, while kernels of the step may still have to read it.
                    value.record_stream(current)
            return copies

        return take
