"""The picture of energy_distance.py: for every size milliseconds and memory of each way, on axes of whole decades."""

import math
from pathlib import Path

OURS, OTHERS = "#1b6ca8", "#8a8a8a"


def draw(rows: list[dict], file: Path) -> None:
    """Points, a row of panels a size: filled with derivative, open without; numbers beside the filled ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(row["size"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    found = {(row["size"], row["way"], row["backward"]): row for row in rows if row.get("taken")}
    shown = {
        size: [way for way in ways if any((size, way, b) in found for b in (False, True))] for size in sizes
    }
    figure, panels = plt.subplots(
        len(sizes),
        2,
        figsize=(10, 1.0 + 0.36 * sum(len(some) + 2 for some in shown.values())),
        squeeze=False,
        constrained_layout=True,
        height_ratios=[len(shown[size]) + 1 for size in sizes],
    )
    for line, size in zip(panels, sizes):
        for panel, (name, scale, unit) in zip(line, (("median", 1e3, "ms"), ("memory", 2**-20, "MiB"))):
            numbers = []
            for place, way in enumerate(reversed(shown[size])):
                colour = OURS if way.startswith("ours") else OTHERS
                for backward in (False, True):
                    if row := found.get((size, way, backward)):
                        number = max(1.0, row[name] * scale)
                        numbers.append(number)
                        panel.plot(number, place, "o", color=colour, mfc=colour if backward else "white")
                        if backward:
                            panel.text(number * 1.25, place, f"{number:,.0f}", va="center", fontsize=8)
            panel.set_xscale("log")
            panel.set_xlim(
                10 ** math.floor(math.log10(min(numbers))), 10 ** (math.floor(math.log10(max(numbers))) + 1.4)
            )
            panel.set_ylim(-0.6, len(shown[size]) - 0.4)
            panel.set_yticks(range(len(shown[size])), reversed(shown[size]))
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(f"{size.replace('x', ' x ')} numbers: {unit}", loc="left", fontsize=10)
        line[1].tick_params(labelleft=False)
    figure.supxlabel("filled: value and derivative; open: value alone", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)
