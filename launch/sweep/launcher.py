"""Hydra's launcher for `python train.py -m`: every point of a sweep is a launch of its own.

    python train.py -m optimizer.learning_rate=3e-4,6e-4 model=retnet_tiny,nucleus_x_tiny

Hydra's sweepers say which points there are, and are told each one's objective; here they become
commands. Never several engines in one process: a point is the command that a user would type.
"""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TextIO

from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch.cluster import ClusterConfig, read_cluster
from launch.lock import hold_folder
from launch.stop import Stopped
from launch.sweep.asked import Asked, read_asked
from launch.sweep.config import SweepConfig
from launch.sweep.display import Display
from launch.sweep.job import Job, is_queued, submit
from launch.sweep.overrides import key_of, parsed, typed
from launch.sweep.points import Point, canonical, point_name
from launch.sweep.record import Record
from launch.sweep.running import BAD, Start, run_points
from launch.sweep.session import devices, launch_command, places, start_session

ROOT = Path(__file__).parents[2]
MODULE = "hydra_plugins.retnet"
"The only package that Hydra takes plugins from."
FULL = "HYDRA_FULL_ERROR"
"With it, Hydra hands errors on as they are, and prints none itself."
Compose = Callable[[list[str]], Any]
"From overrides to a config with name, steps, folder and check(ranks); ValueError for mistakes."


class Sweep:
    """A sweep from its first point to its last, over all that a sweeper asks for."""

    def __init__(self, compose: Compose, out: TextIO) -> None:
        self.code = 0
        "The exit code: 1 where a point failed or was refused."
        self.asked: Asked | None = None
        "What the command line asks for, once Hydra has read it."
        self.states: dict[str, str] = {}
        "Of the points so far, by name."
        self._compose, self._out, self._display = compose, out, Display(out)
        self._known: dict[str, Point] = {}
        self._held: TextIO | None = None

    def set_up(self, config: DictConfig, options: SweepConfig) -> None:
        """Reads the command's own composition; ValueError for what is no sweep."""
        self.asked = read_asked(config)
        self.options = options
        self.cluster: ClusterConfig | None = None
        if options.cluster:
            self.cluster = read_cluster(Path(options.cluster))
        self.places = places(options, devices(), bool(options.cluster))

    def launch(self, jobs: Sequence[Sequence[str]]) -> list[float]:
        """Runs these points; the objective of each. Raises Stopped where asked to stop, ValueError
        where points of a grid cannot be run or one has another sweep's settings, before any is."""
        folder = self.asked.folder
        self.clear()
        found = [self._point(job) for job in jobs]
        problems = [words for words in found if isinstance(words, str)]
        if problems and self.asked.grid:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
            more = f" (so are {len(problems) - 1} more of {len(jobs)})" * (len(problems) > 1)
            raise ValueError(problems[0] + more)
        if self._held is None:
            self._held = hold_folder(folder)  # and makes it, which sweepers count on
            many = f"{len(jobs)} point{'s' * (len(jobs) > 1)}"
            many += "" if self.asked.grid else " at first"
            self._display.say(f"sweep {self.asked.name}: {many}, in {folder}")
        points = [point for point in found if isinstance(point, Point)]
        record = Record(folder)
        record.add_points(points, self.options.objective)
        for words in problems:
            self._display.say(words)
        how = {"start": self._starter(record), "record": record, "display": self._display}
        options = self.options
        run_points(points, options, self.states, places=self.places, **how)
        if problems or any(state in BAD for state in self.states.values()):
            self.code = 1
        return [self._value(point, record) for point in found]

    def clear(self) -> None:
        """Removes what a sweeper writes of its own accord, with every password of the config: the
        config.yaml of each point has the rest."""
        if self.asked is not None:
            (self.asked.folder / "multirun.yaml").unlink(missing_ok=True)

    def _value(self, point: Point | str, record: Record) -> float:
        if isinstance(point, str):
            return math.inf
        return point.value(self.states[point.name], self.options.objective, record.pruned)

    def _point(self, job: Sequence[str]) -> Point | str:
        """The point of a sweeper's overrides, composed and checked; or why it cannot be run."""
        given = parsed(job)
        values = {key: typed(given[key]) for key in sorted(self.asked.swept & set(given))}
        name = point_name(values)
        known = self._known.get(name)
        if known is not None:
            assert canonical(known.swept) == canonical(values), f"two points are called {name}"
            return known
        overrides = [text for text in job if key_of(text) not in ("name", "sweep")]
        overrides.append(f"name={self.asked.name}/{name}")
        ranks = self.options.processes
        if self.cluster:
            ranks = self.cluster.nodes * self.cluster.processes_per_node
        try:
            with outside_hydra():
                config = self._compose(overrides)
            config.check(ranks)
        except ValueError as error:
            return f"{name} is refused: {error}"
        point = Point(name, Path(config.folder), overrides, values, config.steps)
        Record(self.asked.folder).check(point)
        self._known[name] = point
        return point

    def _starter(self, record: Record) -> Start:
        """What starts a point: here, or as a job."""
        cluster, processes, script = self.cluster, self.options.processes, Path(sys.argv[0])

        def session(point: Point, gpus: list[int]) -> Any:
            return start_session(point, launch_command(point, gpus, processes, script))

        def job(point: Point, gpus: list[int]) -> Any:
            number = record.jobs.get(point.name)
            if number is None or not is_queued(number):
                number = submit(point, cluster)
                record.add(point.name, job=number)
            return Job(number)

        return job if cluster else session

    def end(self, stopped: bool) -> int:
        """Shows the table; the exit code."""
        if self._held is None:
            return self.code
        if stopped:
            done = sum(state in ("finished", "pruned") for state in self.states.values())
            self._display.say(
                f"stopped: {done} of {len(self._known)} points are done; the same command goes on"
            )
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
            )
        }
        command = [sys.executable, "-m", "launch.sweep", "table", self.asked.name]
        subprocess.run(command, env=environment, stdout=self._out)
        self._held.close()
        return 0 if stopped else self.code


