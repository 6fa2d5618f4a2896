"""The charts say what the numbers say, in words that can be read in their SVG."""

import math

import pytest

from retnet.report import context, curves, style, watching
from retnet.report.reading import read_run, series
from retnet.report.style import color_of, svg_of
from retnet.report.sweep import sweep_picture
from tests.retnet.report.written import write_run


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "alpha", steps=200))


def test_a_rate_that_never_changes_is_drawn_at_its_height(record):
    lines = [{"step": step, "learning_rate": 3e-4} for step in range(1, 6)]
    (chart, _) = watching.learning([record._replace(metrics=lines)])
    low, high = chart.figure.axes[0].get_ylim()
    assert low == 0 and 0.5 * high < 3e-4 < high


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.018, 0.68, "0.02 0.05 0.1 0.2 0.5"), (0.97, 2.6, "1 2"), (1e-9, 3.0, "1e-9 1e-7 1e-5")],
)
def test_the_scale_of_a_map_has_round_numbers(low, high, words):
    found = watching._round_values(math.log10(low), math.log10(high))
    shown = [style.short(float(f"{10**value:.2g}")) for value in found]
    assert shown[: len(words.split())] == words.split() and len(found) <= 6
    assert all(math.log10(low) <= value <= math.log10(high) for value in found)
    assert len(watching._round_values(0.31, 0.69)) == 4


def test_what_came_between_is_marked_below_the_loss(record):
    text = svg_of(curves.loss([record]))
    assert "restart" in text and "skipped step" in text
    rows = {words: tokens for words, _, _, tokens in curves.mark_rows([record])}
    assert rows == {"restart": [100 * 4096], "skipped step": [66 * 4096]}
    twice = record._replace(events=record.events * 2)
    assert "2 restarts" in svg_of(curves.loss([twice]))
    calm = record._replace(events=[])
    assert "restart" not in svg_of(curves.loss([calm]))


def test_of_several_runs_each_mark_says_whose_it_is(record):
    rows = curves.mark_rows([record, record._replace(name="beta")])
    assert [(words.split(":")[0], color) for words, _, color, _ in rows] == [
        *[("alpha", color_of(0))] * 2,
        *[("beta", color_of(1))] * 2,
    ]


def test_the_last_numbers_stand_at_the_ends_of_their_lines(record):
    held = series(record, "val/held_out/loss")[1][-1]
    assert f"{held:.3f}" in svg_of(curves.loss([record]))
    assert "gzip -9" in svg_of(curves.bits([record]))
    rank = svg_of(watching.step_times([record]))
    assert "slowest, most often 3" in rank


def test_the_map_of_the_pass_key_says_each_share(record):
    (chart,) = context.passkeys([record])
    text = svg_of(chart)
    found = [entry for entry in record.evaluations if entry["kind"] == "passkey"][-1]
    for row in found["accuracy"]:
        for share in row:
            assert f">{share:.0%}<" in text
    assert "8x" in text and "4,096" in text


def test_a_head_s_memory_is_the_decay_s(record):
    text = svg_of(context.decays([record]))
    for head in range(3):
        half = math.log(2) / -math.log1p(-(2.0 ** (-5 - head)))
        assert f">{half:.0f}<" in text
    assert "trained length 512" in text


def test_heads_that_many_models_have_are_drawn_once(record):
    other = record._replace(name="beta")
    text = svg_of(context.decays([record, other]))
    assert "head 3" in text and "beta" not in text
    wide = other._replace(config=other.config | {"model": {"num_heads": 2, "use_lm_decay": True}})
    assert "beta 2" in svg_of(context.decays([record, wide]))


def test_a_place_without_targets_is_left_out_of_the_curve(record):
    entry = {"step": 1, "kind": "positions", "length": 8, "bucket": 1, "loss": [3.0, None, 2.0]}
    text = svg_of(context.loss_by_position([record._replace(evaluations=[entry])]))
    assert "nan" not in text.lower()
    assert context.loss_by_position([record._replace(evaluations=[entry | {"loss": []}])]) is None


def test_a_sweep_has_a_row_for_each_parameter_and_takes_points_without_a_run(record, tmp_path):
    points = [
        ({"optimizer.learning_rate": rate, "model": model}, folder, outcome)
        for rate, model, folder, outcome in [
            (3e-4, "small", record.folder, 4.2),
            (6e-4, "small", record.folder, math.inf),
            (6e-4, "large", tmp_path / "not-begun", None),
        ]
    ]
    heights = []
    for chosen in (points, [({"model": "small"}, *points[0][1:])]):
        sweep_picture(chosen, tmp_path / "sweep.png")
        data = (tmp_path / "sweep.png").read_bytes()
        heights.append(int.from_bytes(data[20:24], "big"))
    bare = [height - 2 * style.BORDER for height in heights]
    assert bare[0] == 2 * bare[1]


def test_a_sweep_shows_values_as_they_were_written(record, tmp_path):
    pictures = []
    for values in ((True, False, None), ("true", "false", "null")):
        points = [({"tied": value}, record.folder, 4.2) for value in values]
        sweep_picture(points, tmp_path / "sweep.png")
        pictures.append((tmp_path / "sweep.png").read_bytes())
    assert pictures[0] == pictures[1]
