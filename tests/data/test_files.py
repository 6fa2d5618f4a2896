"""Files are documents: exact text, nothing fatal, an order that does not depend on the disk."""

import logging
from pathlib import Path

import pytest

from data.documents import checked
from data.files import glob_source, python_source


def test_text_is_read_exactly(tmp_path: Path) -> None:
    texts = {"a.txt": "one\r\ntwo\rthree\n", "b.txt": " \t\0é", "sub/c.txt": "\ufeffx"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    source = glob_source(str(tmp_path / "**" / "*.txt"))
    assert list(source.validation_documents()) == list(texts.values())


def test_what_is_no_text_is_refused_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in (("a", b"good"), ("b", b""), ("c", b"\xff\xfe"), ("d", b"fine")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    source = glob_source(str(tmp_path / "*.txt"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            texts = list(source.validation_documents())
            assert texts == ["good", "", "", "fine"]
            reasons = [None, "empty", "not_utf8", None]
            assert [checked(text, 100)[1] for text in texts] == reasons
    assert [record.getMessage() for record in caplog.records] == [
        "left out 2 empty or non-UTF-8 files: b.txt, c.txt"
    ]


def test_the_same_files_elsewhere_have_the_same_fingerprint(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text("one")
        (tmp_path / folder / "sub" / "b.txt").write_text("two")

    def fingerprint(folder: str) -> str:
        return glob_source(str(tmp_path / folder / "**" / "*.txt")).fingerprint()

    assert fingerprint("here") == fingerprint("there")
    (tmp_path / "there" / "a.txt").write_text("longer")
    assert fingerprint("here") != fingerprint("there")


def test_a_glob_may_start_at_home_and_may_name_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    assert list(glob_source("~/*.txt").validation_documents()) == ["one"]
    assert list(glob_source("~/a.txt").validation_documents()) == ["one"]


def test_the_standard_library_is_there_without_installed_packages() -> None:
    source = python_source()
    source.check_streams(512)
    texts = list(source.validation_documents())
    assert sum(map(len, texts)) > 20_000_000
    assert not any("def pytest_addoption" in text for text in texts)
