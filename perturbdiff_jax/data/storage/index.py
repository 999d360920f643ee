"""The manifest of an index over several stores (storage/merge.py writes it), opened as one store."""

import os
import pathlib
import posixpath
import urllib.parse

import numpy as np

from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.storage.location import Location
from perturbdiff_jax.data.storage.manifest import damaged
from perturbdiff_jax.data.storage.members import Members, dealt
from perturbdiff_jax.data.storage.view import View
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError

# manifest["members"]: groups of the parts; `group` is the group of the index that they belong to.
MEMBERS = {"part": np.int32, "row": np.int64, "size": np.int64, "group": np.int64}


def open_index(place: Location, manifest: dict) -> View:
    """The view that an index describes; raises RequestError for a part that is missing or has changed."""
    parts = []
    for name, wanted in zip(manifest["parts"], manifest["part_hashes"], strict=True):
        where = place.part(name)
        part = Store.open(where.path)
        if not isinstance(part, Store) or part.manifest_hash != wanted:
            raise RequestError(
                f"{place.path}: its part {where.path} has changed since they were merged. Merge them again."
            )
        parts.append(part)
    groups = Groups.from_json(manifest["groups"])
    stored = {name: np.asarray(manifest["members"][name], dtype=kind) for name, kind in MEMBERS.items()}
    of = stored["group"]
    codes = {role: getattr(groups, role)[of] for role in ("perturbation", "cell_type", "batch", "split")}
    members = Members(**stored, **codes)
    if (np.bincount(of, weights=members.size, minlength=len(groups)) != groups.size).any():
        raise damaged(place.path, "its groups are not those of its parts")
    runs = dealt(members, of, seed=int(manifest["seed"]))
    return View(place.path, manifest, groups, parts=parts, members=members, runs=runs)


def relative(part: Location, index: Location) -> str:
    """How an index names a part: relative where both lie in one place, so that they can move together."""
    if part.folder is not None and index.folder is not None:
        return pathlib.Path(os.path.relpath(part.folder.resolve(), index.folder.resolve())).as_posix()
    if part.folder is not None:
        return part.folder.absolute().as_posix()
    ours, theirs = (urllib.parse.urlsplit(str(place.path)) for place in (index, part))
    if ours[:2] != theirs[:2]:
        return part.path
    return posixpath.relpath(theirs.path or "/", ours.path or "/")
