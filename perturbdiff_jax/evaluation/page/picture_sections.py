"""The sections of the report that draw: radar, learning curves, cells, differential expression.

Same contract as `sections`: (id, heading, inner HTML), and a sentence in place of what cannot be drawn.
"""

from perturbdiff_jax.evaluation.page import cell_figures, drawing, figures, glossary, markup, verdict
from perturbdiff_jax.evaluation.page.glossary import KIND_STYLE
from perturbdiff_jax.evaluation.page.markup import Cell, Column
from perturbdiff_jax.evaluation.page.run_files import Results

NO_PICTURES = (
    "Figures are left out: matplotlib is not installed. Install the extra `perturbdiff_jax[eval]` and run "
    "`perturbdiff report` again."
)
NO_BASELINES = (
    "No baselines were evaluated: run `perturbdiff evaluate` with `--baselines STORE` to have them."
)
MOST_ROWS = 1000  # of a table with a row per condition; a row is about 0.8 kB of the page


def radar_section(results: Results):
    """The picture of the paper's Figure 3 for this run."""
    heading, models = ("radar", "Radar"), results.models
    if "summary" in results.absent:
        return *heading, markup.absent(results.absent["summary"])
    if not drawing.available():
        return *heading, markup.absent(NO_PICTURES)
    panel = figures.radar(models)
    if panel is None:
        why = "A radar needs three models, ours among them, and three metrics on which they differ."
        return *heading, markup.absent(why)
    drawn = figures.radar_models(models)[::-1]
    text = (
        "Like Figure 3 of the paper, outer is better. Each axis is rescaled on its own from the means "
        "above: the worst of all models lies on the inner ring, the best (the ceiling included) on the rim; "
        "metrics where lower is better are flipped. Distances on different axes cannot be compared, and a "
        "very bad model on an axis pushes all others outwards."
    )
    if len(drawn) < len(models):
        text += " Drawn: the model, the ceiling, the control and the baselines that score best on average."
    legend = markup.legend([(name, *glossary.style(name)) for name in drawn])
    words = markup.paragraph(text) + legend
    return *heading, f'<div class="side">{markup.panels([panel])}<div>{words}</div></div>'


def curves_section(results: Results):
    """Loss terms and sampled validation over the steps."""
    heading = ("curves", "Learning curves")
    if results.log is None:
        return *heading, markup.absent(results.absent["log"])
    if not drawing.available():
        return *heading, markup.absent(NO_PICTURES)
    drawn = figures.learning_curves(results.log)
    if not drawn:
        return *heading, markup.absent("The training log holds no loss and no validation.")
    text = (
        "Validation predicts the validation conditions by sampling, as `predict` does; it chooses the best "
    )
    text += "checkpoint."
    if not (results.log["kind"] == "validation").any():
        text = "The log holds no validation: only the loss is drawn."
    return *heading, markup.paragraph(text) + markup.panels(drawn)


def cells_section(results: Results):
    """Predicted, real and control cells in one PCA and in one UMAP."""
    heading = ("cells", "Cells")
    if results.pca is None:
        return *heading, markup.absent(results.absent["pca"])
    if not drawing.available():
        return *heading, markup.absent(NO_PICTURES) + (
            "" if results.umap is not None else _neighbours(results)
        )
    drawn = cell_figures.cells(results.pca, results.metrics, cell_figures.PCA)
    if not drawn:
        return *heading, markup.absent("pca.csv holds control cells only.")
    text = (
        "Panels zoom in on the cell type of the condition; large dots are centres. A good prediction lies on the "
        "real cells and is as broad. Beside all conditions stand the best, the median and the worst one by energy "
        "distance."
    )
    legend = markup.legend([(name, color, "solid") for name, color in KIND_STYLE.items()], dots=True)
    pca = (
        "One PCA, fitted on real and control cells only and then applied to the predicted ones. Distances mean the "
        "same everywhere, but all that is not in two components is hidden."
    )
    tabs = [("PCA", markup.paragraph(pca, "hint") + markup.panels(drawn)), ("UMAP", _neighbours(results))]
    return *heading, markup.paragraph(text) + legend + markup.tabs("cell-maps", "Map of cells", tabs)


def _neighbours(results: Results) -> str:
    drawn = []
    if results.umap is not None:
        drawn = cell_figures.cells(results.umap, results.metrics, cell_figures.UMAP)
    if not drawn:
        settings = results.summary.get("settings")
        why = settings.get("no_umap") if isinstance(settings, dict) else None
        return markup.absent(str(why or results.absent.get("umap", "umap.csv holds control cells only.")))
    text = (
        f"One UMAP of {len(results.umap):,} cells, fitted on real, control and predicted cells together: fitted on "
        "real cells alone it could place a predicted cell only among real ones. Predicted cells that lie apart "
        "resemble no real cell; distances between far groups, and sizes of groups, mean little."
    )
    return markup.paragraph(text, "hint") + markup.panels(drawn)


def genes_section(results: Results):
    """Recovery of differential expression, gene by gene."""
    heading = ("genes", "Differential expression")
    if results.de is None:
        return *heading, markup.absent(results.absent["de"])
    table = cell_figures.recovery(results.de)
    if table.empty:
        return *heading, markup.absent("de.csv.gz has no gene with both adjusted p values.")
    text = (
        "One point is one gene: strength of evidence in the real cells (right) against the predicted cells "
        "(up), each against the same real control cells. The dashed lines are a false discovery rate of "
        "0.05; values beyond 50 are drawn at 50, and the axes are stretched by square roots near 0. Genes "
        "on the diagonal are recovered as strongly as in the real cells."
    )
    parts = [markup.paragraph(text)]
    pictures = drawing.available()
    drawn = cell_figures.differential_expression(results.de, results.metrics) if pictures else []
    parts.append(markup.panels(drawn) if pictures else markup.absent(NO_PICTURES))
    names = {
        "spearman": Column("Spearman", "Of -log10 adjusted p over genes", +1),
        "both": Column("Both", "Significant in real and predicted cells"),
        "same_direction": Column("Same direction", "Of both: the fold change has the same sign"),
        "only_real": Column("Only real", "Missed by the prediction"),
        "only_pred": Column("Only predicted", "Invented by the prediction"),
        "neither": Column("Neither"),
        "genes": Column("Genes"),
    }
    names = {name: column for name, column in names.items() if name in table}
    cut = table.head(MOST_ROWS)
    rows = [
        [markup.escape(row["perturbation"]), markup.escape(row["cell_type"])]
        + [Cell(verdict.figure(row[n]) if n == "spearman" else f"{row[n]:,}", float(row[n])) for n in names]
        for row in cut.to_dict("records")
    ]
    columns = [Column("Perturbation", number=False), Column("Cell type", number=False), *names.values()]
    caption = f"Genes by significance, {len(cut):,} of {len(table):,} conditions, most recovered genes first"
    parts.append(
        markup.fold(
            "Every condition in numbers", markup.table("recovery", columns, rows, caption=caption, tall=True)
        )
    )
    return *heading, "".join(parts)
