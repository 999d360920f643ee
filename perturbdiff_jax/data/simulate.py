"""A simulated perturbation screen with a known truth: the embedded default of the main job.

The world: raw counts of cells from several cell types, batches and perturbations. A perturbation drives a few
gene programs; every cell type answers with programs of its own (gated and rewired); every batch carries a hidden
factor that scales and bends the response. One condition (cell type, perturbation) therefore has a whole family of
response distributions, one for each batch, which is the situation that PerturbDiff is made for. Inside a
population some cells do not respond, programs fluctuate, library sizes spread and small counts drop out.

The model, for cell i of (cell type c, batch b, perturbation p) and gene g:

    z_i      = e_i * R[c, b, p] + xi_i                    program activity [K], e_i in [0, 1] the cell's response
    rate_ig  = share of exp(base[c, g] + shift[b, g] + z_i . loading[:, g])
    count_ig ~ NegativeBinomial(mean = library_i * rate_ig, dispersion_g), then dropout exp(-decay * mean)

It must not know the store, the split or the model: it writes an ordinary h5ad like any user's. The paper's data sets
in small are drawn from the same functions in simulated/.
"""

import dataclasses
import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError, unknown

CONTROL = "control"
# What is simulated: this file's screen, one of the paper's four data sets in small, or all four (simulated/forms.py).
FORMS = ("screen", "cytokines", "drugs", "genes", "rna", "sources")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Size and strength of the simulated screen; the defaults are the quickstart's world."""

    form: str = "screen"
    cell_types: int = 3
    batches: int = 4
    perturbations: int = 24
    genes: int = 500
    programs: int = 16
    cells_per_group: int = 64  # mean; group sizes vary as in real screens
    controls_per_context: int = 160
    library_size: float = 1500.0  # median UMIs per cell over the simulated genes
    effect: float = 1.0  # multiplies every log fold change; 0 is a screen without any response
    hidden: float = 0.5  # strength of the hidden batch factor; 0 makes all batches respond alike
    seed: int = 0

    def __post_init__(self):
        """Refuses unknown forms and sizes that make no screen."""
        if self.form not in FORMS:
            raise unknown("simulate.form", self.form, FORMS)
        for name in ("cell_types", "batches", "perturbations", "genes", "programs", "cells_per_group"):
            if getattr(self, name) < 1:
                raise RequestError(f"simulate.{name}={getattr(self, name)}: must be at least 1.")
        if self.controls_per_context < 2:
            raise RequestError(
                f"simulate.controls_per_context={self.controls_per_context}: must be at least 2."
            )


@dataclasses.dataclass(frozen=True)
class Truth:
    """Expected shares of expression before sampling noise.

    Attributes:
      rate: [C, N, P + 1, G] float64, expected share of each gene for a fully responding cell without program
        noise, by (cell type, batch, perturbation); index 0 of the perturbations is the control. Rows sum to 1.
      response: [C, N, P, K] program activity R[c, b, p] of a fully responding cell.
      loading: [K, G] program loadings, natural-log units.
      drive: [P, K] how much each perturbation drives each program, before cell types and batches make it theirs.
    """

    rate: np.ndarray
    response: np.ndarray
    loading: np.ndarray
    drive: np.ndarray


def draw_loading(rng: np.random.Generator, options: SimulateOptions) -> np.ndarray:
    """Sparse signed loadings [K, G]: each program moves about 6 % of the genes, three quarters of them upwards."""
    shape = (options.programs, options.genes)
    member = rng.random(shape) < 0.06
    sign = np.where(rng.random(shape) < 0.75, 1.0, -1.0)
    return member * sign * rng.lognormal(np.log(1.4), 0.3, shape)


