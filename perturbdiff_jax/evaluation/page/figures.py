"""The figures of scores and training: intervals, radar, learning curves, scatter against a baseline.

Each function returns panels for the page (drawing.Panel). Legends are the page's, coloured by glossary.
"""

import math
import re

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.page import duels, glossary, verdict
from perturbdiff_jax.evaluation.page.drawing import DENSE, MUTED, Panel, canvas, to_svg
from perturbdiff_jax.evaluation.page.glossary import CEILING, CONTROL, OURS

LOSS = "#b05a1e"  # points where the rival is better
_DASH = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1.2, 1.6)), "dashdot": "-."}
_LOSS_STYLE = {
    "loss/total": ("#1c2329", "-"),
    "loss/energy": (glossary.style(OURS)[0], "-"),
    "loss/mse": (glossary.style("control cells + mean delta")[0], "--"),
}


def intervals(models: dict, metric: str) -> Panel | None:
    """Mean and 95 % interval of every model on one metric, best on top, the ceiling as a line."""
    better, ours = glossary.metric(metric).better or 1, glossary.ours()
    rows = [(model, *verdict.entry(models, model, metric)) for model in models]
    ceiling = [row for row in rows if row[0] == CEILING and not math.isnan(row[1])]
    rows = [row for row in rows if row[0] != CEILING and not math.isnan(row[1])]
    if not rows:
        return None
    rows.sort(key=lambda row: better * row[1])
    label = glossary.metric(metric).label
    with canvas((4.0, 0.75 + 0.24 * len(rows))) as (figure, axes):
        for place, (model, mean, low, high) in enumerate(rows):
            color = glossary.style(model)[0]
            if not math.isnan(low + high):
                axes.plot(
                    [low, high], [place, place], color=color, lw=2.4, alpha=0.55, solid_capstyle="round"
                )
            axes.plot(mean, place, "o", color=color, ms=6.5 if model == ours else 4.5)
        for _, mean, low, high in ceiling:
            color, dash = glossary.style(CEILING)
            axes.axvline(mean, color=color, ls=_DASH[dash], lw=1.2)
            if not math.isnan(low + high):
                axes.axvspan(low, high, color=color, alpha=0.08, lw=0)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows):
            tick.set_color(glossary.style(ours)[0] if row[0] == ours else MUTED)
            tick.set_fontweight("bold" if row[0] == ours else "normal")
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        values = [row[1] for row in rows + ceiling]
        if metric == "energy" and min(values) > 0 and max(values) > 12 * min(values):
            # point masses are ten times farther off than any population of cells
            _plain_log(axes.xaxis, axes.set_xscale, (1.0, 3.0))
        axes.set_xlabel("higher is better →" if better > 0 else "← lower is better")
        svg = to_svg(figure, f"iv-{metric}")
    listed = ", ".join(f"{row[0]} {verdict.figure(row[1])}" for row in reversed(rows))
    end = f"; ceiling {verdict.figure(ceiling[0][1])}" if ceiling else ""
    return Panel(svg, label, f"{label} by model, best first: {listed}{end}.")


def radar_models(models: dict, most: int = 4) -> list[str]:
    """The radar's models: the predictions, the ceiling, the control, and the baselines best on average."""
    scaled = rescale(models)
    rivals = [name for name in verdict.baselines(models) if name != CONTROL and name in scaled.index]
    rivals = sorted(rivals, key=lambda name: -scaled.loc[name].mean())[:most]
    return [
        name
        for name in (CEILING, CONTROL, *reversed(rivals), *glossary.predictions()[::-1])
        if name in scaled.index
    ]


