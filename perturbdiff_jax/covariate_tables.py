"""The embedding files inside a bundle, BUNDLE/embeddings/ROLE-NUMBER.npz: whole, so that new names can be told."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.embeddings.files import read_vectors
from perturbdiff_jax.data.embeddings.registry import Encoding
from perturbdiff_jax.errors import RequestError

FOLDER = "embeddings"


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array as float32."""
    return hashlib.sha256(np.ascontiguousarray(array, np.float32)).hexdigest()


def parts_facts(encoding: Encoding) -> list[dict[str, Any]]:
    """What bundle.json says of each table: name, width, number of names, hash of its vectors."""
    return [
        {"name": name, "width": one.width, "names": len(one.names), "sha256": digest(one.vectors)}
        for name, one in encoding.tables
    ]


def write_encodings(bundle: Path, encodings: dict[str, Encoding]) -> None:
    """Writes the tables of each covariate below a bundle, each aside and renamed."""
    for role, encoding in encodings.items():
        for place, (_, vectors) in enumerate(encoding.tables):
            path = _path(bundle, role, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez_compressed(file, names=np.array(vectors.names), vectors=vectors.vectors)
            os.replace(partial, path)


def stored_encoding(bundle_path: Path, bundle: Bundle, role: str) -> Encoding:
    """The encoding of a covariate with its whole tables; no tables where the bundle has none (converted weights).

    Raises:
      RequestError: a table that is missing, damaged, or another than bundle.json names.
    """
    facts = bundle.tables.get(role, {})
    tables = []
    for place, part in enumerate(facts.get("parts", ())):
        path = _path(Path(bundle_path), role, place)
        vectors = read_vectors(path)
        if digest(vectors.vectors) != part["sha256"]:
            raise RequestError(f"{path}: is not the table {part['name']} that bundle.json names.")
        tables.append((part["name"], vectors))
    return Encoding(bool(facts.get("onehot", not facts)), tuple(tables))


def _path(bundle: Path, role: str, place: int) -> Path:
    return bundle / FOLDER / f"{role}-{place}.npz"