def draw_drive(rng: np.random.Generator, options: SimulateOptions) -> np.ndarray:
    """How much each perturbation drives each program [P, K]: two or three programs, some perturbations weakly."""
    p, k = options.perturbations, options.programs
    drive = np.zeros((p, k))
    for row in range(p):
        chosen = rng.choice(k, size=min(k, int(rng.integers(2, 4))), replace=False)
        drive[row, chosen] = rng.choice([-1.0, 1.0], size=len(chosen), p=[0.3, 0.7])
    return drive * rng.lognormal(0.0, 0.4, (p, 1))


def draw_responses(rng: np.random.Generator, options: SimulateOptions, drive: np.ndarray) -> np.ndarray:
    """Program activities R [C, N, P, K]: drive of the perturbation, wiring of the cell type, bend of the batch."""
    c, n, k = options.cell_types, options.batches, options.programs
    # A cell type lacks some receptors (gate 0), differs in sensitivity, and routes part of a signal elsewhere.
    gate = (rng.random((c, k)) < 0.75) * rng.lognormal(0.0, 0.3, (c, k))
    route = rng.normal(0.0, 1.0, (c, k, k)) * (rng.random((c, k, k)) < 1.5 / k) * 0.7
    wired = np.einsum("pk,ck->cpk", drive, gate) + np.einsum("pj,cjk->cpk", drive, route)
    # The hidden factor: an overall scale, a program-wise bend, and saturation that differs between batches.
    scale = np.exp(options.hidden * rng.uniform(-0.8, 0.8, n))
    bend = 1.0 + options.hidden * rng.uniform(-0.8, 0.8, (n, k))
    knee = 1.0 + options.hidden * rng.uniform(0.0, 2.0, n)
    bent = scale[None, :, None, None] * bend[None, :, None, :] * wired[:, None]
    saturated = bent / (1.0 + np.abs(bent) / (2.5 * knee[None, :, None, None]))
    return options.effect * saturated


def shares(log_rate: np.ndarray) -> np.ndarray:
    """Turns log rates [..., G] into shares that sum to 1 over genes."""
    rate = np.exp(log_rate - log_rate.max(axis=-1, keepdims=True))
    return rate / rate.sum(axis=-1, keepdims=True)


def _group_counts(
    rng: np.random.Generator,
    log_base: np.ndarray,
    response: np.ndarray | None,
    loading: np.ndarray,
    dispersion: np.ndarray,
    depth: float,
    cells: int,
) -> np.ndarray:
    """Raw counts [cells, G] of one group; `response` None for control cells."""
    activity = rng.normal(0.0, 0.25, (cells, loading.shape[0]))
    if response is not None:
        # About one cell in eight ignores the perturbation, the others respond to a varying degree.
        degree = rng.beta(6.0, 1.5, cells) * (rng.random(cells) > 0.12)
        activity = activity + degree[:, None] * response
    mean = shares(log_base + activity @ loading) * rng.lognormal(np.log(depth), 0.35, (cells, 1))
    shape = 1 / dispersion
    counts = rng.poisson(rng.gamma(shape, mean / shape))
    counts *= rng.random(counts.shape) > 0.3 * np.exp(-1.5 * mean)
    # A droplet without any molecule is never called a cell: give it one molecule of its commonest gene.
    empty = counts.sum(axis=1) == 0
    counts[empty, mean.argmax(axis=1)[empty]] = 1
    return counts


@dataclasses.dataclass(frozen=True)
class Population:
    """What cells are drawn from, with the names that they get.

    Attributes:
      log_base, response, loading: [C, N, G] log rates of control cells, [C, N, P, K], [K, G].
      dispersion, depth: [G]; [N], median molecules of a cell.
      columns: obs columns of perturbation (names: the control first), cell type and batch.
      present: [C, N] bool, contexts that have cells; None = all.
    """

    log_base: np.ndarray
    response: np.ndarray
    loading: np.ndarray
    dispersion: np.ndarray
    depth: np.ndarray
    perturbations: list[str]
    cell_types: list[str]
    batches: list[str]
    genes: list[str]
    columns: tuple[str, str, str] = ("perturbation", "cell_type", "batch")
    present: np.ndarray | None = None

    def truth(self, drive: np.ndarray) -> Truth:
        """What is known of these cells."""
        activity = np.pad(self.response, ((0, 0), (0, 0), (1, 0), (0, 0)))
        rate = shares(self.log_base[:, :, None, :] + activity @ self.loading)
        return Truth(rate=rate, response=self.response, loading=self.loading, drive=drive)


