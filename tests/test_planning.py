"""`--plan` tells what a run would need, and every experiment has a plan."""

import re
from pathlib import Path

import pytest
import torch

from configs.explain import check_overrides
from configs.names import config_groups
from data.tokenizer import SentencePieceTokenizer, train_tokenizer
from retnet.planning import planned, text, tokens_of_data
from tests import forked
from tests.data.corpora import make_documents, prepare, write_corpus

RECIPES = {
    # tokens a step, parameters in billions, learning rate, betas, weight decay, clipping, warmup
    "retnet_1b3_paper": (2**22, 1.62, 6e-4, 0.9, 0.98, 0.05, 2.0, 375),
    "retnet_2b7_paper": (2**22, 3.03, 3e-4, 0.9, 0.98, 0.05, 2.0, 375),
    "retnet_6b7_paper": (2**22, 7.27, 3e-4, 0.9, 0.98, 0.05, 2.0, 375),
    "nucleus_x_7b": (2**22, 6.77, 3e-4, 0.9, 0.95, 0.1, 1.0, 2000),
    "modern_125m": (2**19, 0.124, 1e-3, 0.9, 0.95, 0.1, 1.0, 500),
}
MACHINE = ["plan=h100_8", "plan.devices=32", "plan.price=2"]


def test_every_experiment_but_the_quickstart_is_a_recipe_here():
    assert config_groups()["experiment"] == {"quickstart", *RECIPES}


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_published_recipe_composes_to_its_numbers_and_fits_its_plan(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("a device was asked"))
    config = check_overrides([f"experiment={name}", *MACHINE])
    plan = planned(config, config.plan.devices)
    optimizer = config.optimizer
    found = (
        plan.tokens_per_step,
        float(f"{plan.skeleton.total / 1e9:.3g}"),
        *(optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.weight_decay),
        *(optimizer.gradient_clipping, config.schedule.warmup_steps),
    )
    assert found == RECIPES[name]
    own = plan.stages[config.engine.stage]
    assert own.largest >= plan.rows, "the experiment's own micro batch does not fit its machine"


def test_a_plan_says_everything_on_one_screen():
    config = check_overrides(["plan.devices=4", "plan=h100_8", "plan.price=2.5", "plan.mfu=0.5"])
    plan = planned(config, 4)
    told = text(plan)
    lines = told.splitlines()
    assert len(lines) < 30 and max(map(len, lines)) < 125
    assert f"{plan.skeleton.total:,}" in told
    for word in ("embedding", "retention", "feed-forward", "norms", "head", "FLOPs a token"):
        assert word in told
    for word in ("gradients", "optimizer", "buckets", "activations", "logits", "largest micro"):
        assert word in told
    rows = [line for line in lines if re.match(r">?\s+[0-3]\s+\d", line)]
    assert len(rows) == 4 and [row[0] for row in rows] == [" ", ">", " ", " "]
    seconds = plan.skeleton.flops * config.tokens / (4 * 989.4e12 * 0.5)
    assert plan.cost.seconds == pytest.approx(seconds)
    assert plan.cost.money == pytest.approx(4 * seconds / 3600 * 2.5)
    assert "epochs unknown: set plan.data_tokens" in told


def test_more_memory_fits_more_rows_and_none_is_said_to_fit_where_none_does():
    largest = []
    for gigabytes in (0.06, 0.2, 80):
        config = check_overrides(["plan=h100_8", f"plan.memory={gigabytes}"])
        plan = planned(config, 1)
        largest.append(plan.stages[1].largest)
    assert largest[0] == 0 < largest[1] < largest[2] == 8
    config = check_overrides(["plan=h100_8", "plan.memory=0.06"])
    told = text(planned(config, 1))
    assert "none fits" in told and "does not fit" in told


def test_epochs_are_counted_where_the_data_is_known():
    plan = planned(check_overrides(["plan=cpu", "plan.data_tokens=1000000"]), 1)
    assert plan.data_tokens == 1_000_000
    assert f"{plan.config.tokens / 1e6:.2f} epochs of 1,000,000 tokens" in text(plan)


def test_devices_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="global_batch_size=8 is no multiple of 16 ranks"):
        planned(check_overrides(["data.streams=16"]), 16)


def test_a_plan_starts_nothing(tmp_path):
    (tmp_path / "here").mkdir()
    train = str(Path(__file__).parents[1] / "train.py")
    env = {"PATH": "/usr/bin:/bin"}
    where = {"folder": tmp_path, "cwd": tmp_path / "here", "env": env, "timeout": 120}
    done = forked.run(train, "--plan", "plan=h100_8", **where)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "parameters" in done.stdout and "at plan.mfu=0.4" in done.stdout
    done = forked.run(train, "--plan", "plan=h100_8", "plan.devices=16", **where)
    assert done.returncode == 2 and "16 ranks" in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "here").iterdir())


def test_prepared_shards_on_this_disk_say_how_many_tokens_an_epoch_has(tmp_path):
    text = write_corpus("files", tmp_path / "text", make_documents(60))
    train_tokenizer(make_documents(300), tmp_path / "own.model", 300)
    index = prepare(text, SentencePieceTokenizer(tmp_path / "own.model"), tmp_path / "shards")
    words = ["data=prepared", f"data.path={tmp_path}/shards", "plan=cpu"]
    assert tokens_of_data(check_overrides(words)) == index.tokens > 0
    assert tokens_of_data(check_overrides(["data=prepared", "data.path=s3://far/away"])) is None


def test_the_excerpt_in_the_readme_is_what_it_prints():
    page = (Path(__file__).parents[1] / "README.md").read_text()
    command, excerpt = re.search(r"python train\.py (.*) --plan\n\n((?: {4}.*\n)+)", page).groups()
    config = check_overrides(command.split())
    printed = text(planned(config, config.plan.devices)).splitlines()
    shown = [line.removeprefix("    ") for line in excerpt.splitlines()]
    assert [line for line in shown if line != "..." and line not in printed] == []
