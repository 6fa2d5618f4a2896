"""One page of a run, or of several beside each other: a file that holds all it shows.

No script, nothing from a network, light or dark as the reader has it. The same pictures are written
beside it as PNG. It changes nothing in a run folder but its own report.
"""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from retnet.report import context, curves, style, tables, watching
from retnet.report.reading import RunRecord, named_apart, read_run, state_of, sweep_of
from retnet.report.style import DARK, FAINT, INK, MUTED, PAPER, TRAIN, Chart, svg_of, variables
from retnet.report.style import write_png as write_picture

_LIGHT = {color: color for color in (INK, MUTED, FAINT, PAPER, TRAIN)}
_CSS = """
:root { color-scheme: light dark; %LIGHT% --card: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { %DARK% --card: #1b2127; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 928px; padding: 40px 24px 80px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 52px 0 14px; padding-bottom: 6px;
  border-bottom: 1px solid var(--faint); }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--muted); font-weight: 600; }
p { margin: 4px 0; } header p, footer, figcaption, .cards p { color: var(--muted); }
footer { margin-top: 56px; font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 10px;
  margin: 24px 0 0; }
.cards div { background: var(--card); border-radius: 8px; padding: 12px 14px; }
.cards dt { font-size: 12px; color: var(--muted); }
.cards dd { margin: 2px 0; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.cards p { font-size: 11.5px; line-height: 1.35; }
.charts + .charts, .scroll + .charts { margin-top: 26px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 26px 20px; }
figure { margin: 0; min-width: 0; } figure.wide { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: 13px; line-height: 1.4; margin-top: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; margin: 8px 0; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0;
  border-bottom: 1px solid var(--faint); }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child { white-space: nowrap; } td:last-child { overflow-wrap: anywhere; }
code, pre { font: 13px/1.45 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; margin: 8px 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { color: var(--train); } summary { cursor: pointer; color: var(--muted); font-size: 14px; }
.state { display: inline-block; min-width: 150px; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 7px; }
@media (max-width: 640px) { .charts { grid-template-columns: minmax(0, 1fr); }
  figure.wide { overflow-x: auto; } figure.wide svg { min-width: 640px; }
  body { padding: 24px 14px 60px; } }
"""
_SAFE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def report(
    folders: list[Path], out: Path | None = None, defaults: dict[str, Any] | None = None
) -> Path:
    """Writes the page of these runs to `out`, and the pictures into a folder of its name beside it;
    returns the page. Without `out`: report.html in the run's folder, of several runs in the folder
    that holds them all.

    `defaults`: the config of a run that says nothing, to show what was said.

    Raises:
        ValueError: there is no run in one of the folders, or nothing to show, or `out` cannot be
            written.
    """
    records = named_apart([read_run(folder) for folder in folders])
    if not records:
        raise ValueError("a report needs a run: name its folder, as runs/first-run")
    out = out or _shared([record.folder for record in records]) / "report.html"
    text, charts = page(records, defaults)
    pictures = out.with_suffix("")
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            write_picture(chart, pictures / f"{chart.name}.png")
        partial = out.with_name(f".{out.name}")
        partial.write_text(text)
        partial.replace(out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): choose --out") from error
    return out


def _shared(folders: list[Path]) -> Path:
    """The folder, or the nearest one that holds them all."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.relpath(os.path.commonpath([folder.resolve() for folder in folders])))


@style.no_formulas()
def page(records: list[RunRecord], defaults: dict[str, Any] | None) -> tuple[str, list[Chart]]:
    """The page's text and the charts in it."""
    title, foot = _title(records), _foot(records)
    if sweep := sweep_of(records):
        records = [
            record._replace(name=record.name.removeprefix(f"{sweep}/")) for record in records
        ]
    learning = [curves.loss(records), curves.bits(records), *watching.learning(records)]
    speed = [*watching.speed(records)]
    layers = watching.norms_by_layer(records)
    far = [context.loss_by_position(records), *context.passkeys(records), context.decays(records)]
    charts = [chart for chart in (*learning, *speed, *layers, *far) if chart is not None]
    alone = len(records) == 1
    sections = [
        ("Learning", _figures(learning)),
        ("Layers", _figures(layers)),
        ("Speed", _figures(speed)),
        ("Long context", _figures(far[:1]) + tables.lengths(records) + _figures(far[1:])),
        ("Tasks", tables.tasks(records)),
        ("Samples", tables.samples(records)),
        ("What happened", _each(records, tables.happened)),
        (
            "Config",
            tables.config_of(records[0], defaults) if alone else tables.config_differences(records),
        ),
        ("Environment", tables.environment(records)),
    ]
    body = "".join(
        f"<section><h2>{name}</h2>{inner}</section>" for name, inner in sections if inner
    )
    return _whole(title, _head(title, records) + body + foot), charts


def _each(records: list[RunRecord], write: Any) -> str:
    parts = [(record, write(record)) for record in records]
    if len(records) == 1:
        return parts[0][1]
    return "".join(f"<h3>{escape(record.name)}</h3>{text}" for record, text in parts if text)


def _title(records: list[RunRecord]) -> str:
    if sweep := sweep_of(records):
        return f"{sweep}: {len(records)} runs"
    names = [record.name for record in records]
    if len(names) > 3:
        names[2:] = [f"{len(names) - 2} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _head(title: str, records: list[RunRecord]) -> str:
    title = f"<h1>{escape(title)}</h1>"
    if len(records) > 1:
        return f"<header>{title}</header>{tables.comparison(records)}"
    record = records[0]
    words = "".join(
        f"<p>{escape(line)}</p>" for line in (state_of(record), _in_words(record)) if line
    )
    return f"<header>{title}{words}</header>{tables.cards(record)}"


def _in_words(record: RunRecord) -> str:
    """What is trained, in one line."""
    config = record.config
    model = config.get("model") or {}
    counted = [one["parameters"] for one in record.events if "parameters" in one]
    size = f"{style.short(counted[-1])} parameters, " if counted else ""  # an older run says none
    try:
        return (
            f"{'NucleusX' if model['architecture'] == 'nucleus_x' else 'RetNet'}: "
            f"{size}{model['num_layers']} layers, {model['hidden_size']:,} wide, "
            f"{model['num_heads']} heads; {config['global_batch_size']:,} rows of "
            f"{config['sequence_length']:,} tokens a step"
        )
    except (KeyError, TypeError, ValueError):  # a config of another version
        return ""


def _foot(records: list[RunRecord]) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    folders = [record.folder for record in records]
    places = str(_shared(folders)) if sweep_of(records) else ", ".join(map(str, folders))
    return f"<footer>Written {now} UTC from {escape(places)}.</footer>"


def _figures(charts: Iterable[Chart | None]) -> str:
    inner = "".join(_figure(chart) for chart in charts if chart is not None)
    return f'<div class="charts">{inner}</div>' if inner else ""


def _figure(chart: Chart) -> str:
    words = f"<figcaption>{escape(chart.caption)}</figcaption>" if chart.caption else ""
    wide = ' class="wide"' if chart.wide else ""
    return f"<figure{wide}>{svg_of(chart)}{words}</figure>"


def _whole(title: str, body: str) -> str:
    def colors(of: dict[str, str]) -> str:
        return " ".join(f"{variables()[color]}: {of[color]};" for color in of)

    css = _CSS.replace("%LIGHT%", colors(_LIGHT)).replace("%DARK%", colors(DARK))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_SAFE}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head>"
        f"<body>{body}</body></html>\n"
    )