def rescale(models: dict) -> pd.DataFrame:
    """Scores on [0, 1] per metric: 0 the worst model's mean, 1 the best's; lower-is-better ones flipped."""
    names = glossary.order_metrics(name for rows in models.values() for name in rows)
    names = [name for name in names if glossary.metric(name).better]
    table = pd.DataFrame(
        {
            name: {m: glossary.metric(name).better * verdict.entry(models, m, name)[0] for m in models}
            for name in names
        },
        dtype=float,
    )
    spread = table.max() - table.min()
    table = table.loc[:, spread > 0].dropna(axis=1, how="all")
    return ((table - table.min()) / spread[table.columns]).dropna(how="all")


def radar(models: dict) -> Panel | None:
    """Rescaled metrics around a circle, one line per model; the inner ring is the worst model's score."""
    scaled, ours = rescale(models), glossary.ours()
    if scaled.shape[1] < 3 or ours not in scaled.index or len(scaled) < 3:
        return None
    angles = np.linspace(0, 2 * np.pi, scaled.shape[1], endpoint=False)
    hole = 0.12  # lifts the worst score off the centre, where all the axes meet and nothing can be read
    drawn = radar_models(models)
    with canvas((4.5, 3.7), polar=True) as (figure, axes):
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        for model in drawn:
            color, dash = glossary.style(model)
            values = hole + (1 - hole) * scaled.loc[model].to_numpy()
            closed = np.append(values, values[0])
            width = 2.4 if model == ours else 1.3
            axes.plot(np.append(angles, angles[0]), closed, color=color, ls=_DASH[dash], lw=width)
            if model == ours:
                axes.fill(angles, np.nan_to_num(values, nan=hole), color=color, alpha=0.10, lw=0)
        axes.set_ylim(0, 1.03)
        axes.set_yticks([hole, hole + (1 - hole) / 2, 1], [])
        axes.set_xticks(angles, [_radar_label(name) for name in scaled.columns])
        axes.tick_params(axis="x", pad=6, labelsize=10)
        for angle, text in zip(angles, axes.get_xticklabels()):
            text.set_horizontalalignment(
                "center" if abs(math.sin(angle)) < 0.2 else "left" if math.sin(angle) > 0 else "right"
            )
        axes.spines["polar"].set_color("#c9ced2")
        svg = to_svg(figure, "radar")
    mean = scaled.loc[ours].mean()
    rest = ", ".join(f"{name} {scaled.loc[name].mean():.2f}" for name in reversed(drawn) if name != ours)
    alt = f"Radar of {scaled.shape[1]} rescaled metrics. Mean rescaled score: {ours} {mean:.2f}, {rest}."
    return Panel(svg, "All metrics with a direction", alt, wide=True)


def learning_curves(log: pd.DataFrame) -> list[Panel]:
    """Loss terms over the steps, and each sampled validation quantity with its best step marked."""
    panels = []
    train, validation = log[log["kind"] == "train"], log[log["kind"] == "validation"]
    terms = [name for name in log.columns if name.startswith("loss/") and train[name].notna().any()]
    if terms:
        with canvas() as (figure, axes):
            for name in terms:
                color, line = _LOSS_STYLE.get(name, (MUTED, ":"))
                curve = _thin(train[["step", name]].dropna())
                axes.plot(curve["step"], curve[name], color=color, ls=line)
                axes.annotate(
                    name.removeprefix("loss/"),
                    (curve["step"].iloc[-1], curve[name].iloc[-1]),
                    xytext=(4, 0),
                    textcoords="offset points",
                    color=color,
                    va="center",
                    annotation_clip=False,
                )
            if (train[terms].min().min() or 0) > 0:
                _plain_log(axes.yaxis, axes.set_yscale, (1.0, 2.0, 5.0))
            axes.set_xlabel("step")
            axes.locator_params(axis="x", nbins=5)
            svg = to_svg(figure, "loss")
        last = ", ".join(f"{n.removeprefix('loss/')} {train[n].dropna().iloc[-1]:.3g}" for n in terms)
        panels.append(
            Panel(
                svg, "Training loss", f"Training loss terms over steps; last values: {last}.", f"last {last}"
            )
        )
    for name in validation.columns:
        if name.startswith("validation/") and validation[name].notna().any():
            panels.append(_validation(validation[["step", name]].dropna(), name))
    return panels


