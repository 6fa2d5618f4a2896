"""A line that was added is in the file, or waits for a disk that takes none."""

from pathlib import Path

from retnet.training.lines import LineFile, read_lines, truncate_after
from tests.small_disk import fill


def test_a_file_with_a_torn_end_goes_on_with_a_new_line(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    lines = LineFile(file)
    assert lines.add({"step": 3}) is None
    lines.close()
    assert [line["step"] for line in read_lines(file)] == [1, 3]


def test_a_full_disk_loses_no_line(small_disk: Path) -> None:
    file, ballast = small_disk / "x.jsonl", small_disk / "ballast"
    lines = LineFile(file)
    assert lines.add({"step": 0, "text": "x" * 3000}, sync=True) is None
    fill(ballast)
    failures = [lines.add({"step": step, "text": "y" * 3000}, sync=True) for step in range(1, 9)]
    assert any(failures) and lines.waiting
    assert all("No space left" in str(failure) for failure in failures if failure)
    ballast.unlink()
    assert lines.add({"step": 9}, sync=True) is None and not lines.waiting
    lines.close()
    assert [line["step"] for line in read_lines(file)] == list(range(10))


def test_what_waits_is_bounded(small_disk: Path) -> None:
    """Ten thousand lines: a run may stand on a full disk for a month."""
    lines = LineFile(small_disk / "x.jsonl")
    fill(small_disk / "ballast")
    for step in range(10_050):
        lines.add({"step": step})
    assert lines.waiting == 10_000
    (small_disk / "ballast").unlink()
    lines.close()
    assert [line["step"] for line in read_lines(small_disk / "x.jsonl")] == list(range(10_000))


def test_lines_after_a_step_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    lines = LineFile(file)
    for step in (1, 2, 2, 3):
        lines.add({"step": step, "loss": float("nan")})
    lines.close()
    for _ in range(2):
        truncate_after(file, 2)
        assert read_lines(file) == [{"step": step, "loss": None} for step in (1, 2, 2)]
    truncate_after(file, 0)
    assert file.read_bytes() == b""


def test_forgetting_needs_no_room(small_disk: Path) -> None:
    """A run that is started again on a full disk goes on."""
    file = small_disk / "x.jsonl"
    lines = LineFile(file)
    for step in range(100):
        lines.add({"step": step, "text": "x" * 1000})
    lines.close()
    fill(small_disk / "ballast")
    truncate_after(file, 90)
    assert [line["step"] for line in read_lines(file)] == list(range(91))
