"""What checkpoints rely on inside DeepSpeed is checked before it is relied on; what the pieces are
worth, test_restore.py shows on real engines."""

from types import SimpleNamespace

import pytest

from retnet.training.pieces import RELIED_ON, Piece, check_engine


def test_a_deepspeed_that_lacks_something_is_refused_with_its_name_and_the_way_out() -> None:
    for kind, names in RELIED_ON.items():
        zero = type(kind, (SimpleNamespace,), {})(**dict.fromkeys(names[:-1]))
        with pytest.raises(RuntimeError, match=f"{kind}, without {names[-1]}; .*pyproject.toml"):
            check_engine(SimpleNamespace(optimizer=zero))


def test_an_unknown_wrapper_is_refused_by_its_name() -> None:
    with pytest.raises(RuntimeError, match="optimizer is SimpleNamespace; checkpoints do not know"):
        check_engine(SimpleNamespace(optimizer=SimpleNamespace()))


def test_a_pieces_name_in_a_file_says_what_it_is_and_where_it_begins() -> None:
    assert Piece("a.b@c", "master", 7, None).key == "master/a.b@c@7"
