"""How covariates can be encoded: the names that a config uses, and what is known of the usual embedding files.

An encoding is written `onehot`, `NAME=FILE`, `FILE`, or several of these joined by " + ": their embeddings are added
up. NAME is one of KNOWN, whose widths are checked, or any other word. FILE@NAMES names the rows of a file that has no
names (row_names.py).
"""

import dataclasses
import re
from pathlib import Path

from perturbdiff_jax.data.embeddings.files import Vectors, read_vectors
from perturbdiff_jax.data.embeddings.row_names import split_names
from perturbdiff_jax.errors import RequestError, shorten

ONEHOT = "onehot"


@dataclasses.dataclass(frozen=True)
class Known:
    """A family of embeddings that the field uses."""

    roles: tuple[str, ...]
    what: str
    widths: tuple[int, ...]  # of its published models; () = any


KNOWN = {
    "esm2": Known(
        ("perturbation",), "ESM-2 vectors of proteins (cytokines, genes)", (320, 480, 640, 1280, 2560, 5120)
    ),
    "genept": Known(
        ("perturbation",), "GenePT vectors of gene descriptions (OpenAI text embeddings)", (1536, 3072)
    ),
    "chemberta": Known(
        ("perturbation",),
        "ChemBERTa vectors of drugs (CLS token), keyed by drug, without dose",
        (384, 600, 768),
    ),
    "llm": Known(
        ("perturbation", "cell_type"), "language-model vectors of descriptions of genes or cell types", ()
    ),
}
WIDEST = 16_384
# A plus sign inside a path is none: it stands between spaces, before a name, or behind `onehot`.
_SEPARATOR = re.compile(r"\s+\+\s+|\+(?=\s*(?:onehot\b|[\w-]+=))|(?<=onehot)\+")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How one covariate is told to the network."""

    onehot: bool
    tables: tuple[tuple[str, Vectors], ...] = ()  # (name, file)

    @property
    def name(self) -> str:
        """As a config may spell it, without paths."""
        return " + ".join([ONEHOT] * self.onehot + [name for name, _ in self.tables])


def parts_of(text: str, key: str, role: str) -> list[tuple[str, str]]:
    """(name, path) of each part of an encoding; path "" for one-hot, with @NAMES where they are given. Opens nothing.

    Raises:
      RequestError: an empty part, a known name without a file or for another covariate, a part twice.
    """
    found: list[tuple[str, str]] = []
    for part in _SEPARATOR.split(text):
        name, _, path = part.strip().partition("=")
        name, path = name.strip(), path.strip()
        if not path and name != ONEHOT and name not in KNOWN and (Path(name).suffix or "/" in name):
            name, path = Path(split_names(name)[0]).name.split(".")[0], name
        if not name or (not path and name != ONEHOT):
            files = f"{name}=FILE" if name else "onehot"
            known = "; ".join(f"{key}: {one.what}" for key, one in KNOWN.items() if role in one.roles)
            raise RequestError(
                f"{key}={text!r}: {part.strip()!r} names no file. Allowed are onehot, NAME=FILE (here {files}) and "
                f"sums of them; known names are {known}."
            )
        if name == ONEHOT and path:
            raise RequestError(f"{key}={text!r}: onehot takes no file.")
        if name in KNOWN and role not in KNOWN[name].roles:
            raise RequestError(
                f"{key}={text!r}: {name} ({KNOWN[name].what}) is for {' and '.join(KNOWN[name].roles)}, not for "
                f"{role}."
            )
        if name in [other for other, _ in found]:
            raise RequestError(f"{key}={text!r}: {name} stands there twice.")
        found.append((name, path))
    return found


def read_encoding(text: str, key: str, role: str) -> Encoding:
    """Reads the files that an encoding names.

    Args:
      text: the setting, for instance "onehot + genept=/data/GenePT.pkl".
      key: its name in messages, for instance "config.covariates.perturbation".
      role: "perturbation" or "cell_type".

    Raises:
      RequestError: as `parts_of` and `read_vectors`; a width that the named family does not have.
    """
    tables = []
    for name, path in parts_of(text, key, role):
        if name == ONEHOT:
            continue
        path, names = split_names(path)
        vectors = read_vectors(path, names)
        widths = KNOWN[name].widths if name in KNOWN else ()
        if widths and vectors.width not in widths:
            raise RequestError(
                f"{path}: vectors are {vectors.width} wide; {name} has {shorten(list(map(str, widths)), 8)} (give "
                "other vectors another name)."
            )
        if vectors.width > WIDEST:
            raise RequestError(f"{path}: vectors are {vectors.width} wide; at most {WIDEST} are taken.")
        tables.append((name, vectors))
    return Encoding(any(name == ONEHOT for name, _ in parts_of(text, key, role)), tuple(tables))
