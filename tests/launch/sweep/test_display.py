"""On a terminal, one line says what runs; elsewhere only what happens is said."""

import io
from pathlib import Path

from launch.sweep.display import TAIL, Display, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_how_far_a_run_is_stands_at_the_end_of_its_metrics(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert progress(tmp_path, 9) == "begins"
    file.write_text('{"step": 1, "loss": 5.0}\n' * TAIL + '{"step": 2, "loss": 4.25}\n')
    assert progress(tmp_path, 9) == "step 2 of 9, loss 4.250"
    with file.open("a") as more:
        more.write('{"step": 2, "val/a/loss": 4.0}\n{"step": 3, "lo')
    assert progress(tmp_path, 9) == "step 2 of 9, loss 4.250"


def test_the_line_of_what_runs_is_a_terminals_alone_and_gives_way(tmp_path: Path) -> None:
    for out in (Terminal(), io.StringIO()):
        display = Display(out)
        display.say("begins")
        display.show([("seed-1", tmp_path, 9), ("seed-2", tmp_path, 9)], 3)
        display.show([("seed-1", tmp_path, 9)], 3)  # within the same second
        display.say("ends")
        said = out.getvalue()
        shown = "\r\x1b[2Kseed-1 begins | seed-2 begins | 3 wait"
        live = f"begins\n{shown}\r\x1b[2Kends\n"
        assert said == (live if out.isatty() else "begins\nends\n")
