"""Several stores as one by an index: nothing but a manifest that names the parts and says which rows go where.

So every file (or every machine) can prepare its own store. Vocabularies are united, the groups of the same
condition become one, control fallbacks and the split are settled anew over all cells. A part that has changed
since is refused when the index is opened.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.data.conditions import SPLITS, Conditions
from perturbdiff_jax.data.groups import Groups, resolve_controls
from perturbdiff_jax.data.preparation.table import table
from perturbdiff_jax.data.splits import assign
from perturbdiff_jax.data.storage import measured
from perturbdiff_jax.data.storage.index import MEMBERS, relative
from perturbdiff_jax.data.storage.location import is_url, locate
from perturbdiff_jax.data.storage.manifest import FORMAT, MANIFEST, VERSION, is_store
from perturbdiff_jax.data.storage.members import Members, numbered
from perturbdiff_jax.data.storage.view import View, members_of
from perturbdiff_jax.data.storage.writer import check_output, new_directory
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError, shorten

ROLES = {"perturbation": "perturbations", "cell_type": "cell_types", "batch": "batches"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What `merge` is asked for, as in PrepareOptions. Without split and holdout the parts keep their splits."""

    split: str | None = None
    holdout: dict | None = None
    seed: int = 0
    cells_per_set: int = 32
    overwrite: bool = False


def merge(
    inputs: Sequence[str | pathlib.Path],
    output: str | pathlib.Path,
    options: MergeOptions | None = None,
    *,
    echo: Callable[[str], None] = print,
) -> View:
    """Writes the index `output` over stores (or folders of stores) and opens it.

    Args:
        inputs: stores, or folders whose subfolders are stores.
        output: the index to write, a folder or URL.
        options: split and the like.
        echo: gets notes and the closing table.

    Raises:
        RequestError: stores that do not fit together (genes, values, control label, obs columns), a part that is
            itself an index, splits that contradict each other; then nothing is written.
    """
    options = options or MergeOptions()
    target = locate(output)
    if target.folder is not None:
        check_output(target.folder, overwrite=options.overwrite)
    parts = [Store.open(path) for path in _listed(inputs, target.folder)]
    _check_parts(parts)
    manifest = _index(parts, options, echo)
    manifest["parts"] = [relative(part.place, target) for part in parts]
    manifest["part_hashes"] = [part.manifest_hash for part in parts]
    content = json.dumps({**manifest, "complete": True})
    if target.folder is None:
        target.write(MANIFEST, content.encode())
    else:
        with new_directory(target.folder, overwrite=options.overwrite) as folder:
            (folder / MANIFEST).write_text(content)
    store = Store.open(output)
    for line in table(store, cells_per_set=options.cells_per_set, genes_from=f"of {len(parts)} stores"):
        echo(line)
    return store


def _listed(inputs: Sequence[str | pathlib.Path], output: pathlib.Path | None) -> list[str | pathlib.Path]:
    found: list[str | pathlib.Path] = []
    for path in inputs:
        folder = None if is_url(path) else pathlib.Path(path)
        if folder is None or not folder.is_dir() or (folder / MANIFEST).exists():
            found.append(path)
            continue
        skipped = None if output is None else output.resolve()  # an older index among its parts
        inside = [child for child in sorted(folder.glob("[!.]*")) if child.resolve() != skipped]
        inside = [child for child in inside if is_store(child)]
        if not inside:
            raise RequestError(f"{folder}: neither a store nor a folder of stores (--merge).")
        found += inside
    places = [str(locate(path).kvstore) for path in found]
    again = [path for path, place in zip(found, places) if places.count(place) > 1]
    if again:
        raise RequestError(f"--merge: {again[0]} is given twice; its cells would count twice.")
    if not found:
        raise RequestError("--merge: no store given.")
    return found


def _check_parts(parts: Sequence[Store]) -> None:
    first = parts[0]
    for part in parts:
        if not isinstance(part, Store):
            raise RequestError(f"{part.path}: is an index over other stores; give those to --merge.")
        if part.genes != first.genes:
            lost = sorted(set(first.genes) ^ set(part.genes))
            what = f"{len(lost)} differ: {shorten(lost, 3)}" if lost else "the same in another order"
            raise RequestError(
                f"{part.path}: its genes are not those of {first.path} ({what}).\n"
                "Prepare all parts with one --genes list and --absent-genes zero."
            )
        facts = {
            "encoding of values": part.manifest["values"]["encoding"],
            "target sum": part.manifest["values"]["target_sum"],
            "control label": part.control,
            **{f"obs column of the {role}": key for role, key in part.manifest["keys"].items()},
        }
        if part is first:
            wanted = facts
        for name, value in facts.items():
            if value != wanted.get(name):
                raise RequestError(
                    f"{part.path}: its {name} is {value!r}, that of {first.path} {wanted.get(name)!r}; "
                    "all parts must agree."
                )


