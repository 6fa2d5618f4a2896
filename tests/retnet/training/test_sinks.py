"""wandb and tensorboard show what the files say, through resumes and spells without them."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retnet.training import sinks
from retnet.training.metrics import Metrics
from retnet.training.sinks import (
    LoggingConfig,
    Tensorboard,
    Wandb,
    WandbMode,
    is_logged_in,
    sent,
)
from tests.retnet.training.wandb_file import history, records

OFF = LoggingConfig(wandb=WandbMode.off)


class Server:
    """In the place of a wandb run that reaches its server: there is none here to reach."""

    offline = False

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.closed = False

    def log(self, line: dict[str, Any]) -> None:
        """As wandb's."""
        self.lines.append(line)

    def finish(self) -> None:
        """As wandb's."""
        self.closed = True

    @property
    def steps(self) -> list[int]:
        """Of all lines, in the order in which they came."""
        return [line["step"] for line in self.lines]


def _open(folder: Path, config: LoggingConfig = OFF, console: io.StringIO | None = None) -> Metrics:
    return Metrics(
        folder,
        config,
        console=console or io.StringIO(),
        total_steps=20,
        run_name="run7",
        resolved_config={"seed": 1},
        rank=0,
    )


def _train(folder: Path, first: int, last: int, config: LoggingConfig = OFF) -> None:
    with _open(folder, config) as metrics:
        metrics.resume_at(first - 1)
        for step in range(first, last + 1):
            metrics.log(step, {"loss": 1.0 / step, "val/a/loss": 2.0 / step})
        metrics.detail(last, "samples", prompt="def ", text="f<x>")


def _reach(folder: Path, first: int, last: int, *, killed: bool = False) -> Server:
    """A session from step `first` on that reaches the server."""
    server = Server()
    with _open(folder) as metrics:
        metrics._sinks.append(Wandb(server, folder))
        metrics.resume_at(first - 1)
        for step in range(first, last + 1):
            metrics.log(step, {"loss": 1.0 / step})
        if killed:
            metrics._sinks.clear()
    return server


def test_a_resumed_run_goes_on_in_wandb_under_its_id_and_by_its_own_steps(tmp_path: Path) -> None:
    config = LoggingConfig(wandb=WandbMode.offline)
    for first, last in ((1, 3), (3, 5)):  # the second comes by step 3 again
        _train(tmp_path, first, last, config)
    identity = (tmp_path / "wandb_id").read_text()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    numbers = [[line for line in history(file) if "loss" in line] for file in files]
    assert [[line["step"] for line in lines] for lines in numbers] == [[1, 2, 3], [3, 4, 5]]
    assert numbers[1][-1] == {"step": 5, "loss": 0.2, "val/a/loss": 0.4}
    found = records(files[0])
    axes = {record.metric.glob_name: record.metric.step_metric for record in found}
    assert axes["*"] == axes["val/*"] == "step"
    assert any(line.get("samples/after def._type") == "html-file" for line in history(files[0]))
    assert not (tmp_path / "wandb_sent").exists()


def test_what_was_logged_without_wandb_is_sent_by_the_next_session_that_reaches_it(
    tmp_path: Path,
) -> None:
    _train(tmp_path, 1, 3)
    server = _reach(tmp_path, 4, 6)
    numbers = [line["step"] for line in server.lines if "loss" in line]
    assert numbers == [1, 2, 3, 4, 5, 6] and server.closed and sent(tmp_path) == 6
    assert any("samples/after def" in line for line in server.lines)
    assert _reach(tmp_path, 7, 8).steps == [7, 8]


def test_steps_that_came_again_without_wandb_are_sent_again(tmp_path: Path) -> None:
    _reach(tmp_path, 1, 6)
    _train(tmp_path, 4, 7)  # back to step 3, without wandb
    assert sent(tmp_path) == 3
    assert sorted(set(_reach(tmp_path, 8, 9).steps)) == [4, 5, 6, 7, 8, 9]


