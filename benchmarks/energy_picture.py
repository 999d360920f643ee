"""The picture of energy_distance.py: for every size, milliseconds against memory of each way."""

from pathlib import Path

COLOURS = ("#1b6ca8", "#63a4d8", "#12415f", "#9a9a9a", "#c8553d", "#e0a030", "#7a4ea3", "#3f8f5f", "#b0b0b0")


def draw(rows: list[dict], file: Path) -> None:
    """Bars of time (with derivative, and forward alone as a line in the bar) and memory, a row of panels a size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(row["size"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    figure, panels = plt.subplots(
        len(sizes), 2, figsize=(9.5, 0.8 + 1.9 * len(sizes)), squeeze=False, constrained_layout=True
    )
    for line, size in zip(panels, sizes):
        found = {
            (row["way"], row["backward"]): row for row in rows if row["size"] == size and row.get("taken")
        }
        shown = [way for way in ways if (way, True) in found or (way, False) in found]
        for place, way in enumerate(reversed(shown)):
            colour = COLOURS[ways.index(way) % len(COLOURS)]
            both, forward = found.get((way, True)), found.get((way, False))
            if both:
                line[0].barh(place, both["median"] * 1e3, color=colour, height=0.7)
                line[1].barh(place, max(both["memory"] / 2**20, 0.1), color=colour, height=0.7)
            if forward:
                line[0].plot(
                    [forward["median"] * 1e3] * 2, [place - 0.35, place + 0.35], color="black", lw=1.5
                )
        for panel in line:
            panel.set_yticks(range(len(shown)), reversed(shown))
            panel.set_xscale("log")
            panel.grid(axis="x", alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_title(size.replace("x", " x "), loc="left", fontsize=10)
        line[1].set_yticklabels([])
    panels[-1, 0].set_xlabel("ms with derivative (black line: value alone)")
    panels[-1, 1].set_xlabel("memory of a call with derivative, MiB")
    figure.savefig(file, dpi=110)
    plt.close(figure)