@contextmanager
def outside_hydra() -> Iterator[None]:
    """Hydra composes for one program at a time; here it composes a point amid the whole command."""
    whole = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = whole


class Processes(Launcher):
    """What Hydra knows of it."""

    sweep: ClassVar[Sweep]

    def __init__(self, **options: Any) -> None:
        self._given = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Called by a sweeper, before its first point."""
        logging.getLogger("optuna").setLevel(logging.WARNING)  # its lines say what ours say
        self.sweep.set_up(config, SweepConfig(**self._given))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Called by a sweeper with the overrides of points that are independent of each other. A
        point that failed is infinitely bad and ends nothing."""
        values = self.sweep.launch(job_overrides)
        returned = []
        for overrides, value in zip(job_overrides, values, strict=True):
            result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            result.return_value = value
            returned.append(result)
        return returned


def register_launcher(compose: Compose, out: TextIO) -> Sweep:
    """Makes Hydra find this launcher under the name that configs/ has for it."""
    plugins = Plugins.instance()  # first: it looks through the package of that name
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    if not hasattr(package, "__path__"):
        package.__path__ = []
    module = ModuleType(MODULE)
    module.Processes = Processes
    package.retnet = sys.modules[MODULE] = module
    Processes.__module__ = MODULE
    plugins.register(Processes)
    Processes.sweep = Sweep(compose, out)
    return Processes.sweep


def is_sweep(arguments: list[str]) -> bool:
    """Whether the command line asks for several points."""
    return bool({"-m", "--multirun"} & set(arguments))


def run_sweep(main: Callable[[], Any], compose: Compose) -> int:
    """Runs Hydra's `main` on a command line with -m, to the sweep's end; the exit code.

    ValueError with a sentence for what the user has to change.
    """
    if "WORLD_SIZE" in os.environ:
        raise ValueError("a sweep starts its own launchers: begin it with python train.py -m ...")
    sweep, stopped = register_launcher(compose, sys.stdout), False
    before = os.environ.get(FULL)
    os.environ[FULL] = "1"
    try:
        main()
    except (Stopped, KeyboardInterrupt):
        stopped = True
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error).strip().splitlines()[0]) from error
    finally:
        sweep.clear()  # a request to stop or a mistake may come before the first point
        os.environ.pop(FULL)
        if before is not None:
            os.environ[FULL] = before
    return sweep.end(stopped)
