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
for step in range(5, 8):
    time.sleep(0.3)
    console.show(step, {"loss": 2.5, "tokens_per_second": 12345.0, "mfu": 0.312})
    console.say(f"saved step {step}")
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


def test_a_terminal_gets_a_display_that_redraws_itself() -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdout=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
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
    text = shown.decode()
    assert "\x1b[1A" in text, "the display never went back up to redraw itself"
    for words in ("step 7 of 20", "loss 2.5000", "12.3k tokens/s", "MFU 31.2%", "saved step 6"):
        assert words in text


def test_the_time_of_an_evaluation_is_not_taken_from_the_time_left() -> None:
    stream = io.StringIO()
    console = Console(stream, total_steps=10, run_name="run7")
    console.start(0)
    time.sleep(0.55)
    console.show(1, {"loss": 2.5})
    time.sleep(1.2)
    console.show(1, {"val/main/loss": 2.0})
    before, after = (int(re.search(r"(\d+) s left", s)[1]) for s in stream.getvalue().splitlines())
    assert before >= 4 and after == before


def test_what_is_unknown_is_left_out() -> None:
    assert describe({"loss": None, "tokens": 5, "grad_norm": 1.0}) == ["norm 1.00"]
    memory = {"peak_memory": 1.26e9, "data_wait": 0.002}
    assert describe(memory) == ["1.3GB"]  # waiting is worth a word where there is some
    assert describe(memory | {"data_wait": 0.118}) == ["1.3GB", "waits for data 12%"]
    held_out = {"val/main/loss": 2.0, "val/main/bits_per_byte": 1.5}
    assert describe(held_out) == ["val main 2.0000", "1.5000 bits/byte"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(48, "48 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
