"""Several stores side by side as the sources of one training: united vocabularies, a code of each source's names.

Unlike an index (storage/merge.py) the cells stay apart: sources have an input layer each, may hold other kinds of
values, and need not agree in what they call a control cell. Perturbations are not told apart here: joined stores are
for marginal pretraining, where a cell is one of a cell type and a batch, whatever was done to it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError, shorten

CONTROL = "control"  # what a cell's perturbation is called where sources have different words for it


class JoinedStores:
    """The group tables of several stores as one, in the codes of their united vocabularies.

    Cell types are united by name; a batch is called SOURCE_BATCH, as batches of different sources are different ones
    even if they have one name. Attributes, as of a Store: path, manifest, genes, perturbations (the control alone),
    cell_types, batches, control, n_cells, groups, measured, is_counts; and names, stores.
    """

    def __init__(self, stores: Mapping[str, Store]):
        """Args:
            stores: by the name of the source, in the order of the input layers.

        Raises:
            RequestError: stores that differ in their genes or in the total that cells are normalised to.
        """
        self.names, self.stores = list(stores), list(stores.values())
        _check_alike(self.stores)
        first = self.stores[0]
        self.path = ", ".join(str(store.path) for store in self.stores)
        self.genes: list[str] = first.genes
        self.control: str = _shared([store.control for store in self.screens]) or CONTROL
        self.perturbations = [self.control]
        self.cell_types = sorted({name for store in self.stores for name in store.cell_types})
        self.batches = [f"{name}_{batch}" for name, store in stores.items() for batch in store.batches]
        self.n_cells = sum(store.n_cells for store in self.stores)
        self.is_counts = all(store.is_counts for store in self.stores)
        self.first_group = np.cumsum([0, *(len(store.groups) for store in self.stores)])
        self._first_cell = np.cumsum([0, *(store.n_cells for store in self.stores)])
        self.groups = self._groups()

    @property
    def screens(self) -> list[Store]:
        """The stores that have perturbed cells."""
        return [store for store in self.stores if is_screen(store)]

    @functools.cached_property
    def codes(self) -> list[dict[str, np.ndarray]]:
        """For each store, by role, the code here of each code there (int32); see loading/mixture.py."""
        kinds = {name: code for code, name in enumerate(self.cell_types)}
        found, before = [], 0
        for store in self.stores:
            found.append(
                {
                    "perturbation": np.zeros(len(store.perturbations), np.int32),
                    "cell_type": np.array([kinds[name] for name in store.cell_types], np.int32),
                    "batch": np.arange(before, before + len(store.batches), dtype=np.int32),
                }
            )
            before += len(store.batches)
        return found

    @functools.cached_property
    def manifest(self) -> dict:
        """Of the manifests what a run's bundle and record ask for."""
        manifests = [store.manifest for store in self.stores]
        values = [manifest["values"] for manifest in manifests]
        roles = manifests[0]["keys"]
        keys = {role: _shared([store.manifest["keys"].get(role) for store in self.stores]) for role in roles}
        keys["perturbation"] = _shared([store.manifest["keys"]["perturbation"] for store in self.screens])
        return {
            "keys": keys,
            "values": {**values[0], "recovered": any(value.get("recovered", False) for value in values)},
            "split": {"name": "as in the sources", **dict(zip(self.names, (m["split"] for m in manifests)))},
            "sources": [source for manifest in manifests for source in manifest["sources"]],
        }

    @functools.cached_property
    def measured(self) -> np.ndarray:
        """bool [files, genes], as of a Store."""
        return np.concatenate([store.measured for store in self.stores])

    def source_of(self, group: int) -> int:
        """The number of the source that a group is of."""
        return int(np.searchsorted(self.first_group, group, side="right") - 1)

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows start..stop-1, numbered through, all of one source: float32 CSR [stop - start, G], log1p."""
        number = int(np.searchsorted(self._first_cell, start, side="right") - 1)
        before = int(self._first_cell[number])
        return self.stores[number].read(start - before, stop - before)

    def _groups(self) -> Groups:
        tables = []
        for number, store in enumerate(self.stores):
            own, codes = store.groups, self.codes[number]
            tables.append(
                dataclasses.replace(
                    own,
                    start=own.start + self._first_cell[number],
                    control=(own.control + self.first_group[number]).astype(np.int32),
                    **{role: table[getattr(own, role)] for role, table in codes.items()},
                )
            )
        fields = [field.name for field in dataclasses.fields(Groups)]
        return Groups(**{name: np.concatenate([getattr(one, name) for one in tables]) for name in fields})


def is_screen(store: Store) -> bool:
    """Whether a store has perturbed cells; the others are RNA-seq alone."""
    return len(store.perturbations) > 1


def _shared(values: Sequence) -> str | None:
    """What all say; None where they differ, or none says anything."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _check_alike(stores: Sequence[Store]) -> None:
    first = stores[0]
    for store in stores[1:]:
        if store.genes != first.genes:
            lost = sorted(set(first.genes) ^ set(store.genes))
            what = f"{len(lost):,} differ: {shorten(lost, 3)}" if lost else "the same in another order"
            raise RequestError(
                f"{store.path}: its genes are not those of {first.path} ({what}).\n"
                "Prepare all sources with one --genes list and --absent-genes zero (`perturbdiff genes` makes one)."
            )
        ours, theirs = (one.manifest["values"]["target_sum"] for one in (store, first))
        if ours != theirs:
            raise RequestError(
                f"{store.path}: cells are normalised to {ours:g}, those of {first.path} to {theirs:g}; prepare all "
                "sources with one --target-sum."
            )
