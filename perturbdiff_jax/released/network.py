"""The network that a released state_dict holds: read off names and shapes, checked against what the file says."""

import dataclasses
import re
from typing import Any

import numpy as np

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.released.hyper_parameters import Facts, dose_of, short_name
from perturbdiff_jax.released.names import DOSE_ROWS, Layout

LAYER = re.compile(r"model\.x_embedder\.(.+)\.weight")
BLOCK = re.compile(r"model\.blocks\.(\d+)\.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Parts, sizes and tables of a released network."""

    layout: Layout
    genes: int
    covariate_genes: int
    width: int
    heads: int
    mlp_ratio: int
    covariate_width: int
    ignore_perturbation: bool
    tables: dict[
        str, dict[str, Any]
    ]  # covariate -> kind and shape [rows, width] of its frozen table in our tree
    doses: dict[str, list]  # values, codes; empty without doses
    sources: list[str]
    datasets: dict[str, str]  # data set -> its input layer; "" with one shared layer
    remarks: list[str]


def read_network(tensors: dict[str, Any], facts: Facts, where: str) -> Network:
    """Reads the network off a state_dict (name -> something with a `shape`).

    Raises:
      RequestError: parts that contradict each other or the vocabularies.
    """
    shape = _Shapes(tensors, where)
    remarks: list[str] = []
    blocks = {int(m[1]) for name in tensors if (m := BLOCK.match(name))}
    depth = len(blocks)
    if not blocks:
        raise RequestError(
            f"{where}: the state_dict has no model.blocks; not a network of the released code."
        )
    if max(blocks) != depth - 1:
        raise RequestError(f"{where}: has {depth} blocks, but one is numbered {max(blocks)}.")
    width = shape("model.t_embedder.mlp.2.weight", 2)[0]
    head_width = shape("model.blocks.0.block.attn.q_norm.weight", 1)[0]
    heads = 2 * width // head_width
    if facts.heads not in (None, heads) or 2 * width % head_width:
        raise RequestError(
            f"{where}: model_cfg.dit_num_heads={facts.heads}, but of {2 * width} features its query norms see "
            f"{head_width} each."
        )
    perturbation, table = _perturbation(shape, facts, where, remarks)
    tables = {"perturbation": table} if table else {}
    cell_type, table = _cell_type(shape, facts, where)
    tables |= {"cell_type": table} if table else {}
    batch = "cov_encoder.batch_encoder.weight" in tensors
    if batch:
        _same(shape("cov_encoder.batch_encoder.weight", 2)[0], facts.batches, "batch", where)
    sources = [m[1] for name in tensors if (m := LAYER.fullmatch(name))]
    named = {name: short_name(name) if facts.by_name else name for name in facts.datasets}
    absent = sorted(set(named.values()) - set(sources)) if sources else []
    if absent:
        raise RequestError(
            f"{where}: no input layer for the data sets {', '.join(absent)}; it has {sources}."
        )
    parts = 2 + batch + (perturbation == "drug")
    return Network(
        layout=Layout(
            depth=depth, sources=tuple(sources), perturbation=perturbation, cell_type=cell_type, batch=batch
        ),
        genes=shape("model.final_layer.linear.weight", 2)[0],
        covariate_genes=shape("cov_encoder.transform.weight", 2)[0],
        width=width,
        heads=heads,
        mlp_ratio=shape("model.blocks.0.block.mlp.fc1.weight", 2)[0] // width,
        covariate_width=shape("cov_encoder.transform.weight", 2)[1] // parts,
        ignore_perturbation=perturbation == "learned" and facts.encodings["perturbation"] == "non",
        tables=tables,
        doses=_doses(tensors, shape, facts, where) if perturbation == "drug" else {},
        sources=sources,
        datasets=named if sources else dict.fromkeys(named, ""),
        remarks=remarks,
    )


class _Shapes:
    def __init__(self, tensors: dict[str, Any], where: str):
        self.tensors, self.where = tensors, where

    def __call__(self, name: str, axes: int) -> tuple[int, ...]:
        if name not in self.tensors:
            raise RequestError(f"{self.where}: the tensor {name} is missing.")
        found = tuple(self.tensors[name].shape)
        if len(found) != axes or 0 in found:
            raise RequestError(
                f"{self.where}: the tensor {name} has shape {found}; it needs {axes} axes, none empty."
            )
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def _same(rows: int, names: list[str], what: str, where: str, more: int = 0) -> None:
    """Refuses a table that has other than a row for each name and `more`."""
    if rows != len(names) + more:
        besides = f" and {more} for none" if more else ""
        raise RequestError(
            f"{where}: the {what} table has {rows} rows; its vocabulary of {len(names)} names{besides} needs "
            f"{len(names) + more}."
        )


def _perturbation(shape: _Shapes, facts: Facts, where: str, remarks: list[str]):
    """(kind as in Layout, facts of the frozen table or None)."""
    encoder, names = "cov_encoder.pert_encoder", facts.perturbations
    if "cov_encoder.drug_encoder.0.weight" in shape:
        rows, columns = shape("cov_encoder.drug_encoder.0.weight", 2)
        _same(rows, names, "drug", where)
        return "drug", {"name": facts.encodings["drug"], "shape": [rows + 1, columns]}
    if f"{encoder}.weight" in shape:
        _same(shape(f"{encoder}.weight", 2)[0], names, "perturbation", where, more=1)
        return "learned", None
    rows, columns = shape(f"{encoder}.0.weight", 2)
    if facts.encodings["gene"] != "onehot":
        _same(rows, names, "perturbation", where)
        return "frozen_bare", {"name": facts.encodings["gene"], "shape": [rows + 1, columns]}
    kind = facts.encodings["perturbation"]
    if kind in ("onehot", "non"):
        raise RequestError(f"{where}: pert_encoding={kind}, but the perturbation table is a frozen one.")
    if rows < len(names) + 1:
        _same(rows, names, "perturbation", where, more=1)
    if rows > len(names) + 1:
        remarks.append(f"the {kind} table has {rows - 1} rows; the first {len(names)} are perturbations.")
    return "frozen", {"name": kind, "shape": [rows, columns]}


def _cell_type(shape: _Shapes, facts: Facts, where: str):
    encoder = "cov_encoder.celltype_encoder"
    if f"{encoder}.weight" in shape:
        _same(shape(f"{encoder}.weight", 2)[0], facts.cell_types, "cell type", where)
        return "learned", None
    rows, columns = shape(f"{encoder}.0.weight", 2)
    _same(rows, facts.cell_types, "cell type", where)
    return "frozen", {"name": facts.encodings["cell_type"], "shape": [rows, columns]}


def _doses(tensors: dict[str, Any], shape: _Shapes, facts: Facts, where: str) -> dict[str, list]:
    """The dose of each perturbation: `codes` are rows of the dose table, `values` what the labels call them."""
    _same(shape(DOSE_ROWS, 1)[0], facts.perturbations, "dose index", where)
    stored = tensors[DOSE_ROWS]
    stored = np.asarray(stored.read() if hasattr(stored, "read") else stored)
    rows = shape("cov_encoder.dose_encoder.weight", 2)[0]
    if stored.dtype.kind not in "iu" or not 0 <= stored.min() <= stored.max() < rows:
        raise RequestError(
            f"{where}: {DOSE_ROWS} ({stored.dtype}, {stored.min()} to {stored.max()}) must be rows 0 to {rows - 1} of "
            "the dose table."
        )
    codes = stored.tolist()
    values: list[float | None] = [None] * rows
    for label, code in zip(facts.perturbations, codes):
        dose = dose_of(label)
        if values[code] not in (None, dose):
            raise RequestError(
                f"{where}: {label!r} has dose row {code}, which is {values[code]:g} of other labels."
            )
        values[code] = dose
    return {"values": values, "codes": codes}
