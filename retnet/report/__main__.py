"""Writes the report of a run, or of several beside each other.

    python -m retnet.report runs/NAME [runs/OTHER ...] [--out FILE]

A folder of several runs, as a sweep's, stands for all of them. It may be called while they train.
"""

import argparse
import sys
from pathlib import Path

from configs.schema import Config, as_dict
from retnet.report.page import report


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or, where it is of several runs, the folders of those in it."""
    if not folder.is_dir():
        below = Path("runs") / folder
        if not below.is_dir():
            raise ValueError(f"{folder}: there is no such folder; a run is in runs/<name>")
        folder = below
    if (folder / "metrics.jsonl").exists() or (folder / "events.jsonl").exists():
        return [folder]
    inner = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    if not inner:
        raise ValueError(f"{folder} holds no run: there is no metrics.jsonl in it, nor below it")
    return inner


def main(arguments: list[str]) -> None:
    """The command; exits with 2 and one sentence where there is nothing to report."""
    parser = argparse.ArgumentParser("python -m retnet.report", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs/NAME")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: report.html in the folder of the run, or of them all",
    )
    asked = parser.parse_args(arguments)
    try:
        folders = [run for folder in asked.folders for run in runs_in(folder)]
        path = report(list(dict.fromkeys(folders)), asked.out, as_dict(Config()))
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
