"""When a run asks what."""

from configs.schema import Config
from retnet.evaluation.config import EvaluationConfig
from retnet.session import kinds_due


def test_every_kind_has_its_own_clock_and_what_is_on_is_asked_at_the_end() -> None:
    clocks = EvaluationConfig(samples_every=4, positions_every=6, passkey_every=0)
    config = Config(steps=25, evaluate_every=10, evaluation=clocks)
    asked = {step: kinds for step in range(1, 26) if (kinds := kinds_due(config, step))}
    assert asked == {
        **{step: ["samples"] for step in (4, 8, 16)},
        **{step: ["positions"] for step in (6, 18)},
        **{step: ["samples", "positions"] for step in (12, 24)},
        10: ["sets"],
        20: ["sets", "samples"],
        25: ["sets", "samples", "positions"],
    }


def test_a_run_without_a_clock_is_scored_at_its_end() -> None:
    config = Config(steps=5, evaluate_every=0, evaluation=EvaluationConfig(samples_every=0))
    assert [kinds_due(config, step) for step in range(1, 6)] == [[], [], [], [], ["sets"]]
