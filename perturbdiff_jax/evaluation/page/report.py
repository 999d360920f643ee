"""The report: one HTML file that opens offline, from what a working directory holds.

Owns the order of the sections and the writing of the file. It reads results (run_files), never computes
scores, and leaves out with a sentence whatever is not there.
"""

import os
import pathlib
import tempfile
import time

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation.page import (
    conditions,
    glossary,
    lookup,
    markup,
    metric_tables,
    picture_sections,
    run_files,
    sections,
    uncertainty,
)

_ORDER = (
    sections.verdict_section,
    sections.run_section,
    metric_tables.metrics_section,
    picture_sections.radar_section,
    picture_sections.curves_section,
    conditions.conditions_section,
    picture_sections.cells_section,
    picture_sections.genes_section,
    lookup.lookup_section,
    uncertainty.uncertainty_section,
    sections.rows_section,
)


def write_report(workdir: str | os.PathLike, output: str | os.PathLike | None = None) -> pathlib.Path:
    """Writes the report of a run (or of an evaluation alone) as one HTML file and returns its path.

    The page holds run facts, a verdict in words, the metric table with intervals, radar, learning curves,
    conditions against any other model, cells in one PCA and one UMAP, recovery of differential expression, genes and
    perturbations to look up, the spread of draws and a searchable table.
    Figures need matplotlib (the extra `[eval]`); without it the tables are still there.

    Args:
      workdir: directory with any of `run_files.FILES`.
      output: the file to write; `workdir`/report.html when None. Missing parents are made.

    Raises:
      RequestError: `workdir` is not a directory, holds nothing to report, or `output` cannot be written.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise RequestError(
            f"report: {workdir} is not a directory.\nGive the --workdir of a run or an evaluation."
        )
    target = pathlib.Path(output) if output is not None else workdir / "report.html"
    results = run_files.read_results(workdir)
    if not results.found:
        names = ", ".join(run_files.FILES)
        raise RequestError(
            f"report: nothing to report in {workdir}; train or evaluate first.\nRead are: {names}."
        )
    name = workdir.resolve().name
    made = time.strftime("%Y-%m-%d %H:%M")
    with glossary.about(results.predictions):
        text = markup.page(f"PerturbDiff: {name}", f"Report of {made}", [build(results) for build in _ORDER])
    return _write(target, text)


def _write(target: pathlib.Path, text: str) -> pathlib.Path:
    if target.is_dir():
        raise RequestError(f"report: --output {target} is a directory.\nGive the name of a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise RequestError(f"report: cannot write {target}: {error.strerror}.") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target
