"""Parameter names: the released code's state_dict on one side, this package's parameter tree on the other.

The one list of what corresponds to what; reading and writing both follow it. Linear kernels are transposed, blocks are
stacked along a leading axis but for the last one, and so are the input layers of several sources.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from perturbdiff_jax.errors import RequestError, shorten

# Held by every released file and read by nothing in the released code.
UNUSED = (
    "model.gene_embedding.gene_embedding.weight",
    "model.gene_embedding.gene_embedding.bias",
    "model.gene_embedding.layer_norm.weight",
    "model.gene_embedding.layer_norm.bias",
    "model.control_final_layer.linear.weight",
    "model.control_final_layer.linear.bias",
    "model.control_final_layer.adaLN_modulation.1.weight",
    "model.control_final_layer.adaLN_modulation.1.bias",
)
# The row of each perturbation's dose; known to a bundle as a vocabulary, not as a weight.
DOSE_ROWS = "cov_encoder.dose_indices"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which parts a network of the released code has."""

    depth: int
    sources: tuple[str, ...] = ()  # input layers by name; none = one shared layer
    # "learned"; "frozen" with a row for "none" in front (ESM2); "frozen_bare" without one (GenePT); "drug" (ChemBERTa
    # and doses, without one)
    perturbation: str = "learned"
    cell_type: str = "learned"  # or "frozen"
    batch: bool = True


@dataclasses.dataclass(frozen=True)
class Entry:
    """One released tensor and its place in the tree."""

    name: str
    path: tuple[str, ...]
    # "same" | "transposed" | "only_row" ([1, D] there, [D] here) | "bare_rows" (no row for "none" there).
    how: str = "same"
    at: int | None = None  # position along the stacked axis


def _linear(name: str, path: tuple[str, ...], at: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "kernel"), "transposed", at)
    yield Entry(f"{name}.bias", (*path, "bias"), at=at)


def _table(name: str, role: str, kind: str) -> Iterator[Entry]:
    path = ("covariates",)
    if kind == "learned":
        yield Entry(f"{name}.weight", (*path, role))
        return
    yield Entry(f"{name}.0.weight", (*path, f"frozen_{role}"), "same" if kind == "frozen" else "bare_rows")
    yield from _linear(f"{name}.1", (*path, f"map_{role}", "linear"))


def _block(number: int, path: tuple[str, ...], at: int | None) -> Iterator[Entry]:
    name = f"model.blocks.{number}.block"
    yield from _linear(f"{name}.attn.qkv", (*path, "attention", "qkv", "linear"), at)
    yield from _linear(f"{name}.attn.proj", (*path, "attention", "out", "linear"), at)
    for norm in ("q_norm", "k_norm"):
        yield Entry(f"{name}.attn.{norm}.weight", (*path, "attention", norm, "weight"), at=at)
    for stream, prefix in (("x", ""), ("u", "control_")):
        mlp = (*path, f"mlp_{stream}")
        yield from _linear(f"{name}.{prefix}mlp.fc1", (*mlp, "hidden", "linear"), at)
        yield from _linear(f"{name}.{prefix}mlp.fc2", (*mlp, "out", "linear"), at)
        modulate = (*path, f"modulate_{stream}", "to_parts", "linear")
        yield from _linear(f"{name}.{prefix}adaLN_modulation.1", modulate, at)


def entries(layout: Layout) -> Iterator[Entry]:
    """Every tensor that the network reads, in the order of the released file."""
    if layout.perturbation == "drug":
        yield from _table("cov_encoder.drug_encoder", "perturbation", "frozen_bare")
        yield Entry("cov_encoder.dose_encoder.weight", ("covariates", "dose"))
    else:
        yield from _table("cov_encoder.pert_encoder", "perturbation", layout.perturbation)
    yield from _table("cov_encoder.celltype_encoder", "cell_type", layout.cell_type)
    if layout.batch:
        yield from _table("cov_encoder.batch_encoder", "batch", "learned")
    yield from _linear("cov_encoder.transform", ("covariates", "mix", "linear"))
    for theirs, ours in (("x_embedder", "embed_perturbed"), ("x_control_embedder", "embed_control")):
        if not layout.sources:
            yield from _linear(f"model.{theirs}", (ours,))
        for at, source in enumerate(layout.sources):
            yield from _linear(f"model.{theirs}.{source}", (ours,), at)
    yield from _linear("model.t_embedder.mlp.0", ("time", "hidden"))
    yield from _linear("model.t_embedder.mlp.2", ("time", "out"))
    yield Entry("model.gene_embedding.null_emb.weight", ("gene_vector",), "only_row")
    yield from _linear("model.class_embedding.emb", ("condition", "linear"))
    yield Entry("model.class_embedding.null_emb.weight", ("null_condition",), "only_row")
    for number in range(layout.depth - 1):
        yield from _block(number, ("blocks",), number)
    yield from _block(layout.depth - 1, ("last_block",), None)
    yield from _linear("model.final_layer.linear", ("head", "out", "linear"))
    yield from _linear("model.final_layer.adaLN_modulation.1", ("head", "modulate", "to_parts", "linear"))


