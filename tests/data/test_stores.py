"""Every store gives the same bytes; every fault ends as a StoreError, soon and after one read."""

import os
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from data.stores import StoreError, open_store
from tests.data.servers import PLACES, Place, answer, drip, make_place, truncate

CONTENT = os.urandom(300_000)
NAME = "part/shard-00000001.bin"
TIMEOUT = 0.5


@pytest.fixture(params=PLACES)
def place(request, monkeypatch) -> Place:
    made = make_place(request.param, "stores", monkeypatch)
    made.put(NAME, CONTENT)
    yield made
    made.server.faults.reset()


def failure(place: Place, to: Path, timeout: float = 10) -> StoreError:
    """What a fetch and a read alike end with, each after one request."""
    store, faults = place.store(timeout), place.server.faults
    coming = list(faults.coming)
    with pytest.raises(StoreError) as fetched:
        store.fetch(NAME, to)
    faults.coming[:] = coming
    with pytest.raises(StoreError) as read:
        store.read(NAME)
    assert str(read.value) == str(fetched.value)
    assert place.reads(NAME) == 2
    return fetched.value


def test_reading_and_fetching_give_the_bytes_that_were_put(place, tmp_path):
    store = place.store()
    store.fetch(NAME, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == store.read(NAME) == CONTENT
    assert place.reads(NAME) == 2  # and nothing was listed or asked for first
    assert store.folder is None
    store.close()
    assert store.read(NAME) == CONTENT


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_status_that_passes_is_said_with_what_the_server_asked_for(place, tmp_path, status):
    place.server.faults.coming = [answer(status, Retry_After="17")]
    error = failure(place, tmp_path / "x")
    assert (error.status, error.retry_after, error.permanent) == (status, 17, False)
    assert str(error).startswith(f"{status} ")


@pytest.mark.parametrize(("status", "words"), [(401, "may not be read"), (403, "may not be read")])
def test_a_status_that_stays_is_permanent(place, tmp_path, status, words):
    place.server.faults.coming = [answer(status)]
    error = failure(place, tmp_path / "x")
    assert error.permanent and error.status == status and words in str(error)


def test_a_missing_file_is_not_there(place, tmp_path):
    place.put(NAME, None)
    error = failure(place, tmp_path / "x")
    assert error.permanent and error.status == 404 and str(error) == "is not there (404)"


def test_a_truncated_body_passes(place, tmp_path):
    place.server.faults.coming = [truncate]
    error = failure(place, tmp_path / "x")
    assert not error.permanent and str(error) == "the body ended early"


def test_a_stalled_body_ends_when_nothing_came_for_the_timeout(place, tmp_path):
    place.server.faults.coming = [place.server.faults.stall]
    began = time.monotonic()
    error = failure(place, tmp_path / "x", TIMEOUT)
    assert not error.permanent and str(error) == "nothing came within data.timeout"
    assert time.monotonic() - began < 10 * TIMEOUT


def test_a_slow_body_that_keeps_coming_is_no_error(place, tmp_path):
    place.server.faults.coming = [drip]  # longer than that in all
    place.store(TIMEOUT).fetch(NAME, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_server_that_is_not_there_passes(place, tmp_path, monkeypatch):
    nobody = "http://127.0.0.1:9"  # the discard port, where nobody listens
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    with pytest.raises(StoreError) as caught:
        open_store(place.address.replace(place.server.url, nobody), TIMEOUT).read(NAME)
    assert not caught.value.permanent and caught.value.status is None


def test_a_full_disk_is_no_fault_of_the_store(place):
    with pytest.raises(OSError, match="No space left"):
        place.store().fetch(NAME, Path("/dev/full"))


def test_a_store_may_be_used_before_and_after_a_fork(place, tmp_path):
    store = place.store()
    assert store.read(NAME) == CONTENT
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read(NAME) == CONTENT else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.read(NAME) == CONTENT


def test_a_date_and_the_rate_limit_of_the_hub_are_kept_too(monkeypatch):
    place = make_place("http", "stores", monkeypatch)
    place.server.faults.coming = [
        answer(503, Retry_After=formatdate(time.time() + 100, usegmt=True)),
        answer(429, RateLimit='"api";r=0;t=55'),
        answer(429),
    ]
    asked = []
    for _ in range(3):
        with pytest.raises(StoreError) as caught:
            place.store().read(NAME)
        asked.append(caught.value.retry_after)
    assert asked[0] == pytest.approx(100, abs=5) and asked[1:] == [55, None]


def test_a_signature_behind_an_address_goes_to_every_file_and_into_no_sentence(monkeypatch):
    place = make_place("http", "stores", monkeypatch)
    place.put(NAME, CONTENT)
    store = open_store(f"{place.address}/?signature=secret", TIMEOUT)
    assert store.read(NAME) == CONTENT and store.address == place.address


def test_a_name_and_a_password_are_in_no_sentence():
    assert open_store("https://me:secret@host/a?X=1", 1).address == "https://host/a"


def test_a_revision_of_the_hub_is_part_of_the_address(monkeypatch):
    place = make_place("hub", "stores", monkeypatch)
    place.server.put(f"datasets/user/texts/resolve/v2/{NAME}", b"second")
    assert open_store("hf://datasets/user/texts@v2", TIMEOUT).read(NAME) == b"second"


def test_the_hubs_token_is_shown_to_the_hub_and_not_to_where_it_redirects(monkeypatch):
    place = make_place("hub", "stores", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    place.server.put(f"elsewhere/{NAME}", CONTENT)
    elsewhere = place.server.url.replace("127.0.0.1", "localhost")
    place.server.faults.coming = [answer(302, Location=f"{elsewhere}/elsewhere/{NAME}")]
    assert place.store().read(NAME) == CONTENT
    assert place.server.faults.tokens == ["Bearer hf_secret", None]


def test_s3_without_credentials_is_said_and_not_tried_again(monkeypatch):
    place = make_place("s3", "stores", monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StoreError, match="may not be read .*credentials") as caught:
        place.store().read(NAME)
    assert caught.value.permanent and caught.value.status == 401


def test_a_folder_is_a_store_that_is_read_in_place(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / NAME).write_bytes(CONTENT)
    store = open_store(str(tmp_path), TIMEOUT)
    store.fetch(NAME, tmp_path / "copy")
    assert store.folder == tmp_path
    assert store.read(NAME) == (tmp_path / "copy").read_bytes() == CONTENT
    with pytest.raises(StoreError, match="is not there") as caught:
        store.read("index.json")
    assert caught.value.permanent and caught.value.status == 404


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gs://b/x", "no place that can be read"),
        ("hf://user/name", "no dataset of the hub"),
        ("hf://datasets/name", "no dataset of the hub"),
    ],
)
def test_an_address_that_is_none_is_refused_with_those_that_are(address, words):
    with pytest.raises(ValueError, match=words):
        open_store(address, TIMEOUT)
