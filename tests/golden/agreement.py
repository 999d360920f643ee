"""Runs the golden tests and prints how close this package is to the released code, as a table in markdown.

python tests/golden/agreement.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from recorded import TABLE


def measure() -> list[dict]:
    """One row for each comparison of the golden tests; fails when one of them does."""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        command = [sys.executable, "-m", "pytest", "-q", str(here)]
        subprocess.run(
            command, env={**os.environ, TABLE: str(file)}, cwd=here.parents[1], stdout=2, check=True
        )
        return [json.loads(line) for line in file.read_text().splitlines()]


def table(rows: list[dict], short: bool) -> str:
    """Markdown, the largest difference of each quantity in each network; `short`: in the worst network only."""
    worst: dict[tuple, dict] = {}
    for row in rows:
        key = (row["quantity"], *(() if short else (row["case"],)), row["kind"])
        if key not in worst or exceeds(row) > exceeds(worst[key]):
            worst[key] = row
    lines = ["| quantity | network | largest difference | tolerance | |", "|---|---|---|---|---|"]
    for row in worst.values():
        cells = row["quantity"], row["case"], f"{row['largest']:.1e}", f"{row['allowed']:.0e}", row["kind"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def exceeds(row: dict) -> float:
    """The difference in tolerances; equality that must be exact is measured as it is."""
    return row["largest"] / (row["allowed"] or 1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one line for each quantity")
    flags = parser.parse_args()
    print(table(measure(), flags.short))