def _validation(curve, name) -> Panel:
    short = name.removeprefix("validation/")
    known = glossary.metric(short)
    with canvas() as (figure, axes):
        axes.plot(curve["step"], curve[name], color=glossary.style(glossary.ours())[0], marker="o", ms=3)
        note = ""
        if known.better:
            row = curve.loc[(known.better * curve[name]).idxmax()]
            axes.plot(row["step"], row[name], "o", ms=10, mfc="none", mec="#d0480a", mew=1.6)
            note = f"best {verdict.figure(row[name])} at step {int(row['step']):,} (ringed)"
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=5)
        svg = to_svg(figure, "val-" + re.sub(r"\W+", "-", short))
    arrow = {1: " ↑", -1: " ↓", 0: ""}[known.better]
    alt = f"Sampled validation {known.label} over {len(curve)} evaluations; {note or 'no direction'}."
    return Panel(svg, f"Validation: {known.label}{arrow}", alt, note)


def scatter(scores: duels.Scores, metric: str, rival: str) -> Panel | None:
    """One point per condition: ours (up) against a rival (right), with the win rate."""
    pairs = scores.paired(metric, glossary.ours(), rival)
    if pairs.empty:
        return None
    known, color = glossary.metric(metric), glossary.style(glossary.ours())[0]
    x, y = pairs["rival"].to_numpy(), pairs["ours"].to_numpy()
    gain = known.better * (y - x)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    low, high = low - margin, high + margin
    with canvas((3.8, 3.5)) as (figure, axes):
        axes.axline((low, low), slope=1, color="#9aa2a9", lw=1, zorder=1)
        side = [high, high] if known.better > 0 else [low, low]
        axes.fill_between([low, high], [low, high], side, color=color, alpha=0.06, lw=0)
        points = axes.scatter(
            x, y, s=22, c=[color if g > 0 else LOSS if g < 0 else MUTED for g in gain], alpha=0.75, lw=0
        )
        points.set_gid("points")
        points.set_rasterized(len(x) > DENSE // 2)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel=rival, ylabel=glossary.ours(), box_aspect=1)
        axes.locator_params(nbins=5)
        names = condition_names(pairs)
        tips = [f"{name}: {verdict.figure(b)}, rival {verdict.figure(a)}" for name, a, b in zip(names, x, y)]
        svg = to_svg(figure, f"sc-{metric}", {"points": tips} if len(x) <= DENSE // 2 else None)
    note = scores.duel(metric, glossary.ours(), rival).words
    arrow = "↑" if known.better > 0 else "↓"
    alt = f"{known.label} per condition, {glossary.ours()} against {rival}: {note}."
    return Panel(svg, f"{known.label} {arrow}", alt, note)


def condition_names(table: pd.DataFrame) -> list[str]:
    """ "perturbation, cell type" of each row, without the cell type where there is only one."""
    if table["cell_type"].nunique() <= 1:
        return table["perturbation"].astype(str).tolist()
    return [f"{p}, {c}" for p, c in zip(table["perturbation"], table["cell_type"])]


def _radar_label(name) -> str:
    known = glossary.metric(name)
    label = known.label.replace("Discrimination", "Discrim.")
    label = label.replace(" ", "\n", 1) if len(label) > 10 else label
    return f"{label}\n(flipped)" if known.better < 0 else label


def _plain_log(axis, set_scale, marks) -> None:
    # Our text is not parsed as mathematics, so the usual 10^-2 labels would show their markup.
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=marks, numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _thin(curve, most: int = 400) -> pd.DataFrame:
    # Averages of neighbouring steps: a curve of 100,000 lines would be most of the page and look like fur.
    if len(curve) <= most:
        return curve
    return curve.groupby(np.arange(len(curve)) * most // len(curve)).mean()
