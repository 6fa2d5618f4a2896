"""The words of a report: its tables, texts and numbers as HTML. Whatever a run wrote is escaped.

Pictures are not here, and the page that holds all of it is page.py's.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from statistics import median
from typing import Any

import yaml

from retnet.report.context import loss_at_lengths
from retnet.report.reading import (
    RunRecord,
    details,
    environments,
    flat,
    last,
    last_step,
    names_between,
    seconds_of,
    series,
    state_of,
    tokens_at,
    validation_sets,
)
from retnet.report.style import color_of, short

_MOST_EVENTS = 80
_OLDER_SAMPLES = 5  # steps whose texts are shown folded
_SAVES = ("saved", "copied")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # HTML has no word for them
_ROUTINE = {"time", "event", "step", "environment", "parameters", "why"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 99) -> str:
    """An HTML table of cells that are HTML already; columns from `numbers` on are right-aligned."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (
            f'<{tag} class="n">{cell}</{tag}>' if index >= numbers else f"<{tag}>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    top = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def cards(record: RunRecord) -> str:
    """The six numbers that one looks for first."""
    found: list[tuple[str, str, str]] = []
    for name in validation_sets(record)[:1]:
        steps, values = series(record, f"val/{name}/loss")
        if values:
            best = min(range(len(values)), key=values.__getitem__)
            note = f"{name}; best {values[best]:.3f} at step {steps[best]:,}"
            found.append(("Validation loss", f"{values[-1]:.3f}", note))
        bits = last(record, f"val/{name}/bits_per_byte")
        if bits is not None:
            found.append(("Bits per byte", f"{bits:.3f}", _against(record, bits) or name))
    loss = last(record, "loss")
    if loss is not None:
        found.append(("Training loss", f"{loss:.3f}", "nats per token, last step logged"))
    step = last_step(record)
    tokens = tokens_at(record, [step])[0]
    found.append(("Tokens", short(tokens), f"{step:,} steps"))
    _, speeds = series(record, "tokens_per_second")
    if speeds:
        mfu = last(record, "mfu")
        note = "median" if mfu is None else f"median; MFU {mfu:.1%}"
        found.append(("Tokens/s", short(float(f"{median(speeds):.3g}")), note))
    if seconds := seconds_of(record):
        begins = sum(event.get("event") in ("started", "resumed") for event in record.events)
        note = "one session" if begins < 2 else f"{begins} sessions"
        found.append(("Time", _about(seconds), note))
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><p>{escape(note)}</p></div>"
        for name, value, note in found
    )
    return f'<dl class="cards">{inner}</dl>'


