"""What the genes of every file given to `prepare` are called: by var's index or a column of it, turned by a table.

The rules are those of `perturbdiff genes` (gene_naming/). A gene list is never turned: it says which names are wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbdiff_jax.data.gene_naming.source_names import open_map, usable_names
from perturbdiff_jax.data.preparation.labels import Labels
from perturbdiff_jax.data.storage.manifest import file_sha256

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions


def name_genes(
    labels: Labels, options: PrepareOptions, echo: Callable[[str], None]
) -> tuple[Labels, dict[str, Any] | None]:
    """(labels with `gene_names` settled, manifest["gene_names"]); as they are, and None, without --gene-key and --map.

    Raises RequestError for a table that cannot be read or fits no name, and for a file without any usable name.
    """
    if options.gene_key is None and options.map is None:
        return labels, None
    table = open_map(options.map, options.map_to, echo)
    names = []
    for file, listed in zip(labels.files, labels.gene_names, strict=True):
        names.append(np.array(usable_names(file, list(listed), table, echo), dtype=object))
    account: dict[str, Any] = {"gene_key": options.gene_key, "map": None}
    if table is not None:
        digest = file_sha256(options.map)
        account["map"] = {"path": table.path, "sha256": digest, "from": table.other, "to": table.wanted}
    return dataclasses.replace(labels, gene_names=names), account
