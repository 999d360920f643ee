"""The facts of a run in words: what it was trained on, how large, how long, where, with which versions.

What the run measured (run.json) goes before what was asked for (config.json). Values are found by name,
wherever they are nested; everything else is still listed under "all settings".
"""

import math

from perturbdiff_jax.evaluation.page import covariates

# Headline facts: label, names of the value in run.json, names in config.json; the first found wins. "a.b"
# asks for the parent as well, "=a" for a value that is not nested.
_FACTS = (
    ("Trained on", ("store.path", "data.path", "=store", "=data", "dataset"), ("data.store", "data.input")),
    ("Sources", ("store.sources", "sources"), ()),
    ("Cells", ("store.cells", "store.n_cells", "n_cells", "cells"), ()),
    ("Low data", ("training_cells.told",), ()),
    ("Genes", ("store.genes", "store.n_genes", "n_genes", "genes"), ()),
    ("Perturbations", ("n_perturbations", "perturbations"), ()),
    ("Cell types", ("n_cell_types", "cell_types"), ()),
    ("Batches", ("n_batches", "batches"), ()),
    ("Covariates", (), ()),
    ("Hold-out", ("split.name", "=split", "store.split", "holdout"), ("data.split",)),
    ("Parameters", ("parameters", "n_parameters", "num_parameters"), ()),
    ("Layers × width", (), ()),
    ("Cells per set", ("cells_per_set",), ("cells_per_set",)),
    ("Sets per batch", (), ("loader.sets_per_batch", "data.sets_per_batch")),
    ("Steps", ("=steps", "train.steps", "=step"), ("train.steps", "optim.steps", "=steps")),
    ("Best checkpoint", ("best_step", "best.step", "best_checkpoint"), ()),
    ("Training time", ("seconds.train", "seconds.training", "train_seconds", "=seconds"), ()),
    ("Speed", ("cells_per_second",), ()),
    ("Waiting for data", ("data_wait_share",), ()),
    ("Model FLOP utilisation", ("mfu",), ()),
    ("Peak of the hardware", ("peak_flops",), ()),
    ("Sampler", (), ("sampler.name", "sampler.kind", "=sampler")),
    ("Hardware", ("devices", "device", "hardware", "device_kind"), ()),
    ("Peak memory", ("peak_memory_gib", "peak_rss_gib"), ()),
    ("Seed", ("=seed",), ("=seed", "train.seed")),
)
_EMPTY = (None, "", [], {})


def flatten(record: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat = {}
    for name, value in record.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def headline(run: dict, config: dict) -> list[tuple[str, str]]:
    """(label, value) of the facts found, in the page's order; measured ones go before requested ones."""
    measured, asked = flatten(run), flatten(config)
    composed = {
        "Trained on": "simulated cells" if "simulate" in config else None,
        "Covariates": covariates.told(run, config),
        "Hold-out": _holdout(config.get("holdout")),
        "Layers × width": _size(asked),
    }
    rows = []
    for label, run_names, config_names in _FACTS:
        value = _look(measured, run_names)
        value = _look(asked, config_names) if value is None else value
        value = composed.get(label) if value is None else value
        if value is not None:
            rows.append((label, _say(label, value)))
    return rows


def listing(*records: tuple[str, dict]) -> list[tuple[str, str]]:
    """(path, value) of everything in the records, for the folded list."""
    return [
        (f"{title}.{path}", show(value))
        for title, record in records
        for path, value in flatten(record).items()
    ]


def _look(flat, names):
    for name in names:
        value = flat.get(name.removeprefix("="))
        if value not in _EMPTY:
            return value
    for name in names:
        for path, value in flat.items():
            if path.endswith(f".{name}") and value not in _EMPTY:
                return value
    return None


def _size(asked) -> str | None:
    depth, width = _look(asked, ("model.depth",)), _look(asked, ("model.width",))
    return f"{depth} × {width}" if depth and width else None


def _holdout(section) -> str | None:
    """The section `holdout` of a config: a share of the perturbations of a context."""
    if not isinstance(section, dict) or not isinstance(section.get("fraction"), int | float):
        return None
    if not section["fraction"]:
        return "nothing held out"
    where = [str(section[name]) for name in ("cell_type", "batch") if section.get(name)]
    text = f"{100 * section['fraction']:g} % of the perturbations" + (
        f" in {' and '.join(where)}" if where else ""
    )
    if validation := section.get("validation_fraction"):
        text += f", {100 * validation:g} % for validation"
    return text


def _say(label, value) -> str:
    counted = ("Cells", "Genes", "Perturbations", "Cell types", "Batches")
    if label in counted and isinstance(value, list):
        return f"{len(value):,}" + (f" ({show(value)})" if len(value) <= 6 else "")
    if label == "Training time" and isinstance(value, int | float):
        return duration(value)
    if label == "Speed":
        return f"{show(value)} cells/s"
    if label == "Peak memory":
        return f"{show(value)} GiB"
    if label in ("Waiting for data", "Model FLOP utilisation") and isinstance(value, int | float):
        return f"{100 * value:.3g} %" + (" of the training time" if label == "Waiting for data" else "")
    return show(value)


def show(value: object) -> str:
    """A value as a reader writes it: 1,234 · 0.0001 · a, b, c."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if not math.isfinite(value) or abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        text = ", ".join(show(item) for item in value[:12])
        return f"{text}, … ({len(value) - 12:,} more)" if len(value) > 12 else text
    if isinstance(value, dict):
        return ", ".join(f"{name}: {show(item)}" for name, item in value.items()) or "none"
    return str(value)


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    if not math.isfinite(seconds):
        return "unknown"
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
