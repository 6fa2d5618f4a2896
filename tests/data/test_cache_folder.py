"""Files by content: made once, kept while open, within bounds, by any number of processes."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from data.cache_folder import CacheFolder, CacheFull, ShardFile
from tests.data.children import child, ended_well, kill, wait_for

SIZE = 100_000
KEYS = [f"{i:032x}" for i in range(6)]


def content(key: str) -> bytes:
    return random.Random(key).randbytes(SIZE)


def opened(
    folder: CacheFolder, key: str, made: list[str] | None = None, fails: float = 0.0
) -> ShardFile:
    """A file that is kept, or else made, as data/cache.py does it; `made` gets the latter's key,
    and `fails` is how often making it ends in an error and is tried again."""

    def write(path: Path) -> None:
        if made is not None:
            made.append(key)
        if random.random() < fails:
            time.sleep(random.random() / 1000)
            raise ConnectionError
        path.write_bytes(content(key))

    while True:
        with suppress(ConnectionError):
            file = folder.kept(key) or folder.make(key, SIZE, write)
            if file is not None:
                return file


def is_right(file: ShardFile, key: str) -> bool:
    return os.pread(file.fd, SIZE + 1, 0) == content(key) and file.size == SIZE


def taken(path: Path) -> int:
    """Bytes of all that lies there, each file once though it may just be renamed."""
    states = {}
    for file in path.iterdir():
        try:
            states[file.stat().st_ino] = file.stat().st_size
        except FileNotFoundError:
            continue
    return sum(states.values())


def leftovers(path: Path) -> list[Path]:
    return list(path.glob("*.part"))


def stalled(folder: CacheFolder, key: str) -> int:
    """A process that has written half of a file and writes no more."""

    def write(path: Path) -> None:
        path.write_bytes(content(key)[: SIZE // 2])
        time.sleep(60)

    number = child(lambda: folder.make(key, SIZE, write))
    wait_for(lambda: any(path.stat().st_size for path in leftovers(folder.path)))
    return number


def test_the_bound_is_kept_and_the_file_opened_longest_ago_goes_first(tmp_path):
    folder, made = CacheFolder(tmp_path, 3 * SIZE), []
    first, second, third, fourth = KEYS[:4]
    for key in (first, second, third, first, fourth, first, second):
        opened(folder, key, made).close()
        assert taken(tmp_path) <= 3 * SIZE
    # the first was opened again before each time that room was needed; the second was not
    assert made == [first, second, third, fourth, second]


def test_a_file_in_use_stays_and_when_all_are_it_is_said(tmp_path):
    folder = CacheFolder(tmp_path, int(2.5 * SIZE))
    held, free, more = KEYS[:3]
    file = opened(folder, held)
    opened(folder, free).close()
    second = opened(folder, more)  # in the place of the free one, though that was opened later
    assert is_right(file, held) and is_right(second, more)
    with pytest.raises(CacheFull, match=r"data.cache_gigabytes=0.00025 .* needs 5e-05 more"):
        opened(folder, free)
    file.close()
    assert is_right(opened(folder, free), free)
    assert taken(tmp_path) <= 2.5 * SIZE and not leftovers(tmp_path)


def test_a_file_given_free_may_go_though_a_forked_child_still_has_its_descriptor(tmp_path):
    folder = CacheFolder(tmp_path, SIZE)
    file = opened(folder, KEYS[0])
    number = child(lambda: time.sleep(60))
    file.close()
    opened(folder, KEYS[1]).close()
    kill(number, signal.SIGKILL)


def test_a_child_forked_at_any_moment_holds_no_lock(tmp_path):
    folder = CacheFolder(tmp_path, 9 * SIZE)
    with folder._alone():
        first = child(lambda: time.sleep(60))
    second: list[int] = []

    def write(path: Path) -> None:
        path.write_bytes(content(KEYS[0]))
        second.append(child(lambda: time.sleep(60)))

    folder.make(KEYS[0], SIZE, write).close()
    waiting = child(lambda: opened(CacheFolder(tmp_path, SIZE), KEYS[1]))
    assert ended_well(waiting)  # it needed the folder's lock, and the room of the first file
    for number in (first, *second):
        kill(number, signal.SIGKILL)


def test_many_processes_keep_the_bound_together_and_read_the_right_bytes(tmp_path):
    folder = CacheFolder(tmp_path / "cache", 4 * SIZE)

    def use(seed: int) -> None:
        signal.alarm(60)  # which ends it, should it wait for a lock that nobody frees
        random.seed(seed)
        for key in random.choices(KEYS, k=100):
            file = opened(folder, key, fails=0.5)
            assert is_right(file, key)
            file.close()

    numbers = [child(lambda seed=seed: use(seed)) for seed in range(3)]
    ended = []
    while len(ended) < len(numbers):
        assert not folder.path.exists() or taken(folder.path) <= 4 * SIZE
        number, status = os.waitpid(-1, os.WNOHANG)
        ended += [status] * bool(number)
        time.sleep(0.001)
    assert not any(ended) and not leftovers(folder.path)


def test_what_a_killed_process_left_is_no_longer_counted(tmp_path):
    folder = CacheFolder(tmp_path, int(1.5 * SIZE))
    number = stalled(folder, KEYS[0])
    with pytest.raises(CacheFull):  # its room is taken in full, though half of it is written
        opened(folder, KEYS[1])
    kill(number, signal.SIGKILL)
    assert leftovers(tmp_path)
    assert is_right(opened(folder, KEYS[1]), KEYS[1]) and not leftovers(tmp_path)


def test_who_waits_for_a_process_that_is_killed_goes_on_in_its_place(tmp_path):
    folder = CacheFolder(tmp_path, 9 * SIZE)
    killed = stalled(folder, KEYS[0])

    def use() -> None:
        assert is_right(opened(folder, KEYS[0]), KEYS[0])

    waiting = child(use)
    time.sleep(0.1)
    kill(killed, signal.SIGKILL)
    assert ended_well(waiting) and not leftovers(tmp_path)


def test_what_could_not_be_made_leaves_nothing(tmp_path):
    folder = CacheFolder(tmp_path, 9 * SIZE)
    with pytest.raises(KeyError):
        folder.make(KEYS[0], SIZE, lambda path: {}[path])
    assert not leftovers(tmp_path) and not folder.has(KEYS[0])


def test_only_the_file_that_was_wrong_is_forgotten(tmp_path):
    folder = CacheFolder(tmp_path, 9 * SIZE)
    wrong = opened(folder, KEYS[0])
    folder.forget(KEYS[0], wrong)
    assert not folder.has(KEYS[0])
    opened(folder, KEYS[0]).close()
    folder.forget(KEYS[0], wrong)  # by a second process that had opened the wrong one
    assert folder.has(KEYS[0])


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="data.cache cannot keep shards in .*Not a directory"):
        opened(CacheFolder(tmp_path / "file" / "shards", SIZE), KEYS[0])
