"""G1 to G6: on a GPU, retention alone, forward and with backward, 65,536 tokens a call, beside
plain torch, other linear attention and softmax attention where they are installed.

Goals and floors are those of an H200 (roofline.py counts them). A contender whose error is out of
proportion to plain torch's in the same dtype says so and gets no ratio. Not here: accuracy by
itself (`gpu_accuracy.py`), decoding (`gpu_decoding.py`), each kernel alone (`gpu_parts.py`).
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

from torch import Tensor

from tests.benchmarks.goals import Goal
from tests.benchmarks.gpu import DEVICE
from tests.benchmarks.gpu_peers import Operator, attention, linear_peers
from tests.benchmarks.gpu_workloads import (
    DTYPE,
    NUCLEUS,
    OURS,
    PLAIN,
    SMALL,
    TOKENS,
    WIDE,
    Workload,
    decays,
    draw,
    judge,
    ours,
    pack,
    passes,
    sized,
)
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error

LINEAR = "fla|mlstm"
"How the names of other linear attention begin."


def contender(
    workload: Workload, operator: Operator, truth: Callable, base: bool, parts: int
) -> Contender:
    """One implementation, its inputs brought into its own layout before the clock starts."""
    held: list[Tensor] = []

    def prepare(*inputs: Tensor) -> None:
        held[:] = operator.enter(*inputs)

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        for _ in range(parts):
            found = passes(operator.run, workload.both, *held)
        held.clear()
        return found

    def check(inputs: tuple, outputs: tuple) -> float:
        return relative_error(operator.leave(*outputs), truth(inputs))

    judged = check if operator.judged else None
    phases = workload.phases if operator.judged else ()
    return Contender(run, base, judged, prepare, parts, phases=phases)


def compare(
    workload: Workload,
    settings: Settings,
    goals: tuple[Goal, ...],
    beside_attention: bool = False,
) -> Comparison:
    """Everybody at one shape."""
    heads, truth = workload.heads, judge(workload)
    operators = ours(heads, settings)
    operators |= linear_peers(decays(heads), heads.key, heads.value, settings.quick)
    if beside_attention:
        operators |= attention(settings.quick)
    contenders = {}
    for name, operator in operators.items():
        parts = 1 if settings.quick or not operator.judged else 10
        contenders[name] = contender(workload, operator, truth, name == OURS, parts)
    return between(workload.title, contenders, partial(draw, workload), goals)


def between(
    title: str,
    contenders: dict[str, Contender],
    drawn: Callable[[], tuple],
    goals: tuple[Goal, ...],
) -> Comparison:
    """A comparison by the rules of this file."""
    return Comparison(
        f"{title}, {str(DTYPE).removeprefix('torch.')}",
        contenders,
        drawn,
        str(DTYPE).removeprefix("torch."),
        device=DEVICE.type,
        standard=PLAIN,
        poisoned=True,
        goals=goals,
    )


def wide(settings: Settings, both: bool) -> Iterator[Comparison]:
    """G1 and G2: the heads of a RetNet of 1.3B parameters, as long as it gets."""
    for time in (TOKENS,) if settings.quick else (2048, 8192, TOKENS):
        wishes = {LINEAR: 2.5 if both else 2.0}
        if both and time == 8192:
            wishes["SDPA"] = 5.0
        goal = Goal(OURS, most=3.9 if both else 1.3, times=wishes)
        yield compare(sized(settings, WIDE, time, both), settings, (goal,), beside_attention=True)


def nucleus(settings: Settings) -> Iterator[Comparison]:
    """G3: the heads of NucleusX-7B."""
    goal = Goal(OURS, most=7.0, times={LINEAR: 2.5})
    for both, goals in ((False, ()), (True, (goal,)))[: settings.size(2, 1)]:
        yield compare(sized(settings, NUCLEUS, 8192, both), settings, goals)


def small(settings: Settings) -> Iterator[Comparison]:
    """G4: the heads of small models."""
    goal = Goal(OURS, times={"fla, chunk": 1.5})
    for heads in SMALL[: settings.size(2, 1)]:
        for both in (True,) if settings.quick else (False, True):
            yield compare(sized(settings, heads, 8192, both), settings, (goal,))


def documents(settings: Settings) -> Iterator[Comparison]:
    """G5: one row of documents of about a thousand tokens, beside one that is one document."""
    for both in (True,) if settings.quick else (False, True):
        workload = sized(settings, WIDE, TOKENS, both)
        segment_start, edges = pack(workload.time, settings.size(1000, 9))
        heads, parts = workload.heads, settings.size(10, 1)
        truth = judge(workload, segment_start)
        operators = ours(heads, settings, segment_start)
        operators |= linear_peers(
            decays(heads), heads.key, heads.value, settings.quick, cu_seqlens=edges
        )
        contenders = {
            name: contender(workload, operator, truth, name == OURS, parts)
            for name, operator in operators.items()
        }
        alone = ours(heads, settings)[OURS]
        contenders["one document, ours"] = contender(workload, alone, judge(workload), False, parts)
        goal = Goal(OURS, times={"fla": 3.0, "one document": 1 / 1.05})
        title = f"{workload.title}, {len(edges) - 1} packed documents"
        yield between(title, contenders, partial(draw, workload), (goal,))


def one_row(settings: Settings) -> Iterator[Comparison]:
    """G6: one long row beside eight short ones."""
    for both in (False,) if settings.quick else (False, True):
        rows = sized(settings, WIDE, 8192, both)
        row = rows._replace(batch=1, time=rows.batch * rows.time)
        parts = settings.size(10, 1)

        def as_one(*tensors: Tensor, shape: Workload = row) -> tuple[Tensor, ...]:
            return tuple(x.view(1, shape.time, *x.shape[2:]) for x in tensors)

        apart, together = judge(rows), judge(row)
        truth = cache(lambda inputs, found=together, enter=as_one: found(enter(*inputs)))
        contenders = {}
        for name, operator in ours(row.heads, settings).items():
            entering = Operator(operator.run, as_one)
            contenders[name] = contender(row, entering, truth, name == OURS, parts)
        several = ours(rows.heads, settings)[OURS]
        contenders["several rows, ours"] = contender(rows, several, apart, False, parts)
        goal = Goal(OURS, times={"several rows": 1 / 1.15})
        yield between(
            f"{row.title} beside {rows.batch} rows", contenders, partial(draw, rows), (goal,)
        )


CASES = (
    Case("g1", "retention, forward", partial(wide, both=False)),
    Case("g2", "retention, forward and backward", partial(wide, both=True)),
    Case("g3", "retention, the heads of NucleusX-7B", nucleus),
    Case("g4", "retention, small heads", small),
    Case("g5", "retention, packed documents", documents),
    Case("g6", "retention, one long row", one_row),
)
