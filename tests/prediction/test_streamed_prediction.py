"""Predictions of any length: bounded memory, all devices, one compilation; by the real network the same cells."""

import tracemalloc
import weakref

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_jobs import bundle, controls, job, request
from tiny_run import FLAGS, KEYS, said

import perturbdiff_jax
from perturbdiff_jax import cli
from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction import parts as part_files
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design


@pytest.fixture(scope="module")
def test_split(finished):
    store = Store.open(finished.workdir / "store")
    return split_design(store, "test"), from_store(store)


def silent(_):
    pass


def peak_of(requests, given, known, path):
    """Bytes of Python and numpy that a job to a file needs at once, beyond what it is made from."""
    ours = job(requests, given, known, cells_per_set=64, sets_per_batch=4)
    tracemalloc.start()
    ours.to_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("form", ["more conditions", "more cells of each"])
def test_memory_does_not_grow_with_what_is_asked_for(tmp_path, monkeypatch, form):
    monkeypatch.setattr("perturbdiff_jax.prediction.h5ad_file.CHUNK", 1024)
    given, known = controls(genes=400, cells=300), bundle(genes=400)
    several, larger = (20, 1) if form == "more conditions" else (1, 20)
    peak_of([request(given, "P0", cells=512)], given, known, tmp_path / "first.h5ad")  # what is loaded once
    few = peak_of([request(given, f"P{i}", cells=512) for i in range(4)], given, known, tmp_path / "few.h5ad")
    asked = [request(given, f"P{i}", cells=512 * larger) for i in range(several * 4)]
    many = peak_of(asked, given, known, tmp_path / "many.h5ad")
    size = anndata.read_h5ad(tmp_path / "many.h5ad", backed="r").n_obs * 400 * 4
    assert size > 60 * 2**20  # bytes of all cells
    assert many < few + 2**20, (few, many)


def test_no_more_than_two_batches_are_alive(tmp_path, monkeypatch):
    given, known = controls(), bundle()
    ours = job([request(given, cells=400)], given, known, devices=jax.devices()[:2])
    walk, write, alive, most = ours.walker._walk, part_files.PartFolder.write, [], []

    def counted(*arguments):
        found = walk(*arguments)
        alive.append(weakref.ref(found))
        return found

    def noted(folder, number, cells):
        most.append(sum(one() is not None for one in alive))
        write(folder, number, cells)

    ours.walker._walk = counted
    monkeypatch.setattr(part_files.PartFolder, "write", noted)
    ours.to_file(tmp_path / "p.h5ad")
    assert len(most) == 50 and max(most) == 2  # one handed out, and the next under way


def test_file_and_memory_hold_the_same(model, screen, tmp_path):
    asked = {"cells_per_condition": 21, "draws": 2, "echo": silent, **KEYS}
    expected = model.predict(screen, ["P02", "P05"], **asked)
    path = model.predict_to(tmp_path / "p.h5ad", screen, ["P02", "P05"], **asked)
    found = anndata.read_h5ad(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    # Newer pandas reads names as its own strings.
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_index_type=False)
    assert found.uns["perturbdiff"]["sampler"] == expected.uns["perturbdiff"]["sampler"]


@pytest.mark.parametrize("guidance", [0.0, 1.0])
@pytest.mark.parametrize("sets", [1, 2, 16])
def test_one_device_and_eight_give_the_same_cells(model, test_split, guidance, sets):
    walk = SamplerOptions(start=50, steps=3, eta=0.5, guidance=guidance)
    one, eight = (
        model.predict_design(
            *test_split, sets_per_batch=sets, devices=jax.devices()[:n], sampler=walk, echo=silent
        )
        for n in (1, 8)
    )
    assert one.n_obs > 60 and (one.X != 0).mean() > 0.1
    np.testing.assert_allclose(eight.X.toarray(), one.X.toarray(), atol=1e-5)
    pd.testing.assert_frame_equal(one.obs, eight.obs)


def test_sets_are_dealt_to_all_devices(model, test_split):
    ours = model.job(*test_split, sets_per_batch=2, echo=silent)
    plan = ours.walker.plan(ours.requests)
    batch = ours.walker._batch(plan, range(min(8, plan.parts)))
    params = jax.device_put(model.params, NamedSharding(ours.walker._mesh, PartitionSpec()))
    found = ours.walker._walk(params, jax.random.key(0), *batch)
    shapes = {shard.device: shard.data.shape for shard in found.addressable_shards}
    assert shapes == dict.fromkeys(jax.local_devices(), (plan.sets_per_part, 8, 40))


def test_a_walk_of_the_same_shape_is_compiled_once(model, screen, caplog):
    asked = {"cells_per_condition": 33, "echo": silent, "sampler": SamplerOptions(start=20, steps=4), **KEYS}
    with jax.log_compiles():
        model.predict(screen, ["P02", "P05"], **asked)
        first = sum("compilation of jit(walk)" in record.message for record in caplog.records)
        caplog.clear()
        model.predict(screen, ["P03", "P01"], **asked | {"seed": 4})
        again = sum("compilation of jit(walk)" in record.message for record in caplog.records)
    assert (first, again) == (1, 0)


