"""Populations of cells: requests are cut into sets, matched with control cells, and walked in fixed shapes.

What a request yields depends on its names, its draw and the seed alone: not on the other requests, their order or
the number of sets walked together.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from perturbdiff_jax import rng
from perturbdiff_jax.diffusion.samplers import SamplerOptions, sample
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.step import bind


@dataclasses.dataclass(frozen=True)
class Request:
    """`cells` cells of one condition in one context; `controls` [C, G] CSR, log1p, are its control cells."""

    perturbation: str
    cell_type: str
    batch: str
    codes: tuple[int, int, int]  # (perturbation, cell type, batch) in the bundle's vocabularies
    cells: int
    controls: sp.csr_matrix
    draw: int = 0
    source: int = 0  # input layer, of networks that have several

    @property
    def address(self) -> int:
        """Hash of what the request is, for its randomness."""
        names = (self.perturbation, self.cell_type, self.batch, str(self.draw))
        return zlib.crc32("\x1f".join(names).encode())


class Walker:
    """The compiled sampler for one network, one walk and one shape: up to sets_per_batch sets [cells_per_set, G]."""

    def __init__(
        self,
        model: Denoiser,
        *,
        schedule: Schedule,
        sampler: SamplerOptions,
        cells_per_set: int,
        sets_per_batch: int,
        divisor: float,
        seed: int,
        zero_control: bool = False,
    ):
        """`zero_control`: the network was trained without control cells and gets none (marginal pretraining)."""
        self.cells_per_set, self.sets_per_batch = cells_per_set, sets_per_batch
        self.divisor, self.seed = divisor, seed

        def walk(params, control, codes, source, address, index):
            control = jnp.zeros_like(control) if zero_control else control
            base = rng.key_for(seed, "sample")
            fold = jax.vmap(lambda a, i: jax.random.fold_in(jax.random.fold_in(base, a), i))
            denoise = bind(model, params, codes[:, 0], codes[:, 1], codes[:, 2], source)
            keys = fold(address, index)
            return sample(denoise, control, schedule=schedule, options=sampler, keys=keys)

        self._walk = jax.jit(walk)

    def sets_of(self, requests: Sequence[Request]) -> int:
        """Number of sets that requests are cut into."""
        return sum(-(-request.cells // self.cells_per_set) for request in requests)

    def control_rows(self, request: Request) -> np.ndarray:
        """Rows of the request's control cells, one per predicted cell, whole sets: successive permutations.

        Permutations use every control cell before any is used twice.
        """
        wanted = -(-request.cells // self.cells_per_set) * self.cells_per_set
        available = request.controls.shape[0]
        stream = np.random.Generator(np.random.Philox(key=[self.seed, request.address]))
        rounds = [np.argsort(stream.random(available)) for _ in range(-(-wanted // available))]
        return np.concatenate(rounds)[:wanted].astype(np.int64)

    def __call__(
        self,
        params: dict,
        requests: Sequence[Request],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Request, np.ndarray, np.ndarray]]:
        """Yields (request, cells [n, G] float32 log1p, control rows [n]) in the order of `requests`.

        `progress` is called with the number of sets done.
        """
        plan = []  # (request number, set number)
        rows = {}
        for number, request in enumerate(requests):
            rows[number] = self.control_rows(request).reshape(-1, self.cells_per_set)
            plan += [(number, index) for index in range(len(rows[number]))]
        parts: dict[int, list[np.ndarray]] = {}
        width = min(self.sets_per_batch, max(1, len(plan)))  # few sets are not filled up to many
        for first in range(0, len(plan), width):
            chunk = plan[first : first + width]
            found = self._batch(params, requests, rows, chunk, width)
            for (number, _), cells in zip(chunk, found, strict=True):
                parts.setdefault(number, []).append(cells)
                if len(parts[number]) == len(rows[number]):
                    request, wanted = requests[number], requests[number].cells
                    yield request, np.concatenate(parts.pop(number))[:wanted], rows[number].ravel()[:wanted]
            if progress:
                progress(min(first + width, len(plan)))

    def _batch(self, params, requests, rows, chunk, width: int) -> np.ndarray:
        # The last batch is filled with its own first set: one shape, one compilation.
        filled = chunk + chunk[:1] * (width - len(chunk))
        control = np.stack([requests[n].controls[rows[n][i]].toarray() for n, i in filled])
        codes = np.array([requests[n].codes for n, _ in filled], np.int32)
        source = np.array([requests[n].source for n, _ in filled], np.int32)
        address = np.array([requests[n].address for n, _ in filled], np.uint32)
        index = np.array([i for _, i in filled], np.uint32)
        scaled = jnp.asarray(control.astype(np.float32) / np.float32(self.divisor))
        cells = self._walk(params, scaled, codes, source, address, index)
        return np.asarray(cells)[: len(chunk)] * np.float32(self.divisor)
