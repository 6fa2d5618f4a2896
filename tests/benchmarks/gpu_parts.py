"""On a GPU, each launch of retention alone beside what it needs at least, predicted beside
measured; and a search over tiles, by name only, for the table in
`retnet/kernels/triton/chunkwise_tiles.py`.

Launches are timed by events around each of them. Not here: other libraries.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks import roofline
from tests.benchmarks.gpu import DEVICE
from tests.benchmarks.gpu_workloads import (
    NUCLEUS,
    OURS,
    PLAIN,
    SMALL,
    TOKENS,
    WIDE,
    Workload,
    chunk_size,
    draw,
    ours,
    passes,
    sized,
)
from tests.benchmarks.machine import await_gpu
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error

PACKAGE = "retnet.kernels.triton"
PASSES = 20
"Over which a launch's median is taken."
SLOTS = {
    "scores": ("scores of q, k", "scores of do, v"),
    "states": ("states", "gradients of states"),
    "values": ("o", "dv"),
    "keys": ("dq", "dk"),
}
"Kinds of tiles, and the launches that have them."
WRONG = 2e-2
"An error beyond that of any dtype: tiles that were compiled wrongly."
Candidates = dict[str, list[Any]]
"By slot."


class Clocked:
    """Stands where a kernel stands: every launch is timed, in ms, in order."""

    def __init__(self, kernel: Any, name: str, launches: list[tuple[str, Callable]]) -> None:
        self.kernel, self.name, self.launches = kernel, name, launches

    def __getitem__(self, grid: Any) -> Callable:
        return partial(self.launch, self.kernel[grid])

    def launch(self, launcher: Callable, *args: Any, **constants: Any) -> None:
        if DEVICE.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launcher(*args, **constants)
            end.record()
            self.launches.append((self.name, lambda: start.elapsed_time(end)))
        else:
            started = time.perf_counter()
            launcher(*args, **constants)
            took = 1e3 * (time.perf_counter() - started)
            self.launches.append((self.name, lambda: took))


@contextmanager
def clocked_launches() -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """The launches of chunkwise retention that come while it lasts: names, and how long each took,
    to be asked when the device has done them."""
    module, launches = import_module(f"{PACKAGE}.chunkwise_launch"), []
    kernels = {n: kernel for n, kernel in vars(module).items() if n.endswith("_kernel")}
    try:
        for name, kernel in kernels.items():
            setattr(module, name, Clocked(kernel, name, launches))
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def time_launches(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], repeats: int
) -> dict[str, float]:
    """Median ms of each launch of a forward and backward pass, in order, by what it makes."""
    passes(run, True, *inputs)  # compiles, with the kernels themselves in their place
    names, times = [], []
    for _ in range(repeats):
        with clocked_launches() as launches:
            passes(run, True, *inputs)
        await_gpu()
        names = [name for name, _ in launches]
        times.append([took() for _, took in launches])
    medians = [median(column) for column in zip(*times, strict=True)]
    return dict(zip(labels(names), medians, strict=True))


def labels(names: list[str]) -> list[str]:
    """What each launch makes, of the kernels' names in order; a kernel that the roofline does not
    know by its place keeps its name."""
    known = list(roofline.launches(64, 64, 64))
    counted = [name for name in names if name != "join_kernel"]
    makes = iter(known if len(counted) == len(known) else enumerate_names(counted))
    found: list[str] = []
    for name in names:
        found.append(f"{found[-1]}: joining" if name == "join_kernel" else next(makes))
    return found


def enumerate_names(names: list[str]) -> list[str]:
    return [f"{index}: {name}" for index, name in enumerate(names)]


def parts(settings: Settings) -> Iterator[Comparison]:
    """Each launch alone, at the shapes of G2 to G4 and at one long row."""
    chosen = [sized(settings, WIDE, TOKENS, True)]
    if not settings.quick:
        chosen += [sized(settings, heads, 8192, True) for heads in (WIDE, NUCLEUS, *SMALL)]
    for workload in chosen:
        run = ours(workload.heads, settings)[OURS].run
        inputs, heads = draw(workload), workload.heads
        alone = time_launches(run, inputs, settings.size(PASSES, 1))
        chunk = chunk_size(heads, settings)
        needed = roofline.launches(chunk, heads.key, heads.value, inputs[0].element_size())
        times = workload.batch * workload.time * heads.number
        everything = Contender(
            lambda alone=alone: sum(alone.values()), base=True, phases=workload.phases
        )
        contenders = {"all launches": everything} | {
            label: Contender(
                lambda took=took: took,
                phases=(needed[label] * times,) if label in needed else (),
            )
            for label, took in alone.items()
        }
        dtype = str(inputs[0].dtype).removeprefix("torch.")
        yield Comparison(
            f"{workload.title}, {dtype}: each launch",
            contenders,
            ceiling=dtype,
            unit="ms alone",
            device=DEVICE.type,
        )


@contextmanager
def with_tiles(slot: str, tiles: Any) -> Iterator[None]:
    """Every launch has `tiles` in that slot, as long as it lasts; None: what the table says."""
    module = import_module(f"{PACKAGE}.chunkwise_launch")
    choose = module.config_for
    if tiles is not None:
        module.config_for = lambda *shape: choose(*shape)._replace(**{slot: tiles})
    try:
        yield
    finally:
        module.config_for = choose


def candidates(settings: Settings) -> Candidates:
    """What is tried: all combinations of these; tiles of scores are square."""
    tiles = import_module(f"{PACKAGE}.chunkwise_tiles").Tiles
    if settings.quick:
        return {"keys": [tiles(16, 16, 16, 4, 2)]}
    hurry = ((4, 3), (4, 4), (8, 3), (8, 4))
    found = {}
    for slot in SLOTS:
        rows = (64, 128) if slot == "states" else (128,)
        columns = (128,) if slot == "scores" else (64, 128, 256)
        found[slot] = [
            tiles(r, c, step, warps, stages)
            for r, c, step, (warps, stages) in product(rows, columns, (32, 64), hurry)
        ]
    return found


class Search:
    """Tiles tried at one shape."""

    def __init__(self, workload: Workload, settings: Settings) -> None:
        self.inputs, self.repeats = draw(workload), settings.size(PASSES, 1)
        operators = ours(workload.heads, settings)
        self.run = operators[OURS].run
        self.right = passes(operators[PLAIN].run, True, *self.inputs)

    def figure(self, slot: str, tiles: Any) -> float:
        """Ms of the launches that have tiles of this slot; RuntimeError for wrong results."""
        with with_tiles(slot, tiles):
            alone = time_launches(self.run, self.inputs, self.repeats)
            error = relative_error(passes(self.run, True, *self.inputs), self.right)
        if not error < WRONG:
            raise RuntimeError(f"wrong, by {error:.1e} of plain torch's results")
        return sum(ms for label, ms in alone.items() if label.split(":")[0] in SLOTS[slot])


def sweep(settings: Settings, tried: Candidates | None = None) -> Iterator[Comparison]:
    """Each slot's tiles in turn at the shapes of G2 to G4, the others as the table has them.
    `tried`: what is tried in place of `candidates`."""
    for heads in (WIDE,) if settings.quick else (WIDE, NUCLEUS, *SMALL):
        workload = sized(settings, heads, 8192, True)
        search = Search(workload, settings)
        for slot, choices in (tried or candidates(settings)).items():
            contenders = {
                "as the table has it": Contender(partial(search.figure, slot, None), True)
            }
            for tiles in choices:
                name = "rows {} columns {} step {} warps {} stages {}".format(*tiles)
                contenders[name] = Contender(partial(search.figure, slot, tiles))
            title = f"{workload.title}: {' and '.join(SLOTS[slot])}"
            yield Comparison(title, contenders, unit="ms alone", device=DEVICE.type)


CASES = (
    Case("parts", "retention, each launch alone", parts),
    Case("sweep", "retention, tiles", sweep, minutes=20, by_name=True),
)
