"""Worker processes: together they read everything; they outlive signals meant for the run, and
never outlive the run."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.opening import open_loader, open_places
from data.share import Share
from data.tokenizer import Tokenizer
from data.workers import RankRows, Workers
from tests.data.corpora import make_documents, stack, write_corpus

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import multiprocessing, signal, sys
from pathlib import Path
from data.config import DataConfig, SourceKind
from data.opening import open_loader, open_places
from data.share import Share
from data.tokenizer import load_tokenizer

caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append("TERM"))
signal.signal(signal.SIGINT, lambda *_: caught.append("INT"))
config = DataConfig(
    kind=SourceKind.files, files=sys.argv[1] + "/*.txt", streams=4, num_workers=2,
    validation_fraction=0.2,
)
tokenizer = load_tokenizer(Path(sys.argv[2]))
loader = open_loader(config, open_places(config), tokenizer, seed=0, share=Share(16, 4, 4))
steps = loader.steps(0)
next(steps)
print("ready", len(multiprocessing.active_children()), flush=True)
sys.stdin.readline()
for _ in range(200):
    next(steps)
print(*sorted(caught), flush=True)
loader.close()
print("left", len(multiprocessing.active_children()), flush=True)
"""


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[subprocess.Popen[str]]:
    """A process with two workers, in a process group of its own, that has served one step."""
    write_corpus("files", tmp_path / "text", make_documents(30))
    tokenizer.export(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "text", tmp_path / "tokenizer.model"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready 2\n"
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_workers_survive_signals_to_the_whole_group_and_end_on_close(
    run: subprocess.Popen[str],
) -> None:
    os.killpg(run.pid, signal.SIGTERM)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate("go on\n", timeout=60)
    assert output == "INT TERM\nleft 0\n"
    assert run.returncode == 0


def test_no_worker_outlives_a_killed_parent(run: subprocess.Popen[str]) -> None:
    """The workers hold the pipe too: it ends when the last of them does."""
    os.kill(run.pid, signal.SIGKILL)
    output, _ = run.communicate(timeout=60)
    assert output == "" and run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["jsonl", "row groups"])
def test_workers_read_all_of_a_dataset(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """`datasets` gives a torch worker only its share of what it iterates, unless told otherwise."""
    config = write_corpus(kind, tmp_path, make_documents(41))
    served = []
    for workers in (0, 1, 2):
        changed = dataclasses.replace(config, num_workers=workers)
        share = Share(sequence_length=24, global_batch_size=8, micro_batch_size=2)
        loader = open_loader(changed, open_places(changed), tokenizer, seed=3, share=share)
        steps = itertools.islice(loader.steps(0), 40)
        served.append(torch.cat([stack(batch) for step in steps for batch in step]))
        loader.close()
    assert torch.equal(served[0], served[1]) and torch.equal(served[0], served[2])


def test_the_sentence_of_a_worker_arrives_without_its_traceback() -> None:
    def fail(stream: int, row: int) -> Iterator[int]:
        raise ValueError("data.streams=2 is too many: set fewer")
        yield stream

    made = Workers(RankRows(fail, 0, 1, 2), count=1, ahead=2)
    try:
        with pytest.raises(ValueError, match="^data.streams=2 is too many: set fewer$"):
            next(made)
    finally:
        made.close()
