"""The evaluated cells as pairs of h5ad files that cell-eval and cell-eval2 take unchanged.

A pair holds what our own scores are made of: the same genes in the same order, the same perturbations in every cell
type, the real control cells on both sides, float32 log1p values, the columns' names as they were given.
"""

import contextlib
import json
import os
import pathlib
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence

import anndata as ad
import pandas as pd

from perturbdiff_jax.errors import RequestError, unknown
from perturbdiff_jax.evaluation.contexts import Context, Prediction, stack
from perturbdiff_jax.evaluation.inputs import Keys

FORMATS = ("cell-eval", "cell-eval2")
REAL_FILE = "real.h5ad"
LIST_FILE = "exported.json"  # the files of a folder that are ours: no other is ever removed


def check_formats(formats: Collection[str]) -> None:
    """Refuses the name of a tool that we do not write for."""
    for name in formats:
        if name not in FORMATS:
            raise unknown("export", name, FORMATS)


def file_of(name: str) -> str:
    """The file of prediction `name` beside REAL_FILE."""
    return f"{name}.pred.h5ad"


def pair_side(
    contexts: Sequence[Context], cells: Mapping[str, Prediction], keys: Keys, prefix: str
) -> ad.AnnData:
    """AnnData [n, G] of `cells[cell type]` per (batch, perturbation), each context's real controls before them.

    X float32 log1p, CSR where that is smaller; obs: the key columns (those of `keys` that are not None). A dose is
    part of the perturbation's label, as in the scores.
    """
    parts, rows = [], []
    for context in contexts:
        groups = {(batch, keys.control): part for batch, part in context.control.items()}
        for (batch, name), part in [*sorted(groups.items()), *sorted(cells[context.cell_type].items())]:
            parts.append(part)
            rows += [(name, context.cell_type, batch)] * part.shape[0]
    x = stack(parts)
    dense_bytes = x.shape[0] * x.shape[1] * 4
    columns = {"perturbation": keys.perturbation, "cell_type": keys.cell_type, "batch": keys.batch}
    table = pd.DataFrame(rows, columns=list(columns))
    names = [f"{prefix}-{i}" for i in range(len(rows))]
    obs = pd.DataFrame(
        {column: pd.Categorical(table[field]) for field, column in columns.items() if column is not None}
    )
    obs.index = pd.Index(names, dtype=object)  # a layout that tools of any age read
    sparse = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes < dense_bytes
    var = pd.DataFrame(index=pd.Index(contexts[0].genes, dtype=object))
    return ad.AnnData(x if sparse else x.toarray(), obs=obs, var=var)


def write_exports(
    output: pathlib.Path,
    formats: Collection[str],
    contexts: Sequence[Context],
    predicted: Mapping[str, Mapping[str, Prediction]],
    keys: Keys,
    echo: Callable[[str], None],
) -> None:
    """Writes `output`/FORMAT/real.h5ad and NAME.pred.h5ad for every prediction; says how to score them there.

    predicted[name][cell type]: cells per (batch, perturbation). Each file is written aside and renamed. What an earlier
    export left in the folder and this one does not write is removed.
    """
    for kind in dict.fromkeys(formats):
        folder = output / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise RequestError(f"export: {folder} is a file; move it away.") from error
        names = {REAL_FILE, *map(file_of, predicted)}
        ours = _listed(folder)
        _write_list(folder, names | ours)  # before the files: one that is killed in between owns up to them
        _write(pair_side(contexts, {c.cell_type: c.real for c in contexts}, keys, "real"), folder / REAL_FILE)
        for name, cells in predicted.items():
            _write(pair_side(contexts, cells, keys, "pred"), folder / file_of(name))
            echo(f"export: {_command(kind, folder, name, keys)}")
        for stale in ours - names:
            (folder / stale).unlink(missing_ok=True)
        _write_list(folder, names)


def _listed(folder: pathlib.Path) -> set[str]:
    """The files that LIST_FILE says are ours; none when it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        names = json.loads((folder / LIST_FILE).read_text())
        if isinstance(names, list):
            return {name for name in names if isinstance(name, str) and _is_ours(name)}
    return set()


def _is_ours(name: str) -> bool:
    return name == REAL_FILE or (name.endswith(file_of("")) and pathlib.PurePath(name).name == name)


def _write_list(folder: pathlib.Path, names: Collection[str]) -> None:
    temporary = folder / f".{LIST_FILE}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(sorted(names), indent=1) + "\n")
    os.replace(temporary, folder / LIST_FILE)


def _write(adata: ad.AnnData, path: pathlib.Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        adata.write_h5ad(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _command(kind: str, folder: pathlib.Path, name: str, keys: Keys) -> str:
    """The command line that scores the pair with the other tool."""
    words = [kind, "run", "-ap", str(folder / file_of(name)), "-ar", str(folder / REAL_FILE)]
    words += ["--pert-col", keys.perturbation]
    if kind == "cell-eval":
        words += ["--control-pert", keys.control]
        words += ["--celltype-col", keys.cell_type] if keys.cell_type else []
    else:  # it knows no cell types: they are scored together, as our pooled rows are
        words += ["--control", keys.control, "--input-type", "lognorm", "--set", "de.backend=pdex"]
    return shlex.join([*words, "-o", str(folder / f"{name}.scores")])
