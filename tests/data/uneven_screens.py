"""A screen whose groups differ in size, as one store or as two merged ones, and its cells by name."""

import numpy as np

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage.merge import MergeOptions, merge

OPTIONS = {
    "perturbation_key": "pert",
    "control": "control",
    "cell_type_key": "kind",
    "batch_key": "donor",
    "all_genes": True,
}
# P3 is rare: one training cell in a context.
KEPT = {"control": (20, 11, 7, 5), "P1": (40, 3, 25, 12), "P2": (1, 30, 8, 20), "P3": (1, 9, 1, 1)}
HELD_OUT = {"fraction": 0.4, "context": {"batch": "b2"}, "validation_fraction": 0.3, "seed": 1}


def silent(line):
    pass


def screen(build, seed=0):
    """AnnData with KEPT[perturbation][context] cells."""
    adata = build(cells=40, seed=seed)
    contexts = list(
        dict.fromkeys(zip(*(adata.obs.sort_values(["kind", "donor"])[k] for k in ("kind", "donor"))))
    )
    rows = []
    for name, sizes in KEPT.items():
        for (kind, donor), size in zip(contexts, sizes):
            mine = (adata.obs["pert"] == name) & (adata.obs["kind"] == kind) & (adata.obs["donor"] == donor)
            rows += np.flatnonzero(mine)[:size].tolist()
    adata = adata[np.sort(rows)].copy()
    adata.obs_names = [f"s{seed}-{name}" for name in adata.obs_names]
    return adata


def prepared(build, folder, seed=0, **options):
    """The screen as one store."""
    folder.mkdir(parents=True, exist_ok=True)
    screen(build, seed).write_h5ad(folder / f"{seed}.h5ad")
    options = {"holdout": HELD_OUT} | options
    return prepare(
        [folder / f"{seed}.h5ad"], folder / f"s{seed}", PrepareOptions(**OPTIONS, **options), echo=silent
    )


def merged(build, folder):
    """Two such screens of other cells as one store."""
    for seed in (0, 1):
        prepared(build, folder, seed)
    options = MergeOptions(holdout=HELD_OUT)
    return merge([folder / "s0", folder / "s1"], folder / "all", options, echo=silent)


def named_groups(store):
    """{(perturbation, cell type, batch, split code): cell names in the store's order}, from obs alone."""
    obs, found = store.obs, {}
    split = np.repeat(store.groups.split, store.groups.size)
    for name, *facts in zip(obs.index, obs["pert"], obs["kind"], obs["donor"], split.tolist()):
        found.setdefault(tuple(facts), []).append(name)
    return found
