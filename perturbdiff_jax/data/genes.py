"""Which genes a store keeps: highly variable ones by scanpy's definition, a list from a file, or all.

Highly variable means `scanpy.pp.highly_variable_genes(flavor="seurat", n_top_genes=n)` on log1p-normalised
values: dispersion = variance / mean of expm1(x) per gene, log taken, centred and scaled within 20 bins of the
log mean expression, the n largest kept. Mean and variance come from preparation/moments.py.
"""

import csv
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.data.preparation.moments import Moments
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.pickles import Record, read_pickle

BINS = 20  # scanpy's n_bins
GENE_COLUMNS = (
    "gene",
    "genes",
    "gene_name",
    "gene_names",
    "gene_symbol",
    "symbol",
    "feature_name",
    "var_names",
)


def normalised_dispersions(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Seurat's normalised dispersion, float64 [genes]; NaN where a gene does not vary."""
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    with np.errstate(invalid="ignore"):  # rounding can leave a constant gene a tiny negative variance
        table = pd.DataFrame({"dispersion": np.log(dispersion), "mean": np.log1p(mean)})
    groups = table.groupby(pd.cut(table["mean"], bins=BINS), observed=True)["dispersion"]
    centre, spread = groups.transform("mean"), groups.transform("std")
    alone = spread.isna()  # one varying gene in its bin: its normalised dispersion is 1
    spread = spread.where(~alone, centre)
    centre = centre.where(~alone, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((table["dispersion"] - centre) / spread).to_numpy()


def highly_variable(moments: Moments, count: int) -> np.ndarray:
    """Mask [genes] of the `count` most variable genes; ties at the cut are all kept, as scanpy does.

    `count` at or above the number of genes selects all of them.
    """
    if count < 1:
        raise RequestError(f"--hvg {count}: allowed are 1 or more genes.")
    if count >= len(moments.total):
        return np.ones(len(moments.total), dtype=bool)
    dispersions = normalised_dispersions(*moments.mean_and_variance())
    known = np.sort(dispersions[~np.isnan(dispersions)])[::-1]
    if not len(known):
        raise RequestError(
            "No gene varies over the training cells, so none can be selected (use --all-genes)."
        )
    cut = known[min(count, len(known)) - 1]
    return np.nan_to_num(dispersions, nan=-np.inf) >= cut


def read_gene_list(path: str | pathlib.Path, *, flag: str = "--genes") -> list[str]:
    """Reads gene names from a text file (one a line), .csv/.tsv (a gene column or the first), .json or .pkl.

    JSON: a list, or an object with a list under "genes" (a task file). Pickle: a list, a tuple or a numpy array
    keeps its order, a set is sorted; it is read as data, nothing in it is executed. Raises RequestError naming
    the file, and `flag`, the option that it was given with.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise RequestError(f"{path}: no such file ({flag} takes a text, csv, tsv, json or pkl file).")
    suffix = file.suffix.lower()
    pickled = suffix in (".pkl", ".pickle")
    names = _from_pickle(path, file.read_bytes()) if pickled else _from_text(path, file, suffix, flag)
    if not names:
        raise RequestError(f"{path}: the gene list is empty.")
    twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(twice):
        raise RequestError(f"{path}: {len(twice)} gene(s) listed more than once: {shorten(twice, 3)}.")
    return names


def _from_text(path: object, file: pathlib.Path, suffix: str, flag: str) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not a text file ({flag} takes text, csv, tsv, json or pkl).") from error
    if suffix == ".json":
        return _from_json(path, text)
    if suffix in (".csv", ".tsv"):
        return _from_table(csv.reader(text.splitlines(), delimiter="\t" if suffix == ".tsv" else ","))
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _from_pickle(path: object, data: bytes) -> list[str]:
    content = read_pickle(data, where=str(path))
    if isinstance(content, np.ndarray):
        if content.ndim != 1:
            raise RequestError(f"{path}: an array of shape {content.shape}; a list of gene names is needed.")
        content = content.tolist()
    if not isinstance(content, list | tuple | set | frozenset):
        found = content.named if isinstance(content, Record) else type(content).__name__
        raise RequestError(
            f"{path}: holds a {found}; a list, set or array of gene names (strings) is needed."
        )
    others = sorted({type(name).__name__ for name in content if not isinstance(name, str)})
    if others:
        raise RequestError(f"{path}: gene names are strings; among these is {shorten(others, 3)}.")
    return sorted(content) if isinstance(content, set | frozenset) else list(content)


def _from_json(path: object, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}: not valid JSON ({error}).") from error
    if isinstance(content, dict):
        if "genes" not in content:
            raise RequestError(f'{path}: no list of genes under the key "genes" (keys: {shorten(content)}).')
        content = content["genes"]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise RequestError(f"{path}: a list of gene names (strings) is needed.")
    return content


def _from_table(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in GENE_COLUMNS if name in header), None)
    body = rows if column is None else rows[1:]
    return [row[column or 0].strip() for row in body if len(row) > (column or 0) and row[column or 0].strip()]


def match_genes(wanted: Sequence[str], present: Sequence[str], *, source: str, file: str) -> np.ndarray:
    """Positions in `present` of the genes of `wanted` that are there, in the list's order; int64.

    The order is the list's, so that stores made with one list agree gene by gene. Raises RequestError when no
    gene of the list is in the file.
    """
    positions = pd.Index(present).get_indexer(pd.Index(wanted))
    if (positions < 0).all():
        raise RequestError(
            f"{source}: none of its {len(wanted)} genes ({shorten(wanted, 3)}) is in {file}, "
            f"which has {len(present)} genes ({shorten(present, 3)}).\n"
            "Allowed: names as the file spells them; --gene-key takes a column of var, --map turns ids and symbols."
        )
    return positions[positions >= 0].astype(np.int64)
