"""The Triton kernels without a GPU: their laws in Triton's interpreter, in processes of their own,
their translation for GPUs that are not here, and when the seam takes them."""

import subprocess
import sys
from os import environ
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retnet.kernels import Backend, KernelsConfig, select_kernels
from retnet.kernels.triton import adamw, cross_entropy, gated_norm, gates, norms, rotation
from retnet.models.export import carried_code

ROOT = Path(__file__).parents[3]
TARGETS = {
    "H200": (GPUTarget("cuda", 90, 32), "cubin"),
    "MI300": (GPUTarget("hip", "gfx942", 64), "hsaco"),
}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


class Translated:
    """Stands where a kernel stands: a launch compiles it for a GPU that is not here."""

    def __init__(self, kernel: triton.JITFunction, target: str) -> None:
        self.kernel = kernel
        self.target, self.binary = TARGETS[target]
        self.launches = 0

    def __getitem__(self, grid: tuple) -> "Translated":
        return self

    def __call__(self, *args: object, num_warps: int, **constants: object) -> None:
        signature, attributes = {}, {}
        for index, (name, arg) in enumerate(zip(self.kernel.arg_names, args, strict=False)):
            if arg is None:
                constants[name] = None
            elif isinstance(arg, torch.Tensor):
                signature[name] = TYPES[arg.dtype]
            elif arg == 1 and isinstance(arg, int):  # as at a real launch
                constants[name] = 1
            else:
                signature[name] = "fp32" if isinstance(arg, float) else "i32"
            if isinstance(arg, torch.Tensor) or (isinstance(arg, int) and arg % 16 == 0):
                attributes[index,] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(constants, "constexpr")
        signature = {name: signature[name] for name in self.kernel.arg_names}
        source = ASTSource(self.kernel, signature, constants, attributes)
        made = triton.compile(source, target=self.target, options={"num_warps": num_warps})
        assert made.asm[self.binary]
        self.launches += 1


def launch_everything(dtype: torch.dtype) -> None:
    """Every operator, forward and backward, at the widths of a 1.3B model."""
    x = torch.randn(2, 2048).to(dtype).requires_grad_()
    weight = torch.ones(2048, dtype=dtype, requires_grad=True)
    norms.rms_norm(x, weight, 1e-6).sum().backward()
    total, y = norms.add_rms_norm(x, x, weight, 1e-6)
    (total + y).sum().backward()
    norms.add_rms_norm(x, x, None, 1e-6)[1].sum().backward()
    heads = torch.randn(1, 2, 8, 432).to(dtype).requires_grad_()
    gate = torch.randn(1, 2, 8 * 432).to(dtype)
    for given in (torch.ones(432, dtype=dtype, requires_grad=True), None):
        gated_norm.gated_rms_norm(heads, gate, given, 1e-6).sum().backward()
    both = torch.randn(2, 2 * 3456).to(dtype).requires_grad_()
    gates.swiglu(*both.chunk(2, -1)).sum().backward()
    cos, sin = torch.randn(2, 1, 2, 1, 128)
    scale = torch.rand(1, 2, 8, 1)
    queries = torch.randn(1, 2, 8, 256).to(dtype).requires_grad_()
    for interleaved in (True, False):
        rotation.rotate(queries, cos, sin, scale, interleaved).sum().backward()
        rotation.rotate(queries, cos, sin, None, interleaved)
    targets = torch.tensor([3, -100])
    for terms in ((0.0, 0.0), (1e-4, 0.1)):
        cross_entropy.cross_entropy_rows(torch.randn(2, 32000).to(dtype), targets, *terms)
    parameter, exp_avg, exp_avg_sq = torch.zeros(3, 2048)
    scalars = {"coefficient": torch.ones(()), "not_finite": torch.zeros(()), "step": torch.ones(())}
    numbers = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    for low in (torch.zeros(2048, dtype=dtype), None):
        gradient = torch.zeros(2048, dtype=dtype)
        adamw.adamw_step(parameter, gradient, exp_avg, exp_avg_sq, low, **numbers, **scalars)


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_for_gpus_that_are_not_here(target, monkeypatch, tmp_path):
    """The interpreter forgives what the compiler refuses: a variable whose type changes in a loop,
    an operation a dtype does not have."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    standing = []
    for module in (norms, gated_norm, gates, rotation, cross_entropy, adamw):
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, triton.JITFunction):
                standing.append(Translated(kernel, target))
                monkeypatch.setattr(module, name, standing[-1])
    launch_everything(torch.bfloat16)
    assert all(kernel.launches for kernel in standing) and len(standing) == 9


HERE = Path(__file__).parent
FILES = [*sorted((HERE / "triton").glob("test_*.py")), HERE / "test_elementwise.py"]


def test_the_laws_hold_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, FILES)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_cpu_the_seam_takes_them_for_the_interpreter_alone(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "elementwise=torch" in select_kernels().description
    with pytest.raises(ValueError, match=r"kernels\.elementwise=triton: .* run is on cpu; or set"):
        select_kernels(KernelsConfig(elementwise=Backend.triton))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels = select_kernels()
    assert "rms_norm=triton elementwise=triton" in kernels.description
    assert kernels.rms_norm is norms.rms_norm and kernels.swiglu is gates.swiglu
    assert kernels.add_rms_norm is norms.add_rms_norm
    assert kernels.gated_rms_norm is gated_norm.gated_rms_norm
    assert kernels.rotate is rotation.rotate


def test_an_exported_model_neither_carries_nor_wants_them():
    carried = carried_code("retnet.models.retnet")
    assert [name for name in carried if "triton" in name] == ["kernels_triton.py"]
    alone = ModuleType("kernels_triton")
    exec(carried["kernels_triton.py"], vars(alone))
    assert "not part of an exported model" in alone.missing_triton(torch.device("cuda"))
