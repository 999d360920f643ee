"""A look into a released checkpoint: settings, vocabularies and tensors as a table of text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perturbdiff_jax.errors import shorten
from perturbdiff_jax.released.checkpoint import WEIGHTS, Released, open_released
from perturbdiff_jax.released.names import DOSE_ROWS, UNUSED, entries


def inspect(path: str | Path) -> str:
    """The table for `perturbdiff convert --inspect`; reads names and shapes, no weights.

    Raises:
      RequestError: as released.checkpoint.open_released.
    """
    released = open_released(path)
    lines = [f"{released.path} ({released.path.stat().st_size / 2**20:,.1f} MiB)", ""]
    for title, rows in (
        ("checkpoint", _checkpoint(released)),
        ("network", _network(released)),
        ("vocabularies", _vocabularies(released)),
        ("tensors", _tensors(released)),
    ):
        lines += [title, *_aligned(rows), ""]
    lines += [f"note: {remark}" for remark in released.network.remarks]
    return "\n".join(lines).rstrip()


def _checkpoint(released: Released) -> Iterable[tuple[str, ...]]:
    content = released.content
    yield "optimizer steps", f"{content.get('global_step', '?')} (epoch {content.get('epoch', '?')})"
    yield "pytorch-lightning", str(content.get("pytorch-lightning_version", "?"))
    live = content.get(WEIGHTS["live"]) is not None
    yield "weights", "ema (state_dict) and live (current_model_state)" if live else "one set (state_dict)"
    state = content.get("optimizer_states")
    yield "optimizer state", "there, not converted" if state else "none"


def _network(released: Released) -> Iterable[tuple[str, ...]]:
    facts, network = released.facts, released.network
    numbers = sum(_size(t) for name, t in released.tensors("ema").items() if name not in (*UNUSED, DOSE_ROWS))
    yield "parameters", f"{numbers:,} (what nothing reads left out)"
    yield "genes", f"{network.genes:,}" + _also(network.covariate_genes, network.genes)
    yield (
        "width x depth",
        f"{network.width} x {network.layout.depth}, {network.heads} heads, MLP x {network.mlp_ratio}",
    )
    yield "input layers", shorten(network.sources) if network.sources else "one for all data"
    kind = "learned table"
    if network.ignore_perturbation:
        kind = "not looked at (marginal pretraining)"
    yield "perturbation", _table(network.tables.get("perturbation"), kind)
    if network.doses:
        yield "doses", shorten(network.doses["values"])
    yield "cell type", _table(network.tables.get("cell_type"), "learned table")
    yield "batch", "learned table" if network.layout.batch else "not looked at"
    yield "covariate width", str(network.covariate_width)
    schedule = facts.schedule
    power = f", power {schedule['power']:g}" if schedule["name"] == "power_cosine" else ""
    yield "noise schedule", f"{schedule['name']}, {schedule['steps']} steps{power}"
    yield (
        "trained with",
        f"covariates dropped {facts.drop_condition:g}, control cells dropped {facts.drop_control:g}",
    )
    yield "cut-off", f"{facts.cutoff:g}"


def _also(covariates: int, genes: int) -> str:
    return f" (covariate encoder: {covariates:,}, as before it was finetuned)" if covariates != genes else ""


def _table(frozen: dict[str, Any] | None, otherwise: str) -> str:
    if frozen is None:
        return otherwise
    return f"frozen {frozen['name']} vectors of width {frozen['shape'][1]:,}, behind a linear layer"


def _vocabularies(released: Released) -> Iterable[tuple[str, ...]]:
    facts = released.facts
    for name in ("perturbations", "cell_types", "batches", "datasets"):
        names = getattr(facts, name)
        yield name.replace("_", " "), f"{len(names):,}", shorten(names, 4)


def _tensors(released: Released) -> Iterable[tuple[str, ...]]:
    ours = {entry.name: entry for entry in entries(released.network.layout)}
    for name, tensor in released.tensors("ema").items():
        place = "not known"
        if name in ours:
            entry = ours[name]
            place = "/".join(entry.path) + ("" if entry.at is None else f" [{entry.at}]")
        elif name in UNUSED:
            place = "(kept; the released code never reads it)"
        elif name == DOSE_ROWS:
            place = "(vocabulary of doses)"
        yield name, " x ".join(str(n) for n in tensor.shape), str(tensor.dtype), place


def _size(tensor: Any) -> int:
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
