"""Plain lines into a pipe, a live display on a terminal."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retnet.training.console import Console, describe, duration

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys, time
from retnet.training.console import Console
console = Console(sys.stdout, total_steps=20, run_name="run7")
console.start(4)
held_out = {f"val/set{n}/loss": 2.0 + n for n in range(5)}
speed = {"tokens_per_second": 12345.0, "mfu": 0.312, "grad_norm": 0.8, "learning_rate": 9e-4}
for step in (6, 7):
    time.sleep(0.1)
    waits = 0.4 if step == 6 else 0.0
    console.show(step, {"loss": 2.5, "data_wait": waits, "grad_norm/head": 3.0} | speed | held_out)
    console.say(f"saved step {step}")
    time.sleep(1.1)  # the display is drawn once a second
console.close()
"""


def test_a_pipe_gets_one_plain_line_for_each_record() -> None:
    stream = io.StringIO()
    console = Console(stream, total_steps=1000, run_name="run7")
    console.start(0)
    values = {"loss": 2.5, "tokens_per_second": 12345.0, "mfu": 0.312, "learning_rate": 9e-4}
    console.show(10, values | {"grad_norm": 0.8, "tokens": 5})
    console.say("saved step 10")
    console.close()
    line, said = stream.getvalue().splitlines()
    words = "loss 2.5000 | 12.3k tokens/s | MFU 31.2% | rate 9.00e-04 | norm 0.80"
    assert line.startswith(f"step   10 of 1000 | {words} | ") and line.endswith(" left")
    assert said == "saved step 10"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_of_80_columns_gets_three_lines_that_redraw_themselves() -> None:
    """And a fourth as long as something is not well."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdout=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    frames = text.split("run7 ")[1:]
    last = [line.strip() for line in frames[-1].replace("\r", "\n").split("\n") if line.strip()]
    assert len(last) == 3 and all(len(line) <= 80 for line in last)
    assert last[0].endswith("left") and "step 7 of 20" in last[0]
    assert last[1] == "loss 2.5000  val set0 2.0000  val set1 3.0000  val set2 4.0000"
    assert last[2] == "12.3k tokens/s  MFU 31.2%  rate 9.00e-04  norm 0.80"
    troubled = [frame for frame in frames if "waits for data 40% of the time" in frame]
    assert 0 < len(troubled) < len(frames) and "saved step 6" in text
    assert "\x1b[2A" in shown.decode() or "\x1b[1A" in shown.decode()


def test_a_trouble_is_shown_until_it_is_well_again() -> None:
    console = Console(io.StringIO(), total_steps=10, run_name="run7")
    console.start(0)

    def shown() -> list[str]:
        return list(console._troubles.values())

    console.hear("save_failed", {"step": 4})
    assert shown() == ["save failed at step 4"]
    console.hear("saved", {"step": 6})
    console.hear("straggler", {"rank": 3, "host": "node7"})
    assert shown() == ["rank 3 (node7) is slow"]
    console.show(7, {"step_time/median": 1.0, "step_time/slowest": 1.4})
    assert shown() == ["rank 3 (node7) is slow"]
    console.show(8, {"step_time/median": 1.0, "step_time/slowest": 1.05})
    console.hear("skipped", {"step": 8})
    for step in range(9, 19):
        assert shown() == ["step 9 skipped"]
        console.show(step, {"loss": 1.0})
    console.show(20, {"loss": 1.0, "data_wait": 0.04})
    assert shown() == []


def test_a_narrow_terminal_cuts_the_name_and_not_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console = Console(io.StringIO(), total_steps=1_000_000, run_name="sweep-learning_rate/seed-17")
    console.start(0)
    console.show(123_456, {"loss": float("nan")})
    with console._rich.capture() as captured:
        console._rich.print(console._draw())
    first, second, *_ = captured.get().splitlines()
    assert "step 123456 of 1000000" in first and second.strip() == "loss nan"


def test_numbers_that_are_not_shown_make_no_line() -> None:
    stream = io.StringIO()
    console = Console(stream, total_steps=10, run_name="run7")
    console.start(0)
    console.show(1, {"grad_norm/head": 1.0, "activation_rms/layer.00": 2.0})
    assert stream.getvalue() == ""


def test_the_time_of_an_evaluation_is_not_taken_from_the_time_left() -> None:
    stream = io.StringIO()
    console = Console(stream, total_steps=10, run_name="run7")
    console.start(0)
    time.sleep(0.55)
    console.show(1, {"loss": 2.5})
    time.sleep(1.2)
    console.show(1, {"val/main/loss": 2.0})
    time.sleep(1.2)  # as a trace that is written
    console.hear("profiled", {"step": 1})
    console.show(2, {"loss": 2.5})
    left = [int(re.search(r"(\d+) s left", s)[1]) for s in stream.getvalue().splitlines()]
    assert left[0] >= 4 and left[1] == left[0] and left[2] < left[0]
    pace = console._pace
    console.show(3, {"val/main/loss": 2.0})  # of a step that is not logged
    assert console._pace == pace


def test_numbers_that_are_read_late_do_not_change_the_time_left() -> None:
    """As the norms of layers, which come all at once with the next line that is shown."""
    console = Console(io.StringIO(), total_steps=80, run_name="run7")
    console.start(0)
    time.sleep(0.4)
    for step in range(1, 41):
        console.show(step, {"grad_norm/head": 1.0})
    console.show(40, {"loss": 2.5})
    assert 0.01 <= console._pace <= 0.03


def test_what_is_unknown_is_left_out() -> None:
    assert describe({"loss": None, "tokens": 5, "grad_norm": 1.0}) == ["norm 1.00"]
    memory = {"peak_memory": 1.26e9, "data_wait": 0.04}
    assert describe(memory) == ["1.3GB"]  # waiting is worth a word where it is a trouble
    assert describe(memory | {"data_wait": 0.118}) == ["1.3GB", "waits for data 12%"]
    held_out = {"val/main/loss": 2.0, "val/main/bits_per_byte": 1.5}
    assert describe(held_out) == ["val main 2.0000", "1.5000 bits/byte"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(48, "48 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
