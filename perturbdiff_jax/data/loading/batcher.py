"""From planned rows to a batch: dense for this machine's own CPU, packed for an accelerator.

What is drawn, and which cells are in memory, is decided elsewhere (loading/sampler.py, loading/windows.py); here rows
become arrays of the shapes that a compiled step expects. Packed arrays come in few lengths: multiples of
an eighth of what is expected.
"""

import math

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.data.loading.blocks import Block, copy_rows, make_block
from perturbdiff_jax.data.loading.pairing import find_pairing, matched, matched_order
from perturbdiff_jax.data.loading.selection import Selection
from perturbdiff_jax.data.raw_cells import RawCells

CODES = ("perturbation", "cell_type", "batch")
STEPS = 8  # lengths up to what is expected; each is one compilation of the step
SLACK = 0.02  # above what is expected: else every other batch would be just too long for that


class Batcher:
    """Turns draws of one store into batches. Safe to use from several threads.

    Attributes: form ("packed" or "dense", see loading/blocks.py), divisor, runs (D), mixes_batches (every cell of a set
    brings a batch code of its own).
    """

    def __init__(self, store, form: str, divisor: float, pairing: str = "random", blocks: int = 1):
        """`blocks`: D, devices of this host that a packed batch is cut for; the sets of a batch are a multiple.

        Raises RequestError for an unknown pairing.
        """
        self.form, self.divisor, self.runs = form, float(divisor), blocks
        self._store, self._genes = store, len(store.genes)
        self._match = find_pairing(pairing) is matched
        self._per_cell = store.nnz / store.n_cells
        # Groups without a batch of their own hold cells of several: then every cell brings its code.
        self.mixes_batches = bool((np.asarray(store.groups.batch) < 0).any())

    def block(self, raw: RawCells) -> Block:
        """Cells as this batcher wants to have them in memory."""
        return make_block(raw, self.form, self.divisor)

    def batch(self, draw) -> Batch | PackedBatch:
        """The batch of a sampler.Draw: B sets of S perturbed and S control cells, paired.

        The length of packed arrays follows from these sets alone; processes of one run would have to agree on one.

        Raises ValueError when the sets cannot be cut into D equal runs.
        """
        codes = self._codes(draw)
        if self.form == "dense":
            perturbed, control = self._dense(draw.perturbed), self._dense(draw.control)
            if self._match:
                control = matched(perturbed, control)
            return Batch(perturbed, control, *codes, draw.mask)
        return self._packed(draw, codes)

    def _codes(self, draw) -> list[np.ndarray]:
        groups = self._store.groups
        codes = [np.asarray(getattr(groups, name)[draw.group], np.int32) for name in CODES]
        if self.mixes_batches:
            cells = draw.cells
            codes[2] = self._store.batch_codes(cells.reshape(-1)).reshape(cells.shape).astype(np.int32)
        return codes

    def _dense(self, rows) -> np.ndarray:
        """[B, S, G] float32 of blocks of the form "dense"."""
        chosen = Selection(rows.blocks, rows.which[None], rows.rows[None])
        genes, values = (np.empty((1, chosen.ends[-1]), kind) for kind in chosen.kinds())
        chosen.take(genes, values)
        genes, values = genes[0], values[0]
        pointers = _pointers(chosen.row_nnz)
        asked = chosen.row_map.reshape(-1)
        # Sparse once more in the order asked for: a tenth of the work of putting dense rows in order.
        ordered = _pointers(chosen.row_nnz[asked])
        out = tuple(np.empty(ordered[-1], part.dtype) for part in (genes, values))
        copy_rows(pointers, genes, values, asked, out)
        matrix = sp.csr_matrix((len(asked), self._genes), dtype=np.float32)
        matrix.indptr, (matrix.indices, matrix.data) = ordered, out
        return matrix.toarray().reshape(*rows.rows.shape, self._genes)

    def _packed(self, draw, codes: list[np.ndarray]) -> PackedBatch:
        sets, size = draw.mask.shape
        if sets % self.runs:
            raise ValueError(f"{sets} sets cannot be cut into {self.runs} equal runs")
        cut = (self.runs, sets // self.runs, size)
        blocks, which = draw.perturbed.blocks, (draw.perturbed.which, draw.control.which)
        if blocks is not draw.control.blocks:
            which = (which[0], which[1] + len(blocks))
            blocks = [*blocks, *draw.control.blocks]
        rows = (draw.perturbed.rows, draw.control.rows)
        which, rows = (np.stack([part.reshape(cut) for part in pair], axis=1) for pair in (which, rows))
        chosen = Selection(blocks, which, rows)
        stored = self._stored(chosen, 2 * cut[1] * size)
        perturbed, control = (chosen.row_map[:, side].reshape(sets, size) for side in (0, 1))
        if self._match:
            cells = self._unpacked(*stored)
            for number, (mine, other) in enumerate(zip(perturbed, control)):
                run = cells[number // cut[1]]
                order = matched_order(run[mine].toarray(), run[other].toarray())
                control[number] = other[order]
        return PackedBatch(*stored, perturbed, control, *codes, draw.mask)

    def _stored(self, chosen: Selection, capacity: int) -> tuple:
        """(data, indices, row_nnz, scale) of runs with room for `capacity` cells each."""
        wide, narrow = chosen.kinds()
        if chosen.is_dense:
            capacity = _room(max(chosen.n_cells), capacity)
            data = np.zeros((self.runs, capacity, self._genes), np.uint8)
            chosen.take_rows("narrow", data)
            indices = row_nnz = None
        else:
            used = np.diff(chosen.ends).tolist()
            length = _room(max(used), capacity * self._per_cell, SLACK)
            data, rest = (np.empty((self.runs, length), kind) for kind in (wide, narrow))
            chosen.take(data, rest)
            for run, end in enumerate(used):
                data[run, end:] = 0
                rest[run, end:] = 0
            row_nnz = np.zeros((self.runs, capacity), np.int32)
            first = 0
            for run, cells in enumerate(chosen.n_cells):
                row_nnz[run, :cells] = chosen.row_nnz[first : first + cells]
                first += cells
            indices = None if narrow == np.int8 else rest
            data = data.view(np.uint32 if self._store.is_counts else np.float32)
        scale = None
        if self._store.is_counts:
            scale = np.zeros((self.runs, capacity), np.float32)
            chosen.take_rows("scale", scale)
        return data, indices, row_nnz, scale

    def _unpacked(self, data, indices, row_nnz, scale) -> list[sp.csr_matrix]:
        """log1p of the cells of every run, [U, G], as the pairing wants it."""
        cells = []
        for run, stored in enumerate(data):
            pointers = genes = None
            if row_nnz is not None:
                pointers = _pointers(row_nnz[run]).astype(np.int64)
                stored = stored[: pointers[-1]]
                genes = (stored & 0xFFFF) if indices is None else indices[run, : pointers[-1]]
                stored = (stored >> 16) if indices is None else stored
            raw = RawCells(stored, genes, pointers, None if scale is None else scale[run], self._genes)
            cells.append(raw.lognorm())
        return cells


def _room(used: int, expected: float, slack: float = 0.0) -> int:
    """`used`, rounded up to the grid of lengths: eighths of what is expected, and `slack` of it more."""
    step = max(1, math.ceil(expected / STEPS))
    more = math.ceil(expected * slack)
    return max(1, -(-(used - more) // step)) * step + more


def _pointers(row_nnz: np.ndarray) -> np.ndarray:
    """Row pointers, int32 [rows + 1]."""
    pointers = np.zeros(len(row_nnz) + 1, np.int32)
    np.cumsum(row_nnz, out=pointers[1:])
    return pointers
