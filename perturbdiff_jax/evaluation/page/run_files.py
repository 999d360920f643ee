"""What a working directory holds for the report: reads each file it finds and says why another is not there.

Never raises for a missing or damaged file: the page leaves that part out and prints the sentence kept in
`Results.absent`. Key columns are read as text, so that a perturbation called "NA" or "1.0" keeps its name.
"""

import dataclasses
import json
import pathlib

import pandas as pd

from perturbdiff_jax.evaluation.page.glossary import OURS

_KEYS = ("model", "cell_type", "batch", "perturbation", "gene", "kind")
_TABLES = {
    "metrics": ("metrics.csv", ("perturbation",)),
    "metrics_all": ("metrics_all.csv", ("model", "perturbation")),
    "de": ("de.csv.gz", ("perturbation", "gene", "real_padj", "pred_padj")),
    "pca": ("pca.csv", ("perturbation", "kind", "pc1", "pc2")),
    "umap": ("umap.csv", ("perturbation", "kind", "umap1", "umap2")),
    "changes": ("mean_changes.csv.gz", ("perturbation", "gene", "real_change", "pred_change")),
    "pooled": ("metrics_pooled.csv", ("model", "perturbation")),
    "calibration": ("calibration.csv", ("perturbation", "coverage_80", "energy_between_draws")),
}
_RECORDS = {"config": "config.json", "run": "run.json", "summary": "summary.json"}
_LOG = "logs/metrics.jsonl"
_WHY = {
    "config": "The training settings are not shown: {file} is not there (written by `perturbdiff train`).",
    "run": "The facts of the run are not shown: {file} is not there (written by `perturbdiff train`).",
    "summary": "There is no metric table: {file} is not there (written by `perturbdiff evaluate`).",
    "log": "There are no learning curves: {file} is not there, the model was not trained in this directory.",
    "metrics": "There are no rows per perturbation: {file} is not there (written by `perturbdiff evaluate`).",
    "metrics_all": "Other models are not compared per perturbation: {file} is not there.",
    "de": "Differential expression is not shown: {file} is not there. It needs cell-eval: install the extra "
    "`perturbdiff_jax[eval]` and run `perturbdiff evaluate` again.",
    "pca": "Cells are not drawn: {file} is not there (written by `perturbdiff evaluate`).",
    "umap": "UMAP is not drawn: {file} is not there (written by `perturbdiff evaluate`).",
    "changes": "Genes cannot be looked up: {file} is not there (written by `perturbdiff evaluate`).",
    "pooled": "Scores over all cell types together are not shown: {file} is not there "
    "(written by `perturbdiff evaluate --pooled`).",
    "calibration": "Uncertainty is not judged: {file} is not there. It takes a prediction that numbers its draws (obs "
    "column `draw`), as `perturbdiff predict` writes it.",
}
FILES = (*_RECORDS.values(), _LOG, *(name for name, _ in _TABLES.values()))


@dataclasses.dataclass
class Results:
    """Everything the report draws. A part that is absent is None (frames) or {} (records)."""

    workdir: pathlib.Path
    config: dict = dataclasses.field(default_factory=dict)
    run: dict = dataclasses.field(default_factory=dict)
    summary: dict = dataclasses.field(default_factory=dict)
    log: pd.DataFrame | None = None  # step, kind, time and one column per logged scalar
    metrics: pd.DataFrame | None = None  # one row per (cell_type, perturbation), of the first prediction
    every: pd.DataFrame | None = None  # the same of all predictions with `model`, when they are several
    metrics_all: pd.DataFrame | None = None  # the same with `model`
    de: pd.DataFrame | None = None
    pca: pd.DataFrame | None = None
    umap: pd.DataFrame | None = None
    changes: pd.DataFrame | None = None  # mean changes by condition and gene, of the first prediction
    pooled: pd.DataFrame | None = None  # rows over all cell types together, with `model`
    calibration: pd.DataFrame | None = None  # one row per condition and batch
    absent: dict[str, str] = dataclasses.field(default_factory=dict)  # part -> sentence saying why
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def found(self) -> bool:
        return len(self.absent) < len(_WHY)

    @property
    def models(self) -> dict:
        """{model: {metric: {"mean", "low", "high", "count"}}} of summary.json."""
        models = self.summary.get("models", {})
        return models if isinstance(models, dict) else {}

    @property
    def predictions(self) -> tuple[str, ...]:
        """Names of the models of summary.json that are predictions; the page is about the first."""
        settings = self.summary.get("settings")
        named = settings.get("predictions") if isinstance(settings, dict) else None
        named = named if isinstance(named, dict | list) else ()
        return tuple(name for name in named if isinstance(name, str) and name in self.models) or (OURS,)


def read_results(workdir: pathlib.Path) -> Results:
    """Reads what `workdir` (a run's directory or an evaluation's) holds of `FILES`; raises nothing."""
    results = Results(workdir)
    for part, name in _RECORDS.items():
        _attempt(results, part, name, _read_record)
    for part, (name, columns) in _TABLES.items():
        _attempt(results, part, name, lambda path, columns=columns: _read_table(path, columns))
    if results.metrics is not None and "model" in results.metrics:
        first = results.metrics["model"] == results.predictions[0]
        if first.any():
            results.every = results.metrics
            results.metrics = results.metrics[first].drop(columns="model").reset_index(drop=True)
    _attempt(results, "log", _LOG, lambda path: _read_log(path, results.notes))
    return results


def _attempt(results, part, name, read) -> None:
    path = results.workdir / name
    if not path.is_file():
        results.absent[part] = _WHY[part].format(file=name)
        return
    try:
        setattr(results, part, read(path))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        results.absent[part] = f"{name} is there but could not be read, so this part is left out: {reason}"


def _read_record(path) -> dict:
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, not named values")
    return record


def _read_table(path, needed) -> pd.DataFrame:
    columns = pd.read_csv(path, nrows=0).columns
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"column {missing[0]!r} is missing")
    # Keys stay the text they are: by default "NA" would become a missing value and "1.0" a number.
    keys = [name for name in columns if name in _KEYS]
    blank = {name: ["", "NA", "nan", "NaN"] for name in columns if name not in _KEYS}
    table = pd.read_csv(path, dtype=dict.fromkeys(keys, str), keep_default_na=False, na_values=blank)
    if "cell_type" not in table:
        table.insert(0, "cell_type", "all")
    for name in table.columns.difference(_KEYS):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    if table.empty:
        raise ValueError("it has no rows")
    return table


def _read_log(path, notes) -> pd.DataFrame:
    records, skipped = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, KeyError, TypeError):
            skipped += bool(line.strip())
            continue
        records.append(record)
    if not records:
        raise ValueError("no line of it is a logged step")
    if skipped:
        notes.append(f"{skipped} line(s) of {_LOG} could not be read and are left out.")
    log = pd.DataFrame(records)
    if "kind" not in log:
        log["kind"] = "train"
    for name in log.columns.difference(["kind"]):
        log[name] = pd.to_numeric(log[name], errors="coerce")
    # A resumed run logs some steps twice: the later line is the one whose weights went on.
    return log.drop_duplicates(["kind", "step"], keep="last").sort_values("step", kind="stable")
