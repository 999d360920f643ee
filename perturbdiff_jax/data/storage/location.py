"""Where a store lies: a folder, or a URL that tensorstore's key-value stores open (s3, gs, http, https, file).

Endpoint and region of S3 come from the usual environment (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION,
AWS_DEFAULT_REGION). Credentials are found by tensorstore itself, in the environment or the clouds' own files;
they are never in a spec, a manifest or a message, and an address that carries some is refused.
"""

import dataclasses
import functools
import os
import pathlib
import posixpath
import re
import urllib.parse
from collections.abc import Iterator, Sequence

import tensorstore as ts

from perturbdiff_jax.errors import RequestError

SCHEMES = ("s3", "gs", "http", "https", "file")


@dataclasses.dataclass(frozen=True)
class Location:
    """A place with files by relative name. Network faults of all methods come out as RequestError."""

    path: pathlib.Path | str  # as given: a Path, or the URL without a slash at its end
    kvstore: dict  # tensorstore's spec, its path ending in "/"

    @property
    def folder(self) -> pathlib.Path | None:
        """The folder, None for a remote place."""
        return self.path if isinstance(self.path, pathlib.Path) else None

    def spec(self, name: str) -> dict:
        """Key-value store spec of the part below `name`."""
        return {**self.kvstore, "path": f"{self.kvstore['path']}{name}/"}

    def open_array(self, name: str) -> ts.Future:
        """Future of the zarr v3 array `name`, for reading; a fault is a ValueError of tensorstore."""
        spec = {"driver": "zarr3", "kvstore": self.spec(name)}
        # Shards of a remote store keep their index in memory; a local one is quicker without.
        context = None if self.folder else _patient()
        return ts.open(spec, open=True, read=True, recheck_cached_data="open", context=context)

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """The files' content, None where there is no such file; all are asked for at once."""
        files = self.files()
        with self.explained():
            results = [future.result() for future in [files.read(name) for name in names]]
        return [bytes(found.value) if found.state == "value" else None for found in results]

    def write(self, name: str, content: bytes | None) -> None:
        """Writes one file; None takes it away."""
        with self.explained():
            self.files(patient=True).write(name, content).result()

    def names(self) -> list[str]:
        """Names of all files below, sorted; plain HTTP cannot tell them."""
        with self.explained():
            return sorted(name.decode() for name in self.files().list().result())

    def part(self, relative: str) -> "Location":
        """Another place by its name relative to this one, or by a full path or URL."""
        if "://" in relative or posixpath.isabs(relative):
            return locate(relative)
        if self.folder is not None:
            return locate(os.path.normpath(self.folder / relative))
        scheme, _, rest = self.path.partition("://")
        return locate(f"{scheme}://{posixpath.normpath(posixpath.join(rest, relative))}")

    def explained(self) -> "_Explained":
        """Context that turns tensorstore's errors into one line with the address."""
        return _Explained(self.path)

    def files(self, *, patient: bool = False) -> ts.KvStore:
        """The opened key-value store, for many files at once (under `explained`)."""
        context = None if self.folder else _patient() if patient else _hasty()
        with self.explained():
            return ts.KvStore.open(self.kvstore, context=context).result()


class _Explained:
    def __init__(self, path: pathlib.Path | str):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (ValueError, OSError, NotImplementedError)) and not isinstance(
            error, RequestError
        ):
            raise RequestError(f"{self.path}: cannot be reached ({reason(error)}).") from error


def reason(error: Exception) -> str:
    """What tensorstore says went wrong, in a line and without its long specs."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return re.split(r" \[(?:tensorstore_spec|source|curl)", text)[0][:240]


def is_url(path: object) -> bool:
    """Whether `path` is an address with a scheme rather than a folder."""
    return isinstance(path, str) and "://" in path


def locate(path: str | pathlib.Path) -> Location:
    """The place named by a path or URL; nothing is touched. Raises RequestError for an address it cannot take."""
    if not is_url(path):
        path = pathlib.Path(path)
        return Location(path, {"driver": "file", "path": path.absolute().as_posix().rstrip("/") + "/"})
    parts = urllib.parse.urlsplit(path)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}".rstrip("/")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RequestError(
            f"{shown}: an address with a user, a password or a query is not taken. "
            "Credentials come from the environment."
        )
    if parts.scheme == "file" and not parts.netloc:
        return locate(pathlib.Path(urllib.parse.unquote(parts.path)))
    if parts.scheme not in SCHEMES:
        raise RequestError(f"{path}: unknown kind of address. Allowed: a folder, {', '.join(SCHEMES)}.")
    path = path.rstrip("/")
    if parts.scheme == "s3":
        kvstore = {"driver": "s3", "bucket": parts.netloc, "path": parts.path.strip("/"), **_s3_service()}
    else:
        try:
            kvstore = ts.KvStore.Spec(path).to_json()
        except ValueError as error:
            raise RequestError(f"{path}: not an address of a store ({reason(error)}).") from error
    prefix = kvstore.get("path", "").rstrip("/")
    return Location(path, {**kvstore, "path": f"{prefix}/" if prefix or parts.scheme == "http" else ""})


def _s3_service() -> dict:
    found = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    # Named, so that no other source of credentials is asked first (each logs its failure). The secret stays put.
    environment = {"type": "environment"} if os.environ.get("AWS_ACCESS_KEY_ID") else None
    found["aws_credentials"] = environment
    return {
        name: value.rstrip("/") if name == "endpoint" else value for name, value in found.items() if value
    }


def _retries(most: int, longest: str) -> dict:
    rule = {"max_retries": most, "initial_delay": "250ms", "max_delay": longest}
    return {f"{kind}_request_retries": rule for kind in ("http", "s3", "gcs")}


@functools.cache
def _hasty() -> ts.Context:
    """For the first look at a place: a wrong address should be said within seconds."""
    return ts.Context(_retries(3, "1s"))


@functools.cache
def _patient() -> ts.Context:
    """For what has begun, cells of a run or files of a copy: an outage of minutes is waited for."""
    return ts.Context({**_retries(16, "32s"), "cache_pool": {"total_bytes_limit": 64 * 1024 * 1024}})


def files_of(folder: pathlib.Path) -> Iterator[str]:
    """Relative names of all files below a folder, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return iter(sorted(path.relative_to(folder).as_posix() for path in found))
