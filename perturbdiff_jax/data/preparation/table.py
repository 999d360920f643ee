"""The table that `prepare` ends with: cells, groups, sets and padding, split sizes, controls of every
context."""

from collections.abc import Sequence

import numpy as np

from perturbdiff_jax.data.conditions import SPLITS, TEST, TRAIN, VALIDATION
from perturbdiff_jax.data.groups import FALLBACKS
from perturbdiff_jax.data.storage import measured
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import shorten


def padding(sizes: np.ndarray, cells_per_set: int) -> tuple[int, float]:
    """(sets, share of their places filled again) when groups of these sizes are cut into sets."""
    sets = int((-(-sizes // cells_per_set)).sum())
    return sets, 1.0 - float(sizes.sum()) / (sets * cells_per_set) if sets else 0.0


def table(store: Store, *, cells_per_set: int, genes_from: str) -> list[str]:
    """Lines to print about an opened store; `genes_from` says how its genes were chosen."""
    groups, manifest = store.groups, store.manifest
    perturbed = ~groups.is_control
    contexts = sorted(set(zip(groups.cell_type.tolist(), groups.batch.tolist(), strict=True)))
    sets, filled = padding(groups.size[perturbed], cells_per_set)
    values = manifest["values"]
    kind = "log1p values as given"
    if values["encoding"] == "counts":
        total = f"column {values['total_key']!r}" if values["total_key"] else "row sums"
        kind = f"counts, log1p of {values['target_sum']:g} x count / total ({total})"
    if values["recovered"]:
        kind = "log1p values as given, stored as the counts that they were made from"
    split = manifest["split"]
    kinds = _many(len(store.cell_types), "cell type")
    rows = [
        ("cells", f"{store.n_cells:,} ({int(groups.size[perturbed].sum()):,} perturbed)"),
        ("genes", f"{len(store.genes):,} ({genes_from})"),
        *(
            (("measured", "")[bool(n)], text)
            for n, text in enumerate(measured.account(manifest, store.measured))
        ),
        ("values", kind),
        (
            "groups",
            f"{len(groups):,} in {_many(len(contexts), 'context')} ({kinds}, "
            f"{_many(len(store.batches), 'batch')}); {_many(len(store.perturbations) - 1, 'perturbation')} "
            f"and control {store.control!r}",
        ),
        ("sets", f"{sets:,} of {cells_per_set} perturbed cells, padding {filled:.1%}"),
        ("split", split["name"] + (f" ({split['source']})" if split["source"] else "")),
    ]
    lines = [f"store {store.path}", *(f"  {name:<12}{text}" for name, text in rows)]
    lines.append(
        f"  {'':<12}{'cells':>10} {'conditions':>11} {'perturbations':>14} {'sets':>8} {'padding':>8}"
    )
    for code, name in enumerate(SPLITS):
        inside = groups.split == code
        count, share = padding(groups.size[inside], cells_per_set)
        kinds = len(set(groups.perturbation[inside].tolist()))
        lines.append(
            f"  {name:<12}{int(groups.size[inside].sum()):>10,} {int(inside.sum()):>11,} {kinds:>14,} "
            f"{count:>8,} {share:>8.1%}"
        )
    lines += _unseen(store)
    lines += _controls(store, contexts)
    return lines


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("ch") else "s")


def _unseen(store: Store) -> list[str]:
    groups = store.groups
    trained = set(groups.perturbation[groups.split == TRAIN].tolist())
    held = set(groups.perturbation[np.isin(groups.split, (VALIDATION, TEST))].tolist())
    if not held:
        return []
    never = sorted(store.perturbations[code] for code in held - trained)
    text = f"{len(held & trained)} of {len(held)} held-out perturbations are trained in other contexts"
    return [f"  {'held out':<12}{text}" + (f"; never trained: {shorten(never, 6)}" if never else "")]


def _controls(store: Store, contexts: Sequence[tuple[int, int]]) -> list[str]:
    groups = store.groups
    own = {
        (int(groups.cell_type[g]), int(groups.batch[g])): int(groups.size[g])
        for g in np.flatnonzero(groups.is_control)
    }
    name = {pair: f"{store.cell_types[pair[0]]} / {store.batches[pair[1]]}" for pair in contexts}
    sizes = sorted((size, name[pair]) for pair, size in own.items())
    least = f"least {sizes[0][0]:,} ({sizes[0][1]})"
    counts = np.array([size for size, _ in sizes])
    lines = [
        f"  {'controls':<12}{int(counts.sum()):,} cells in {len(sizes)} of {len(contexts)} contexts: "
        f"{least}, median {float(np.median(counts)):,.0f}"
    ]
    for pair in contexts:
        if pair in own:
            continue
        group = int(np.flatnonzero((groups.cell_type == pair[0]) & (groups.batch == pair[1]))[0])
        serving = int(groups.control[group])
        lender = name[(int(groups.cell_type[serving]), int(groups.batch[serving]))]
        lines.append(
            f"  {'fallback':<12}context {name[pair]} has no controls of its own: uses those of {lender} "
            f"({FALLBACKS[groups.fallback[group]]})"
        )
    return lines
