"""Predictions without a network, for the tests of plans, parts and files: a walk gives back its own control cells."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import scipy.sparse as sp
from jax.sharding import NamedSharding, PartitionSpec

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.job import PredictionJob
from perturbdiff_jax.prediction.population import Walker
from perturbdiff_jax.prediction.set_plan import Request
from perturbdiff_jax.prediction.table import facts

CONTEXTS = [("T1", "B1"), ("T1", "B2"), ("T2", "B1")]


def bundle(genes=6, **changes):
    content = {
        "genes": [f"G{i}" for i in range(genes)],
        "perturbations": ["control", *[f"P{i}" for i in range(400)]],
        "cell_types": ["T1", "T2"],
        "batches": ["B1", "B2"],
        "control": "control",
        "keys": {"perturbation": "pert", "cell_type": "kind", "batch": "donor", "dose": None},
        "values": {"target_sum": 1e4, "divisor": 10.0, "largest": 9.0},
        "trained": [["P1", "T1", "B1"], ["P3", "T1", "B1"]],
        "split": {},
        "settings": {},
        "best_metric": {},
        "versions": {"jax": "0"},
    }
    return Bundle(**content | changes)


def controls(genes=6, cells=5, names="cell-{}-{}", spelling=None):
    draw = np.random.default_rng(0)
    found = {}
    for context in CONTEXTS:
        values = draw.random((cells, genes)) * (draw.random((cells, genes)) < 0.3)
        values[:, 0] = 1.0 + draw.random(cells)
        found[context] = sp.csr_matrix(values.astype(np.float32))
    named = {c: [names.format("".join(c), row) for row in range(cells)] for c in CONTEXTS}
    return ControlCells(found, named, spelling or {})


def request(given, perturbation="P1", context=CONTEXTS[0], cells=7, draw=0):
    code = int(perturbation[1:]) + 1
    return Request(perturbation, *context, (code, 0, 0), cells, given.cells[context], draw)


def job(requests, given, known, *, cells_per_set=4, sets_per_batch=2, seed=0, devices=None):
    """A job whose network multiplies control cells by a number that the request's address decides."""
    walker = Walker(
        None,
        schedule=Schedule(),
        sampler=SamplerOptions(),
        cells_per_set=cells_per_set,
        sets_per_batch=sets_per_batch,
        divisor=10.0,
        seed=seed,
        devices=jax.devices()[:1] if devices is None else devices,
    )
    dealt = NamedSharding(walker._mesh, PartitionSpec("data"))

    def walk(params, base, control, codes, source, address, index):
        factor = 0.5 + (address % 97).astype(np.float32)[:, None, None] / 97
        return jax.device_put(control * factor, dealt)

    walker._walk = walk
    uns = facts(known, "here", 6, None, sampler=SamplerOptions(), seed=seed)
    contexts = {(one.cell_type, one.batch): (one.cell_type, one.batch) for one in requests}
    return PredictionJob(
        walker=walker,
        params={"w": np.ones(3, np.float32)},
        requests=requests,
        contexts=contexts,
        controls=given,
        bundle=known,
        uns=uns,
        echo=lambda _: None,
    )


def some():
    """A job of five requests of 7, 3, 9, 8 and 7 cells in sets of 4, two sets to a part, and what it is made from."""
    given, known = controls(), bundle()
    asked = [
        request(given, "P3"),
        request(given, "P3", CONTEXTS[2], 3),
        request(given, "P2", CONTEXTS[1], 9),
        request(given, "P1", CONTEXTS[0], 8),
        request(given, "P3", CONTEXTS[0], 7, draw=1),
    ]
    return types.SimpleNamespace(job=job(asked, given, known), controls=given, bundle=known, requests=asked)


def broken(path, ours, after):
    """Runs a job until `after` parts are written, and says what numbers it was about to walk."""
    walked = []
    whole = ours.walker.parts

    def parts(params, plan, numbers):
        walked.extend(numbers)
        for count, found in enumerate(whole(params, plan, numbers)):
            if count == after:
                raise KeyboardInterrupt
            yield found

    ours.walker.parts = parts
    with pytest.raises(KeyboardInterrupt):
        ours.to_file(path)
    return walked


def heard(ours):
    """The job again, and the list that its remarks go to."""
    lines = []
    return dataclasses.replace(ours, echo=lines.append), lines
