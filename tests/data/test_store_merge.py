"""Several stores as one by an index: the same cells, groups, controls and splits as one store of all files."""

import json
import shutil

import numpy as np
import pytest
from made_stores import OPTIONS

from perturbdiff_jax import cli
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage.merge import MergeOptions, merge
from perturbdiff_jax.data.storage.view import View, regroup
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError

CONTEXTS = [(("T", "b1"), ("B", "b1")), (("T", "b2"), ("N", "b2")), (("T", "b1"), ("A", "b0"))]


def silent(line):
    pass


def made(inputs, output, **options):
    return prepare(inputs, output, PrepareOptions(**{**OPTIONS, **options}), echo=silent)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where what is prepared once lies; tests get copies."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def files(build, kept):
    """Three files: other contexts, other perturbations, one without controls in a context, one sparse."""
    paths = [kept / f"{number}.h5ad" for number in range(3)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        adata = build(
            contexts=CONTEXTS[number], perturbations=("control", "P1", f"Q{number}"), cells=12, seed=number
        )
        if number == 1:
            lacking = (adata.obs["kind"] == "N") & (adata.obs["pert"] == "control")
            adata = adata[~lacking].copy()
        if number == 2:
            adata.X = adata.X.multiply(np.arange(30) % 4 == 0).tocsr()
        adata.obs_names = [f"f{number}-{name}" for name in adata.obs_names]
        adata.write_h5ad(path)
    return paths


@pytest.fixture
def parts(files, kept, tmp_path):
    """A store of each file, two dense ones and a sparse one."""
    for number, file in enumerate(files):
        if not (kept / "parts" / f"s{number}").exists():
            store = made([file], kept / "parts" / f"s{number}")
            assert store.is_dense == (number < 2)
    shutil.copytree(kept / "parts", tmp_path / "parts")
    return [tmp_path / "parts" / f"s{number}" for number in range(3)]


def by_name(store):
    """(cell name -> its expression, cell name -> the names of its group and of the group's controls)."""
    expression, groups = store.load().toarray(), store.groups
    rows, labels = {}, {}

    def named(group):
        return (
            store.perturbations[groups.perturbation[group]],
            store.cell_types[groups.cell_type[group]],
            store.batches[groups.batch[group]],
        )

    for group in range(len(groups)):
        facts = (
            named(group),
            named(groups.control[group]),
            int(groups.fallback[group]),
            int(groups.split[group]),
        )
        for row in range(int(groups.start[group]), int(groups.start[group] + groups.size[group])):
            name = store.obs.index[row].split(":")[-1]
            rows[name], labels[name] = expression[row], facts
    return rows, labels


def test_an_index_is_as_one_store_of_all_files(files, parts, tmp_path):
    rule = {"fraction": 0.5, "context": {"batch": "b1"}, "seed": 3}
    whole = made(files, tmp_path / "whole", holdout=rule)
    index = merge([tmp_path / "parts"], tmp_path / "index", MergeOptions(holdout=rule), echo=silent)
    assert isinstance(index, View) and sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        "manifest.json"
    ]
    for name in ("genes", "perturbations", "cell_types", "batches", "control", "n_cells", "is_counts"):
        assert getattr(index, name) == getattr(whole, name), name
    for name in ("size", "perturbation", "cell_type", "batch", "control", "fallback", "split", "is_control"):
        np.testing.assert_array_equal(getattr(index.groups, name), getattr(whole.groups, name))
    assert (index.groups.split == 2).any()
    (ours, our_facts), (theirs, their_facts) = by_name(index), by_name(whole)
    assert our_facts == their_facts
    for name, row in theirs.items():
        np.testing.assert_array_equal(ours[name], row)
    for key in ("pert", "kind", "donor"):
        assert index.obs[key].dtype == whole.obs[key].dtype
    cells = index.to_anndata([3, 1])
    np.testing.assert_array_equal(cells.X.toarray(), [ours[name.split(":")[1]] for name in cells.obs_names])
    assert cells.obs.equals(index.obs.loc[cells.obs_names])
    names = np.array(index.batches)[index.batch_codes(np.arange(index.n_cells))]
    assert names.tolist() == index.obs["donor"].tolist()


def test_an_index_can_be_regrouped_and_verified(parts, tmp_path):
    index = merge(parts, tmp_path / "index", echo=silent)
    view = regroup(index, "cell_type")
    (ours, _), (theirs, _) = by_name(index), by_name(regroup(view, "pretraining"))
    assert set(ours) == set(theirs) and all((ours[name] == theirs[name]).all() for name in ours)
    assert "3 parts" in index.verify()
    for file in (parts[1] / "X/c").rglob("0"):
        if file.is_file():
            file.write_bytes(b"spoilt")
    with pytest.raises(RequestError, match="s1: the store is damaged: X/c/0/0"):
        Store.open(tmp_path / "index").verify()


