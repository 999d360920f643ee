"""Trees of arrays on disk, by Orbax: written in the background, read back with suspicion, against a fingerprint.

Orbax notices missing and truncated files. Other bytes in the middle of an array it hands out as weights: its storage
keeps no checksum of values. So a fingerprint of every tree is taken on the devices, where it is cheap, and kept beside
the arrays. It does not depend on how arrays are cut over devices.
"""

import gc
import inspect
import logging
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from perturbdiff_jax import processes
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.sharding import path_of

# Neither damage nor anything that older files would cure.
NO_MEMORY = (MemoryError, jax.errors.JaxRuntimeError)
_filtered: dict = {}  # the hook that `_deaf_to_late_answers` has installed

# What fails in Orbax's threads is raised in ours, at the next save at the latest; Orbax prints a traceback as well.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))


class Damaged(ValueError):
    """What lies on the disk is not what was saved."""


def fingerprint(tree: Any) -> int:
    """32 bits of all values of a tree of arrays and of their places; any single change changes it.

    A sum, modulo 2**32, of every word mixed with its place (the last steps of MurmurHash3).
    """
    return int(_fingerprint(tree))


@jax.jit
def _fingerprint(tree: Any) -> jax.Array:
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        total = total * np.uint32(31) + _sum(jnp.asarray(leaf))
    return total


@jax.jit  # so that parameters and their moments, alike in shape, are traced and compiled once
def _sum(x: jax.Array) -> jax.Array:
    return _mixed(_words(x)).sum(dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * min(4, x.dtype.itemsize)}").astype(jnp.uint32)


def _mixed(words: jax.Array) -> jax.Array:
    place, stride = jnp.zeros_like(words), 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place, stride = place + iota * np.uint32(stride % 2**32), stride * words.shape[axis]
    x = words + place * np.uint32(0x9E3779B9)
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return x ^ x >> 16


def writer() -> ocp.AsyncCheckpointer:
    """Writes checkpoints of the items `ema` and `train` (PyTreeSave), `metrics` and `run` (JsonSave)."""
    _deaf_to_late_answers()
    arrays = ocp.type_handlers.create_type_handler_registry(
        # Where one process writes everything, cutting whole arrays up among its devices only costs time.
        (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=processes.count() > 1)),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("metrics", ocp.args.JsonSave, ocp.JsonCheckpointHandler(filename="metrics"))
    for item in ("ema", "train"):
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)
        registry.add(item, ocp.args.PyTreeSave, handler)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(handler_registry=registry))


def verify(name: str, tree: Any, expected: int | None) -> None:
    """Raises Damaged when the tree has another fingerprint; None stands for one that was never taken."""
    if expected not in (None, fingerprint(tree)):
        raise Damaged(f"{name}: other values than were saved")


def read(folder: Path, like: Any) -> Any:
    """The tree in `folder`, placed as `like`, on whatever mesh it was written. No process waits for another.

    Args:
      folder: an item of a checkpoint.
      like: arrays, or shapes with shardings; without a sharding a leaf goes to this process's first device.

    Raises:
      Damaged: missing, cut short or of other shapes; the message says what.
      RequestError: may not be read.
      MemoryError, JaxRuntimeError: no room for it.
    """
    try:
        _check_shapes(folder, like)
        shapes = jax.tree.map(_shape, like)
        return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(shapes))
    except Exception as error:
        reason = _reason(error, folder)
    _hush()
    raise Damaged(f"{folder.name}: {reason}")


def _check_shapes(folder: Path, like: Any) -> None:
    """Looked at before anything is read: it is quicker, and tells more."""
    kept = ocp.StandardCheckpointHandler().metadata(folder)
    kept = {name: leaf.shape for name, leaf in _leaves(getattr(kept, "tree", kept))}
    for name, leaf in _leaves(like):
        if kept.get(name) != leaf.shape:
            raise Damaged(f"{name} has shape {kept.get(name)}, the settings ask for {leaf.shape}")


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by the names of their path: on the disk tuples and records are dicts."""
    return [(path_of(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)


def _reason(error: BaseException, folder: Path) -> str:
    """What was wrong, in a few words; raises what is no damage."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = (str(chain[-1]).splitlines() or [""])[0].split(" [")[0]
    # The folder is named by whoever tells of it.
    text = (
        re.sub(r" (in OCDBT database )?at local file \"[^\"]*\"", "", text)[:160] or type(chain[-1]).__name__
    )
    if any(isinstance(one, NO_MEMORY) for one in chain):
        raise error
    if isinstance(chain[-1], PermissionError) or "PERMISSION_DENIED" in text:
        raise RequestError(f"{folder}: cannot be read ({text}).") from None
    return text


def _deaf_to_late_answers() -> None:
    """Reads and writes that break off leave others behind, which would speak up when they end or are collected."""
    heard = sys.unraisablehook
    if heard is _filtered.get("hook"):
        return

    def hook(unraisable) -> None:
        left = inspect.iscoroutine(unraisable.object) or "Event loop is closed" in str(unraisable.exc_value)
        if not left:
            heard(unraisable)

    sys.unraisablehook = _filtered["hook"] = hook


def _hush() -> None:
    """Collects now, in silence, what a read that broke off has left behind."""
    _deaf_to_late_answers()
    log = logging.getLogger("asyncio")
    log.disabled, was = True, log.disabled
    gc.collect()
    log.disabled = was
