"""Points are ended for what the metrics files say, and for nothing else."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launch.sweep.pruning import OTHERS, history, hopeless

curves = st.dictionaries(
    st.sampled_from("abcdefg"),
    st.dictionaries(st.sampled_from([2, 4, 6, 8]), st.floats(0, 10)),
    min_size=1,
)


@given(curves, st.sampled_from([1, 4, 7]))
def test_who_is_ended_was_worse_than_half_of_enough_others_at_its_newest_step(
    histories: dict, after: int
) -> None:
    ended = hopeless(histories, histories, after)
    for name, curve in histories.items():
        step = max(curve, default=-1)
        others = [one[step] for key, one in histories.items() if key != name and step in one]
        better = sum(value < curve[step] for value in others) if curve else 0
        if name in ended:
            assert ended[name] == step >= after and len(others) >= OTHERS
            assert 2 * better >= len(others)
        elif step >= after and len(others) >= OTHERS:
            assert 2 * better <= len(others)


def test_only_what_runs_is_ended() -> None:
    histories = {name: {4: float(value)} for value, name in enumerate("abcde")}
    assert hopeless(histories, ["a", "e"], 4) == {"e": 4}
    assert hopeless(histories, ["a", "e"], 5) == {}


def test_the_history_is_the_metrics_files_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 9.0}, {"step": 2, "val/a/loss": 3.0}, {"step": 4, "val/a/loss": 2}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 6, "val/a/lo')
    assert history(tmp_path) == {2: 3.0, 4: 2.0}
    assert history(tmp_path, "loss") == {1: 9.0}
    assert history(tmp_path / "none") == {}
