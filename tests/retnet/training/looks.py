"""Notes where the host looks at a tensor, which on a GPU is where it waits for the device."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Looks(TorchDispatchMode):
    """Notes each time the host looks at a tensor's value; on a GPU it would wait there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls `func` and keeps its name, if it is one that looks."""
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
