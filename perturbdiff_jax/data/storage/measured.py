"""Which of a store's genes each of its source files measures: a gene that a file lacks is not a gene that is zero.

The cells of a file that lacks a gene hold zeros for it, as nothing else fits into a matrix. manifest["measured"] keeps
the two apart: {"sets": masks of genes, packed bits as hexadecimal text, each once; "of_source": the mask of each of
manifest["sources"], by number}. Stores made before it was written say nothing: their genes count as measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from perturbdiff_jax.data.storage.manifest import damaged
from perturbdiff_jax.errors import shorten

MOST_LINES = 10  # of an account, one for each source


def written(masks: np.ndarray) -> dict[str, Any]:
    """manifest["measured"] for `masks`, bool [sources, genes]."""
    packed = [mask_text(mask) for mask in masks]
    sets = list(dict.fromkeys(packed))
    return {"sets": sets, "of_source": [sets.index(text) for text in packed]}


def mask_text(mask: np.ndarray) -> str:
    """bool [genes] as hexadecimal text."""
    return np.packbits(np.asarray(mask, dtype=bool)).tobytes().hex()


def mask_of(text: str, genes: int) -> np.ndarray:
    """The bool [genes] of `mask_text`; raises ValueError for a text of another length or form."""
    packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    if len(packed) != -(-genes // 8):
        raise ValueError(f"a mask of {8 * len(packed)} bits for {genes} genes")
    return np.unpackbits(packed, count=genes).astype(bool)


def measured_of(manifest: Mapping[str, Any], path: object) -> np.ndarray:
    """bool [sources, genes] of a manifest, all True where it says nothing; RequestError when it is damaged."""
    genes, sources = len(manifest["genes"]), len(manifest.get("sources") or [None])
    kept = manifest.get("measured")
    if kept is None:
        return np.ones((sources, genes), dtype=bool)
    try:
        sets = np.array([mask_of(text, genes) for text in kept["sets"]], dtype=bool)
        masks = sets[np.asarray(kept["of_source"], dtype=np.int64)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(path, f"which genes are measured cannot be read ({error})") from error
    if len(masks) != sources:
        raise damaged(path, f"measured genes of {len(masks)} sources, but {sources} are listed")
    return masks


def account(manifest: Mapping[str, Any], masks: np.ndarray) -> list[str]:
    """What a store's table says about `masks`, bool [sources, genes]: nothing without a list where all is measured.

    Genes measured and their share are the shared genes and shared ratio of the paper's Table 3: of the genes that were
    listed, or else of the store's.
    """
    listed = manifest.get("gene_list")
    if listed is None and masks.all():
        return []
    count, what = (len(manifest["genes"]), "genes") if listed is None else (listed["listed"], "listed genes")

    def share(number: int) -> str:
        return f"{number:,} of {count:,} {what} ({number / count:.1%})"

    own = masks.sum(axis=1).tolist()
    if len(own) == 1:
        return [share(own[0])]
    lines = [
        f"{share(int(masks.any(axis=0).sum()))} by any of {len(own):,} files, {int(masks.all(axis=0).sum()):,} by all"
    ]
    paths = [source["path"] for source in manifest["sources"]]
    if len(own) <= MOST_LINES:
        return lines + [f"{share(number)}: {path}" for number, path in zip(own, paths, strict=True)]
    ranked = sorted(zip(own, paths, strict=True))
    (least, poorest), (most, richest) = ranked[0], ranked[-1]
    return [*lines, f"least {share(least)}: {poorest}", f"most {share(most)}: {richest}"]


def zeros_that_say_nothing(masks: np.ndarray, genes: list[str]) -> tuple[list[str], list[str]]:
    """(genes that no source measures, genes that only some sources measure) of `masks`, bool [sources, genes]."""
    some, all_of_them = masks.any(axis=0), masks.all(axis=0)
    names = np.array(genes, dtype=object)
    return names[~some].tolist(), names[some & ~all_of_them].tolist()


def told(names: list[str]) -> str:
    """A count with examples, for messages."""
    return f"{len(names):,} gene{'s' * (len(names) != 1)} ({shorten(names, 3)})"
