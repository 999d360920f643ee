"""The figures of cells and genes: populations in one plane, and recovery of differential expression.

Small multiples of the same few conditions: the best, the median and the worst by energy distance.
"""

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.page.drawing import DENSE, INK, Panel, canvas, to_svg
from perturbdiff_jax.evaluation.page.glossary import KIND_STYLE, SIGNIFICANT
from perturbdiff_jax.evaluation.page.verdict import figure as number

PCA = ("pc1", "pc2", "PC", "the first two principal components", "pca")  # columns, axis, words, prefix of ids
UMAP = ("umap1", "umap2", "UMAP", "a UMAP", "umap")
_CAP = 50.0  # -log10 of an adjusted p; beyond it the test has no more to say and one gene would set the scale
_GROUPS = {  # Okabe-Ito again; "neither" is most genes and stays in the background
    "both": "#0067a5",
    "only real": "#d0480a",
    "only predicted": "#c28400",
    "neither": "#b9c0c6",
}


def chosen_conditions(metrics: pd.DataFrame | None, drawn: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(cell_type, perturbation, why) of the best, median and worst condition of `drawn` by energy.

    Falls back on Pearson delta and then on the first conditions where no energy distance is known.
    """
    keys = ["cell_type", "perturbation"]
    there = drawn[keys].drop_duplicates()
    if metrics is not None:
        for name, ascending in (("energy", True), ("pearson_delta", False)):
            if name not in metrics:
                continue
            ranked = metrics[[*keys, name]].merge(there, on=keys).dropna(subset=[name])
            if len(ranked):
                ranked = ranked.sort_values([name, *keys], ascending=[ascending, True, True], kind="stable")
                places = {"best": 0, "worst": len(ranked) - 1, "median": len(ranked) // 2}
                picked = {place: why for why, place in reversed(places.items())}
                label = name.replace("_", " ")
                return [
                    (*ranked.iloc[place][keys], f"{why}, {label} {number(ranked.iloc[place][name])}")
                    for place, why in sorted(picked.items())
                ]
    return [(*row, "") for row in there.head(3).itertuples(index=False)]


def cells(table: pd.DataFrame, metrics: pd.DataFrame | None, plane: tuple[str, ...]) -> list[Panel]:
    """All cells of `table` in one plane (PCA or UMAP), then the chosen conditions over their controls."""
    treated = table[table["kind"] != "control"]
    if treated.empty:
        return []
    panels = [_cloud(table, table, "All conditions", f"{len(table):,} cells drawn", plane, "all")]
    for place, (cell_type, perturbation, why) in enumerate(chosen_conditions(metrics, treated)):
        mine = treated[(treated["cell_type"] == cell_type) & (treated["perturbation"] == perturbation)]
        control = table[(table["kind"] == "control") & (table["cell_type"] == cell_type)]
        title = condition_names_of(treated, cell_type, perturbation)
        frame = table[table["cell_type"] == cell_type]  # the same axes for conditions of one cell type
        panels.append(_cloud(pd.concat([control, mine]), frame, title, why, plane, place))
    return panels


def condition_names_of(table: pd.DataFrame, cell_type: str, perturbation: str) -> str:
    """How the page names one condition of `table`."""
    return perturbation if table["cell_type"].nunique() <= 1 else f"{perturbation}, {cell_type}"


def _cloud(table, frame, title, why, plane, place) -> Panel:
    x, y, axis, words, prefix = plane
    with canvas((3.2, 2.8)) as (figure, axes):
        for kind, color in KIND_STYLE.items():
            part = table[table["kind"] == kind]
            points = axes.scatter(part[x], part[y], s=7, c=color, lw=0, alpha=0.5)
            points.set_rasterized(len(table) > DENSE // 3)
            if kind != "control" and table is not frame and len(part):
                axes.plot(*part[[x, y]].mean(), "o", ms=9, color=color, mec="white", mew=1.4, zorder=5)
        axes.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xlim=_limits(frame[x]), ylim=_limits(frame[y]))
        axes.set_xticklabels([])
        axes.set_yticklabels([])
        svg = to_svg(figure, f"{prefix}-{place}")
    counts = ", ".join(f"{int((table['kind'] == kind).sum())} {kind}" for kind in KIND_STYLE)
    means = table.groupby("kind")[[x, y]].mean()
    alt = f"{title}: cells in {words} ({counts})."
    if {"predicted", "real", "control"} <= set(means.index):
        gap = np.linalg.norm(means.loc["predicted"] - means.loc["real"])
        shift = np.linalg.norm(means.loc["control"] - means.loc["real"])
        alt += f" Predicted centre lies {number(gap)} from the real one, the control's {number(shift)}."
    return Panel(svg, title, alt, why)


def _limits(values) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [0.3, 99.7])
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def recovery(de: pd.DataFrame) -> pd.DataFrame:
    """Per condition: how the significant genes of the prediction meet those of the real cells.

    Returns:
      Columns cell_type, perturbation, genes, spearman (of -log10 adjusted p over genes), both, only_real,
      only_pred, neither (gene counts at a false discovery rate of 0.05) and same_direction (of `both`, where
      the file has fold changes). Most real effects first.
    """
    table = de.dropna(subset=["real_padj", "pred_padj"])
    table = table[["cell_type", "perturbation"]].assign(
        genes=1, x=_strength(table["real_padj"]), y=_strength(table["pred_padj"]), **_quadrants(table)
    )
    groups = table.groupby(["cell_type", "perturbation"], sort=False)
    rows = groups[["genes", "both", "only_real", "only_pred", "neither", "same_direction"]].sum()
    rows.insert(1, "spearman", groups[["x", "y"]].apply(lambda part: _spearman(part["x"], part["y"])))
    if "real_lfc" not in de or "pred_lfc" not in de:
        rows = rows.drop(columns="same_direction")
    return rows.reset_index().sort_values(["both", "only_real"], ascending=False, kind="stable")


def differential_expression(de: pd.DataFrame, metrics: pd.DataFrame | None) -> list[Panel]:
    """Predicted against real -log10 adjusted p, one point per gene: all conditions, then the chosen ones."""
    table = de.dropna(subset=["real_padj", "pred_padj"])
    if table.empty:
        return []
    panels = [_genes(table, "All conditions", "", "de-all")]
    for place, (cell_type, perturbation, why) in enumerate(chosen_conditions(metrics, table)):
        mine = table[(table["cell_type"] == cell_type) & (table["perturbation"] == perturbation)]
        panels.append(_genes(mine, condition_names_of(table, cell_type, perturbation), why, f"de-{place}"))
    return panels


def _genes(table, title, why, prefix) -> Panel:
    x, y = (_strength(table[name]).clip(upper=_CAP).to_numpy() for name in ("real_padj", "pred_padj"))
    quadrants, line = _quadrants(table), -np.log10(SIGNIFICANT)
    top = max(x.max(), y.max(), 3 * line)
    counts = {}
    with canvas((3.2, 3.1)) as (figure, axes):
        for name in reversed(_GROUPS):
            part = quadrants[name.replace(" ", "_").replace("predicted", "pred")].to_numpy()
            counts[name] = int(part.sum())
            points = axes.scatter(
                x[part], y[part], s=9, c=_GROUPS[name], alpha=0.65, lw=0, clip_on=False, zorder=3
            )
            points.set_rasterized(len(table) > DENSE // 3)
        for draw in (axes.axvline, axes.axhline):
            draw(line, color=INK, lw=0.7, ls=(0, (3, 3)))
        places = {
            "both": (0.98, 0.98),
            "only predicted": (0.02, 0.98),
            "only real": (0.98, 0.02),
        }
        for name, (left, bottom) in places.items():
            axes.text(
                left,
                bottom,
                f"{name} {counts[name]:,}",
                transform=axes.transAxes,
                ha="right" if left > 0.5 else "left",
                va="top" if bottom > 0.5 else "bottom",
                color=_GROUPS[name] if name != "only predicted" else "#8a5e00",
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
                zorder=6,
            )
        span = (-0.003 * top, 1.15 * top)
        for scale in (axes.set_xscale, axes.set_yscale):  # opens the corner where most genes are
            scale("function", functions=(_signed_root, _signed_square))
        ticks = [tick for tick in (0, 1, 5, 10, 20, 50) if tick <= top]
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.set(xlim=span, ylim=span, xlabel="real, −log10 adjusted p", ylabel="predicted", box_aspect=1)
        svg = to_svg(figure, prefix)
    correlation = _spearman(pd.Series(x), pd.Series(y))
    unit = "genes" if table["gene"].is_unique else "pairs of gene and condition"
    words = ", ".join(f"{name} {counts[name]:,}" for name in _GROUPS)
    note = f"Spearman {number(correlation)} over {len(table):,} {unit}; neither significant {counts['neither']:,}"
    note = f"{why}; {note}" if why else note
    return Panel(svg, title, f"{title}: significant in {words}; Spearman {number(correlation)}.", note)


def _signed_root(values):
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values):
    return np.sign(values) * np.square(values)


def _strength(padj) -> pd.Series:
    return -np.log10(padj.clip(lower=1e-300, upper=1.0))


def _quadrants(table) -> dict:
    real, pred = table["real_padj"] < SIGNIFICANT, table["pred_padj"] < SIGNIFICANT
    same = real & pred
    if "real_lfc" in table and "pred_lfc" in table:
        same = same & (np.sign(table["real_lfc"]) == np.sign(table["pred_lfc"]))
    return {
        "both": real & pred,
        "only_real": real & ~pred,
        "only_pred": ~real & pred,
        "neither": ~real & ~pred,
        "same_direction": same,
    }


def _spearman(x: pd.Series, y: pd.Series) -> float:
    x, y = x.rank(), y.rank()
    if len(x) < 3 or x.nunique() < 2 or y.nunique() < 2:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
