"""The table of faults tells the truth: every try is a row's, and what was lost is seen."""

from tests.faults.table import Table


def test_every_try_is_counted_and_a_lost_one_is_seen() -> None:
    table = Table()
    assert table.lines() == [] and table.lost == 0
    for survived in (True, False, True):
        table.add("power cut", survived)
    table.add("flood", True)
    head, *rows, everything = [line.split() for line in table.lines()]
    assert head == ["fault", "tried", "survived", "lost"]
    assert rows == [["power", "cut", "3", "2", "1"], ["flood", "1", "1", "0"]]
    assert everything == ["all", "4", "3", "1"] and table.lost == 1
    assert len({len(line) for line in table.lines()}) == 1


def test_a_row_says_at_which_moments_it_was_tried() -> None:
    table = Table()
    for moment in ("night", "noon", "night"):
        table.add("power cut", True, moment)
    table.add("flood", True)
    _, power, flood, _ = table.lines()
    assert power.endswith("(night 2, noon 1)") and "(" not in flood
