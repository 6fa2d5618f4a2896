"""What every elementwise operator on Triton has to hold, whatever it computes: its outputs and all
its gradients are float64's within the rounding of its dtype, it repeats bit by bit, torch's own
checks of custom operators pass, and torch.compile keeps one graph.

Outputs start as nan, and so does the memory between the rows of strided inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Inputs = Sequence[Tensor | None]
# Each element is rounded once, so the L2 error is below one unit of the dtype; float32 is also what
# is computed in, and adds up. The interpreter cuts bfloat16 off where a GPU rounds.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-7,
}


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """torch fills what `empty` gives with nan."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def strided(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers [*shape] whose rows lie further apart than they are wide, nan between them."""
    whole = torch.full((*shape[:-1], shape[-1] + 7), torch.nan, dtype=dtype, device=device)
    whole[..., 3:-4] = torch.randn(*shape, device=device).to(dtype)
    return whole[..., 3:-4]


def outputs_and_gradients(
    operator: Callable, inputs: Inputs, output_gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Outputs, then the gradient of each floating input that is there."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in inputs]
    found = operator(*leaves)
    found = list(found) if isinstance(found, tuple) else [found]
    wanted = [x for x in leaves if x is not None]
    gradients = torch.autograd.grad(found, wanted, list(output_gradients))
    return [x.detach() for x in (*found, *gradients)]


def output_gradients(operator: Callable, inputs: Inputs) -> list[Tensor]:
    """Random gradients like the outputs, strided."""
    with torch.no_grad():
        found = operator(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    return [strided(y.shape, y.dtype, y.device) for y in found]


def check_against_float64(
    operator: Callable, definition: Callable, inputs: Inputs, products: torch.dtype | None = None
) -> None:
    """Both take the inputs; the definition gets them in float64. Dtypes and shapes are the inputs',
    and what is computed twice is the same twice. `products`: the dtype of the operands of products,
    where no output can be more exact."""
    with poisoned_outputs():
        grads = output_gradients(operator, inputs)
        found = outputs_and_gradients(operator, inputs, grads)
        again = outputs_and_gradients(operator, inputs, grads)
    wide = [None if x is None else x.double() for x in inputs]
    truth = outputs_and_gradients(definition, wide, [g.double() for g in grads])
    like = [*grads, *(x for x in inputs if x is not None)]
    for ours, repeated, exact, model in zip(found, again, truth, like, strict=True):
        assert ours.dtype == model.dtype and ours.shape == model.shape
        error = (ours.double() - exact).norm() / exact.norm()
        allowed = max(TOLERANCE[ours.dtype], TOLERANCE[products or ours.dtype])
        assert error <= allowed, f"{ours.dtype} {list(ours.shape)}: {error:.2e}"
        assert torch.equal(ours, repeated)


def check_custom_operator(operator: torch.library.CustomOpDef, *arguments: object) -> None:
    """torch.library.opcheck: the schema is true, fake tensors agree, autograd is registered."""
    torch.library.opcheck(operator, arguments)


def check_one_graph(operator: Callable, inputs: Inputs) -> None:
    """fullgraph compiles a function of it, forward and backward, and changes nothing."""

    def around(*given: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        found = operator(*(x if x is None else x * 2 for x in given))
        return tuple(y + 1 for y in found) if isinstance(found, tuple) else found + 1

    torch._dynamo.reset()
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    grads = output_gradients(around, inputs)
    found = outputs_and_gradients(compiled, inputs, grads)
    expected = outputs_and_gradients(around, inputs, grads)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
