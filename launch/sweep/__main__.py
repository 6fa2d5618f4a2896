"""Shows a sweep, at its end and at any time.

    python -m launch.sweep table NAME       its points, the best first

and writes runs/NAME/table.csv and runs/NAME/sweep.png, a panel for each swept parameter and the
loss curves laid over each other.
"""

import argparse
import sys
from pathlib import Path

from launch.sweep.record import FILE
from launch.sweep.table import as_text, measure, rows, write_csv


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser("python -m launch.sweep")
    parser.add_argument("what", choices=["table"])
    parser.add_argument("name", metavar="NAME", help="the sweep's: runs/NAME")
    given = parser.parse_args(arguments)
    name = given.name.rstrip("/")
    folder = Path(name) if (Path(name) / FILE).exists() else Path("runs") / name
    table = rows(folder)
    if not table:
        found = sorted(str(file.parent) for file in Path("runs").rglob(FILE))
        there = f"; there is {', '.join(found)}" if found else ""
        sys.stderr.write(f"{folder} holds no sweep{there}\n")
        return 2
    sys.stdout.write(f"{as_text(table, measure(folder))}\n")
    written = folder / "table.csv"
    write_csv(table, written)
    files = [written]
    if any(row.loss is not None for row in table):
        from retnet.report.sweep import sweep_picture  # seconds, in which the table is read

        files.append(folder / "sweep.png")
        sweep_picture([(row.swept, folder / row.point, row.objective) for row in table], files[-1])
    best = f"best: {folder / table[0].point}\n" if table[0].objective is not None else ""
    sys.stdout.write(f"\n{best}{' and '.join(map(str, files))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
