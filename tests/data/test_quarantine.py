"""A decision to pass over a shard: for one stream, from one document on, after a resume too."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from data.quarantine import Failure, Quarantine

few = settings(max_examples=40, deadline=None, derandomize=True)
failures = st.builds(
    Failure,
    source=st.sampled_from(["", "web"]),
    shard=st.sampled_from(["a", "b"]),
    stream=st.integers(0, 2),
    epoch=st.integers(0, 2),
    document=st.integers(0, 3),
    why=st.sampled_from(["404", "429"]),
)
places = st.tuples(
    st.sampled_from(["", "web"]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 3),
)


@few
@given(st.lists(failures, max_size=8), places)
def test_a_stream_passes_over_a_shard_from_its_earliest_decision_on(made, place):
    source, shard, stream, epoch, document = place
    wanted = any(
        (f.source, f.shard, f.stream) == (source, shard, stream)
        and (f.epoch, f.document) <= (epoch, document)
        for f in made
    )
    assert Quarantine(made).skips(*place) == wanted


@few
@given(st.lists(failures, max_size=8), places, st.randoms(use_true_random=False))
def test_decisions_through_a_file_and_in_any_order_are_the_same(made, place, random):
    first = Quarantine(made)
    stored = json.loads(json.dumps(first.failures()))
    random.shuffle(stored)
    second = Quarantine(Failure(*values) for values in stored)
    assert second.failures() == first.failures()
    assert second.skips(*place) == first.skips(*place)
