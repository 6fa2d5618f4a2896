"""What became of the saves, told: as events, and on the console where something went wrong.

It decides nothing about the run; the caller hears whether there is a reason to stop.
"""

from retnet.training.metrics import Metrics
from retnet.training.saver import CheckpointConfig, OnFailure, Saver


def tell_of_saves(saver: Saver, metrics: Metrics, config: CheckpointConfig) -> str | None:
    """Tells what ended since the last call, and returns why the run must stop, if it must. Rank
    0's words count; waits for nothing."""
    reason = None
    for news in saver.news():
        fields = {"seconds": round(news.seconds, 3), "stall": round(news.stall, 3)}
        if news.why:
            fields["why"] = news.why
        metrics.event(news.kind, step=news.step, path=news.path, **fields)
        if news.kind == "save_failed":
            what = f"step {news.step} could not be saved: {news.why}"
            if config.on_failure is OnFailure.stop:
                reason = what
                metrics.say(f"{what}; the run stops (checkpoint.on_failure=stop)")
            else:
                metrics.say(f"{what}; it is tried again at the next save")
        elif news.kind == "copy_failed":
            metrics.say(f"step {news.step} could not be copied: {news.why}; it stands here")
    return reason