def test_progress_tells_sets_share_speed_and_time(tmp_path, monkeypatch, capsys):
    clock = "perturbdiff_jax.telemetry.progress.time.monotonic"
    monkeypatch.setattr(clock, iter(range(0, 10**6, 20)).__next__)
    given, known = controls(), bundle()
    whole, write = part_files.PartFolder.write, []

    def broken(folder, number, cells):
        if number == 3 and not write:
            write.append(number)
            raise KeyboardInterrupt
        whole(folder, number, cells)

    monkeypatch.setattr(part_files.PartFolder, "write", broken)
    with pytest.raises(KeyboardInterrupt):
        job([request(given, cells=40)], given, known).to_file(tmp_path / "p.h5ad")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("predict: sets 2/10  20%  ") and " cells/s  time left " in lines[0]
    job([request(given, cells=40)], given, known).to_file(tmp_path / "p.h5ad")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("predict: sets 8/10  80%  ")  # those that were there count
    assert lines[-1].startswith("predict: sets 10/10  100%  ") and lines[-1].endswith("done")


def test_a_dose_is_part_of_a_conditions_name(model, screen, tmp_path):
    names = [{"P02": "P02 @ 0.5", "P05": "P05 @ 1"}.get(name, name) for name in model.bundle.perturbations]
    trained = [[names[model.bundle.perturbations.index(p)], c, b] for p, c, b in model.bundle.trained]
    content = {**vars(model.bundle), "perturbations": names, "trained": trained}
    dosed = perturbdiff_jax.predict.Predictor(**{**vars(model), "bundle": Bundle(**content)})
    design = pd.DataFrame(
        [("P02 @ 0.5", "T1", "B2", 3)], columns=["perturbation", "cell_type", "batch", "cells"]
    )
    path = dosed.predict_to(tmp_path / "p.h5ad", screen, design=design, echo=silent, **KEYS)
    obs = anndata.read_h5ad(path).obs
    assert (obs["perturbation"] == "P02 @ 0.5").sum() == 3
    with pytest.raises(RequestError, match=r"'P02' has doses here; name one: P02 @ 0\.5\."):
        dosed.predict_to(tmp_path / "q.h5ad", screen, "P02", echo=silent, **KEYS)
    assert [file.name for file in tmp_path.iterdir()] == ["p.h5ad"]


def test_a_context_without_controls_is_said_and_marked_in_the_file(finished, model, screen, tmp_path):
    kept = screen[(screen.obs["perturbation"] != "control") | (screen.obs["batch"] == "B1")]
    kept.write_h5ad(tmp_path / "c.h5ad")
    (tmp_path / "d.csv").write_text("perturbation,cell_type,batch,cells,draws\nP05,T1,B2,4,2\n")
    out = tmp_path / "o.h5ad"
    words = ("--input", tmp_path / "c.h5ad", "--design", tmp_path / "d.csv", "--output", out, *FLAGS)
    code, told, err = said(cli.run, "predict", "--checkpoint", finished.workdir, *words)
    assert code == 0 and err == ""
    assert "context ('T1', 'B2') has no control cells: uses those of ('T1', 'B1')" in told
    obs = anndata.read_h5ad(out).obs
    assert obs.groupby(["perturbation", "batch", "draw"], observed=True).size().to_dict() == {
        ("P05", "B2", 0): 4,
        ("P05", "B2", 1): 4,
        ("control", "B1", 0): len(obs) - 8,
    }
    assert obs["seen_perturbation"].all()


def test_the_command_line_refuses_parts_of_another_request(finished, tmp_path, monkeypatch):
    out, write = tmp_path / "o.h5ad", part_files.PartFolder.write

    def once(folder, number, cells):
        write(folder, number, cells)
        raise KeyboardInterrupt

    words = ["predict", "--checkpoint", finished.workdir, "--store", finished.workdir / "store"]
    words += ["--split", "test", "--output", out]
    monkeypatch.setattr(part_files.PartFolder, "write", once)
    code, _, err = said(cli.run, *words)
    assert code == 130 and err == "interrupted; give the same command again to go on\n"
    monkeypatch.undo()
    code, told, err = said(cli.run, *words, "--seed", 3)
    assert code == 2 and told == "" and len(err.splitlines()) == 2 and "seed was 0, is 3" in err
    code, told, err = said(cli.run, *words)
    assert code == 0 and err == "" and f"Resuming {out}: 1 of 8 parts are there." in told
    assert [file.name for file in tmp_path.iterdir()] == ["o.h5ad"]
    first = anndata.read_h5ad(finished.workdir / "predictions.h5ad")
    np.testing.assert_array_equal(anndata.read_h5ad(out).X.toarray(), first.X.toarray())
