"""manifest.json of a store: reading it, checking it, and the words in which a store is refused."""

import hashlib
import json
import pathlib

from perturbdiff_jax.data.storage.location import Location, locate
from perturbdiff_jax.errors import RequestError

FORMAT = "perturbdiff-store"
VERSION = 2
MANIFEST = "manifest.json"
EXTRA = "uns/perturbdiff"
LAYOUTS = ("csr", "dense")
NEEDED = (
    "n_cells",
    "nnz",
    "layout",
    "genes",
    "keys",
    "control",
    "perturbations",
    "cell_types",
    "batches",
    "values",
    "groups",
)


def is_store(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with a manifest of ours, of whatever version and state."""
    try:
        return json.loads((path / MANIFEST).read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_manifest(place: Location) -> tuple[dict, str]:
    """The checked manifest of the store at `place` and the sha256 of its bytes.

    Raises RequestError when it is missing, unreadable, incomplete, damaged or of another version.
    """
    folder, where = place.folder, f"{place.path}/{MANIFEST}"
    if folder is not None and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such store"
        raise RequestError(f"{folder}: {what} (a store is a folder made by `perturbdiff prepare`).")
    (content,) = place.read([MANIFEST])
    if content is None and folder is None:
        raise RequestError(
            f"{place.path}: no such store: {MANIFEST} is not there (or it is incomplete, or not ours to see)."
        )
    if content is None:
        raise RequestError(
            f"{folder}: not a store, or an incomplete one: {MANIFEST} is missing.\nRun prepare again."
        )
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise damaged(place.path, f"{MANIFEST} is not valid JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RequestError(f"{where}: not a store of ours (format must be {FORMAT!r}).")
    if manifest.get("version") != VERSION:
        raise RequestError(
            f"{where}: store version {manifest.get('version')!r}; this release reads version {VERSION}. "
            "Run prepare again."
        )
    if manifest.get("complete") is not True:
        raise RequestError(
            f"{where}: the store is incomplete (its writing was broken off). Run prepare again."
        )
    missing = [name for name in NEEDED if name not in manifest]
    if missing:
        raise damaged(place.path, f"{MANIFEST} lacks {', '.join(missing)}")
    if manifest["layout"] not in LAYOUTS:
        raise damaged(
            place.path, f"{MANIFEST} has layout {manifest['layout']!r}, known are {', '.join(LAYOUTS)}"
        )
    return manifest, hashlib.sha256(content).hexdigest()


def manifest_at(path: str | pathlib.Path) -> dict:
    """The checked manifest of the store at a path or URL."""
    return read_manifest(locate(path))[0]


def file_sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged(path: pathlib.Path | str, why: str) -> RequestError:
    return RequestError(f"{path}: the store is damaged: {why}.\nRun prepare again.")
