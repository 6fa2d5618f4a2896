"""A report is one valid file that needs no other and shows all that the run wrote, and no more."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from retnet.report.__main__ import main, runs_in
from retnet.report.page import page, report
from retnet.report.reading import read_run
from tests.retnet.report.written import write_run

VOID = {"meta", "br", "link", "img", "input"}
ALL = {
    *("loss", "bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second", "mfu"),
    *("data_wait", "peak_memory", "step_time", "grad_norm_by_layer", "activation_rms_by_layer"),
    *("loss_by_position", "passkey", "decays"),
}


class Reader(HTMLParser):
    """Fails where tags do not close in their order; keeps addresses and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.addresses, self.words, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "action")]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "alpha", steps=200)


@pytest.fixture(scope="module")
def other(folder) -> Path:
    return write_run(folder.parent / "beta", steps=200, upto=120, rate=1e-3)


@pytest.fixture(scope="module")
def written(folder) -> Path:
    return report([folder], defaults={"steps": 100, "sequence_length": 512})


def test_the_page_is_valid_and_needs_nothing_else(written):
    text = written.read_text()
    seen = Reader(text)
    assert all(address.startswith(("#", "data:")) for address in seen.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text


def test_every_picture_is_in_the_page_and_beside_it(written):
    pictures = {path.stem for path in written.with_suffix("").glob("*.png")}
    assert pictures == ALL
    assert written.read_text().count("<svg") == len(ALL)


def test_what_a_run_wrote_is_shown_and_never_executed(written):
    seen = Reader(written.read_text())
    words = "".join(seen.words)
    assert '"""<script>alert(1)</script> & more"""' in words
    assert "Finished at step 200." in words
    assert "RetNet: 2.96M parameters, 4 layers, 192 wide" in words
    assert "skipped step 67" in words and "the loss is far above" in words
    assert "None" not in words
    assert "copying/acc" in words


def test_the_config_shows_first_what_differs_from_the_defaults(written):
    text = written.read_text()
    table = text[text.index("<h2>Config") : text.index("the whole config")]
    assert "<code>steps</code></td><td><code>200</code></td><td><code>100</code>" in table
    assert "sequence_length" not in table


def test_what_was_not_measured_has_no_picture_and_no_section(folder):
    record = read_run(folder)
    without = {"val/held_out/bits_per_byte", "mfu", "step_time/median", "peak_memory"}
    fewer = [{k: v for k, v in line.items() if k not in without} for line in record.metrics]
    text, charts = page([record._replace(metrics=fewer, evaluations=[], config={})], None)
    left_out = {"bits_per_byte", "mfu", "step_time", "peak_memory"}
    left_out |= {"loss_by_position", "passkey", "decays"}
    assert {chart.name for chart in charts} == ALL - left_out
    assert "<h2>Samples" not in text and "<h2>Config" not in text
    Reader(text)


@pytest.mark.parametrize("event", ["started", "failed"])
def test_a_run_that_has_only_begun_is_reported(tmp_path, event):
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": event, "step": 0}) + "\n")
    text = report([tmp_path]).read_text()
    Reader(text)
    assert "<svg" not in text


def test_several_runs_are_compared_with_a_color_each_and_left_as_they_are(folder, other, tmp_path):
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    out = report([folder, other], tmp_path / "both.html")
    text = out.read_text()
    words = "".join(Reader(text).words)
    assert "alpha and beta" in words
    assert "At step 120 of 200: it is running, or was killed." in words
    assert "<code>optimizer.learning_rate</code>" in text  # they differ in it
    assert "<code>model.num_layers</code>" not in text
    assert {path.stem for path in (tmp_path / "both").iterdir()} == ALL | {"passkey_2"}
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_the_page_of_a_sweep_is_its_own_and_names_each_point_by_its_values(folder, tmp_path):
    record, points = read_run(folder), ["heads-2__rate-0.001", "heads-4__rate-0.001", "heads-8"]
    for point in points:
        (place := tmp_path / "sw" / point).mkdir(parents=True)
        for name in ("metrics.jsonl", "events.jsonl"):
            (place / name).write_bytes((folder / name).read_bytes())
        (place / "config.yaml").write_text(f"name: sw/{point}\nsteps: 200\n")
    out = report(runs_in(tmp_path / "sw"))
    assert out.resolve() == tmp_path / "sw" / "report.html"
    words = "".join(Reader(out.read_text()).words)
    assert "sw: 3 runs" in words and points[0] in words and f"sw/{points[0]}" not in words
    assert "2, 0.001" in words and "4, 0.001" in words
    title = page([record, *[record._replace(name=name) for name in "bcd"]], None)[0]
    assert "<h1>alpha, b and 2 more</h1>" in title


def test_the_folder_of_a_sweep_stands_for_its_points(folder, other):
    assert runs_in(folder.parent) == [folder, other]
    assert runs_in(folder) == [folder]


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as ended:
            main([str(place)])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert str(place) in said and len(said.splitlines()) == 1


def test_a_real_run_with_all_it_can_say_is_reported_whole(runs):
    """What the report reads is what train.py writes."""
    said = runs.finished(
        name="told", steps=2, save_every=0, logging__norms_every=1, logging__peak_flops=1e12,
        evaluation__samples_every=9, evaluation__positions_every=9, evaluation__passkey_every=9,
        evaluation__passkey_trials=1, evaluation__passkey_depths=2, evaluation__rows=1,
        evaluation__sample_tokens=10, logging__sample_tokens=0,
    )  # fmt: skip
    written = runs.folder / "runs" / "told"
    assert "retnet.report" in said
    main([str(written)])
    Reader((written / "report.html").read_text())
    pictures = {path.stem for path in (written / "report").iterdir()}
    assert pictures == ALL - {"step_time"}  # of one rank there is no slowest
