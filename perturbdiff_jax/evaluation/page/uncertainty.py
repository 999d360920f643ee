"""The report's section about uncertainty, with pictures: do intervals hold what they say, do draws differ enough?"""

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.calibration import COVERAGE, PLAIN
from perturbdiff_jax.evaluation.page import drawing, glossary, markup, verdict
from perturbdiff_jax.evaluation.page.drawing import MUTED, Panel, canvas, to_svg
from perturbdiff_jax.evaluation.page.markup import Cell, Column
from perturbdiff_jax.evaluation.page.picture_sections import MOST_ROWS, NO_PICTURES
from perturbdiff_jax.evaluation.page.run_files import Results
from perturbdiff_jax.evaluation.spread import LEVELS, Error
from perturbdiff_jax.evaluation.summary import interval

HALF = (4.8, 3.6)  # inches; two across


def uncertainty_section(results: Results):
    """Coverage of the intervals, and distances of draws beside those of real batches."""
    heading, rows = ("uncertainty", "Uncertainty"), results.calibration
    if rows is None:
        return *heading, markup.absent(results.absent["calibration"])
    settings = results.summary.get("settings")
    error = Error.read(settings.get("model_error")) if isinstance(settings, dict) else None
    parts = [markup.paragraph(text) for text in explained(rows["draws"].median(), error)]
    if drawing.available():
        parts.append(markup.panels([panel for panel in (coverage(rows, error), distances(rows)) if panel]))
    else:
        parts.append(markup.absent(NO_PICTURES))
    names = {
        **{
            name: Column(f"{100 * level:g} % holds", "Share of genes whose real change lies in the interval")
            for name, level in zip(COVERAGE, LEVELS)
        },
        "plain_80": Column("80 % without error", "The same, of intervals that trust the model"),
        "half_width_80": Column("Half width", "Of the 80 % interval, mean over genes, log1p"),
        "spread": Column("Spread", "Standard deviation of the mean between draws, mean over genes"),
        "error": Column("Error", "|real change - mean of draws|, mean over genes", -1),
        "energy_between_draws": Column("Between draws", "Half energy distance"),
        "energy_between_batches": Column("Between batches", "Half energy distance of real batches"),
        "energy_to_real": Column("To real", "Half energy distance of draws and real cells", -1),
    }
    names = {name: column for name, column in names.items() if name in rows}  # older tables have fewer
    cut = rows.head(MOST_ROWS)
    body = [
        [
            markup.escape(row["perturbation"]),
            markup.escape(row["cell_type"]),
            markup.escape(str(row["batch"])),
        ]
        + [Cell(_text(name, row[name]), float(row[name])) for name in names]
        for row in cut.to_dict("records")
    ]
    columns = [Column(name, number=False) for name in ("Perturbation", "Cell type", "Batch")]
    table = markup.table(
        "uncertain",
        [*columns, *names.values()],
        body,
        caption=f"Uncertainty by condition, {len(cut):,} of {len(rows):,}",
        tall=True,
    )
    parts.append(markup.fold("Every condition in numbers", table))
    return *heading, "".join(parts)


def explained(draws: float, error: Error | None) -> list[str]:
    """What intervals are made of, in sentences."""
    times = "once" if draws == 1 else f"{draws:.0f} times; each draw is a population of its own"
    said = [
        f"Every condition was predicted {times}. An interval is where the mean change of another population of the "
        "condition, of as many cells as the real one, lies with the probability that it names."
    ]
    if error:
        said.append(
            f"Intervals count with what the model errs, learned on other conditions that it was not trained on: "
            f"{error.told()}. Beside them are those without, which trust the model."
        )
    else:
        said.append(
            "What the model errs is not known, so intervals trust it. `perturbdiff calibrate` learns it from held-out "
            "conditions."
        )
    return [*said, "Points below the diagonal are too sure of themselves, points above it not sure enough."]


def coverage(rows: pd.DataFrame, error: Error | None) -> Panel:
    """Share of genes that intervals hold against the level that they name."""
    color = glossary.style(glossary.ours())[0]
    found = [interval(rows[name].to_numpy(dtype=float)) for name in COVERAGE]
    names = [name for name in PLAIN if error and name in rows]
    plain = [100 * float(rows[name].mean()) for name in names]
    nominal = [100 * level for level in LEVELS]
    with canvas(HALF) as (figure, axes):
        axes.plot([0, 100], [0, 100], "--", color=MUTED, lw=1.0)
        for level, value in zip(LEVELS, found):
            axes.plot(
                [100 * level] * 2, [100 * value["low"], 100 * value["high"]], color=color, lw=2.4, alpha=0.5
            )
        label = "with the model's error" if plain else None
        axes.plot(nominal, [100 * value["mean"] for value in found], "o-", color=color, label=label)
        if plain:
            axes.plot(nominal, plain, "s:", color=MUTED, mfc="none", label="without")
            axes.legend(loc="upper left", frameon=False)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("the interval says, %")
        axes.set_ylabel("it holds, % of genes")
        svg = to_svg(figure, "uc-coverage")
    listed = ", ".join(
        f"{100 * level:g} % intervals hold {100 * value['mean']:.0f} %" for level, value in zip(LEVELS, found)
    )
    if plain:
        listed += "; without the model's error " + ", ".join(f"{value:.0f} %" for value in plain)
    return Panel(svg, "Do intervals hold what they say?", f"Coverage of intervals over genes: {listed}.")


def distances(rows: pd.DataFrame) -> Panel | None:
    """Energy distance between draws of a condition, beside that between real batches, or else to the real cells."""
    beside = "energy_between_batches"
    if not np.isfinite(rows[beside]).any():
        beside = "energy_to_real"
    x, y = rows[beside], rows["energy_between_draws"]
    keep = np.isfinite(x) & np.isfinite(y)
    if not keep.any():
        return None
    word = "real batches" if beside == "energy_between_batches" else "draws and real cells"
    end = 1.05 * max(x[keep].max(), y[keep].max())
    with canvas(HALF) as (figure, axes):
        axes.plot([0, end], [0, end], "--", color=MUTED, lw=1.0)
        points = axes.scatter(
            x[keep], y[keep], s=16, color=glossary.style(glossary.ours())[0], alpha=0.7, lw=0
        )
        points.set_gid("conditions")
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.tick_params(axis="x", pad=7)  # apart from the other axis' zero
        axes.set_xlabel(f"energy distance, {word}")
        axes.set_ylabel("energy distance, between draws")
        tips = [f"{p} / {c}" for p, c in zip(rows["perturbation"][keep], rows["cell_type"][keep])]
        svg = to_svg(figure, "uc-distances", {"conditions": tips})
    alt = (
        f"Half energy distance between draws, median {y[keep].median():.4f}, against that between {word}, median "
        f"{x[keep].median():.4f}, {int(keep.sum())} conditions."
    )
    return Panel(svg, "Are draws as far apart?", alt)


def _text(name: str, value: float) -> str:
    if name in (*COVERAGE, *PLAIN) and np.isfinite(value):
        return f"{100 * value:.0f} %"
    return verdict.figure(value)
