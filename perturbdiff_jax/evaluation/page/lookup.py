"""The section in which a gene or a perturbation is looked up: mean changes, real beside predicted.

The changes stand inside the page as JSON, bounded; lookup.js answers from them. What is left out is said.
"""

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.mean_changes import LEVEL, TOP
from perturbdiff_jax.evaluation.page import embedded, glossary, markup, unseen
from perturbdiff_jax.evaluation.page.run_files import Results

BUDGET = 2_000_000  # characters of the changes inside the page
UNIT = 1e-4  # changes are whole numbers of it
_KEYS = ["perturbation", "cell_type"]
_FILE = "mean_changes.csv.gz"


def lookup_section(results: Results):
    """(id, heading, inner HTML): two search boxes and what they answer from."""
    heading = ("lookup", "Look up a gene or a perturbation")
    if results.changes is None:
        return *heading, markup.absent(results.absent["changes"])
    settings = results.summary.get("settings")
    genes = settings.get("genes") if isinstance(settings, dict) else None
    found, most = record(results.changes)
    new, held = unseen.strangers(results, glossary.ours()), {name for name, _ in found["conditions"]}
    found["unseen"] = {name: unseen.words(told) for name, told in new.items() if name in held}
    parts = [
        markup.paragraph(
            f"How much does the mean log1p expression of a gene change against the control cells, really and as "
            f"{glossary.ours()} predicts it, and is the direction right?"
        ),
        markup.paragraph(_held(results.changes, found, most, genes), "hint"),
        f'<p class="hint" id="asking-off">Looking up needs scripts; all numbers are in {_FILE}.</p>',
        embedded.element("changes", found),
        '<div id="asking" hidden>',
        _box("gene", "Gene", "name of a gene"),
        _box("perturbation", "Perturbation", "name of a perturbation"),
        "</div>",
    ]
    return *heading, "".join(parts)


def _box(name: str, label: str, hint: str) -> str:
    return (
        f'<div class="ask"><p class="find"><label for="look-{name}">{label}</label>'
        f'<input id="look-{name}" type="search" placeholder="{hint}" autocomplete="off" spellcheck="false">'
        f'<span id="look-{name}-said" role="status"></span></p>'
        f'<div class="offers" id="look-{name}-offers"></div><div id="look-{name}-result"></div></div>'
    )


def _held(table: pd.DataFrame, found: dict, most: int | None, genes) -> str:
    """Which genes can be looked up, and what is left out."""
    conditions, pairs = len(found["rows"]), sum(len(row[0]) for row in found["rows"])
    whole = isinstance(genes, int) and len(table) >= conditions * genes
    if most is not None:
        kept = "the genes that change most, really or as predicted"
        text = f"Held on this page are at most {most} genes of each of {conditions:,} conditions: {kept}."
        return f"{text} {len(table) - pairs:,} of {len(table):,} values were left out and are in {_FILE}."
    if whole:
        return f"Held on this page are all {genes:,} genes of {conditions:,} conditions."
    return (
        f"Held on this page are, for each of {conditions:,} conditions, the {TOP} genes that change most in the real "
        f"cells and the {TOP} that change most in the predicted cells; a gene is missing where it is neither."
    )


def record(table: pd.DataFrame) -> tuple[dict, int | None]:
    """(changes for the page's script, genes kept of each condition, None when all of the table is there).

    rows: by condition [places of genes, real changes, predicted changes(, low, high)], in UNIT, as in the table.
    """
    table = table.dropna(subset=["real_change", "pred_change"])
    size = table[["real_change", "pred_change"]].abs().max(axis=1)
    rank = size.groupby([table[name] for name in _KEYS]).rank(method="first", ascending=False)
    most, found = None, _record(table)
    while (length := len(embedded.text_of(found))) > BUDGET and most != 1:
        before = most or int(rank.max())
        most = max(1, min(before - 1, int(0.95 * before * BUDGET / length)))
        found = _record(table[rank <= most])
    return found, most


def _record(table: pd.DataFrame) -> dict:
    codes, genes = pd.factorize(table["gene"])
    interval = {"low", "high"} <= set(table.columns) and table[["low", "high"]].notna().any(axis=None)
    columns = ["real_change", "pred_change", *(["low", "high"] if interval else [])]
    values = {name: np.round(table[name].to_numpy(dtype=float) / UNIT) for name in columns}
    keys, rows = [], []
    for key, at in table.groupby(_KEYS, sort=False).indices.items():
        keys.append([str(name) for name in key])
        rows.append([codes[at].tolist(), *(_whole(values[name][at]) for name in columns)])
    return {
        "model": glossary.ours(),
        "unit": UNIT,
        "level": LEVEL,
        "genes": [str(gene) for gene in genes],
        "conditions": keys,
        "rows": rows,
    }


def _whole(values: np.ndarray) -> list[int | None]:
    return [int(value) if np.isfinite(value) else None for value in values]
