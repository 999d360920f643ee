"""Verifying a store: every kind of damage is found and the damaged file named."""

import hashlib
import json

import numpy as np
import pytest
import tensorstore as ts
from made_stores import copied

from perturbdiff_jax import cli
from perturbdiff_jax.data.storage import verify as store_verify
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError


@pytest.fixture(params=["csr", "dense"])
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where what is prepared once lies; tests get copies."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def store(layout, adata, kept, tmp_path):
    """A store of this layout."""
    return copied(layout, adata, kept, tmp_path)[0]


def problem(store):
    with pytest.raises(RequestError) as caught:
        Store.open(store.path).verify()
    assert str(store.path) in str(caught.value)
    return str(caught.value)


def change(store, name, edit):
    """Changes an array behind the store's back and makes its checksum right again."""
    path = store.path / name
    array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
    values = array.read().result().copy()
    edit(values)
    array.write(values).result()
    cover(store)


def cover(store):
    """Makes all checksums right."""
    manifest = json.loads((store.path / "manifest.json").read_text())
    for file in manifest["checksums"]:
        manifest["checksums"][file] = hashlib.sha256((store.path / file).read_bytes()).hexdigest()
    (store.path / "manifest.json").write_text(json.dumps(manifest))


def test_a_sound_store(store, monkeypatch):
    said = store.verify()
    assert "sound" in said and f"{store.n_cells:,} cells" in said
    monkeypatch.setattr(store_verify, "BLOCK", 40)
    monkeypatch.setattr(store_verify, "QUIET", 0.0)
    lines = []
    store.verify(lines.append)
    assert "files 1 of" in lines[0] and "s left" in lines[0] and "cells" in lines[-1]


def test_a_flipped_byte(store):
    file = next(path for path in sorted((store.path / "X").rglob("c/**/*")) if path.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert f"{file.relative_to(store.path).as_posix()} does not match its checksum" in problem(store)


def test_lost_and_foreign_files(store):
    (store.path / ".DS_Store").write_text("harmless")
    store.verify()
    (store.path / "obs" / "more").write_text("who put this here")
    assert "obs/more is not of this store" in problem(store)
    (store.path / "obs" / "more").unlink()
    next(path for path in (store.path / "uns/perturbdiff/scale/c").iterdir()).unlink()
    assert "uns/perturbdiff/scale/c/0 is missing" in problem(store)


def put(place, value):
    def edit(values):
        values[place] = value

    return edit


@pytest.mark.parametrize("layout", ["csr"])
@pytest.mark.parametrize(
    ("name", "edit", "word"),
    [
        ("X/indptr", put(3, 1), "X/indptr does not rise"),
        ("X/indptr", put(0, 1), "X/indptr does not rise"),
        (
            "uns/perturbdiff/row_nnz",
            lambda v: v.__setitem__(slice(0, 2), (v[0] + 1, v[1] - 1)),
            "row_nnz does not fit",
        ),
        ("X/indices", put(2, 5000), "names gene 5000 of 30"),
        ("X/indices", put(slice(0, 2), (8, 4)), "does not rise inside a row"),
        ("uns/perturbdiff/scale", put(7, np.nan), "scale is not above 0"),
    ],
)
def test_arrays_that_contradict_each_other(store, name, edit, word):
    change(store, name, edit)
    assert word in problem(store)


@pytest.mark.parametrize("layout", ["csr"])
def test_a_manifest_that_contradicts_the_arrays(store):
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["groups"]["pointer"][4] += 1
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    assert "pointers of the groups" in problem(store)


def test_obs_of_another_length(store):
    index = json.loads((store.path / "obs/zarr.json").read_text())["attributes"]["_index"]
    file = next(
        path for path in (store.path / "obs" / index).rglob("zarr.json") if b"shape" in path.read_bytes()
    )
    file.write_text(file.read_text().replace(str(store.n_cells), str(store.n_cells + 1), 1))
    assert "does not match" in problem(store)
    cover(store)
    assert "obs has" in problem(store)


def test_on_the_command_line(store, capsys):
    assert cli.run(["prepare", "--verify", str(store.path)]) == 0
    assert "sound" in capsys.readouterr().out
    (store.path / "var/zarr.json").write_text("{}")
    assert cli.run(["prepare", "--verify", str(store.path)]) == 2
    error = capsys.readouterr().err
    assert (
        "var/zarr.json does not match" in error
        and "Traceback" not in error
        and len(error.strip().splitlines()) <= 2
    )