def draw_cells(rng: np.random.Generator, options: SimulateOptions, world: Population) -> anndata.AnnData:
    """Draws the cells of every group of `world`, in no order: X = raw counts (CSR float32, [cells, G])."""
    names, blocks, labels = world.perturbations, [], []
    for i, cell_type in enumerate(world.cell_types):
        for j, batch in enumerate(world.batches):
            if not (world.present is None or world.present[i, j]):
                continue
            drawn = rng.lognormal(np.log(options.cells_per_group), 0.3, len(names))
            sizes = np.maximum(8, drawn.astype(int))
            sizes[0] = options.controls_per_context
            for q, cells in enumerate(sizes):
                effect = None if q == 0 else world.response[i, j, q - 1]
                own = world.log_base[i, j], effect, world.loading, world.dispersion, world.depth[j]
                counts = _group_counts(rng, *own, cells)
                blocks.append(sp.csr_matrix(counts, dtype=np.float32))
                labels += [(names[q], cell_type, batch)] * cells
    # Cells of a real file come in no useful order; neither do these.
    order = rng.permutation(len(labels))
    obs = pd.DataFrame(labels, columns=list(world.columns)).iloc[order]
    obs.index = [f"cell{i:06d}" for i in range(len(order))]
    return anndata.AnnData(
        X=sp.vstack(blocks, format="csr")[order],
        obs=obs.astype("category"),
        var=pd.DataFrame(index=world.genes),
    )


def simulate(options: SimulateOptions) -> tuple[anndata.AnnData, Truth]:
    """Draws the screen (obs columns `perturbation`, `cell_type`, `batch`) and the truth behind it.

    The same options give the same cells.
    """
    rng = np.random.default_rng(options.seed)
    c, n, p, g = options.cell_types, options.batches, options.perturbations, options.genes
    loading = draw_loading(rng, options)
    drive = draw_drive(rng, options)
    response = draw_responses(rng, options, drive)
    base = rng.normal(0.0, 1.1, g) + rng.normal(0.0, 0.8, (c, g)) * (rng.random((c, g)) < 0.25)
    shift = rng.normal(0.0, 0.12, (n, g))
    dispersion = rng.lognormal(np.log(0.25), 0.4, g)
    world = Population(
        log_base=base[:, None, :] + shift[None, :, :],
        response=response,
        loading=loading,
        dispersion=dispersion,
        depth=options.library_size * rng.lognormal(0.0, 0.15, n),
        perturbations=[CONTROL] + [f"P{i + 1:02d}" for i in range(p)],
        cell_types=[f"T{i + 1}" for i in range(c)],
        batches=[f"B{j + 1}" for j in range(n)],
        genes=[f"GENE{i + 1:04d}" for i in range(g)],
    )
    return draw_cells(rng, options, world), world.truth(drive)


def embeddings_of(truth: Truth, *, width: int = 32, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """Vectors [P, width] float32 that know what perturbations do: their drive through a random matrix, and `noise`."""
    rng, k = np.random.default_rng(seed), truth.drive.shape[1]
    seen = truth.drive @ rng.normal(0.0, 1.0 / np.sqrt(k), (k, width))
    return (seen + noise * seen.std() * rng.normal(size=seen.shape)).astype(np.float32)


def write_simulated(options: SimulateOptions, path: str | Path) -> Path:
    """Simulates the screen and writes the h5ad."""
    return write_h5ad(simulate(options)[0], Path(path))


def write_h5ad(adata: anndata.AnnData, path: Path) -> Path:
    """Writes the file aside, then renames it, so that a broken run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    adata.write_h5ad(partial, compression="gzip")
    os.replace(partial, path)
    return path
