"""Which checkpoints may go, and that a kill between two renames loses none."""

import subprocess
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.training.housekeeping import (
    checkpoints,
    name_of,
    put_in_place,
    remove,
    remove_leftovers,
    step_of,
    surplus,
)
from tests.small_disk import small_disk

STEPS = st.sets(st.integers(0, 10**8 - 1), max_size=30)


def _make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(deadline=None)
@given(STEPS, st.integers(0, 5), st.integers(0, 50))
def test_the_newest_and_the_multiples_are_kept_and_nothing_else(
    steps: set[int], keep_last: int, keep_every: int
) -> None:
    gone = set(surplus(steps, keep_last, keep_every))
    assert gone <= steps
    newest = sorted(steps)[-keep_last:] if keep_last else steps
    for step in steps:
        wanted = step in newest or (keep_every > 0 and step % keep_every == 0)
        assert (step in gone) == (not wanted)


@given(STEPS)
def test_what_goes_at_once_is_what_goes_one_by_one(steps: set[int]) -> None:
    kept: set[int] = set()
    for step in sorted(steps):
        kept.add(step)
        kept -= set(surplus(kept, 2, 7))
    assert kept == steps - set(surplus(steps, 2, 7))


def test_names_sort_as_steps_do_and_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    steps = [0, 9, 10, 99_999_999]
    names = [name_of(step) for step in steps]
    assert sorted(names) == names and [step_of(name) for name in names] == steps
    others = ["step-1", "step-00000001.tmp", "step-00000001.a1b2.tmp", "latest", "step-0000001x"]
    _make(tmp_path, *names, *others)
    assert [path.name for path in checkpoints(tmp_path)] == names[::-1]
    assert [step_of(name) for name in others] == [None] * len(others)
    assert checkpoints(tmp_path / "nowhere") == []


def test_a_folder_takes_its_name_and_the_place_of_an_older_one(tmp_path: Path) -> None:
    final = tmp_path / name_of(3)
    for content in ("first", "second"):
        temporary = _make(tmp_path, "step-00000003.0a.tmp") / "step-00000003.0a.tmp"
        (temporary / "file").write_text(content)
        put_in_place(temporary, final)
        assert (final / "file").read_text() == content
        assert (tmp_path / "latest").read_text() == final.name
    remove_leftovers(tmp_path)
    assert _names(tmp_path) == ["latest", "step-00000003"]


def test_leftovers_go_and_what_was_killed_between_two_renames_comes_back(tmp_path: Path) -> None:
    _make(tmp_path, "step-00000001", "step-00000002.old", "step-00000003", "step-00000003.old")
    _make(tmp_path, "step-00000004.0a.tmp", "step-00000005.tmp", "notes.tmp")
    remove_leftovers(tmp_path)
    assert _names(tmp_path) == ["notes.tmp", "step-00000001", "step-00000002", "step-00000003"]


def test_of_a_checkpoint_that_was_moved_elsewhere_the_link_alone_goes(tmp_path: Path) -> None:
    _make(tmp_path, "elsewhere/1", "run", "run/step-00000003.0a.tmp")
    for name in ("step-00000001", "step-00000002.0a.tmp"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere/1")
    remove(tmp_path / "run/step-00000001")
    remove_leftovers(tmp_path / "run")
    assert _names(tmp_path / "run") == [] and _names(tmp_path / "elsewhere") == ["1"]


def test_a_folder_that_may_only_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as folder:
        _make(folder, "step-00000001", "step-00000002.0a.tmp")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        remove_leftovers(folder)
        assert [path.name for path in checkpoints(folder)] == ["step-00000001"]
        assert _names(folder) == ["step-00000001", "step-00000002.0a.tmp"]
