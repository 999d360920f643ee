"""How a run tells its covariates to the network: encodings read from files, checked against the split, and recorded.

What comes out goes to three places: facts to bundle.json, vectors of the vocabulary to the parameters, and whole
files to BUNDLE/embeddings/, from which names that the run has never seen are told later (prediction/unseen.py).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perturbdiff_jax.bundle import FILE, read_bundle
from perturbdiff_jax.covariate_tables import digest, parts_facts, write_encodings
from perturbdiff_jax.data.conditions import TEST, VALIDATION
from perturbdiff_jax.data.embeddings.labels import read_label
from perturbdiff_jax.data.embeddings.registry import Encoding, read_encoding
from perturbdiff_jax.data.embeddings.rows import Rows, absent_words, cell_type_rows, perturbation_rows
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.training_cells import targets_of
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.models.covariates import FROZEN
from perturbdiff_jax.settings import Settings
from perturbdiff_jax.state import TrainState

KEY = "config.covariates."


@dataclasses.dataclass(frozen=True)
class Told:
    """What the network is told: encodings, rows of the vocabularies, doses as in bundle.json."""

    encodings: dict[str, Encoding]
    rows: dict[str, Rows]
    doses: dict[str, list]
    added_up: bool

    def facts(self) -> dict[str, Any]:
        """`tables` of bundle.json; a covariate with a learned row for each name is not in it."""
        found = {}
        for role, rows in self.rows.items():
            if rows.frozen is None and not rows.learned:
                continue
            encoding = self.encodings[role]
            found[role] = {
                "name": encoding.name,
                "onehot": encoding.onehot,
                "added_up": self.added_up,
                "learned": [list(own) for own in rows.learned],
            }
            if rows.frozen is not None:
                shape, parts = list(rows.frozen.shape), parts_facts(encoding)
                found[role] |= {"shape": shape, "sha256": digest(rows.frozen), "parts": parts}
        return found

    def account(self, settings: Settings, store: Store) -> dict[str, Any]:
        """For run.json: tables with the names of their files, whether combinations are sums, doses beside a table.

        A covariate that the network does not look at is None; a batch is always told by name.
        """
        used, found = settings.model, {}
        for role in ("perturbation", "cell_type"):
            encoding = self.encodings[role]
            tables = [
                {"name": name, "file": Path(one.path).name, "width": one.width}
                for name, one in encoding.tables
            ]
            looked_at = getattr(used, f"use_{role}") != "no"
            found[role] = {"onehot": encoding.onehot, "tables": tables} if looked_at else None
        encoding = self.encodings["perturbation"]
        known = {name for _, one in encoding.tables for name in one.names}
        several = any(len(read_label(name, store.control, known).parts) > 1 for name in store.perturbations)
        sums = several and (self.added_up or bool(encoding.tables))
        doses = [value for value in self.doses.get("values", ()) if value is not None]
        return {**found, "batch": used.use_batch != "no", "combinations_as_sums": sums, "doses": doses}

    def put_into(self, state: TrainState) -> TrainState:
        """The state before the first step with the frozen tables in it, placed as they were."""
        tables = {FROZEN + role: rows.frozen for role, rows in self.rows.items() if rows.frozen is not None}

        def filled(params: dict) -> dict:
            own = params["covariates"]
            placed = {name: jax.device_put(table, own[name].sharding) for name, table in tables.items()}
            return {**params, "covariates": {**own, **placed}}

        return dataclasses.replace(state, params=filled(state.params), ema=filled(state.ema))

    def refuse_others(self, bundle: Path) -> None:
        """Refuses tables other than those that the run at `bundle` began with, if there is one.

        Raises:
          RequestError: names the covariate.
        """
        if not (bundle / FILE).is_file():
            return
        before = read_bundle(bundle)
        for role, facts in self.facts().items():
            # Bundles of before encodings were recorded have nothing to compare.
            if role in before.tables and before.tables[role].get("sha256") != facts.get("sha256"):
                raise RequestError(
                    f"{bundle.parent}: this run began with other vectors of config.covariates.{role}; the file has "
                    "changed since. Give it the old file, or another work directory."
                )

    def write(self, bundle: Path) -> None:
        """Writes the whole files below the bundle."""
        write_encodings(bundle, self.encodings)


def encodings_of(settings: Settings) -> dict[str, Encoding]:
    """Reads the embedding files that a run's settings name.

    Raises:
      RequestError: as `data.embeddings.registry.read_encoding`.
    """
    asked = settings.covariates
    return {
        role: read_encoding(getattr(asked, role), KEY + role, role) for role in ("perturbation", "cell_type")
    }


def tell(settings: Settings, store: Store) -> Told:
    """Reads the encodings of a run and decides what each name of its store is told as.

    Prints a line for each table that lacks names.

    Raises:
      RequestError: a file that is no embedding file; test conditions whose perturbation (or cell type) has no training
        cell and no vector, unless `covariates.allow_unknown`; doses that nothing tells apart.
    """
    asked, groups, encodings = settings.covariates, store.groups, encodings_of(settings)
    train = targets_of(
        store,
        group_by=settings.loader.group_by,
        min_cells=settings.loader.min_cells,
        with_controls=settings.loader.train_on_controls == "yes",
    )
    seen = {
        "perturbation": {store.perturbations[code] for code in set(groups.perturbation[train].tolist())},
        "cell_type": {store.cell_types[code] for code in set(groups.cell_type[train].tolist())},
    }
    held = np.isin(groups.split, (TEST, VALIDATION))
    add_up = _adds_up(settings, store, encodings["perturbation"], seen["perturbation"], held)
    rows = {
        "perturbation": perturbation_rows(
            encodings["perturbation"], store.perturbations, store.control, seen["perturbation"], add_up=add_up
        ),
        "cell_type": cell_type_rows(encodings["cell_type"], store.cell_types, seen["cell_type"]),
    }
    used = {"perturbation": settings.model.use_perturbation, "cell_type": settings.model.use_cell_type}
    for role, names, codes in (
        ("perturbation", store.perturbations, groups.perturbation),
        ("cell_type", store.cell_types, groups.cell_type),
    ):
        if used[role] == "no":
            continue
        for line in absent_words(rows[role].absent, role.replace("_", " ")):
            print(f"warning: {line}", flush=True)
        # Validation conditions are predicted as well, after training.
        for split, code in (("test", TEST), ("validation", VALIDATION)):
            held_names = {names[own] for own in set(codes[groups.split == code].tolist())}
            lost = [name for name in rows[role].unknown if name in held_names]
            if not lost or asked.allow_unknown:
                continue
            what = role.replace("_", " ")
            raise RequestError(
                f"{store.path}: {len(lost)} {what}(s) of the {split} split have no training cell and no vector: "
                f"{shorten(lost, 5)}.\nGive {KEY}{role} a table that has them, hold out others, or set "
                f"{KEY}allow_unknown=True (they are then predicted as one and the same)."
            )
    return Told(encodings, rows, _doses(settings, store, encodings["perturbation"]), add_up)


def _adds_up(settings: Settings, store: Store, encoding: Encoding, seen: set[str], held: np.ndarray) -> bool:
    """Whether "A+B" is told as A plus B: as asked, or where a held-out one has no training cell of its own."""
    if settings.covariates.combinations != "auto":
        return settings.covariates.combinations == "sum"
    tested = {store.perturbations[code] for code in set(store.groups.perturbation[held].tolist())}
    new = [name for name in sorted(tested - seen) if len(read_label(name, store.control).parts) > 1]
    if new and encoding.onehot:
        print(
            f"Combinations are told as sums of their parts: {shorten(new, 3)} have no training cell.",
            flush=True,
        )
    return bool(new)


def _doses(settings: Settings, store: Store, encoding: Encoding) -> dict[str, list]:
    """Values of the learned dose table and the row of each perturbation; {} where labels are told whole."""
    asked = settings.covariates.dose
    labels = [read_label(name, store.control) for name in store.perturbations]
    values = sorted({label.dose for label in labels if label.dose is not None})
    wanted = asked == "yes" or (asked == "auto" and values and encoding.tables and not encoding.onehot)
    if asked == "yes" and not values:
        raise RequestError(
            f"config.covariates.dose='yes': no perturbation of {store.path} has a dose (prepare --dose-key)."
        )
    if not wanted:
        if encoding.tables and not encoding.onehot and len(values) > 1:
            raise RequestError(
                "config.covariates.dose='no': a table has one vector for all doses of a drug, so nothing would tell "
                "them apart; allowed are auto, yes."
            )
        return {}
    # Labels without a dose, the control's among them, have a row of their own.
    table = ([None] if any(label.dose is None for label in labels) else []) + values
    places = {value: row for row, value in enumerate(table)}
    return {"values": table, "codes": [places[label.dose] for label in labels]}
