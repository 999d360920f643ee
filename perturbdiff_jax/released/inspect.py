"""A look into a released checkpoint: settings, vocabularies and tensors as a table of text."""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perturbdiff_jax.errors import shorten
from perturbdiff_jax.released.checkpoint import Released, open_released
from perturbdiff_jax.released.hyper_parameters import plain, shown
from perturbdiff_jax.released.names import DOSE_ROWS, UNUSED, entries

WIDTH = 118  # of text that can be wrapped
NAMES = 12  # shown of each vocabulary
DEEPEST, MOST_SETTINGS = 6, 400  # levels and lines of settings


def inspect(path: str | Path) -> str:
    """The table for `perturbdiff convert --inspect`; reads names and shapes, no weights.

    Raises:
      RequestError: as released.checkpoint.open_released.
    """
    released = open_released(path)
    lines = [f"{released.path} ({released.path.stat().st_size / 2**20:,.1f} MiB)", ""]
    lines += [f"note: {remark}" for remark in released.network.remarks]
    for title, rows in (
        ("checkpoint", _checkpoint(released)),
        ("network", _network(released)),
        ("vocabularies, in the order of their codes", _vocabularies(released)),
        ("settings (hyper_parameters as they stand in the file)", _settings(released)),
        ("tensors, and their places in the bundle", _tensors(released)),
    ):
        lines += [title, *_aligned(rows), ""]
    return "\n".join(lines).rstrip()


def _checkpoint(released: Released) -> Iterable[tuple[str, ...]]:
    content = released.content
    yield "optimizer steps", f"{released.step:,} (epoch {shown(content.get('epoch', '?'))})"
    yield "pytorch-lightning", shown(content.get("pytorch-lightning_version", "?")).strip("'")
    both = "averaged (state_dict; --weights ema) and last step's (current_model_state; --weights live)"
    yield "weights", both if released.both else "one set (state_dict)"
    yield "optimizer state", "there, not converted" if content.get("optimizer_states") else "none"


def _network(released: Released) -> Iterable[tuple[str, ...]]:
    facts, network = released.facts, released.network
    read = [t for name, t in released.tensors("ema").items() if name not in (*UNUSED, DOSE_ROWS)]
    yield "parameters", f"{sum(math.prod(t.shape) for t in read):,} (what nothing reads left out)"
    yield "genes", f"{network.genes:,}" + _also(network.covariate_genes, network.genes)
    yield (
        "width x depth",
        f"{network.width} x {network.layout.depth}, {network.heads} heads, MLP x {network.mlp_ratio}",
    )
    yield "input layers", ", ".join(network.sources) if network.sources else "one for all data"
    kind = "learned table"
    if network.ignore_perturbation:
        kind = "not looked at (marginal pretraining)"
    yield "perturbation", _table(network.tables.get("perturbation"), kind)
    if network.doses:
        yield "doses", shorten("?" if dose is None else f"{dose:g}" for dose in network.doses["values"])
    yield "cell type", _table(network.tables.get("cell_type"), "learned table")
    yield "batch", "learned table" if network.layout.batch else "not looked at"
    yield "covariate width", str(network.covariate_width)
    schedule = facts.schedule
    power = f", power {schedule['power']:g}" if "power" in schedule else ""
    yield "noise schedule", f"{schedule['name']}, {schedule['steps']} steps{power}"
    never = ": walks zero them, too" if facts.drop_control == 1 else ""
    yield (
        "dropped in training",
        f"covariates {facts.drop_condition:g}, control cells {facts.drop_control:g}{never}",
    )
    yield "cut-off", f"{facts.cutoff:g}"


def _also(covariates: int, genes: int) -> str:
    return f" (covariate encoder: {covariates:,}, as before it was finetuned)" if covariates != genes else ""


def _table(frozen: dict[str, Any] | None, otherwise: str) -> str:
    if frozen is None:
        return otherwise
    return f"frozen {frozen['name']} vectors of width {frozen['shape'][1]:,}, behind a linear layer"


def _vocabularies(released: Released) -> Iterable[tuple[str, ...]]:
    facts, layers = released.facts, released.network.datasets
    for kind in ("perturbations", "cell_types", "batches"):
        names = getattr(facts, kind)
        yield kind.replace("_", " "), f"{len(names):,}", _list(names)
    datasets = [f"{name} (input layer {layers[name]})" if layers[name] else name for name in facts.datasets]
    yield "data sets", f"{len(datasets):,}", _list(datasets)


def _list(names: list[str]) -> str:
    """Names after each other; below each other where they are long."""
    names = [name if name.isprintable() else ascii(name) for name in names]
    more = [f"... ({len(names) - NAMES:,} more)"] if len(names) > NAMES else []
    first = names[:NAMES] + more
    below = any(len(name) > 40 or ", " in name for name in first)
    return ("\n" if below else ", ").join(first)


def _settings(released: Released) -> Iterable[tuple[str, ...]]:
    """Every single value; vocabularies are above."""
    covered = ("pert_dict", "cell_type_dict", "batch_dict", "dataset_dict")
    stack = [((name,), value) for name, value in plain(released.content["hyper_parameters"]).items()]
    rows = 0
    while stack:
        path, value = stack.pop(0)
        if path[-1] in covered:
            continue
        if (rows := rows + 1) > MOST_SETTINGS:
            yield "...", "(more)"
            return
        if isinstance(value, dict) and len(path) < DEEPEST:
            stack[:0] = [((*path, name), inner) for name, inner in value.items()]
        else:
            yield ".".join(path), shown(value)


def _tensors(released: Released) -> Iterable[tuple[str, ...]]:
    ours = {entry.name: entry for entry in entries(released.network.layout)}
    tensors = released.tensors("ema")
    for name in [*tensors, *(name for name in ours if name not in tensors)]:
        place = "NOT KNOWN"
        if name not in tensors:
            place = "MISSING"
        elif name in ours:
            entry = ours[name]
            place = "/".join(entry.path) + ("" if entry.at is None else f" [{entry.at}]")
        elif name in UNUSED:
            place = "(kept; the released code never reads it)"
        elif name == DOSE_ROWS and released.network.doses:
            place = "(vocabulary of doses)"
        tensor = tensors.get(name)
        shape = " x ".join(map(str, tensor.shape)) or "one number" if tensor else ""
        yield name, shape, str(tensor.dtype) if tensor else "", place


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as lines; the last cell of a row wraps (at blanks), or breaks where it says so."""
    rows = list(rows)
    count = max(map(len, rows), default=0)
    widths = [max(len(row[i]) for row in rows) for i in range(count - 1)]
    indent = 2 + sum(width + 2 for width in widths)
    lines = []
    for *cells, last in rows:
        parts = [
            part
            for line in last.split("\n")
            for part in textwrap.wrap(
                line, max(40, WIDTH - indent), break_long_words=False, break_on_hyphens=False
            )
        ]
        head = "".join(cell.ljust(width) + "  " for cell, width in zip(cells, widths))
        lines += [f"  {head}{part}".rstrip() for part in parts[:1] or [""]]
        lines += [" " * indent + part for part in parts[1:]]
    return lines
