"""Names, directions and colours of metrics and models, as every table and figure of the report shows them.

Directions and meanings follow appendix C.2 of the paper and cell-eval's column names; `r2`, `energy` and the
two counts are ours. Owns words and colours only: it computes nothing.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

OURS = "perturbdiff"
CEILING = "ceiling"
CONTROL = "control"
HEADLINE = ("discrimination_score_l1", "pearson_delta", "energy")
SIGNIFICANT = 0.05  # false discovery rate at which cell-eval calls a gene significant


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column of the metric tables: `better` is +1 (higher), -1 (lower) or 0 (a count, no direction)."""

    label: str
    better: int
    group: str
    meaning: str

    @property
    def words(self) -> str:
        """The label inside a sentence: abbreviations and names keep their capitals."""
        plain = self.label[1:2].islower() and not self.label.startswith("Pearson")
        return self.label[0].lower() + self.label[1:] if plain else self.label


_AVERAGE, _GENES, _COUNT = "Cells and averages", "Differential expression", "Counts"

METRICS = {
    "discrimination_score_l1": Metric(
        "Discrimination L1",
        +1,
        _AVERAGE,
        "Is the predicted shift closest to its own perturbation among all of them? 1 is always, 0.5 is "
        "chance. Distances between mean shifts in the L1 norm (PDS L1 in the paper).",
    ),
    "discrimination_score_l2": Metric(
        "Discrimination L2", +1, _AVERAGE, "The same with the L2 norm (PDS L2)."
    ),
    "discrimination_score_cosine": Metric(
        "Discrimination cosine", +1, _AVERAGE, "The same with the cosine distance (PDS cos): direction only."
    ),
    "pearson_delta": Metric(
        "Pearson delta",
        +1,
        _AVERAGE,
        "Correlation over genes between the predicted and the real mean shift from control (PDCorr).",
    ),
    "energy": Metric(
        "Energy distance",
        -1,
        _AVERAGE,
        "Half the energy distance between predicted and real cells, on log1p expression / 10: compares whole "
        "populations, not only their means. 0 is identical.",
    ),
    "r2": Metric(
        "R2",
        +1,
        _AVERAGE,
        "Variance over genes of the real mean expression that the predicted mean explains (1 is all). "
        "Handing back the control cells already scores high.",
    ),
    "mse": Metric("MSE", -1, _AVERAGE, "Mean squared error between predicted and real mean expression."),
    "mae": Metric("MAE", -1, _AVERAGE, "Mean absolute error between predicted and real mean expression."),
    "overlap_at_N": Metric(
        "DE overlap",
        +1,
        _GENES,
        "Share of the N top predicted genes (by fold change) among the N really significant ones (DEOver).",
    ),
    "precision_at_N": Metric(
        "DE precision",
        +1,
        _GENES,
        "The same with N the number of genes significant in the prediction (DEPrec): punishes invented "
        "effects.",
    ),
    "pr_auc": Metric(
        "AUPRC",
        +1,
        _GENES,
        "Area under precision-recall when predicted adjusted p ranks the really significant genes.",
    ),
    "roc_auc": Metric("AUROC", +1, _GENES, "Area under the ROC curve of the same ranking; 0.5 is chance."),
    "de_direction_match": Metric(
        "Direction match", +1, _GENES, "Share of significant genes that move in the right direction (DirAgr)."
    ),
    "de_spearman_lfc_sig": Metric(
        "Fold changes",
        +1,
        _GENES,
        "Rank correlation of predicted and real log fold change over the really significant genes "
        "(LFCSpear).",
    ),
    "de_spearman_sig": Metric(
        "Effect sizes",
        +1,
        _GENES,
        "Rank correlation over perturbations of the number of significant genes (ES): one number per cell "
        "type.",
    ),
    "n_sig_real": Metric("DE genes, real", 0, _COUNT, "Genes significant at 0.05 in the real cells."),
    "n_sig_pred": Metric(
        "DE genes, predicted", 0, _COUNT, "Genes significant at 0.05 in the predicted cells."
    ),
}

# The mark of a perturbation that was never trained on, and what belongs to it.
UNSEEN = "unseen"
UNSEEN_WORDS = {
    UNSEEN: "The model was trained on no cell of this perturbation. What it knows of it is a vector from a table, or "
    "the parts of a combination: a harder test than a perturbation that it has seen in other cells.",
    "Nearest trained perturbation": "The one of all trained ones whose vector points most nearly the same way.",
    "Cosine distance": "Between these two vectors: 0 is the same direction, 1 nothing in common, 2 opposite. The "
    "larger, the further the prediction is from what was trained, and the more doubt it deserves.",
}

# Okabe-Ito hues (safe for colour-blind readers), darkened where white paper asks for it. A dash tells apart
# what a grey print cannot. Predicted cells wear our colour, real cells the ceiling's, control cells the
# control's.
MODEL_STYLE = {
    OURS: ("#0067a5", "solid"),
    CEILING: ("#d0480a", "dashed"),
    CONTROL: ("#7d858d", "dotted"),
    "control cells + mean delta": ("#00845f", "solid"),
    "context mean + mean delta": ("#c28400", "solid"),
    "ridge": ("#b5478f", "solid"),
    "linear": ("#9a4f10", "solid"),
    "mean per perturbation": ("#4a9fd0", "dashed"),
    "mean per cell type": ("#6b4e9b", "dashed"),
    "mean per batch": ("#8c5a2b", "dashed"),
    "mean overall": ("#3c4650", "dashed"),
}
# Further named predictions, in their order.
OTHER_STYLES = (
    ("#a01c4a", "dashdot"),
    ("#5c6f00", "dashdot"),
    ("#006d77", "dashdot"),
    ("#5a2ca0", "dashdot"),
)
KIND_STYLE = {
    "control": MODEL_STYLE[CONTROL][0],
    "real": MODEL_STYLE[CEILING][0],
    "predicted": MODEL_STYLE[OURS][0],
}


# The names of the scored predictions, set while a page is built; the first wears our colour.
_PREDICTIONS = contextvars.ContextVar("predictions", default=(OURS,))


@contextlib.contextmanager
def about(predictions: Sequence[str]) -> Iterator[None]:
    """Within it the page is about these predictions (at least one), the first of them before all."""
    token = _PREDICTIONS.set(tuple(predictions))
    try:
        yield
    finally:
        _PREDICTIONS.reset(token)


def predictions() -> tuple[str, ...]:
    """The names of the predictions that the page shows."""
    return _PREDICTIONS.get()


def ours() -> str:
    """The prediction that the page is about."""
    return _PREDICTIONS.get()[0]


def metric(name: str) -> Metric:
    """The entry of column `name`; an unknown column shows under its own name, without a direction."""
    return METRICS.get(name, Metric(name, 0, _COUNT, "A column that this page does not know."))


def order_metrics(names) -> list[str]:
    """`names` in the page's order, known ones first."""
    names = list(dict.fromkeys(names))
    return [name for name in METRICS if name in names] + [name for name in names if name not in METRICS]


def style(model: str) -> tuple[str, str]:
    """Colour (hex) and dash (a matplotlib line style) of a model; the same on the whole page."""
    if model in (named := predictions()):
        place = named.index(model)
        return MODEL_STYLE[OURS] if place == 0 else OTHER_STYLES[(place - 1) % len(OTHER_STYLES)]
    return MODEL_STYLE.get(model, ("#3c4650", "dashdot"))
