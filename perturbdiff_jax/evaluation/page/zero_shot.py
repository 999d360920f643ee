"""What the page of a pretraining says instead of a verdict: zero-shot scores of every screen, linked to its page."""

import json
import math
import pathlib
from urllib.parse import quote

from perturbdiff_jax.evaluation.page import glossary, markup

FOLDER, PAGE = "zero_shot", "report.html"
SHOWN = ("energy", "r2", "pearson_delta")


def found(workdir: pathlib.Path) -> dict[str, dict]:
    """Source -> scores of the network in its summary.json; sources whose file cannot be read are left out."""
    scores = {}
    for file in sorted(workdir.glob(f"{FOLDER}/*/summary.json")):
        try:
            scores[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))["models"][glossary.OURS]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return scores


def told(workdir: pathlib.Path) -> str:
    """The scores as HTML, "" where there are none."""
    scores = found(workdir)
    if not scores:
        return ""
    lines = "".join(_line(name, one) for name, one in scores.items())
    words = (
        "This network was pretrained: it was told cell types and batches, and no perturbation. Zero-shot it predicts "
        "the held-out conditions of each screen as the population of their context:"
    )
    return f"{markup.paragraph(words)}<ul>{lines}</ul>"


def _line(name: str, scores: dict) -> str:
    parts = [f"{glossary.metric(metric).label} {_figure(scores.get(metric))}" for metric in SHOWN]
    link = f'<a href="{FOLDER}/{quote(name)}/{PAGE}">{markup.escape(name)}</a>'
    return f"<li>{link}: {markup.escape(', '.join(parts))}</li>"


def _figure(entry) -> str:
    value = entry.get("mean") if isinstance(entry, dict) else None
    return "-" if not isinstance(value, int | float) or math.isnan(value) else f"{value:.3f}"