def _index(parts: Sequence[Store], options: MergeOptions, echo: Callable[[str], None]) -> dict:
    """The manifest of the index, but for where its parts lie."""
    control = parts[0].control
    names = {
        role: sorted({name for part in parts for name in getattr(part, attribute)})
        for role, attribute in ROLES.items()
    }
    # The control's name comes first, as in every store: its code is 0.
    names["perturbation"].sort(key=lambda name: name != control)
    tables = [members_of(part, number) for number, part in enumerate(parts)]
    stacked = {
        field.name: np.concatenate([getattr(one, field.name) for one in tables])
        for field in dataclasses.fields(Members)
    }
    for role, attribute in ROLES.items():
        known = pd.Index(names[role])
        codes = [known.get_indexer(getattr(part, attribute))[getattr(part.groups, role)] for part in parts]
        stacked[role] = np.concatenate(codes).astype(np.int32)
    members = Members(**stacked)
    is_control = members.perturbation == 0
    of, first = numbered([members.cell_type, members.batch, ~is_control, members.perturbation])
    size = np.bincount(of, weights=members.size).astype(np.int64)
    codes = {role: getattr(members, role)[first] for role in ROLES}
    conditions = Conditions(
        **{role: [names[role][code] for code in codes[role]] for role in ROLES},
        control=control,
        columns={role: key for role, key in parts[0].manifest["keys"].items() if key and role in ROLES},
    )
    if options.split is None and options.holdout is None:
        split, info = _kept(parts, members, of, first, conditions)
    else:
        assignment = assign(conditions, split=options.split, holdout=options.holdout)
        split, info = assignment.codes, assignment.info
        for note in assignment.notes:
            echo(note)
    serving, fallback = resolve_controls(codes["cell_type"], codes["batch"], is_control[first], size)
    groups = Groups(
        start=np.cumsum(size) - size,
        size=size,
        **codes,
        is_control=is_control[first],
        control=serving,
        fallback=fallback,
        split=split,
        pointer=np.zeros(len(size), dtype=np.int64),
    )
    stored = dataclasses.replace(members, group=of)
    values = [part.manifest["values"] for part in parts]
    totals = {value.get("total_key") for value in values}
    return {
        "format": FORMAT,
        "version": VERSION,
        "n_cells": int(size.sum()),
        "nnz": sum(part.nnz for part in parts),
        "layout": "dense" if all(part.is_dense for part in parts) else "csr",
        "keys": parts[0].manifest["keys"],
        "control": control,
        **{attribute: names[role] for role, attribute in ROLES.items()},
        "groups": groups.to_json(),
        "members": {name: getattr(stored, name).tolist() for name in MEMBERS},
        "split": info,
        "sources": [source for part in parts for source in part.manifest["sources"]],
        "seed": options.seed,
        "values": {
            **values[0],
            "total_key": totals.pop() if len(totals) == 1 else None,
            "recovered": any(value.get("recovered", False) for value in values),
        },
        "genes": parts[0].genes,
        "measured": measured.written(np.concatenate([part.measured for part in parts])),
    }


def _kept(
    parts: Sequence[Store], members: Members, of: np.ndarray, first: np.ndarray, conditions: Conditions
) -> tuple[np.ndarray, dict]:
    """(split of every group as its parts have it, the manifest's account of it)."""
    split = members.split[first]
    torn = np.flatnonzero(members.split != split[of])
    if len(torn):
        one, group = int(torn[0]), int(of[torn[0]])
        named = " / ".join(getattr(conditions, role)[group] for role in ROLES)
        raise RequestError(
            f"{parts[members.part[one]].path}: {named} is {SPLITS[members.split[one]]} here and "
            f"{SPLITS[split[group]]} in {parts[members.part[first[group]]].path}.\n"
            "Give --split or --holdout to split all cells anew."
        )
    infos = [part.manifest["split"] for part in parts]
    if all(info == infos[0] for info in infos):
        return split, infos[0]
    hashes = hashlib.sha256("".join(str(info.get("sha256")) for info in infos).encode()).hexdigest()
    return split, {"name": "as in the parts", "source": None, "sha256": hashes}
