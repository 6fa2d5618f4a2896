"""Preparing: the same bytes for any number of processes and after any kill, and a true summary."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.config import DataConfig, SourceKind
from data.documents import LONGEST_LINE
from data.index import Index
from data.prepare import Summary, prepare_shards
from data.prepare.__main__ import main
from data.sources import open_source
from data.tokenizer import SentencePieceTokenizer, Tokenizer
from tests.data.corpora import LONGEST, make_documents, write_corpus

REPOSITORY = Path(__file__).parents[2]
# One process prepares slowly enough to be killed in the middle, but not by sleeping.
PROGRAM = """
import sys
from pathlib import Path
from data.config import DataConfig, SourceKind
from data.prepare import prepare_shards
from data.prepare import tokenize
from data.sources import open_source
from data.tokenizer import SentencePieceTokenizer

tokenize.CHARACTERS = 2000
source = open_source(DataConfig(kind=SourceKind.files, files=sys.argv[1] + "/*.txt"))
tokenizer = SentencePieceTokenizer(Path(sys.argv[2]))

def report(summary):
    print(summary.shards, flush=True)
    if summary.shards:
        sys.stdin.readline()

prepare_shards(source, tokenizer, Path(sys.argv[3]), workers=2, longest=10_000, shard_bytes=4000,
               report=report)
