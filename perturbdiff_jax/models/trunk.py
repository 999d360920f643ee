"""How the parameters of the repeated blocks lie in memory; the values are the same.

    stacked      `blocks` holds leaves [L, ...], for a loop over layers; checkpoints and bundles are always so
    written out  `blocks` holds a tree for each layer, by its number, for blocks that are written out one after the
                 other: slices of a stack would be copied in every step, and their gradients put together again

Both kinds can be inside any tree: parameters, averages, moments, a whole training state.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

NAME = "blocks"


def layers(blocks: dict, count: int | None = None) -> list[dict]:
    """The leaves of each layer, from either kind. A number without axes belongs to every layer.

    `count` is the number of layers, for a stack of nothing but such numbers.
    """
    if _is_written_out(blocks):
        return [blocks[str(number)] for number in range(len(blocks))]
    count = count or _count(blocks)
    return [
        jax.tree.map(lambda leaf, i=number: leaf[i] if leaf.ndim else leaf, blocks) for number in range(count)
    ]


def written_out(tree: Any) -> Any:
    """The tree with a tree for each layer."""
    if is_written_out(tree):
        return tree
    found = []
    _mapped(lambda blocks: found.append(_count(blocks)), tree)
    count = max(found, default=0)
    return _mapped(lambda blocks: {str(i): layer for i, layer in enumerate(layers(blocks, count))}, tree)


def stacked(tree: Any) -> Any:
    """The tree with leaves [L, ...]."""

    def stack(first, *rest):
        return jnp.stack([first, *rest]) if first.ndim else first

    return _mapped(lambda blocks: jax.tree.map(stack, *layers(blocks)), tree)


def stacked_shapes(tree: Any) -> Any:
    """Shapes and, where leaves have one, shardings of `stacked`: the new axis is whole."""

    def stack(first, *rest):
        sharding, shape = first.sharding, first.shape
        if shape:
            shape = (1 + len(rest), *shape)
            if isinstance(sharding, NamedSharding):
                sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        return jax.ShapeDtypeStruct(shape, first.dtype, sharding=sharding)

    return _mapped(lambda blocks: jax.tree.map(stack, *layers(blocks)), tree)


def is_written_out(tree: Any) -> bool:
    """Whether a tree has blocks that are written out."""
    found = []
    _mapped(lambda blocks: found.append(_is_written_out(blocks)), tree)
    return any(found)


def _count(blocks: dict) -> int:
    return max((leaf.shape[0] for leaf in jax.tree.leaves(blocks) if leaf.ndim), default=0)


def _is_written_out(blocks: dict) -> bool:
    return "0" in blocks


def _mapped(change, tree: Any) -> Any:
    """`change` of every `blocks` in a tree."""

    def holds(node) -> bool:
        return isinstance(node, dict) and NAME in node

    return jax.tree.map(
        lambda node: {**node, NAME: change(node[NAME])} if holds(node) else node, tree, is_leaf=holds
    )
