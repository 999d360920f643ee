"""What a run trains on, step by step: the sets of one store, or of several sources in fixed shares."""

import jax
from jax.sharding import Mesh

from perturbdiff_jax import sharding
from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.mixture import PERIOD, Mixture
from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.storage.subset import without_held_out
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.training_cells import grouping_of
from perturbdiff_jax.settings import Settings

LEAST_SHARE = 2 / PERIOD  # of the sets, for a source whose weight nobody gave


def training_sets(settings: Settings, store: Store | JoinedStores, mesh: Mesh) -> SetSource | Mixture:
    """The stream of this process's sets on a mesh: `sets[step]` is a batch.

    Raises:
      RequestError: as `data.loader.SetSource` and `data.loading.mixture.Mixture`.
    """
    options = settings.loader.source_options(jax.default_backend())
    sets = settings.loader.sets_per_batch
    common = {
        "split": "train",
        "seed": settings.seed,
        "rows": sharding.rows_here(mesh, sets),
        "blocks": len(sharding.rows_here(mesh, sharding.runs_of(mesh))),
    }
    if not isinstance(store, JoinedStores):
        # A small share fits into memory where all cells that are held out may not.
        kept = store if settings.data.fraction == 1 else without_held_out(store)
        return SetSource(kept, **common, **options)
    if settings.loader.densify == "auto" and _kinds(store) > 1:
        # A packed batch is of one kind of values.
        options["densify"] = "host"
    for name in ("memory", "control_memory"):
        options[name] /= len(store.stores)
    sources = [
        SetSource(one, **common, **options | {"group_by": grouping_of(one, settings.loader.group_by)})
        for one in store.stores
    ]
    given = settings.data.shares()
    cells = [source.n_cells for source in sources]
    weights = [given[name] for name in store.names] if given else shares_by_cells(cells)
    return Mixture(sources, weights, sets_per_batch=sets, seed=settings.seed, codes=store.codes)


def shares_by_cells(cells: list[int]) -> list[float]:
    """A weight for each source: its cells, but at least LEAST_SHARE of all."""
    return [max(count, LEAST_SHARE * sum(cells)) for count in cells]


def _kinds(store: JoinedStores) -> int:
    """How many kinds of stored values the sources hold."""
    return len({(one.is_counts, one.is_dense) for one in store.stores})
