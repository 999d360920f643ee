"""Small screens for the evaluation's tests: 2 cell types x 2 batches, 3 perturbations, raw counts."""

import types

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

GENES = [f"g{i}" for i in range(39)] + ["P1"]  # one gene is called like a perturbation
PERTURBATIONS = ("P1", "P2", "P3")
KEYS = {"perturbation": "pert", "cell_type": "type", "batch": "lot"}


def screen(seed=0, cells=24, controls=40):
    """AnnData of raw counts; perturbation k multiplies genes 4k..4k+3 (by batch a bit differently)."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 1.5, size=(2, len(GENES)))
    counts, rows = [], []
    for t, cell_type in enumerate(("A", "B")):
        for b, batch in enumerate(("x", "y")):
            for p, name in enumerate(("control", *PERTURBATIONS)):
                rate = base[t].copy()
                if p:
                    rate[4 * p : 4 * p + 4] *= 4.0 + b
                n = controls if p == 0 else cells + p
                counts.append(rng.poisson(rate, size=(n, len(GENES))))
                rows += [(name, cell_type, batch)] * n
    obs = pd.DataFrame(rows, columns=list(KEYS.values()), index=[f"c{i}" for i in range(len(rows))])
    matrix = sp.csr_matrix(np.concatenate(counts).astype(np.float32))
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=GENES))


def lognorm(adata, target_sum=1e4):
    """log1p-normalised copy by a plain loop over cells."""
    out = adata.copy()
    dense = adata.X.toarray().astype(np.float64)
    for i in range(len(dense)):
        dense[i] = np.log1p(dense[i] * target_sum / dense[i].sum())
    out.X = sp.csr_matrix(dense.astype(np.float32))
    return out


def prediction(adata, held_out=(("A", "y"), ("B", "y")), seed=1):
    """Predictions file: noisy real cells of the held-out contexts, with their real controls appended."""
    log = lognorm(adata)
    rng = np.random.default_rng(seed)
    wanted = np.array([(t, b) in held_out for t, b in zip(log.obs["type"], log.obs["lot"])])
    pred = log[wanted].copy()
    noise = rng.normal(0.0, 0.3, size=pred.shape)
    noise[(pred.obs["pert"] == "control").to_numpy()] = 0.0
    pred.X = sp.csr_matrix(np.maximum(pred.X.toarray() + noise, 0.0).astype(np.float32))
    pred.obs_names = [f"p{i}" for i in range(pred.n_obs)]
    pred.obs["draw"] = 0
    pred.uns["perturbdiff"] = {"target_sum": 1e4, "keys": dict(KEYS)}
    return pred


def store_of(adata, split=lambda name, cell_type, batch: "test" if batch == "y" else "train"):
    """Stand-in for an opened store with its groups, from a screen that is sorted by group already."""
    log = lognorm(adata)
    names = ("train", "validation", "test", "control")
    labels = list(adata.obs[list(KEYS.values())].itertuples(index=False, name=None))
    vocabulary = {
        "perturbations": ["control", *PERTURBATIONS],
        "cell_types": ["A", "B"],
        "batches": ["x", "y"],
    }
    rows, own_control = [], {}
    start = 0
    while start < len(labels):
        name, cell_type, batch = labels[start]
        stop = start + sum(label == labels[start] for label in labels)
        if name == "control":
            own_control[cell_type, batch] = len(rows)
        kind = "control" if name == "control" else split(name, cell_type, batch)
        rows.append(
            {
                "start": start,
                "size": stop - start,
                "perturbation": vocabulary["perturbations"].index(name),
                "cell_type": vocabulary["cell_types"].index(cell_type),
                "batch": vocabulary["batches"].index(batch),
                "is_control": name == "control",
                "control": own_control[cell_type, batch],
                "split": names.index(kind),
            }
        )
        start = stop
    groups = types.SimpleNamespace(**{key: np.array([row[key] for row in rows]) for key in rows[0]})
    return types.SimpleNamespace(
        groups=groups,
        genes=list(adata.var_names),
        measured=np.ones((1, adata.n_vars), dtype=bool),
        control="control",
        path="toy",
        manifest={"keys": {**KEYS, "dose": None}},
        read=lambda start, stop: sp.csr_matrix(log.X)[start:stop],
        **vocabulary,
    )


def foreign(adata, seed=5, **options):
    """Another tool's file: noise of its own, no account of how it was made, spoilt control cells."""
    pred = prediction(adata, seed=seed, **options)
    del pred.uns["perturbdiff"]
    dense = pred.X.toarray()
    dense[(pred.obs["pert"] == "control").to_numpy()] += 1.75
    pred.X = sp.csr_matrix(dense)
    return pred


def numbered(adata):
    """A copy whose genes are numbers, as STATE writes them."""
    out = adata.copy()
    out.var_names = [str(i) for i in range(adata.n_vars)]
    return out


def evaluated(output, pred, real=None, said=None, **options):
    """evaluate() of the screen with its columns named, quiet; the lines that it says go into `said`."""
    from perturbdiff_jax.evaluation.evaluate import evaluate

    keys = {"perturbation_key": "pert", "cell_type_key": "type", "batch_key": "lot"}
    echo = (lambda _: None) if said is None else said.append
    real = screen() if real is None else real
    return evaluate(pred, real, output, control="control", echo=echo, **(keys | options))
