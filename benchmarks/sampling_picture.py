"""The picture of sampling.py: quality against network evaluations, a row of panels for each run."""

from pathlib import Path

from perturbdiff_jax.evaluation.metrics import LOWER_IS_BETTER
from perturbdiff_jax.evaluation.page.drawing import INK, MUTED, canvas

COLORS = {"ddim": "#2b6cb0", "ddpm": "#9a6a00", "fast": "#b3261e"}
SHAPES = "osD^v"
LABELS = {
    "energy": "energy distance",
    "r2": "R2 of mean expression",
    "pearson_delta": "Pearson delta",
    "discrimination_score_l1": "discrimination (l1)",
}


def draw(rows: list[dict], metrics: tuple[str, ...], path: Path) -> None:
    """Draws rows of sampling.py into a PNG."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    guidance = sorted({row["guidance"] for row in rows})
    shapes = dict(zip(guidance, SHAPES))
    with canvas((3.3 * len(metrics), 0.6 + 2.8 * len(runs))) as (figure, first):
        first.remove()
        panels = figure.subplots(len(runs), len(metrics), squeeze=False)
        for line, run in zip(panels, runs):
            mine = [row for row in rows if row["run"] == run]
            for axes, metric in zip(line, metrics):
                _panel(axes, mine, metric, shapes)
                axes.set_title(f"{run}: {LABELS.get(metric, metric)}", fontsize=9, color=INK, loc="left")
        for axes in panels[-1]:
            axes.set_xlabel("network evaluations")
        handles = [_mark(panels[0][0], color, "o", name) for name, color in COLORS.items()]
        handles += [_mark(panels[0][0], MUTED, shape, f"w = {w:g}") for w, shape in shapes.items()]
        handles += panels[0][0].plot([], [], "-", color=INK, lw=1.0, label="best for its cost")
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(path, dpi=130, facecolor="white")


def _panel(axes, rows: list[dict], metric: str, shapes: dict[float, str]) -> None:
    for row in rows:
        value, color = row[metric], COLORS[row["sampler"]]
        at = row["evaluations"]
        axes.plot([at, at], [value["low"], value["high"]], color=color, alpha=0.25, lw=1.2)
        axes.plot(at, value["mean"], shapes[row["guidance"]], color=color, ms=4.5, alpha=0.9)
    front = sorted((row["evaluations"], row[metric]["mean"]) for row in rows if metric in row["front"])
    axes.plot(*zip(*front), "-", color=INK, lw=1.0, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_ylabel("lower is better" if metric in LOWER_IS_BETTER else "higher is better", fontsize=8)


def _mark(axes, color: str, shape: str, label: str):
    return axes.plot([], [], shape, color=color, ms=5, label=label)[0]
