"""Simulated data sets in the form of the paper's: cytokines (PBMC), drugs (Tahoe100M), genes (Replogle), RNA-seq.

All are drawn in one world, which the seed and the sizes of SimulateOptions decide: the genes, their programs, and for
every cell type, by its name, what its cells express. A data set has perturbations and batch effects of its own and
measures most of the genes, not all. The columns, labels and contexts are such that its shipped hold-out applies.

    log rate of a control cell = base[g] + own[cell type, g] + offset[data set, g] + shift[data set, batch, g]
"""

import ast
import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from perturbdiff_jax.data.simulate import (
    CONTROL,
    Population,
    SimulateOptions,
    Truth,
    draw_cells,
    draw_drive,
    draw_loading,
    draw_responses,
    write_h5ad,
    write_simulated,
)
from perturbdiff_jax.data.simulated import names

UNMEASURED = 0.08  # share of the genes that a data set lacks
STUDIES = 3  # of the RNA-seq data, each with as many donors as a screen has batches
COVERAGE = 0.4  # share of the cell types that an RNA-seq batch has
TARGET_SUM = 1e4  # of the values that arrive normalised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """How a data set names its cells."""

    source: str  # the data set, its split file and its file among `sources`
    perturbation: str | None  # obs column; None = no cell is perturbed
    cell_type: str
    batch: str
    control: str = ""
    normalised: bool = False  # values arrive as log1p of shares of TARGET_SUM

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of config.data under which a run reads it."""
        columns = {"cell_type_key": self.cell_type, "batch_key": self.batch}
        return {"perturbation_key": self.perturbation, "control": self.control} | columns


FORMS = {
    "cytokines": Form(
        source="pbmc", perturbation="cytokine", cell_type="cell_type", batch="donor", control="PBS"
    ),
    "drugs": Form(
        source="tahoe100m",
        perturbation="drugname_drugconc",
        cell_type="cell_line",
        batch="plate",
        control="[('DMSO_TF', 0.0, 'uM')]",
    ),
    "genes": Form(
        source="replogle",
        perturbation="gene",
        cell_type="cell_line",
        batch="gem_group",
        control="non-targeting",
        normalised=True,
    ),
    "rna": Form(source="cellxgene", perturbation=None, cell_type="cell_type", batch="batch"),
}


def keys_of(form: str) -> dict[str, Any]:
    """The keys of config.data that simulated cells of `form` bring along."""
    if form not in FORMS:
        return {"control": CONTROL}
    return FORMS[form].keys | {"unperturbed": FORMS[form].perturbation is None}


def _generator(options: SimulateOptions, *words: str) -> np.random.Generator:
    """A stream of its own for everything that has a name, so that no draw moves another."""
    return np.random.default_rng([options.seed, *(zlib.crc32(word.encode()) for word in words)])


def _contexts(form: str, options: SimulateOptions) -> tuple[list[str], list[str]]:
    """(cell types, batches) of a data set."""
    if form == "rna":
        # Everybody else's cell types, and some that no screen has.
        others = [name for other in FORMS if other != "rna" for name in _contexts(other, options)[0]]
        own = names.some("cell_types", names.TISSUE_CELLS, options)
        donors = range(options.batches)
        batches = [f"study{i + 1}_donor{j + 1}" for i in range(STUDIES) for j in donors]
        return [*others, *own], batches
    split = names.split_content(FORMS[form].source)
    if form == "cytokines":
        donors = names.contexts("batches", split["holdout_batches"], names.DONORS, options)
        return names.some("cell_types", names.BLOOD_CELLS, options), donors
    lines, batches = {
        "drugs": (names.CANCER_LINES, names.PLATES),
        "genes": (names.SCREENED_LINES, names.GEM_GROUPS),
    }[form]
    held_out = split["holdout_cell_types"]
    return names.contexts("cell_types", held_out, lines, options), names.some("batches", batches, options)


def _drive(form: str, options: SimulateOptions, labels: list[str]) -> np.ndarray:
    """How much each perturbation drives each program [P, K]; doses of a drug drive the same ones, higher ones more."""
    rng = _generator(options, form, "drive")
    if form != "drugs":
        return draw_drive(rng, dataclasses.replace(options, perturbations=max(1, len(labels))))[: len(labels)]
    told = [ast.literal_eval(label)[0] for label in labels]
    drugs = list(dict.fromkeys(drug for drug, _, _ in told))
    drive = draw_drive(rng, dataclasses.replace(options, perturbations=len(drugs)))
    half = rng.lognormal(np.log(0.3), 0.5, len(drugs))  # dose of half the effect, micromolar
    rows = [(drugs.index(drug), dose) for drug, dose, _ in told]
    return np.stack([drive[row] * 1.5 * dose / (dose + half[row]) for row, dose in rows])


def simulate_form(options: SimulateOptions, form: str | None = None) -> tuple[anndata.AnnData, Truth]:
    """Draws the cells of a data set (of `options.form` when None), and the truth behind them.

    The same options give the same cells, whether the data set is asked for alone or as one of `sources`.

    Raises:
      RequestError: more or fewer perturbations or contexts than the form has names for.
    """
    form = form or options.form
    kind = FORMS[form]
    labels = names.perturbations(kind.source, options) if kind.perturbation else []
    cell_types, batches = _contexts(form, options)
    c, n, g = len(cell_types), len(batches), options.genes
    world, own = _generator(options, "world"), _generator(options, form, "cells")
    loading, base = draw_loading(world, options), world.normal(0.0, 1.1, g)
    dispersion = world.lognormal(np.log(0.25), 0.4, g)
    expressed = np.stack([_expressed(options, name) for name in cell_types])
    log_base = base + expressed[:, None, :] + own.normal(0.0, 0.15, g) + own.normal(0.0, 0.12, (n, g))
    drive = _drive(form, options, labels)
    sizes = dataclasses.replace(options, cell_types=c, batches=n)
    response = draw_responses(own, sizes, drive)
    measured = own.random(g) >= UNMEASURED
    measured[own.integers(g)] = True
    population = Population(
        log_base=log_base[:, :, measured],
        response=response,
        loading=loading[:, measured],
        dispersion=dispersion[measured],
        depth=options.library_size * own.lognormal(0.0, 0.15, n),
        perturbations=[kind.control, *labels],
        cell_types=cell_types,
        batches=batches,
        genes=[f"GENE{i + 1:04d}" for i in np.flatnonzero(measured)],
        columns=(kind.perturbation or CONTROL, kind.cell_type, kind.batch),
        present=None if kind.perturbation else _covered(own, c, n),
    )
    if not kind.perturbation:  # nothing but control cells, in groups as large as those of a perturbation
        sizes = dataclasses.replace(sizes, controls_per_context=max(2, options.cells_per_group))
    adata = draw_cells(own, sizes, population)
    if not kind.perturbation:
        del adata.obs[CONTROL]
    if kind.normalised:
        total = np.asarray(adata.X.sum(axis=1)).ravel()
        adata.X = (adata.X.multiply(TARGET_SUM / total[:, None]).tocsr()).log1p().astype(np.float32)
    return adata, population.truth(drive)


def _expressed(options: SimulateOptions, cell_type: str) -> np.ndarray:
    """What sets a cell type apart, [G] natural-log units; a name means the same in every data set."""
    rng = _generator(options, "cell type", cell_type)
    return rng.normal(0.0, 0.8, options.genes) * (rng.random(options.genes) < 0.25)


def _covered(rng: np.random.Generator, cell_types: int, batches: int) -> np.ndarray:
    """Which cell types a batch has, [C, N] bool: every batch has one, every cell type is in one."""
    covered = rng.random((cell_types, batches)) < COVERAGE
    covered[rng.integers(cell_types, size=batches), np.arange(batches)] = True
    covered[np.arange(cell_types), rng.integers(batches, size=cell_types)] = True
    return covered


def write_form(options: SimulateOptions, path: str | Path) -> Path:
    """Simulates what `options.form` says and writes the h5ad."""
    if options.form == "screen":
        return write_simulated(options, path)
    return write_h5ad(simulate_form(options)[0], Path(path))


def write_split(split: str | Path, options: SimulateOptions, form: str, output: Path) -> Path:
    """The hold-out file `split` as far as the simulated data set has its names; they are fewer than the real one's.

    A file of another kind is returned as it is.
    """
    try:
        content = json.loads(Path(split).read_text())
        held_out = content["holdout_perturbations"]
    except (OSError, ValueError, KeyError, TypeError):
        return Path(split)  # whoever reads it says what is wrong with it
    kind = FORMS[form]
    cell_types, batches = map(set, _contexts(form, options))
    labels = set(names.perturbations(kind.source, options))
    content["holdout_perturbations"] = {
        part: [name for name in dict.fromkeys(listed) if name in labels] for part, listed in held_out.items()
    }
    for key, there in (("holdout_cell_types", cell_types), ("holdout_batches", batches)):
        content[key] = [name for name in content.get(key, []) if name in there]
    partial = output.with_name(output.name + ".partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(output)
    return output
