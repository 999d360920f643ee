"""Stores in a bucket and behind a web server: written, read, merged and refused there; no secret is left anywhere."""

import json

import numpy as np
import pytest
import tensorstore as ts
from web import folder_server

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage import location
from perturbdiff_jax.data.storage.copy import copy_store
from perturbdiff_jax.data.storage.location import Location, locate
from perturbdiff_jax.data.storage.merge import merge
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError

SECRET = "this-must-never-be-seen"
OPTIONS = PrepareOptions(
    perturbation_key="pert", control="control", cell_type_key="kind", batch_key="donor", all_genes=True
)


@pytest.fixture(scope="session")
def moto():
    """Address of an S3 server on loopback."""
    server = pytest.importorskip("moto.server", reason="needs the extra [test]").ThreadedMotoServer(
        "127.0.0.1", 0
    )
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(moto, monkeypatch, tmp_path):
    """URL of an empty bucket, named after the test's folder."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    name = tmp_path.name.strip("_").replace("_", "-").lower()[:60]
    boto3.client("s3", region_name="us-east-1", endpoint_url=moto).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def local(build, save, tmp_path):
    """A store in a folder."""
    return prepare([save(build())], tmp_path / "web" / "store", OPTIONS, echo=lambda line: None)


def same(store, local):
    """Everything that a reader sees."""
    assert store.genes == local.genes and store.n_cells == local.n_cells and store.dtypes == local.dtypes
    np.testing.assert_array_equal(store.load().toarray(), local.load().toarray())
    wanted, found = local.fetch([(3, 30), (50, 57)]).result(), store.fetch([(3, 30), (50, 57)]).result()
    np.testing.assert_array_equal(found.data, wanted.data)
    np.testing.assert_array_equal(found.scale, wanted.scale)
    assert store.obs.equals(local.obs)
    cells, truth = store.to_anndata([2, 0]), local.to_anndata([2, 0])
    assert cells.obs_names.tolist() == truth.obs_names.tolist()
    np.testing.assert_array_equal(cells.X.toarray(), truth.X.toarray())


def test_a_bucket_keeps_a_store(bucket, local):
    url = f"{bucket}/screens/one"
    copy_store(local.path, url)
    store = Store.open(url)
    assert store.path == url
    same(store, local)
    assert "sound" in store.verify()
    with pytest.raises(RequestError, match="--overwrite"):
        copy_store(local.path, url)
    copy_store(local.path, f"{url}/", overwrite=True)
    same(Store.open(url), local)


def test_a_broken_copy_is_no_store(bucket, local, monkeypatch):
    url = f"{bucket}/one"
    copy_store(local.path, url)
    locate(url).write("obs/of-the-old-store", b"1")
    write = Location.write

    def unplugged(self, name, content):
        if content is not None and name == "manifest.json":
            raise RequestError("the cable was pulled")
        write(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(RequestError, match="cable"):
        patch.setattr(Location, "write", unplugged)
        copy_store(local.path, url, overwrite=True)
    with pytest.raises(RequestError, match="no such store"):
        Store.open(url)
    assert "obs/of-the-old-store" not in locate(url).names()
    copy_store(local.path, url)
    same(Store.open(url), local)


def test_prepare_writes_to_a_bucket(bucket, build, save, tmp_path, local):
    store = prepare([save(build())], f"{bucket}/made", OPTIONS, echo=lambda line: None)
    assert store.path == f"{bucket}/made"
    same(store, local)


def test_parts_in_a_bucket_are_merged_there(bucket, build, save, tmp_path):
    for number in range(2):
        adata = build(seed=number)
        adata.obs["donor"] = adata.obs["donor"] + f"-{number}"
        prepare([save(adata)], tmp_path / f"part{number}", OPTIONS, echo=lambda line: None)
        copy_store(tmp_path / f"part{number}", f"{bucket}/parts/part{number}")
    here = merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "whole", echo=lambda line: None)
    there = merge([f"{bucket}/parts/part{n}" for n in range(2)], f"{bucket}/whole", echo=lambda line: None)
    assert there.manifest["parts"] == ["../parts/part0", "../parts/part1"]
    np.testing.assert_array_equal(there.load().toarray(), here.load().toarray())
    assert there.obs.equals(here.obs)


def test_no_secret_in_files_or_messages(bucket, local, capfd):
    url = f"{bucket}/one"
    copy_store(local.path, url, echo=print)
    store = Store.open(url)
    said = [store.verify(print), repr(store.place), json.dumps(store.array("X").spec().to_json())]
    for wrong in (f"{bucket}/nothing", "s3://no-such-bucket-here/one", f"s3://somebody:{SECRET}@host/x"):
        with pytest.raises(RequestError) as caught:
            Store.open(wrong)
        said.append(str(caught.value))
    files = locate(url)
    contents = [content for content in files.read(files.names()) if content is not None]
    assert len(contents) > 10
    assert not any(SECRET.encode() in content for content in contents)
    assert SECRET not in "".join([*said, *capfd.readouterr()])


def test_refusals_name_the_address(bucket, monkeypatch):
    def refusal(url):
        with pytest.raises(RequestError) as caught:
            Store.open(url)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert f"{bucket}/nothing: no such store" in refusal(f"{bucket}/nothing")
    assert "no-such-bucket-here" in refusal("s3://no-such-bucket-here/one")
    assert "unknown kind of address" in refusal("ftp://host/x")
    assert "not an address" in refusal("gs://x/y")
    assert "query" in refusal("https://host/x?token=1")
    monkeypatch.setattr(location, "_hasty", lambda: ts.Context(location._retries(1, "1s")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(f"{bucket}/one")
    assert "127.0.0.1:9/x: cannot be reached" in refusal("http://127.0.0.1:9/x/")


def test_a_web_server_is_read_only(local):
    with folder_server(local.path.parent) as (url, asked):
        store = Store.open(f"{url}/store/")
        assert len(asked) < 10 and store.path == f"{url}/store"
        same(store, local)
        assert "sound" in store.verify()
        with pytest.raises(RequestError, match="read only"):
            copy_store(local.path, f"{url}/other")
        with pytest.raises(RequestError, match="no such store"):
            Store.open(f"{url}/other")


def test_file_addresses_are_folders(local):
    store = Store.open(f"file://{local.path}")
    assert store.path == local.path
    same(store, local)
