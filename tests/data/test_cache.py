"""Shards come whole and verified, once for all processes, within bounds, whatever goes wrong."""

import logging
import os
import random
import resource
import signal
from pathlib import Path

import pytest
import xxhash

from data.cache import ShardCache, ShardEntry, checksum
from data.cache_folder import ShardFile
from data.quarantine import BadShard
from data.stores import open_store
from tests.data.children import child, ended_well, wait_for
from tests.data.servers import PLACES, Place, answer, drip, flip, make_place, truncate

SIZE = 200_000
SHARDS = {f"shard-{i:08}.bin": random.Random(i).randbytes(SIZE) for i in range(6)}
FIRST, SECOND, *_ = SHARDS
ENTRIES = [
    ShardEntry(name, SIZE, xxhash.xxh3_128(data).hexdigest(), 1234, 50_000)
    for name, data in SHARDS.items()
]


@pytest.fixture
def place(monkeypatch) -> Place:
    made = filled("http", monkeypatch)
    yield made
    made.server.faults.reset()


def filled(kind: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = make_place(kind, "cache", monkeypatch)
    for name, data in SHARDS.items():
        made.put(name, data)
    return made


def open_cache(
    place: Place, folder: Path, room: float = 100, retry_seconds: float = 20, timeout: float = 5
) -> ShardCache:
    """A cache with room for so many shards."""
    return ShardCache(folder, place.store(timeout), ENTRIES, int(room * SIZE), retry_seconds)


def content(file: ShardFile) -> bytes:
    return os.pread(file.fd, file.size + 1, 0)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


@pytest.mark.parametrize("kind", PLACES)
def test_a_shard_is_fetched_once_and_then_local(kind, monkeypatch, tmp_path):
    place = filled(kind, monkeypatch)
    for _ in range(2):  # two runs
        cache = open_cache(place, tmp_path / "cache")
        for _ in range(2):
            file = cache.open(FIRST)
            assert content(file) == SHARDS[FIRST] and file.size == SIZE
            file.close()
        cache.close()
    assert place.reads(FIRST) == 1
    assert not leftovers(tmp_path / "cache")


def test_processes_that_want_the_same_shard_at_once_fetch_it_once(place, tmp_path):
    cache = open_cache(place, tmp_path)
    place.server.faults.always[FIRST] = drip

    def use() -> None:
        assert content(cache.open(FIRST)) == SHARDS[FIRST]

    assert all([ended_well(number) for number in [child(use), child(use), child(use)]])
    assert place.reads(FIRST) == 1


def test_a_file_that_this_disk_spoilt_is_fetched_again(place, tmp_path, caplog):
    open_cache(place, tmp_path).open(FIRST).close()
    (kept,) = tmp_path.glob("*.bin")
    kept.write_bytes(SHARDS[SECOND])
    file = open_cache(place, tmp_path).open(FIRST)
    assert content(file) == SHARDS[FIRST] and place.reads(FIRST) == 2
    assert "fetching it again" in caplog.text


@pytest.mark.parametrize(
    "fault",
    [answer(429, Retry_After="0"), answer(500), answer(408), truncate, flip, drip],
    ids=["429", "500", "408", "truncated", "wrong byte", "slow"],
)
def test_a_fault_that_passes_is_got_over(place, tmp_path, fault):
    place.server.faults.coming = [fault]
    assert content(open_cache(place, tmp_path).open(FIRST)) == SHARDS[FIRST]


def test_a_stalled_body_is_got_over(place, tmp_path):
    place.server.faults.coming = [place.server.faults.stall]
    cache = open_cache(place, tmp_path, timeout=0.3)
    assert content(cache.open(FIRST)) == SHARDS[FIRST]


def test_what_does_not_pass_ends_in_one_sentence_with_name_reason_and_remedy(place, tmp_path):
    goes_on = "or data.on_bad_shard=quarantine goes on without its 1,234 documents"
    where = f"{FIRST} of {place.address}"
    right = ENTRIES[0].xxh3_128[:8]
    for fault, budget, sentence in (
        (
            answer(503, Retry_After="100"),
            2,
            f"{where} could not be read within data.retry_seconds=2: 503 Service Unavailable, 1 "
            f"attempt; raise data.retry_seconds, {goes_on}",
        ),
        (answer(404), 20, f"{where} is not there (404); put the shard back, {goes_on}"),
        (
            answer(403),
            20,
            f"{where} may not be read (403 Forbidden); check the credentials and rights, {goes_on}",
        ),
        (flip, 20, f"instead of {right}.. (fetched twice); put the shard back, {goes_on}"),
    ):
        place.server.faults.always = {FIRST: fault}
        with pytest.raises(BadShard) as caught:
            open_cache(place, tmp_path, retry_seconds=budget).open(FIRST)
        assert str(caught.value).endswith(sentence) and str(caught.value).startswith(where)
        assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.bin"))


def test_a_process_killed_in_a_download_leaves_nothing_that_stays(place, tmp_path):
    place.server.faults.coming = [place.server.faults.stall]
    cache = open_cache(place, tmp_path, room=1.5)
    number = child(lambda: cache.open(FIRST))
    wait_for(lambda: any(path.stat().st_size for path in leftovers(tmp_path)))
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    assert leftovers(tmp_path)
    cache.open(SECOND).close()  # for which there is no room beside what was left behind
    assert not leftovers(tmp_path)
    assert content(cache.open(FIRST)) == SHARDS[FIRST]


def test_what_is_asked_for_ahead_is_there_when_it_is_opened(place, tmp_path):
    cache = open_cache(place, tmp_path)
    cache.ahead([FIRST, SECOND, FIRST])
    wait_for(lambda: len(list(tmp_path.glob("*.bin"))) == 2)
    assert content(cache.open(FIRST)) == SHARDS[FIRST]
    assert place.reads(FIRST) == place.reads(SECOND) == 1
    cache.close()


def test_an_opening_waits_for_the_fetch_ahead_that_has_begun(place, tmp_path):
    place.server.faults.always[FIRST] = drip
    cache = open_cache(place, tmp_path)
    cache.ahead([FIRST])
    wait_for(lambda: place.reads(FIRST) == 1)
    assert content(cache.open(FIRST)) == SHARDS[FIRST] and place.reads(FIRST) == 1
    cache.close()


def test_what_fails_ahead_is_said_when_it_is_opened(place, tmp_path):
    place.put(FIRST, None)
    cache = open_cache(place, tmp_path)
    cache.ahead([FIRST])
    wait_for(lambda: place.reads(FIRST) == 1)
    with pytest.raises(BadShard, match="is not there"):
        cache.open(FIRST)
    cache.ahead([SECOND])  # and the threads are still at work
    wait_for(lambda: len(list(tmp_path.glob("*.bin"))) == 1)
    cache.close()


@pytest.mark.parametrize("kind", PLACES)
def test_a_cache_in_use_may_be_forked(kind, monkeypatch, tmp_path):
    cache = open_cache(filled(kind, monkeypatch), tmp_path)
    names = list(SHARDS)
    cache.open(names[0]).close()
    cache.ahead([names[1]])

    def use() -> None:
        cache.ahead([names[2]])
        for name in names[:4]:
            assert content(cache.open(name)) == SHARDS[name]
        cache.close()

    assert ended_well(child(use))
    assert content(cache.open(names[4])) == SHARDS[names[4]]
    cache.close()


def test_a_long_wait_is_said_in_the_log(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("data.cache.LONG_WAIT", 0.3)
    place.server.faults.coming = [drip]
    with caplog.at_level(logging.WARNING):
        cache = open_cache(place, tmp_path)
        cache.open(FIRST)
        cache.open(FIRST)
    assert [f"s for {FIRST} of {place.address}" in r.getMessage() for r in caplog.records] == [True]


def test_a_disk_without_room_is_said_and_not_quarantined(place, tmp_path):
    def use() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
        with pytest.raises(RuntimeError, match="lower data.cache_gigabytes or set") as caught:
            open_cache(place, tmp_path).open(FIRST)
        assert not isinstance(caught.value, BadShard)

    assert ended_well(child(use)) and not leftovers(tmp_path)


def test_a_local_folder_is_verified_and_read_in_place(tmp_path):
    for name, data in SHARDS.items():
        (tmp_path / name).write_bytes(data)
    cache = ShardCache(tmp_path / "cache", open_store(str(tmp_path), 1), ENTRIES, 0, 1)
    cache.ahead([FIRST])
    file = cache.open(FIRST)
    assert content(file) == SHARDS[FIRST] and checksum(file.fd) == ENTRIES[0].xxh3_128
    file.close()
    (tmp_path / FIRST).write_bytes(SHARDS[SECOND])
    with pytest.raises(BadShard, match=f"{FIRST} of .* is not what its index says: xxh3_128"):
        cache.open(FIRST)
    (tmp_path / FIRST).write_bytes(SHARDS[FIRST][:-1])
    with pytest.raises(BadShard, match="199,999 bytes instead of 200,000"):
        cache.open(FIRST)
    (tmp_path / FIRST).unlink()
    with pytest.raises(BadShard, match="is not there; put the shard back"):
        cache.open(FIRST)
    assert not (tmp_path / "cache").exists()
