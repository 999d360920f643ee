"""A prediction that is ready to be walked: into memory, or part by part into an h5ad of any length."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import jax
import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.errors import RunError, full_disk_told
from perturbdiff_jax.prediction.assembly import assemble, check_output
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.h5ad_file import write_pieces
from perturbdiff_jax.prediction.parts import DamagedPart, PartFolder
from perturbdiff_jax.prediction.population import Walker
from perturbdiff_jax.prediction.set_plan import Request, SetPlan
from perturbdiff_jax.prediction.table import PredictionTable
from perturbdiff_jax.telemetry.progress import Progress

CONTROL_ROWS = 4096  # control cells that are written at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """Requests that are checked, with everything that their cells depend on."""

    walker: Walker
    params: dict
    requests: Sequence[Request]
    contexts: dict[tuple[str, str], tuple[str, str]]  # of the requests -> whose control cells serve
    controls: ControlCells
    bundle: Bundle
    uns: dict[str, Any]
    echo: Callable[[str], None] = print

    def in_memory(self) -> anndata.AnnData:
        """All cells, as `Predictor.predict` tells."""
        plan = self.walker.plan(self.requests)
        blocks = [cells for _, cells in self._walked(plan, range(plan.parts))]
        return assemble(blocks, self._table(plan), self.bundle.genes, {"perturbdiff": self.uns})

    def to_file(self, output: str | Path, *, anew: bool = False) -> Path:
        """Writes what `in_memory` gives, with the memory of a few parts; goes on where it was broken off.

        Args:
          output: the h5ad; finished parts lie in OUTPUT.parts until it is there.
          anew: parts of another request are removed, with a remark, instead of refused.

        Raises:
          RequestError: nothing can be written there, another process does, or there are parts of another request.
          RunError: a full disk.
        """
        output = check_output(output)
        plan = self.walker.plan(self.requests)
        safe = f"Finished parts stay in {output}.parts"
        folder = PartFolder(output, self.described(plan), sets_per_part=plan.sets_per_part, anew=anew)
        with full_disk_told(output, lambda: safe), folder as parts:
            plan = self.walker.plan(self.requests, parts.sets_per_part)
            missing = parts.missing(plan, len(self.bundle.genes))
            if len(missing) < plan.parts:
                self.echo(
                    f"Resuming {output}: {plan.parts - len(missing):,} of {plan.parts:,} parts are there."
                )
            for number, cells in self._walked(plan, missing):
                parts.write(number, cells)
            table = self._table(plan)
            blocks = self._stored(parts, plan, table)
            write_pieces(output, table, blocks, self.bundle.genes, {"perturbdiff": self.uns})
            parts.remove()
        return output

    def described(self, plan: SetPlan) -> dict[str, Any]:
        """All that decides the cells, in words for people where there are some, else as fingerprints."""
        design = hashlib.sha256()
        for one in plan.requests:
            design.update(json.dumps([*one.names, one.codes, one.cells, one.source]).encode())
        facts = dataclasses.asdict(self.bundle)
        facts.pop("versions")
        return {
            "checkpoint": {"step": self.uns["checkpoint_step"], "weights": _of_tree(self.params)},
            "bundle": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
            "seed": self.uns["seed"],
            "sampler": self.uns["sampler"],
            "design": f"{len(plan.requests)} populations, {plan.cells} cells, {design.hexdigest()[:16]}",
            "controls": _of_controls(self.controls, set(self.contexts.values())),
            "cells per set": plan.cells_per_set,
        }

    def _table(self, plan: SetPlan) -> PredictionTable:
        return PredictionTable(plan, self.contexts, self.controls, self.bundle)

    def _walked(self, plan: SetPlan, numbers: Sequence[int]) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Walks parts, telling how far they are."""
        largest = np.float32(self.bundle.values["largest"])
        done = plan.sets - sum(len(plan.sets_of(number)) for number in numbers)
        progress, began, cells = (
            Progress(plan.sets, "predict: sets", start=done, every=10.0),
            time.monotonic(),
            0,
        )
        for number, part in self.walker.parts(self.params, plan, numbers):
            # Nothing can exceed a cell whose whole total is one gene; a half-trained network may.
            yield number, sp.csr_matrix(np.minimum(part, largest))
            done += len(plan.sets_of(number))
            cells += len(part)
            speed = cells / max(1e-9, time.monotonic() - began)
            progress.show(done, f"{done / plan.sets:.0%}  {speed:,.0f} cells/s")

    def _stored(self, parts: PartFolder, plan: SetPlan, table: PredictionTable) -> Iterator[sp.csr_matrix]:
        for number in range(plan.parts):
            try:
                yield parts.read(number, (plan.cells_of(number), len(self.bundle.genes)))
            except DamagedPart as error:
                raise RunError(
                    f"{parts.file(number)}: damaged ({error}) since it was written.\n"
                    "Give the same command again: that part is computed again."
                ) from None
        yield from table.control_blocks(CONTROL_ROWS)


def _of_tree(params: dict) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())  # bfloat16 has no buffer of its own
    return digest.hexdigest()[:16]


def _of_controls(controls: ControlCells, contexts: set[tuple[str, str]]) -> str:
    """Those that are used."""
    digest, cells = hashlib.sha256(), 0
    for context in sorted(contexts):
        matrix = controls.cells[context]
        cells += matrix.shape[0]
        named = [context, controls.spelling.get(context[1]), controls.names[context], matrix.shape]
        digest.update(json.dumps(named).encode())
        for array in (matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)):
            digest.update(np.ascontiguousarray(array))
    return f"{cells} cells, {digest.hexdigest()[:16]}"