def account(tensors: Mapping[str, Any], layout: Layout, *, where: str) -> list[Entry]:
    """The entries of a state_dict that holds exactly what this network and the released code ask for.

    Raises:
      RequestError: a tensor that is missing, or one that has no place here.
    """
    known = list(entries(layout))
    names = {entry.name for entry in known}
    missing = [entry.name for entry in known if entry.name not in tensors]
    if missing:
        raise RequestError(f"{where}: {len(missing)} tensor(s) missing: {shorten(missing, 4)}.")
    names |= {*UNUSED, *((DOSE_ROWS,) if layout.perturbation == "drug" else ())}
    strange = [name for name in tensors if name not in names]
    if strange:
        raise RequestError(f"{where}: {len(strange)} tensor(s) without a place: {shorten(strange, 4)}.")
    return known


def check_shapes(tensors: Mapping[str, Any], layout: Layout, wanted: Mapping, *, where: str) -> None:
    """Refuses the first tensor whose shape is not that of its place in `wanted`, a tree of shaped leaves."""
    for entry in entries(layout):
        ours: Any = wanted
        for key in entry.path:
            ours = ours[key]
        needed, found = _their_shape(entry, tuple(ours.shape)), tuple(tensors[entry.name].shape)
        if found != needed:
            raise RequestError(
                f"{where}: the tensor {entry.name} has shape {found}; the other tensors and the vocabularies ask for "
                f"{needed}."
            )


def from_released(
    tensors: Mapping[str, Any], layout: Layout, *, where: str
) -> tuple[dict, dict[str, np.ndarray]]:
    """(parameter tree, tensors that nothing reads); `tensors` holds arrays, or things with `read()`.

    Raises:
      RequestError: a tensor that is missing, has no place here, or holds NaN or infinite numbers.
    """
    known = account(tensors, layout, where=where)

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        return np.asarray(tensor.read() if hasattr(tensor, "read") else tensor)

    def finite(name: str) -> np.ndarray:
        with np.errstate(over="ignore"):  # of float64: told below
            value = read(name).astype(np.float32)
        wrong = value.size - np.isfinite(value).sum()
        if wrong:
            raise RequestError(
                f"{where}: the tensor {name} holds {wrong:,} numbers that are NaN or infinite."
            )
        return value

    tree: dict = {}
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for entry in known:
        value = _ours(entry, finite(entry.name))
        if entry.at is None:
            _put(tree, entry.path, value)
        else:  # entries come in the order of their positions
            stacks.setdefault(entry.path, []).append(value)
    for path, values in stacks.items():
        if len({value.shape for value in values}) > 1:
            shapes = sorted({value.shape for value in values})
            raise RequestError(f"{where}: {'/'.join(path)} has layers of several shapes: {shapes}.")
        _put(tree, path, np.stack(values))
    return tree, {name: read(name).astype(np.float32) for name in UNUSED if name in tensors}


def to_released(params: dict, layout: Layout) -> dict[str, np.ndarray]:
    """A parameter tree under the released names, float32, in the released file's order."""
    found = {}
    for entry in entries(layout):
        value: Any = params
        for key in entry.path:
            value = value[key]
        value = np.asarray(value if entry.at is None else value[entry.at], np.float32)
        found[entry.name] = _theirs(entry, value)
    return found


def _their_shape(entry: Entry, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The released shape of a leaf of ours."""
    if entry.at is not None:
        ours = ours[1:]
    if entry.how == "transposed":
        return ours[::-1]
    if entry.how == "only_row":
        return (1, *ours)
    if entry.how == "bare_rows":
        return (ours[0] - 1, *ours[1:])
    return ours


def _ours(entry: Entry, value: np.ndarray) -> np.ndarray:
    if entry.how == "transposed":
        return np.ascontiguousarray(value.T)
    if entry.how == "only_row":
        return value[0]
    if entry.how == "bare_rows":
        return np.concatenate([np.zeros_like(value[:1]), value])
    return value


def _theirs(entry: Entry, value: np.ndarray) -> np.ndarray:
    if entry.how == "transposed":
        return np.ascontiguousarray(value.T)
    if entry.how == "only_row":
        return value[None]
    if entry.how == "bare_rows":
        return value[1:]
    return value


def _put(tree: dict, path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
