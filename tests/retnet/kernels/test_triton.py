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
from retnet.kernels.triton import (
    adamw,
    chunkwise,
    chunkwise_launch,
    chunkwise_tiles,
    cross_entropy,
    gated_norm,
    gates,
    norms,
    recurrent,
    rotation,
)
from retnet.models.export import carried_code

ROOT = Path(__file__).parents[3]
TARGETS = {
    "H200": (GPUTarget("cuda", 90, 32), "cubin", ("sm90", "wide"), "tf32"),
    "MI300": (GPUTarget("hip", "gfx942", 64), "hsaco", ("gfx942", "small"), "ieee"),
}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
MODULES = adamw, chunkwise_launch, cross_entropy, gated_norm, gates, norms, recurrent, rotation


class Translated:
    """Stands where a kernel stands: a launch compiles it for a GPU that is not here."""

    def __init__(self, kernel: triton.JITFunction, target: str) -> None:
        self.kernel = kernel
        self.target, self.binary, *_ = TARGETS[target]
        self.launches = 0
        self.made = []

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
        self.made.append(made)


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


def retain(key_dim: int, value_dim: int, packed: bool, heads: int = 2) -> None:
    """The chunkwise form in bfloat16, forward and backward."""
    q = torch.randn(1, 512, heads, key_dim).bfloat16().requires_grad_()
    v = torch.randn(1, 512, heads, value_dim).bfloat16().requires_grad_()
    where = torch.zeros(1, 512, dtype=torch.int32) if packed else None
    chunk_size = 256 if key_dim > 160 else 128
    o, _ = chunkwise.retention_chunkwise(
        q, q, v, -torch.ones(heads), None, where, chunk_size=chunk_size
    )
    o.sum().backward()


def decode(key_dim: int, value_dim: int) -> None:
    """One token of the recurrent form, over its state."""
    q, v = torch.randn(1, 1, 2, key_dim).bfloat16(), torch.randn(1, 1, 2, value_dim).bfloat16()
    state = torch.zeros(1, 2, key_dim, value_dim)
    where = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    recurrent.retention_recurrent(q, q, v, -torch.ones(2), state, *where, in_place=True)


def stand_in(monkeypatch, target: str, modules: tuple[ModuleType, ...]) -> list[Translated]:
    """Puts a translation for `target` in the place of every kernel of the modules."""
    standing = []
    for module in modules:
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, triton.JITFunction) and name.endswith("kernel"):
                standing.append(Translated(kernel, target))
                monkeypatch.setattr(module, name, standing[-1])
    monkeypatch.setattr(chunkwise_tiles, "_architecture", lambda device: TARGETS[target][2])
    monkeypatch.setattr(chunkwise_launch, "_precision", lambda v: TARGETS[target][3])
    return standing


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_for_gpus_that_are_not_here(target, monkeypatch, tmp_path):
    """The interpreter forgives what the compiler refuses: a variable whose type changes in a loop,
    an operation a dtype does not have."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(chunkwise_launch, "CHUNKS_PER_SEGMENT", 1)  # the scan is cut and joined
    monkeypatch.setattr(chunkwise_launch, "multiprocessors", lambda device: 132)
    standing = stand_in(monkeypatch, target, MODULES)
    launch_everything(torch.bfloat16)
    retain(256, 432, packed=True)
    decode(256, 432)
    # one token, heads first: its stride of time is 1, which a launch makes a constant
    q = torch.randn(2, 2, 64, 1).bfloat16().permute(0, 3, 1, 2)
    chunkwise.retention_chunkwise(q, q, q, -torch.ones(2))
    assert all(kernel.launches for kernel in standing) and len(standing) == 14


# 2 x 428: tokens lie 856 elements apart, which 16 does not divide
SHAPES = [(256, 512, True, 2), (256, 428, False, 2)]


@pytest.mark.parametrize(("key_dim", "value_dim", "packed", "heads"), SHAPES)
def test_retention_keeps_its_sums_in_registers_and_takes_no_transposed_one(
    key_dim, value_dim, packed, heads, monkeypatch, tmp_path
):
    """On an H200. A product of `tl.trans(accumulator)` is what Triton 3.4 to 3.7.0 translates
    wrongly for Hopper; a sum that does not fit its registers goes through memory each time."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    standing = stand_in(monkeypatch, "H200", (chunkwise_launch,))
    retain(key_dim, value_dim, packed, heads)
    made = [made for kernel in standing for made in kernel.made]
    assert len(made) == 8
    for kernel in made:
        assert "tt.trans" not in kernel.asm["ttir"]
        assert "cp.async" in kernel.asm["ptx"], f"{kernel.metadata.name} waits for each load"
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert " STACK:0 " in usage, f"{kernel.metadata.name} spills: {usage}"


def test_a_device_that_is_full_does_not_cut_a_scan(monkeypatch):
    """132 multiprocessors, 32 chunks, tiles of which one fills a multiprocessor, or two do."""
    monkeypatch.setattr(chunkwise_launch, "multiprocessors", lambda device: 132)
    large, wide = (chunkwise_tiles.Tiles(rows, 128, 64, 8, 3) for rows in (256, 128))
    for programs, tiles, segments in (
        (256, large, 1),
        (32, large, 4),
        (256, wide, 1),
        (64, wide, 4),
    ):
        assert chunkwise_launch._segments("cuda", programs, 256, tiles) == segments
    assert chunkwise_launch._segments("cuda", 8, 32, large) == 4  # of 8 chunks


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
    assert "retention=torch" in select_kernels().description
    assert "elementwise=torch" in select_kernels().description
    with pytest.raises(ValueError, match=r"kernels\.elementwise=triton: .* run is on cpu; or set"):
        select_kernels(KernelsConfig(elementwise=Backend.triton))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels = select_kernels()
    assert "retention=triton rms_norm=triton elementwise=triton" in kernels.description
    assert kernels.retention_chunkwise is chunkwise.retention_chunkwise
    assert kernels.retention_parallel is chunkwise.retention_parallel
    assert kernels.retention_recurrent is recurrent.retention_recurrent
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
