"""Finetuning: a run begins with the weights of a bundle (`config.init_from`) instead of drawn ones.

    init_layers = keep   the input and output layers too, gene by gene (released: PBMC, on the 12,626 genes)
                = fresh  they are drawn anew, on the same genes (released: Replogle)
                = hvg    they are drawn anew, on other genes (released: Tahoe100M, on its 2,000)

Method 8. Names that both know keep their embeddings; those that are new are drawn. Everything is said.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.bundle import FILE, Bundle, read_bundle
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.finetuning.account import Account
from perturbdiff_jax.finetuning.matching import Names, is_frozen, is_gene_layer, rows_of
from perturbdiff_jax.predict import Opened, open_bundle, with_weights
from perturbdiff_jax.prediction.predictor import Predictor
from perturbdiff_jax.settings import Settings
from perturbdiff_jax.state import TrainState, as_placed, as_stored
from perturbdiff_jax.vocabulary import batch_names, named_source

# Settings of the network that its arrays depend on.
SHAPE = ("width", "depth", "heads", "mlp_ratio", "covariate_width", "norm_of_block_input")


@dataclasses.dataclass(frozen=True)
class Start:
    """The bundle that a run begins with, and how."""

    model: Predictor
    layers: str
    source: int  # its input layer, where it has several

    @classmethod
    def of(cls, settings: Settings) -> "Start | None":
        """None for a run that begins with drawn weights.

        Raises:
          RequestError: no bundle, a network of another shape, an input layer that is not named.
        """
        if not settings.init_from:
            return None
        opened, source = _opened(settings)
        return cls(with_weights(opened), settings.init_layers, source)

    def put_into(self, state: TrainState, bundle: Bundle, settings: Settings) -> tuple[TrainState, Account]:
        """The state before the first step with the bundle's weights in it, and what was taken.

        Raises:
          RequestError: genes that the layers asked for cannot be told for.
        """
        self._check_genes(bundle)
        ours, theirs = Names.of(bundle, settings), Names.of(self.model.bundle, self.model.options)
        # Where several data sets were trained on, a batch is called by its data set as well.
        known = batch_names(self.model.bundle, settings.init_source)
        ours = dataclasses.replace(ours, batch=[known.get(name, name) for name in ours.batch])
        stored, account = as_stored(state), Account(self._where())
        given = _flat(self.model.params)
        leaves, tree = jax.tree.flatten_with_path(stored.params)
        filled = []
        for path, leaf in leaves:
            name = "/".join(key.key for key in path)
            found = self._source_layer(name, given.pop(name, None))
            filled.append(self._filled(name, leaf, found, ours, theirs, account))
        for name, leaf in given.items():
            account.dropped(name, leaf.size)
        params = jax.tree.unflatten(tree, filled)
        ema = jax.tree.map(jnp.copy, params)
        return as_placed(dataclasses.replace(stored, params=params, ema=ema), state), account

    def _filled(self, name: str, leaf: jax.Array, found: Any, ours: Names, theirs: Names, account: Account):
        """The new network's array with what comes from the old one in it."""
        if is_frozen(name):
            account.kept(name, leaf.size, "the run's own vectors")
            return leaf
        if found is None or (self.layers != "keep" and is_gene_layer(name)):
            account.drawn(name, leaf.size)
            return leaf
        rows = rows_of(name, ours, theirs)
        if found.shape != leaf.shape if rows is None else not len(rows.ours):
            account.drawn(name, leaf.size)
            return leaf
        if rows is None:
            account.taken(name, leaf.size, leaf.size)
            return jax.device_put(np.asarray(found, leaf.dtype), leaf.sharding)
        taken = np.take(np.asarray(found, leaf.dtype), rows.theirs, axis=rows.axis)
        account.taken(name, taken.size, leaf.size)

        # Compiled, because other processes hold parts of the array.
        def put(leaf, taken):
            rest = jnp.moveaxis(leaf, rows.axis, 0).at[rows.ours].set(jnp.moveaxis(taken, rows.axis, 0))
            return jnp.moveaxis(rest, 0, rows.axis)

        return jax.jit(put, out_shardings=leaf.sharding)(leaf, taken)

    def _source_layer(self, name: str, found: Any) -> Any:
        """The array of the input layer that is asked for, of several."""
        several = bool(self.model.bundle.sources)
        return found[self.source] if found is not None and several and name.startswith("embed_") else found

    def _check_genes(self, bundle: Bundle) -> None:
        known = set(self.model.bundle.genes)
        new = [gene for gene in bundle.genes if gene not in known]
        where = self._where()
        if self.layers == "keep" and len(new) == len(bundle.genes):
            raise RequestError(
                f"config.init_layers=keep: none of the {len(new):,} genes here ({shorten(bundle.genes, 3)}) is among "
                f"the {len(known):,} of {where} ({shorten(self.model.bundle.genes, 3)}).\nTake config.init_layers=hvg."
            )
        if self.layers == "fresh" and bundle.genes != self.model.bundle.genes:
            raise RequestError(
                f"config.init_layers=fresh: the {len(bundle.genes):,} genes here are not the "
                f"{len(known):,} of {where} in the same order; prepare with its list, or take config.init_layers=hvg."
            )

    def _where(self) -> str:
        return f"{self.model.path} (step {self.model.step:,})"


def covariate_genes(settings: Settings, bundle: Path) -> int:
    """What the bundle of a run has to say of its covariate encoder: 0, or the width that it inherited.

    Weights stay on the disk; the refusals are those of `Start.of`, but for weights that cannot be read.
    """
    if not settings.init_from:
        return 0
    if (bundle / FILE).is_file():
        return read_bundle(bundle).covariate_genes
    theirs = _opened(settings)[0].bundle
    return theirs.covariate_genes or len(theirs.genes)


def _opened(settings: Settings) -> tuple[Opened, int]:
    """The bundle that a run begins with, and the number of its input layer, where it has several.

    Raises:
      RequestError: as `Start.of`.
    """
    opened = open_bundle(settings.init_from)
    asked, there = settings.model, opened.options.model
    for name in SHAPE:
        ours, theirs = getattr(asked, name), getattr(there, name)
        if ours != theirs:
            raise RequestError(
                f"config.model.{name}={ours}: the network of config.init_from={settings.init_from} has {theirs}; "
                f"give config.model.{name}={theirs}, or begin without it."
            )
    sources = opened.bundle.sources
    if settings.init_source and (sources or opened.bundle.datasets):
        return opened, named_source(opened.bundle, settings.init_source)
    if len(sources) > 1 and settings.init_layers == "keep":
        raise RequestError(
            f"config.init_from={settings.init_from} has an input layer for each of {shorten(sources)}; say which in "
            "config.init_source, or take none (config.init_layers=fresh)."
        )
    return opened, 0


def _flat(tree: dict) -> dict[str, Any]:
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