"""


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def text_config(tmp_path: Path) -> DataConfig:
    """150 files, three of them refused."""
    config = write_corpus("files", tmp_path / "text", [*make_documents(147), "", "x" * 10_001])
    (tmp_path / "text" / "bad.txt").write_bytes(b"\xff")
    return config


def prepare(
    config: DataConfig, tokenizer: Tokenizer, out: Path, workers: int = 1, **changed: int
) -> Summary:
    settings = {"longest": 10_000, "shard_bytes": 4000} | changed
    return prepare_shards(open_source(config), tokenizer, out, workers=workers, **settings)


@pytest.fixture
def tokenizer_in(tmp_path: Path, tokenizer: Tokenizer) -> tuple[Tokenizer, Path]:
    """The tokenizer of a file, and that file: so that another process has the same one."""
    tokenizer.export(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.model"
    return SentencePieceTokenizer(path), path


def test_the_summary_is_true_and_the_shards_are_the_same_for_any_number_of_processes(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = text_config(tmp_path)
    summaries = [prepare(config, tokenizer, tmp_path / str(n), workers=n) for n in (1, 3)]
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    texts = make_documents(147)
    for summary in summaries:
        assert (summary.documents, summary.taken_over) == (150, 0)
        assert summary.refused == {"empty": 1, "not_utf8": 1, "too_long": 1}
        assert summary.bytes == sum(len(text.encode()) for text in texts)
        assert summary.tokens == sum(len(tokenizer.encode(text)) + 2 for text in texts)
        assert f"{summary.bytes / summary.tokens:.2f} bytes per token" in str(summary)
        assert "refused: 1 empty, 1 not UTF-8, 1 too long" in str(summary)
    index = Index.load(lambda name: (tmp_path / "1" / name).read_bytes(), "1")
    assert (index.documents, index.tokens) == (150, summaries[0].tokens)
    assert index.rules == {"longest_document": 10_000, "longest_line": LONGEST_LINE}
    assert len(index.shards) == summaries[0].shards > 3


def test_a_killed_preparation_goes_on_and_leaves_finished_shards_alone(
    tmp_path: Path, tokenizer_in: tuple[Tokenizer, Path]
) -> None:
    """SIGKILL to the reading process; the tokenizing ones end by themselves: the pipe closes."""
    config = text_config(tmp_path)
    tokenizer, model = tokenizer_in
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "text", model, out],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 1:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # ends when the last process that has the pipe does
    finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.bin")}
    assert finished and not (out / "index.json").exists()
    with pytest.raises(ValueError, match=r"data.path=there has no index.json: .*prepare was not"):
        Index.load(lambda name: (out / name).read_bytes(), "there")
    assert list(out.glob("*.tmp")), "the law is to be tried with a shard half written"
    summary = prepare(config, tokenizer, out)
    assert 0 < summary.taken_over < summary.documents == 150
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    prepare(config, tokenizer, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_damaged_shard_is_made_again_and_so_are_those_after_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = text_config(tmp_path)
    prepare(config, tokenizer, tmp_path / "whole")
    prepare(config, tokenizer, out := tmp_path / "out")
    damaged = out / "shard-00000001.bin"
    raw = damaged.read_bytes()
    damaged.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    assert 0 < prepare(config, tokenizer, out).taken_over < 150
    assert contents(out) == contents(tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert prepare(config, tokenizer, out).taken_over == 150
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_shards_of_something_else_are_refused_with_what_differs(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = text_config(tmp_path)
    prepare(config, tokenizer, out := tmp_path / "out")
    with pytest.raises(ValueError, match=r"out=.* something else .shard_bytes 4000 -> 5000.: give"):
        prepare(config, tokenizer, out, shard_bytes=5000)
    with pytest.raises(ValueError, match=r"rules .*10000.* -> .*9999"):
        prepare(config, tokenizer, out, longest=9999)
    (tmp_path / "text" / "0001.txt").write_text("longer than it was by something")
    with pytest.raises(ValueError, match=r"something else .source [0-9a-f]+ -> [0-9a-f]+"):
        prepare(config, tokenizer, out)


def test_text_that_changed_behind_its_size_is_found_when_going_on(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = text_config(tmp_path)
    prepare(config, tokenizer, out := tmp_path / "out")
    for path in (tmp_path / "text").glob("0*.txt"):
        path.write_bytes(path.read_bytes().swapcase())
    with pytest.raises(ValueError, match=r"document [0-9]+ of the text is another one than when"):
        prepare(config, tokenizer, out)


def test_two_at_a_time_in_one_folder_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, out = open_source(text_config(tmp_path)), tmp_path / "out"
    refused = []

    def again(summary: Summary) -> None:
        with pytest.raises(ValueError, match="another process is preparing in out=") as error:
            prepare_shards(source, tokenizer, out, workers=1, longest=LONGEST)
        refused.append(error)

    prepare_shards(source, tokenizer, out, workers=1, longest=LONGEST, report=again)
    assert refused and prepare_shards(source, tokenizer, out, workers=1, longest=LONGEST)


def test_text_of_which_nothing_is_kept_and_numbers_without_sense_are_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    config = DataConfig(kind=SourceKind.files, files=str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="there is no text to prepare; refused: 1 not UTF-8"):
        prepare(config, tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match="workers=0 and shard_bytes=4000 must be 1 or more"):
        prepare(config, tokenizer, tmp_path / "out", workers=0)


class Dying:
    """A tokenizer whose process is killed at work, or that gives ids it does not have."""

    def __init__(self, tokenizer: Tokenizer, dies: bool) -> None:
        self._tokenizer, self._dies = tokenizer, dies

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def encode(self, text: str) -> list[int]:
        if self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return [self._tokenizer.vocab_size]


@pytest.mark.parametrize(
    ("dies", "sentence"),
    [
        (True, "a tokenizing process was killed, perhaps"),
        (False, "gave id 1000, and has only 1000"),
    ],
)
def test_what_goes_wrong_in_a_tokenizing_process_is_said(
    dies: bool, sentence: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        prepare(text_config(tmp_path), Dying(tokenizer, dies), tmp_path / "out")


def test_the_command_prepares_and_says_how_to_train_on_it(
    tmp_path: Path, tokenizer_in: tuple[Tokenizer, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus("files", tmp_path / "text", make_documents(60))
    words = [
        *("data=files", f"data.files={tmp_path}/text/*.txt", "data.streams=4"),
        *("tokenizer=sentencepiece", f"tokenizer.path={tokenizer_in[1]}"),
        *("tokenizer.vocab_size=1000", f"out={tmp_path}/out", "workers=2"),
    ]
    for shown in ("60 documents, ", "60 documents were there already\n60 documents, "):
        main([*words, "shard_bytes=5000"])
        said = capsys.readouterr().out
        assert said.startswith(shown) and "MB/s" in said
        assert said.endswith(f"train on them with data=prepared data.path={tmp_path}/out\n")
    for wrong, sentence in (
        ([*words[:-1], "workers=two"], "workers=two must be a whole number"),
        (words[:-2], "say where the shards are to be written"),
        ([*words, "data.file=x"], "there is no key data.file; did you mean data.files"),
    ):
        with pytest.raises(ValueError, match=sentence):
            main(wrong)
