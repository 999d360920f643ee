"""The files of an evaluation, each written beside its place and renamed at the end: never half-written."""

import json
import math
import os
import pathlib
import platform
from collections.abc import Callable

import pandas as pd

from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.projection import PCA_COLUMNS
from perturbdiff_jax.evaluation.scoring import DE_COLUMNS
from perturbdiff_jax.evaluation.summary import OURS, Summary

METRICS_FILE = "metrics.csv"
ALL_METRICS_FILE = "metrics_all.csv"
SUMMARY_FILE = "summary.json"
DE_FILE = "de.csv.gz"
PCA_FILE = "pca.csv"


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
    rows: pd.DataFrame,
    summary: Summary,
    settings: dict,
    plane: pd.DataFrame,
    changes: pd.DataFrame | None,
) -> None:
    """Writes metrics.csv (ours), metrics_all.csv (all models), summary.json, pca.csv, de.csv.gz to `output`.

    Without `changes` (no cell-eval) there is no de.csv.gz, and one of an earlier evaluation is removed.
    """
    output.mkdir(parents=True, exist_ok=True)
    ours = rows.loc[rows["model"] == OURS, ["cell_type", "perturbation", *METRICS]]
    document = {"versions": package_versions(), "settings": settings, "models": summary}
    text = json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"
    writers: dict[str, Callable[[pathlib.Path], object]] = {
        METRICS_FILE: lambda path: ours.to_csv(path, index=False),
        ALL_METRICS_FILE: lambda path: rows.to_csv(path, index=False),
        PCA_FILE: lambda path: plane[list(PCA_COLUMNS)].to_csv(path, index=False, float_format="%.6g"),
        SUMMARY_FILE: lambda path: path.write_text(text),
    }
    if changes is not None:
        # mtime 0: the same numbers make the same bytes.
        writers[DE_FILE] = lambda path: changes[list(DE_COLUMNS)].to_csv(
            path, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0}
        )
    temporary = {name: output / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        for name, write in writers.items():
            write(temporary[name])
        for name, path in temporary.items():
            os.replace(path, output / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    if changes is None:
        (output / DE_FILE).unlink(missing_ok=True)