def test_what_a_killed_session_sent_comes_again(tmp_path: Path) -> None:
    _reach(tmp_path, 1, 2)
    _reach(tmp_path, 3, 5, killed=True)
    assert _reach(tmp_path, 6, 6).steps == [3, 4, 5, 6]


def test_where_nobody_knows_what_was_sent_all_of_it_is(tmp_path: Path) -> None:
    _train(tmp_path, 1, 2)
    (tmp_path / "wandb_sent").touch()  # of a disk that was full
    again = _reach(tmp_path, 3, 3).steps
    assert again == [1, 2, 2, 3] and sent(tmp_path) == 3  # step 2 left a sample too


@pytest.mark.parametrize("mode", [WandbMode.auto, WandbMode.online])
def test_a_run_begins_without_wandbs_server_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: WandbMode
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port of discard
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(sinks, "START", 1.0)
    console = io.StringIO()
    with _open(tmp_path, LoggingConfig(wandb=mode), console) as metrics:
        metrics.resume_at(0)
        metrics.log(1, {"loss": 1.0})
    assert re.match("wandb does not start: .* sends it later\nstep ", console.getvalue())
    assert not (tmp_path / "wandb_sent").exists()


def test_a_return_within_a_session_sends_nothing_twice(tmp_path: Path) -> None:
    server = Server()
    with _open(tmp_path) as metrics:
        metrics._sinks.append(Wandb(server, tmp_path))
        metrics.resume_at(0)
        for step in (1, 2, 3, 4):
            metrics.log(step, {"loss": 1.0})
        metrics.resume_at(2)
        metrics.log(3, {"loss": 2.0})
    assert server.steps == [1, 2, 3, 4, 3] and sent(tmp_path) == 3


def test_a_view_that_fails_goes_and_the_run_does_not(tmp_path: Path) -> None:
    server = Server()
    with _open(tmp_path) as metrics:
        metrics._sinks.append(Wandb(server, tmp_path))
        metrics.resume_at(0)
        del server.lines
        metrics.log(1, {"loss": 1.0})
        metrics.log(2, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2 and not server.closed


def test_tensorboard_shows_each_step_once_as_it_came_last(tmp_path: Path) -> None:
    config = LoggingConfig(wandb=WandbMode.off, tensorboard=True)
    _train(tmp_path, 1, 4, config)
    with _open(tmp_path, config) as metrics:
        metrics.resume_at(2)
        metrics.log(3, {"loss": 9.0, "words": "no number", "grad_norm": None})
        metrics.detail(3, "samples", prompt="", text="a\nb")
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in shown.Scalars("loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert set(shown.Tags()["scalars"]) == {"loss", "val/a/loss"}
    assert any("samples/after nothing" in tag for tag in shown.Tags()["tensors"])


def test_tensorboard_without_its_package_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'retnet\[tensorboard\]'.*tensorboard=false"):
        Tensorboard(tmp_path)


def test_wandb_is_off_without_a_key_and_online_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not is_logged_in()
    with _open(tmp_path / "auto", LoggingConfig(wandb=WandbMode.auto)) as metrics:
        metrics.resume_at(0)
        metrics.log(1, {"loss": 1.0})
    names = sorted(path.name for path in (tmp_path / "auto").iterdir())
    assert names == ["evaluations.jsonl", "events.jsonl", "metrics.jsonl"]
    with pytest.raises(ValueError, match="logging.wandb is online.*wandb login"):
        _open(tmp_path / "online", LoggingConfig(wandb=WandbMode.online))
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert is_logged_in()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"peak_flops": 0.0}, "logging.peak_flops is 0.0"),
        ({"sample_tokens": -1}, "sample_tokens"),
        ({"norms_every": -1}, "logging.norms_every is -1"),
        ({"straggler": 1.0}, "logging.straggler is 1.0"),
    ],
)
def test_impossible_logging_is_refused_by_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        LoggingConfig(**values)
