"""The files of an evaluation, each written beside its place and renamed at the end: never half-written.

A file that this evaluation does not make is removed if an earlier one left it: the files of a directory agree.
"""

import json
import math
import os
import pathlib
import platform
from collections.abc import Callable, Mapping

import pandas as pd

from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.calibration import COLUMNS as CALIBRATION_COLUMNS
from perturbdiff_jax.evaluation.mean_changes import COLUMNS as CHANGE_COLUMNS
from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.model_rows import ModelRows
from perturbdiff_jax.evaluation.neighbourhood import UMAP_COLUMNS
from perturbdiff_jax.evaluation.projection import PCA_COLUMNS
from perturbdiff_jax.evaluation.scoring import DE_COLUMNS

METRICS_FILE = "metrics.csv"
ALL_METRICS_FILE = "metrics_all.csv"
SUMMARY_FILE = "summary.json"
POOLED_FILE = "metrics_pooled.csv"
DE_FILE = "de.csv.gz"
PCA_FILE = "pca.csv"
UMAP_FILE = "umap.csv"
CHANGES_FILE = "mean_changes.csv.gz"
CALIBRATION_FILE = "calibration.csv"
_TABLES = {
    DE_FILE: DE_COLUMNS,
    PCA_FILE: PCA_COLUMNS,
    UMAP_FILE: UMAP_COLUMNS,
    CHANGES_FILE: CHANGE_COLUMNS,
    CALIBRATION_FILE: CALIBRATION_COLUMNS,
}


def package_versions() -> dict[str, str | None]:
    """Versions that the numbers depend on."""
    import numpy
    import scipy

    return {
        **celleval.versions(),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }


def _plain(value):
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def write_all(
    output: pathlib.Path,
    found: ModelRows,
    summaries: Mapping[str, object],
    settings: dict,
    tables: Mapping[str, pd.DataFrame | None],
) -> None:
    """Writes metrics.csv, metrics_all.csv, summary.json and, where they exist, the other tables.

    metrics.csv has the rows of the predictions, with a column `model` when they are several; metrics_all.csv those of
    all models; metrics_pooled.csv those over all cell types together; de.csv.gz the first prediction's genes. `tables`
    by the name of their file, about the first prediction: PCA_FILE, UMAP_FILE, CHANGES_FILE, CALIBRATION_FILE; None or
    without rows is no file. `summaries` go into summary.json beside `settings`, whose "predictions" name the
    predictions.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = list(settings["predictions"])
    columns = ["model"] * (len(names) > 1) + ["cell_type", "perturbation", *METRICS]
    ours = found.rows.loc[found.rows["model"].isin(names), columns]
    document = {"versions": package_versions(), "settings": settings, **summaries}
    text = json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"
    writers: dict[str, Callable[[pathlib.Path], object]] = {
        METRICS_FILE: lambda path: ours.to_csv(path, index=False),
        ALL_METRICS_FILE: lambda path: found.rows.to_csv(path, index=False),
        SUMMARY_FILE: lambda path: path.write_text(text),
    }
    for name, columns in _TABLES.items():
        table = found.changes if name == DE_FILE else tables.get(name)
        if table is not None and len(table):
            writers[name] = lambda path, table=table[list(columns)]: _write_table(table, path)
    if found.pooled is not None:
        pooled = found.pooled[["model", "perturbation", *METRICS]]
        writers[POOLED_FILE] = lambda path: pooled.to_csv(path, index=False)
    temporary = {name: output / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        for name, write in writers.items():
            write(temporary[name])
        for name, path in temporary.items():
            os.replace(path, output / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    for name in {*_TABLES, POOLED_FILE} - set(writers):
        (output / name).unlink(missing_ok=True)


def _write_table(table: pd.DataFrame, path: pathlib.Path) -> None:
    # mtime 0: the same numbers make the same bytes. The temporary name does not end like the file's.
    packed = {"method": "gzip", "compresslevel": 5, "mtime": 0} if ".csv.gz." in path.name else None
    table.to_csv(path, index=False, float_format="%.6g", compression=packed)
