"""Every mistake on a command line or in YAML is answered with one sentence that names the key and
the right name, before anything starts."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra._internal.utils import get_args_parser

from configs import names
from configs.command_line import in_order
from configs.explain import check_overrides
from configs.files import check_file
from configs.names import config_groups
from configs.schema import as_dict
from tests import mistakes
from tests.mistakes import CONTRADICTIONS, FILES, TYPED, Mistake

PYTHON = re.compile(r"Traceback|object at 0x|NoneType|_target_|omegaconf|ConfigStore|<class|\n")
DRAWN = {
    "misspelt keys": mistakes.misspelt_keys,
    "misplaced keys": mistakes.misplaced_keys,
    "misspelt options": mistakes.misspelt_options,
    "wrong values": mistakes.wrong_values,
}


def sentence(words: tuple[str, ...]) -> str:
    """What is said to a command; it must be a sentence."""
    with pytest.raises(ValueError) as caught:
        config = check_overrides(list(words))
        if config is not None:
            config.check(1)
        pytest.fail(f"{words} was not refused")
    said = str(caught.value)
    assert said and len(said) <= 240 and not PYTHON.search(said), said
    return said


def test_more_than_a_hundred_mistakes_are_tried():
    drawn = sum(len(list(draw())) for draw in DRAWN.values())
    assert drawn > 400 and len(TYPED) + len(CONTRADICTIONS) + len(FILES) > 100


@pytest.mark.parametrize("kind", list(DRAWN))
def test_a_mistake_drawn_from_the_schema_is_answered_with_the_right_name(kind):
    wrong: list[tuple[Mistake, str]] = []
    for mistake in DRAWN[kind]():
        said = sentence(mistake.words)
        if not any(name in said for name in mistake.names):
            wrong.append((mistake, said))
    assert not wrong, "\n".join(f"{m.words} (from {m.names[0]}): {said}" for m, said in wrong)


@pytest.mark.parametrize("words", list(TYPED), ids=" ".join)
def test_a_mistake_of_typing_is_named_with_its_remedy(words):
    assert TYPED[words] in sentence(words)


def test_flags_may_stand_between_overrides():
    words = ["name=x", "-m", "seed=1,2", "--cfg", "job", "steps=3"]
    parsed = get_args_parser().parse_args(in_order(words))
    assert parsed.overrides == ["name=x", "seed=1,2", "steps=3"]
    assert parsed.multirun and parsed.cfg == "job"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A place with shards that are none, a sweep, a file, a run of another model and a spoilt one
    where a run's folder would be."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "shards").mkdir()
    (folder / "empty.jsonl").touch()
    runs = folder / "runs"
    (runs / "a-sweep").mkdir(parents=True)
    (runs / "a-sweep" / "points.jsonl").touch()
    (runs / "a-file").touch()
    another = as_dict(check_overrides(["model.num_layers=3"]))
    for name, content in (("another", another), ("spoilt", ["nothing"])):
        (runs / name / "checkpoints" / "step-00000001").mkdir(parents=True)
        (runs / name / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize("words", list(CONTRADICTIONS), ids=" ".join)
def test_a_contradiction_is_named_with_its_remedy(words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert CONTRADICTIONS[words] in sentence(words)
    assert sorted(folder.rglob("*")) == before, "something was written"


@pytest.fixture(scope="module")
def experiments(tmp_path_factory) -> Iterator[dict[str, str]]:
    """{text: the name of the experiment that it is}, beside a copy of all others."""
    copied = shutil.copytree(names.FOLDER, tmp_path_factory.mktemp("yaml") / "configs")
    made = {text: f"mine-{number}" for number, text in enumerate(FILES)}
    for text, name in made.items():
        (copied / "experiment" / f"{name}.yaml").write_text(text, errors="surrogateescape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "FOLDER", copied)
        yield made


def test_nothing_is_wrong_with_the_files_that_are_here():
    check_file(names.FOLDER / "train.yaml", "")
    for group, options in config_groups().items():
        for option in options:
            check_file(names.FOLDER / group / f"{option}.yaml", group)


def test_a_mistake_in_an_option_that_an_experiment_chooses_is_named_with_its_file(experiments):
    (names.FOLDER / "model" / "mine.yaml").write_text("num_layers: 2\nnum_haeds: 3\n")
    text = mistakes.HEAD + "defaults:\n  - override /model: mine\n"
    (names.FOLDER / "experiment" / "chooses.yaml").write_text(text)
    names._groups.cache_clear()
    said = sentence(("experiment=chooses",))
    assert said.startswith("configs/model/mine.yaml, line 2: there is no key model.num_haeds")


@pytest.mark.parametrize("text", list(FILES), ids=lambda text: FILES[text])
def test_a_mistake_in_yaml_is_named_with_its_file(text, experiments):
    said = sentence((f"experiment={experiments[text]}",))
    assert said.startswith(f"configs/experiment/{experiments[text]}.yaml, line ")
    assert FILES[text] in said
