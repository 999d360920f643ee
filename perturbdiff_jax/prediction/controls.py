"""Control cells of a request in the bundle's genes, and those of a store; those of a file are in control_file.py."""

import dataclasses

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.groups import FALLBACKS, resolve_controls
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.vocabulary import batch_names


@dataclasses.dataclass(frozen=True)
class ControlCells:
    """Control cells by context, log1p-normalised, columns in the bundle's gene order."""

    cells: dict[tuple[str, str], sp.csr_matrix]  # (cell type, batch) -> [C, G] float32
    names: dict[tuple[str, str], list[str]]  # the cells' names
    # Batches that the file calls otherwise than the bundle: the bundle's name -> the file's.
    spelling: dict[str, str] = dataclasses.field(default_factory=dict)

    def resolve(self, cell_type: str, batch: str) -> tuple[tuple[str, str], str]:
        """The context whose controls serve (cell type, batch), and the rule that found it.

        Own context; else another cell type of the same batch; else the same cell type of another batch; else any.
        """
        contexts = list(self.cells)
        if (cell_type, batch) in self.cells:
            return (cell_type, batch), FALLBACKS[0]
        kinds = pd.factorize(np.array([k for k, _ in contexts] + [cell_type], dtype=object))[0]
        places = pd.factorize(np.array([b for _, b in contexts] + [batch], dtype=object))[0]
        is_control = np.array([True] * len(contexts) + [False])
        sizes = np.array([m.shape[0] for m in self.cells.values()] + [0])
        serving, rule = resolve_controls(kinds, places, is_control, sizes)
        return contexts[serving[-1]], FALLBACKS[rule[-1]]


def check_store(store: Store, bundle: Bundle) -> None:
    """Raises RequestError when the cells of `store` are not in the bundle's genes and unit."""
    check_gene_names(bundle)
    if store.genes != bundle.genes:
        lost = [gene for gene in bundle.genes if gene not in set(store.genes)]
        what = f"lacks {shorten(lost, 3)}" if lost else "other genes besides, or another order"
        raise RequestError(
            f"{store.path}: its genes are not those of the bundle ({what}).\n"
            "Prepare it with --genes BUNDLE/bundle.json --absent-genes zero."
        )
    ours, theirs = bundle.values["target_sum"], store.manifest["values"]["target_sum"]
    if ours != theirs:
        raise RequestError(
            f"{store.path}: cells are normalised to {theirs:g}, those of the bundle to {ours:g}; prepare it with "
            f"--target-sum {ours:g}."
        )


def from_store(
    store: Store, bundle: Bundle | None = None, *, source: str | None = None, named: bool = True
) -> ControlCells:
    """All control cells of a store; batches get the names that `bundle` has for them, those of `source` if given.

    Without `named` the cells' own names are not read, which takes a while for millions.
    """
    groups, cells, names = store.groups, {}, {}
    known = batch_names(bundle, source) if bundle is not None else {}
    spelling = {}
    for g in np.flatnonzero(groups.is_control):
        label = store.batches[groups.batch[g]]
        context = (store.cell_types[groups.cell_type[g]], known.get(label, label))
        spelling[context[1]] = label
        start, stop = int(groups.start[g]), int(groups.start[g] + groups.size[g])
        cells[context] = store.read(start, stop)
        names[context] = list(store.obs_of([(start, stop)]).index.astype(str)) if named else []
    return ControlCells(cells, names, spelling)


def check_gene_names(bundle: Bundle) -> None:
    """Raises RequestError for converted weights whose genes were never named."""
    if bundle.origin.get("gene_names") is False:
        raise RequestError(
            "The bundle has no gene names, so genes of a file cannot be matched: convert it again with --genes."
        )