def _about(seconds: float) -> str:
    """A time in two words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _against(record: RunRecord, bits: float) -> str:
    entry = next(iter(details(record, "yardsticks")[-1:]), {})
    easy = entry.get("gzip")
    if not isinstance(easy, int | float) or not easy:
        return ""
    return f"{abs(bits / easy - 1):.0%} {'less' if bits < easy else 'more'} than gzip -9"


def comparison(records: list[RunRecord]) -> str:
    """One line for each run, with the color that it has in every picture."""
    rows = []
    for index, record in enumerate(records):
        names = validation_sets(record)[:1]
        held = last(record, f"val/{names[0]}/loss") if names else None
        bits = last(record, f"val/{names[0]}/bits_per_byte") if names else None
        _, speeds = series(record, "tokens_per_second")
        kinds = [event.get("event") for event in record.events]
        rows.append(
            [
                f'<i class="dot" style="background:{color_of(index)}"></i>{escape(record.name)}',
                f'<span class="state">{escape(state_of(record))}</span>',
                short(tokens_at(record, [last_step(record)])[0]),
                _number(last(record, "loss")),
                _number(held),
                _number(bits),
                short(float(f"{median(speeds):.3g}")) if speeds else "",
                f"{kinds.count('resumed')}, {kinds.count('skipped')}",
            ]
        )
    head = ["run", "state", "tokens", "loss", "val loss", "bits/byte", "tokens/s"]
    return table([*head, "restarts,<br>skips"], rows, numbers=2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def lengths(records: list[RunRecord]) -> str:
    """The loss at 1x, 2x, ... of the trained length, a line for each run."""
    found = loss_at_lengths(records)
    names = list(dict.fromkeys(name for _, values in found for name in values))
    names.sort(key=lambda name: float(name.rstrip("x")) if name[:-1].isdigit() else 1e9)
    if not names:
        return ""
    rows = [[escape(run), *(_number(values.get(name)) for name in names)] for run, values in found]
    note = "<h3>Loss over the last trained length of tokens before each place</h3>"
    return note + table(["", *names], rows, numbers=1)


def tasks(records: list[RunRecord]) -> str:
    """The newest result of each task, a column for each run."""
    names = list(dict.fromkeys(n for r in records for n in names_between(r, "tasks/", "")))
    rows = [
        [escape(name), *(_number(last(record, f"tasks/{name}")) for record in records)]
        for name in names
    ]
    head = ["task"] + ([""] if len(records) == 1 else [escape(r.name) for r in records])
    return table(head, rows, numbers=1) if rows else ""


def samples(records: list[RunRecord]) -> str:
    """What the models wrote, newest first; of one run older texts folded below."""
    parts = []
    for record in records:
        found = details(record, "samples")
        steps = sorted({entry["step"] for entry in found}, reverse=True)
        for place, step in enumerate(steps[: 1 if len(records) > 1 else 1 + _OLDER_SAMPLES]):
            title = f"step {step:,}" if len(records) == 1 else f"{record.name}, step {step:,}"
            texts = "".join(_text(entry) for entry in found if entry["step"] == step)
            if place == 0:
                parts.append(f"<h3>{escape(title)}</h3>{texts}")
            else:
                parts.append(f"<details><summary>{title}</summary>{texts}</details>")
    return "".join(parts)


def _text(entry: dict[str, Any]) -> str:
    prompt, text = (_CONTROL.sub("\ufffd", str(entry.get(key, ""))) for key in ("prompt", "text"))
    return f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>"


def happened(record: RunRecord) -> str:
    """The events but for saves, which are counted."""
    told = [event for event in record.events if event.get("event") not in _SAVES]
    rows = [
        [
            escape(str(event.get("time", ""))[:19].replace("T", " ")),
            f"{event['step']:,}" if isinstance(event.get("step"), int) else "",
            escape(_what(event)),
            escape("; ".join(_details(event))),
        ]
        for event in told
    ]
    if len(rows) > _MOST_EVENTS:
        half = _MOST_EVENTS // 2
        left_out = ["", "", f"{len(rows) - 2 * half} more", ""]
        rows = [*rows[:half], left_out, *rows[-half:]]
    saves = [event for event in record.events if event.get("event") == "saved"]
    words = ""
    if saves:
        many = "One checkpoint" if len(saves) == 1 else f"{len(saves)} checkpoints"
        words = f"<p>{many} saved, the last of step {saves[-1].get('step', 0):,}.</p>"
    return (table(["time (UTC)", "step", "what", ""], rows) if rows else "") + words


def _what(event: dict[str, Any]) -> str:
    kind, step = str(event.get("event", "")), event.get("step")
    if kind == "skipped" and isinstance(step, int):  # written are the steps before it
        return f"skipped step {step + 1:,}"
    return kind.replace("_", " ")


def _details(event: dict[str, Any]) -> list[str]:
    """Why it happened, and what else there is to say."""
    why = [str(event["why"]).rstrip(".")] if event.get("why") else []
    rest = {key: value for key, value in event.items() if key not in _ROUTINE and value is not None}
    return why + [f"{key} {_said(value)}" for key, value in rest.items()]


def _said(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def config_of(record: RunRecord, defaults: dict[str, Any] | None) -> str:
    """What differs from the defaults, and folded below it the whole config."""
    if not record.config:
        return ""
    own, usual = flat(record.config), flat(defaults or {})
    rows = [
        [f"<code>{escape(key)}</code>", _value(value), _value(usual.get(key))]
        for key, value in own.items()
        if defaults is not None and key != "name" and value != usual.get(key)
    ]
    text = escape(yaml.safe_dump(record.config, sort_keys=False))
    whole = f"<details><summary>the whole config</summary><pre>{text}</pre></details>"
    return (table(["key", "this run", "default"], rows) if rows else "") + whole


def config_differences(records: list[RunRecord]) -> str:
    """The keys in which the runs differ."""
    configs = [flat(record.config) for record in records]
    keys = list(dict.fromkeys(key for config in configs for key in config if key != "name"))
    rows = [
        [f"<code>{escape(key)}</code>", *(_value(config.get(key)) for config in configs)]
        for key in keys
        if any(config.get(key) != configs[0].get(key) for config in configs)
    ]
    if not rows:
        return "<p>The runs have the same config.</p>"
    return table(["key", *(escape(record.name) for record in records)], rows)


def _value(value: Any) -> str:
    words = "null" if value is None else str(value).lower() if value in (True, False) else value
    return f"<code>{escape(str(words))}</code>"


def environment(records: list[RunRecord]) -> str:
    """On what the sessions of each run ran."""
    parts = []
    for record in records:
        found = environments(record)
        for since, words in found:
            title = record.name if len(records) > 1 else ""
            if len(found) > 1:
                title = f"{title}, {since}".lstrip(", ")
            rows = [[escape(str(key)), escape(_said(value))] for key, value in words.items()]
            parts.append((f"<h3>{escape(title)}</h3>" if title else "") + table(["", ""], rows))
    return "".join(parts)
