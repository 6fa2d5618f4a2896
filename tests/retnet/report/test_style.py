"""Curves keep their spikes, labels keep their distance, and SVG brings nothing from elsewhere."""

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from retnet.report import style


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20_000))
def test_a_thinned_curve_is_short_and_keeps_its_extremes_and_its_order(values):
    x, y = style.thinned(range(len(values)), values)
    assert len(x) <= max(style.MOST_POINTS, 2)
    assert min(y) == min(values) and max(y) == max(values)
    assert x == sorted(set(x))
    assert all(values[int(at)] == value for at, value in zip(x, y, strict=True))


@given(st.lists(st.floats(0, 300), max_size=12), st.floats(1, 20))
def test_labels_are_moved_apart_in_their_order_and_around_their_middle(heights, gap):
    heights.sort()
    placed = style.apart(heights, gap)
    assert len(placed) == len(heights)
    assert all(b - a >= gap * (1 - 1e-9) - 1e-9 for a, b in zip(placed, placed[1:], strict=False))
    assert abs(sum(placed) - sum(heights)) < 1e-6
    if all(b - a >= gap for a, b in zip(heights, heights[1:], strict=False)):
        assert placed == heights


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_labels_stay_in_the_picture_and_apart(heights):
    placed = style.within(style.apart(sorted(heights), 10), -10, 100, 10)
    assert placed[0] >= -10 - 1e-9 and placed[-1] <= 100 + 1e-9
    assert all(b - a >= 10 - 1e-9 for a, b in zip(placed, placed[1:], strict=False))


@given(st.floats(1e-9, 1e14))
def test_a_short_number_is_short_and_near(value):
    text = style.short(value)
    assert len(text) <= 9
    sizes = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    read = float(text.rstrip("kMBT").replace(",", "")) * sizes.get(text[-1], 1)
    assert abs(read - value) <= 0.006 * value


def test_an_axis_has_one_unit_and_sixteen_runs_have_a_color_each():
    assert [style.short(value) for value in (0, 500, 4000, 8000, 12e3)] == "0 500 4k 8k 12k".split()
    assert len({style.color_of(index) for index in range(16)}) == 16


def a_chart() -> style.Chart:
    figure, axes = style.panel("Loss <b>", "nats & more")
    axes.plot([0, 1], [1, 2], "o-", color=style.TRAIN)
    axes.imshow([[1, 2]], extent=(0, 1, 1, 2))
    return style.Chart("a_chart", figure, "")


def test_an_svg_is_whole_and_has_no_address_no_font_and_only_names_of_its_own():
    text = style.svg_of(a_chart())
    tree = ElementTree.fromstring(text)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and all(name.startswith("a_chart-") for name in ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert "http" not in text and "font-family" not in text
    assert "Loss &lt;b&gt;" in text
    links = [element.get("href") for element in tree.iter() if element.get("href")]
    assert links and all(link.startswith(("data:", "#a_chart-")) for link in links)


def test_the_colors_of_the_paper_are_left_to_the_page():
    text = style.svg_of(a_chart()).lower()
    for color, variable in style.variables().items():
        assert color not in text
        assert variable in ("--paper",) or f"var({variable})" in text


def test_a_png_has_two_pixels_for_one_of_the_page(tmp_path):
    style.write_png(a_chart(), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 2 * (style.HALF + style.BORDER)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
