"""Bad input gets one sentence, exit code 2 and no traceback, before any device is touched."""

import os
import socket
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from configs.explain import check_overrides
from configs.manual import manual
from configs.names import config_groups, config_keys, field_docs
from configs.schema import Config
from launch.world import without_local_rank
from tests import forked

TRAIN = str(Path(__file__).parents[1] / "train.py")

MISTAKES = {  # of each kind one; tests/test_words.py has hundreds
    "stps=10": "there is no key stps; did you mean steps?",
    "engine.dtype=bf16": "needed one of auto, bfloat16, float16, float32; did you mean bfloat16?",
    "micro_batch_size=3": "global_batch_size=8 is no multiple of micro_batch_size=3",
    "data.files=none/*.txt": "data.files=none/*.txt matches no file",
}


@pytest.fixture
def run(tmp_path_factory):
    """Starts train.py in a folder, with few words in its environment."""
    elsewhere = tmp_path_factory.mktemp("output")

    def run(arguments: list[str], folder: Path, **environment) -> subprocess.CompletedProcess:
        env = {"PATH": "/usr/bin:/bin"} | environment
        return forked.run(TRAIN, *arguments, folder=elsewhere, cwd=folder, env=env, timeout=120)

    return run


def start_for_real(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """With its imports, which must not say anything either."""
    command = [sys.executable, TRAIN, *arguments]
    own = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=own, timeout=120)


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_ends_the_program_with_one_sentence_and_code_2(mistake, run, tmp_path):
    begin = start_for_real if mistake == "stps=10" else run
    done = begin([mistake, *(["data=files"] if "files" in mistake else [])], tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert MISTAKES[mistake] in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_asked_for_with_a_flag_and_looked_at_before_it_starts():
    assert check_overrides(["-m", "seed=1,2", "model=retnet_tiny,nucleus_x_tiny"]) is None
    with pytest.raises(ValueError, match="is a sweep of several runs: start it with -m"):
        check_overrides(["seed=1,2"])
    with pytest.raises(ValueError, match="seed=two: needed a whole number"):
        check_overrides(["-m", "seed=1,two"])
    with pytest.raises(ValueError, match="did you mean model=nucleus_x_tiny"):
        check_overrides(["-m", "model=retnet_tiny,nucleus_tiny"])
    with pytest.raises(ValueError, match="did you mean hydra.launcher.at_once"):
        check_overrides(["-m", "seed=1,2", "hydra.launcher.at_onec=2"])


def test_ranks_that_do_not_divide_are_told_by_rank_0_alone(run, tmp_path):
    """Two of three launched processes: the others end silently with the same code."""
    for rank in (0, 1):
        done = run(["data.streams=16"], tmp_path, WORLD_SIZE="3", RANK=str(rank))
        assert done.returncode == 2
        assert ("over 3 ranks" in done.stderr) == (rank == 0)
        assert "Traceback" not in done.stderr


def test_what_is_wrong_on_one_machine_alone_is_told_there_and_once(run, tmp_path):
    """Its tokens are everybody's to read, say; rank 0 is on another machine."""
    (file := tmp_path / ".config/retnet/environment").parent.mkdir(parents=True)
    file.touch()
    file.chmod(0o644)
    for local_rank in (0, 1):
        who = {"WORLD_SIZE": "4", "RANK": str(2 + local_rank), "LOCAL_RANK": str(local_rank)}
        done = run(["steps=1"], tmp_path, HOME=str(tmp_path), **who)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert (f"{socket.gethostname()}: {file}" in done.stderr) == (local_rank == 0)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_main_job_runs_on_as_many_processes_as_make_train_may_start(processes):
    config = check_overrides([])
    config.check(processes)
    assert config.rows_at_once(processes) * processes == config.global_batch_size


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(ValueError, match="global_batch_size=8 has no row for each of 16 ranks"):
        check_overrides([]).check(16)


def test_the_launchers_local_rank_is_taken_off(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for spelling in (["--local_rank=3"], ["--local_rank", "3"], ["--local-rank=3"]):
        rest = without_local_rank([*spelling, "steps=1", "--cfg", "job"])
        assert rest == ["steps=1", "--cfg", "job"]
        assert os.environ.pop("LOCAL_RANK") == "3"


def test_the_config_can_be_looked_at_without_a_run(run, tmp_path):
    done = run(["--local_rank=0", "experiment=nucleus_x_7b", "--cfg", "job"], tmp_path)
    assert done.returncode == 0 and "hidden_size: 4096" in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_lists_every_key_and_every_option():
    text = manual([])
    for key in set(config_keys(Config)) - {item.name for item in fields(Config)}:
        assert f"  {key}=" in text
    for name, options in config_groups().items():
        assert f"  {name}=" in text and all(option in text for option in options)


def test_every_key_says_what_it_means():
    config = Config()
    for owner in [config, *(getattr(config, item.name) for item in fields(config))]:
        documented = field_docs(type(owner)) if is_dataclass(owner) else {}
        for item in fields(owner) if is_dataclass(owner) else ():
            assert is_dataclass(item.type) or documented.get(item.name), f"{owner}: {item.name}"


@pytest.mark.parametrize(
    "choice", [f"{g}={o}" for g, options in config_groups().items() for o in sorted(options)]
)
def test_every_option_of_every_group_composes(choice):
    needed = {
        "data=files": ["data.files=*"],
        "data=hub": ["data.dataset=user/name"],
        "data=prepared": ["data.path=shards"],
        "data=mixture": ["data.sources=[{name: a, weight: 2}, {name: b, kind: files, files: '*'}]"],
        **{
            f"data={name}": ["data.data_files=[a]"]
            for name in ("jsonl", "parquet", "arrow", "text")
        },
        "tokenizer=hugging_face": ["tokenizer.path=folder", "tokenizer.vocab_size=300"],
        "tokenizer=sentencepiece": ["tokenizer.path=a.model", "tokenizer.vocab_size=300"],
        "tokenizer=bpe_32k": ["model.vocab_size=32768"],
    }
    several = ["-m"] if choice.startswith("sweep=") else []
    composed = check_overrides([*several, choice, *needed.get(choice, [])])
    assert (composed is None) == bool(several)
