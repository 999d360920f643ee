"""Test perturbations that a model was never trained on: a small mark beside the name, and what was nearest to it."""

import math

from perturbdiff_jax.evaluation.page import glossary, markup
from perturbdiff_jax.evaluation.page.markup import Cell, Column
from perturbdiff_jax.evaluation.page.run_files import Results

MOST_ROWS = 2_000


def strangers(results: Results, model: str) -> dict[str, tuple[str, float]]:
    """{perturbation: (nearest trained one, cosine distance)} of a prediction; ("", NaN) without a vector."""
    settings = results.summary.get("settings")
    account = settings.get("predictions") if isinstance(settings, dict) else None
    own = account.get(model) if isinstance(account, dict) else None
    found = own.get("unseen") if isinstance(own, dict) else None
    if not isinstance(found, dict):
        return {}
    columns = [found.get(name) for name in ("perturbation", "nearest", "distance")]
    if not all(isinstance(column, list) for column in columns):
        return {}
    return {
        str(name): (str(near or ""), float(far) if isinstance(far, int | float) else math.nan)
        for name, near, far in zip(*columns)
    }


def words(found: tuple[str, float]) -> str:
    """What is known of one, as a sentence."""
    nearest, distance = found
    if not nearest:
        return "Never trained on, and no table has a vector of it."
    near = f"Nearest trained perturbation: {nearest}, cosine distance {distance:.3f}."
    return f"Never trained on; told by its vector. {near}"


def marked(name: str, found: tuple[str, float] | None) -> str:
    """HTML of a perturbation's name, with the mark if it was never trained on."""
    if found is None:
        return markup.escape(name)
    return f'{markup.escape(name)} <span class="tag" title="{markup.escape(words(found))}">{glossary.UNSEEN}</span>'


def listed(results: Results) -> str:
    """A folded table of them with what is nearest, and what the mark means; "" where there is none."""
    parts = []
    for model in glossary.predictions():
        found = strangers(results, model)
        rows = [
            [markup.escape(name), markup.escape(near or "–"), _distance(far)]
            for name, (near, far) in list(found.items())[:MOST_ROWS]
        ]
        if not rows:
            continue
        many = "perturbation" if len(found) == 1 else "perturbations"
        caption = f"{len(found):,} {many} that {model} was never trained on"
        caption += f"; shown are the first {len(rows):,}" if len(rows) < len(found) else ""
        columns = [
            Column("Perturbation", number=False),
            Column("Nearest trained perturbation", number=False),
            Column("Cosine distance", glossary.UNSEEN_WORDS["Cosine distance"]),
        ]
        name = f"unseen-{len(parts)}"
        parts.append(markup.table(name, columns, rows, caption=caption, tall=True))
    if not parts:
        return ""
    meaning = markup.definitions(list(glossary.UNSEEN_WORDS.items()), "meaning")
    return markup.fold("Perturbations that were never trained on", meaning + "".join(parts))


def _distance(value: float) -> Cell:
    return Cell(f"{value:.3f}" if math.isfinite(value) else "–", value)
