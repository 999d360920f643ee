"""Copying a store to another place, the manifest last: a copy that was broken off is never taken for a store."""

import os
import pathlib
import time
from collections.abc import Callable, Sequence

import tensorstore as ts

from perturbdiff_jax.data.storage.location import Location, locate
from perturbdiff_jax.data.storage.manifest import FORMAT, MANIFEST, read_manifest
from perturbdiff_jax.errors import RequestError

TOGETHER = 64 * 1024 * 1024  # bytes on their way at once; one file may be larger
QUIET = 5.0  # seconds between two lines of progress


def check_target(target: str | pathlib.Path, *, overwrite: bool) -> Location:
    """The place `target`; raises RequestError if it cannot be written to or holds what may not be replaced."""
    place = locate(target)
    if place.kvstore["driver"] == "http":
        raise RequestError(f"{place.path}: cannot be written to; http(s) addresses are read only.")
    (content,) = place.read([MANIFEST])
    if content is not None and FORMAT.encode() not in content:
        raise RequestError(
            f"{place.path}: holds a {MANIFEST} that is not a store's, so it is left alone. "
            "Choose another --output."
        )
    if content is not None and not overwrite:
        raise RequestError(
            f"{place.path}: exists already. Give --overwrite to replace it, or another --output."
        )
    return place


def copy_store(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    overwrite: bool = False,
    echo: Callable[[str], None] | None = None,
) -> None:
    """Copies the store in the folder `source` to a folder or URL, file by file, the manifest last.

    An older store at `target` loses its manifest first, and the files that the new one does not have. Raises
    RequestError as `check_target` does, for an index (its parts lie elsewhere), and when writing fails.
    """
    folder, place = pathlib.Path(source), check_target(target, overwrite=overwrite)
    manifest, _ = read_manifest(locate(folder))
    if "parts" in manifest:
        raise RequestError(f"{folder}: an index over other stores; copy its parts and merge them there.")
    names = sorted(manifest["checksums"])
    old = [name for name in place.names() if name not in {*names, MANIFEST}]
    place.write(MANIFEST, None)
    files = place.files(patient=True)
    waiting: list[tuple[ts.Future, int]] = []
    sizes = {name: os.path.getsize(folder / name) for name in names}
    done, said = 0, time.monotonic()
    with place.explained():
        for name in names:
            while waiting and sum(size for _, size in waiting) + sizes[name] > TOGETHER:
                future, size = waiting.pop(0)
                future.result()
                done += size
            waiting.append((files.write(name, (folder / name).read_bytes()), sizes[name]))
            if echo is not None and time.monotonic() - said > QUIET:
                said = time.monotonic()
                echo(f"{place.path}: {done / 2**20:,.0f} of {sum(sizes.values()) / 2**20:,.0f} MiB copied")
        for future, _ in waiting:
            future.result()
    _remove(place, old)
    place.write(MANIFEST, (folder / MANIFEST).read_bytes())


def _remove(place: Location, names: Sequence[str]) -> None:
    for name in names:
        place.write(name, None)