def test_index_and_parts_move_together(parts, tmp_path):
    before = merge(parts, tmp_path / "index", echo=silent).load()
    (tmp_path / "elsewhere").mkdir()
    for name in ("parts", "index"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    np.testing.assert_array_equal(Store.open(tmp_path / "elsewhere/index").load().toarray(), before.toarray())
    shutil.rmtree(tmp_path / "elsewhere/parts/s1")
    with pytest.raises(RequestError, match="s1: no such store"):
        Store.open(tmp_path / "elsewhere/index")


def test_a_part_that_changed_is_refused(files, parts, tmp_path):
    merge(parts, tmp_path / "index", echo=silent)
    made([files[1]], parts[1], seed=5, overwrite=True)
    with pytest.raises(RequestError, match="s1 has changed since they were merged"):
        Store.open(tmp_path / "index")
    merge([tmp_path / "parts"], tmp_path / "index", MergeOptions(overwrite=True), echo=silent)
    assert Store.open(tmp_path / "index").n_cells


def test_an_index_may_lie_among_its_parts(parts, tmp_path):
    for again in (False, True):
        merge([tmp_path / "parts"], tmp_path / "parts/all", MergeOptions(overwrite=again), echo=silent)
    assert Store.open(tmp_path / "parts/all").manifest["parts"] == ["../s0", "../s1", "../s2"]


def test_splits_of_the_parts_are_kept_unless_they_contradict(files, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"holdout_perturbations": {"validation": [], "test": ["Q0"]}}))
    stores = [made([files[0]], tmp_path / "a", split=str(split)), made([files[1]], tmp_path / "b")]
    index = merge([store.path for store in stores], tmp_path / "index", echo=silent)
    assert sorted({index.perturbations[c] for c in index.groups.perturbation[index.groups.split == 2]}) == [
        "Q0"
    ]
    assert index.manifest["split"]["name"] == "as in the parts" and index.manifest["split"]["sha256"]
    split.write_text(json.dumps({"holdout_perturbations": {"validation": [], "test": ["P1"]}}))
    torn = [made([files[0]], tmp_path / "c", split=str(split)), made([files[2]], tmp_path / "d")]
    with pytest.raises(RequestError, match=r"P1 / T / b1 is train here and test in .*c"):
        merge([store.path for store in torn], tmp_path / "other", echo=silent)
    options = MergeOptions(split=str(split))
    assert (merge([s.path for s in torn], tmp_path / "other", options, echo=silent).groups.split == 2).any()


def test_names_of_cells_begin_with_that_of_their_part(build, save, tmp_path):
    for number in range(2):
        made([save(build(seed=number))], tmp_path / f"s{number}")
    index = merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "index", echo=silent)
    assert not index.obs.index.has_duplicates and {name[:7] for name in index.obs.index} == {
        "s0:cell",
        "s1:cell",
    }
    assert len(index.groups) == 16 and (index.groups.size == 14).all()


def refusal(inputs, output):
    with pytest.raises(RequestError) as caught:
        merge(inputs, output, echo=silent)
    assert not output.exists() and len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_parts_that_do_not_fit_together(build, save, parts, tmp_path):
    output = tmp_path / "index"
    adata = build()
    other = made([save(adata[:, ::-1].copy())], tmp_path / "order").path
    assert "in another order" in refusal([parts[0], other], output) and "order" in refusal(
        [parts[0], other], output
    )
    other = made([save(adata[:, :20].copy())], tmp_path / "fewer").path
    assert "10 differ: g20, g21" in refusal([parts[0], other], output)
    other = made([save(adata)], tmp_path / "sum", target_sum=5e3).path
    assert "target sum is 5000.0" in refusal([parts[0], other], output)
    other = made([save(adata)], tmp_path / "label", control="P1").path
    assert "control label is 'P1'" in refusal([parts[0], other], output)
    renamed = build()
    renamed.obs = renamed.obs.rename(columns={"donor": "batch"})
    other = made([save(renamed)], tmp_path / "columns", batch_key="batch").path
    assert "obs column of the batch is 'batch'" in refusal([parts[0], other], output)
    renamed.X.data = np.log1p(np.random.default_rng(0).random(renamed.X.nnz)).astype(np.float32)
    other = made([save(renamed)], tmp_path / "log", batch_key="batch").path
    assert "encoding of values is 'lognorm'" in refusal([parts[0], other], output)


def test_inputs_that_are_no_parts(parts, tmp_path):
    output = tmp_path / "index"
    (tmp_path / "empty").mkdir()
    assert "neither a store nor a folder of stores" in refusal([tmp_path / "empty"], output)
    assert "given twice" in refusal([parts[0], parts[1], tmp_path / "parts" / "s0"], output)
    merge(parts, output, echo=silent)
    with pytest.raises(RequestError, match="index over other stores"):
        merge([parts[0], output], tmp_path / "again", echo=silent)


def test_on_the_command_line(parts, tmp_path, capsys):
    words = ["prepare", "--merge", str(tmp_path / "parts"), "--output", str(tmp_path / "index")]
    assert cli.run([*words, "--holdout", "0.4", "--holdout-batch", "b1"]) == 0
    assert "of 3 stores" in capsys.readouterr().out
    assert (Store.open(tmp_path / "index").groups.split == 2).any()
    for more, word in (
        ([], "--overwrite"),
        (["--input", "x.h5ad"], "one of --input, --merge and --verify"),
        (["--genes", "list.txt"], "--genes has no meaning with --merge"),
    ):
        assert cli.run([*words, *more]) == 2
        assert word in capsys.readouterr().err
