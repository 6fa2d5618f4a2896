"""What the pages here tell people to type is there."""

import re
from pathlib import Path

import pytest
import yaml

from configs.explain import check_overrides
from configs.names import config_groups, config_keys
from configs.schema import Config, as_dict

CONFIGS = Path(__file__).parents[2] / "configs"
KEYS, GROUPS = set(config_keys(Config)), config_groups()


def ours(page: str) -> list[str]:
    """What stands as code in the second column of the page's tables."""
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    return [
        word for cell in rows for code in re.findall("`([^`]+)`", cell) for word in code.split()
    ]


@pytest.fixture(scope="module")
def words() -> list[str]:
    return ours((CONFIGS / "MOVING.md").read_text())


def test_moving_names_keys_and_options_that_exist(words):
    seen = 0
    for word in words:
        key, equals, value = word.strip("'").partition("=")
        if key in GROUPS:
            assert value in {"", "...", "mine"} | GROUPS[key], word
        elif "." in key and key.split(".")[0] in GROUPS and not key.endswith("."):
            assert key in KEYS, word
        elif equals:
            assert key in KEYS, word
        seen += key in GROUPS or key in KEYS
    assert seen > 60


def test_every_experiment_and_sweep_is_on_the_page():
    text = (CONFIGS / "README.md").read_text()
    for group in ("experiment", "sweep", "plan", "evaluation", "data", "schedule", "engine"):
        missing = [option for option in GROUPS[group] if f"`{option}`" not in text]
        assert not missing, f"configs/README.md does not tell of {group}={missing}"
    assert all(f"`{group}`" in text for group in GROUPS)


PAGES = ["README.md", "configs/README.md", "configs/MOVING.md", "data/README.md"]
PAGES += ["launch/README.md", "retnet/models/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    file = CONFIGS.parent / page
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        path, _, place = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), f"{page} leads to {target}"
        if place:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            names = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert place in names, f"{page} leads to {target}"
        if there.suffix == ".png":
            assert there.stat().st_size < 60_000, f"{there} is large for a repository"


@pytest.mark.parametrize("experiment", sorted(GROUPS["experiment"]))
def test_what_is_switched_off_by_its_group_is_off_in_every_experiment(experiment):
    config = as_dict(check_overrides([f"experiment={experiment}", "evaluation=off"]))
    off = yaml.safe_load((CONFIGS / "evaluation" / "off.yaml").read_text())
    assert off and off == {key: config["evaluation"][key] for key in off}
