"""Pictures of low_data.py and ablation.py: scores against the share of training cells, and learning curves."""

from pathlib import Path

from trained_rows import Row

from perturbdiff_jax.evaluation.metrics import LOWER_IS_BETTER
from perturbdiff_jax.evaluation.page.drawing import INK, canvas

COLORS = ("#2b6cb0", "#b3261e", "#9a6a00", "#3f7d4e", "#6b4fa0", "#59636d", "#c2599b", "#1f8a8a")
LABELS = {
    "energy": "energy distance",
    "r2": "R2 of mean expression",
    "pearson_delta": "Pearson delta",
    "discrimination_score_l1": "discrimination (l1)",
}


def colors_of(rows: list[Row]) -> dict[str, str]:
    """A color for each name, the same in all pictures of the same rows: what was trained comes first."""
    names = dict.fromkeys(row.name for row in sorted(rows, key=lambda row: not row.curves))
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def draw_shares(rows: list[Row], metrics: tuple[str, ...], path: Path) -> None:
    """A panel for each metric: mean and interval of each kind of row against the share of training cells."""
    colors = colors_of(rows)
    with canvas((3.3 * len(metrics), 3.4)) as (figure, first):
        first.remove()
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axes, metric in zip(panels, metrics):
            for number, (name, color) in enumerate(colors.items()):
                _line(axes, [row for row in rows if row.name == name], metric, color, number)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            axes.xaxis.set_minor_formatter("")
            axes.set_xticks(sorted({row.fraction for row in rows if row.fraction}))
            axes.set_title(LABELS.get(metric, metric), fontsize=9, color=INK, loc="left")
            axes.set_xlabel("share of the training cells")
            axes.set_ylabel(
                "lower is better" if metric in LOWER_IS_BETTER else "higher is better", fontsize=8
            )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        figure.savefig(path, dpi=130, facecolor="white")


def _line(axes, rows: list[Row], metric: str, color: str, number: int) -> None:
    if len(rows) == 1 and not rows[0].fraction:  # a model that no share of the cells has trained
        axes.axhline(rows[0].scores[metric]["mean"], color=color, ls="--", lw=1.0, label=rows[0].name)
        return
    # Side by side, so that intervals can be told apart.
    at = [row.fraction * 1.06**number for row in rows]
    values = [row.scores[metric] for row in rows]
    for x, value in zip(at, values):
        axes.plot([x, x], [value["low"], value["high"]], color=color, alpha=0.45, lw=1.6)
    axes.plot(at, [value["mean"] for value in values], "o-", color=color, ms=4, label=rows[0].name)


def draw_curves(panels_of: dict[str, list[Row]], metric: str, path: Path) -> None:
    """A panel for each title: validation score against the step, a thin line for each seed."""
    with canvas((max(6.6, 3.3 * len(panels_of)), 3.2)) as (figure, first):
        first.remove()
        panels = figure.subplots(1, len(panels_of), squeeze=False)[0]
        trained = {title: [row for row in rows if row.curves] for title, rows in panels_of.items()}
        colors = colors_of([row for rows in panels_of.values() for row in rows])
        for axes, (title, rows) in zip(panels, trained.items()):
            for row in rows:
                color = colors[row.name]
                for seed, curve in enumerate(row.curves):
                    axes.plot(
                        *zip(*curve), color=color, lw=1.1, alpha=0.8, label=row.name if not seed else None
                    )
            axes.set_title(title, fontsize=9, color=INK, loc="left")
            axes.set_xlabel("step")
        panels[0].set_ylabel(f"validation: {LABELS.get(metric, metric)}")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        figure.savefig(path, dpi=130, facecolor="white")
