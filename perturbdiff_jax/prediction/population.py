"""Populations of cells: the sets of a plan are walked, in one fixed shape and on all devices of this process.

What a request yields depends on its names, its draw and the seed alone: not on the other requests, their order, the
number of sets walked together or the number of devices.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from perturbdiff_jax import rng
from perturbdiff_jax.diffusion.samplers import SamplerOptions, sample
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.prediction.set_plan import PlannedSet, Request, SetPlan
from perturbdiff_jax.step import bind


class Walker:
    """The compiled sampler for one network and one walk: each device walks up to sets_per_batch sets at a time."""

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
        feeds_back: bool = True,
        devices: Sequence[jax.Device] | None = None,
    ):
        """`zero_control`: the network was trained without control cells and gets none (marginal pretraining).

        `feeds_back`: it was trained with self-conditioning. `devices`: by default all of this process.
        """
        self.cells_per_set, self.sets_per_batch = cells_per_set, sets_per_batch
        self.divisor, self.seed = divisor, seed
        devices = jax.local_devices() if devices is None else list(devices)
        self._mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self._walk = compiled(model, schedule, sampler, zero_control, feeds_back, self._mesh)

    def plan(self, requests: Sequence[Request], sets_per_part: int | None = None) -> SetPlan:
        """How requests are cut: a part is what a device walks at a time; few sets are dealt to all devices."""
        plan = SetPlan(
            requests=requests,
            cells_per_set=self.cells_per_set,
            sets_per_part=sets_per_part or self.sets_per_batch,
            seed=self.seed,
        )
        share = max(1, -(-plan.sets // self._mesh.size))
        return plan if sets_per_part or share >= plan.sets_per_part else self.plan(requests, share)

    def parts(
        self, params: dict, plan: SetPlan, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (part, its cells [n, G] float32 log1p) for the parts `numbers` of a plan, by default all, in order.

        At most two batches, of a part for each device, exist at a time: one that is handed out and the next, which
        the devices walk meanwhile. A part is the same whichever others are walked.
        """
        numbers = range(plan.parts) if numbers is None else numbers
        params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))
        base = rng.key_for(self.seed, "sample")
        before: tuple[Sequence[int], jax.Array] | None = None
        for first in range(0, len(numbers), self._mesh.size):
            chunk = numbers[first : first + self._mesh.size]
            walked = self._walk(params, base, *self._batch(plan, chunk))
            if before:
                yield from self._fetched(plan, *before)
            before = chunk, walked
        if before:
            yield from self._fetched(plan, *before)

    def __call__(
        self,
        params: dict,
        requests: Sequence[Request],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Request, np.ndarray, np.ndarray]]:
        """Yields whole requests: (request, cells [n, G] float32 log1p, control rows [n]) in the order of `requests`.

        `progress` is called with the number of sets done.
        """
        plan = self.plan(requests)
        cells, rows, done = [], [], 0
        for number, part in self.parts(params, plan):
            first = 0
            for planned in plan.sets_of(number):
                cells.append(part[first : first + planned.cells])
                rows.append(plan.control_rows(planned)[: planned.cells])
                first += planned.cells
                done += 1
                if (planned.index + 1) * self.cells_per_set >= planned.request.cells:
                    yield planned.request, np.concatenate(cells), np.concatenate(rows)
                    cells, rows = [], []
            if progress:
                progress(done)

    def _batch(self, plan: SetPlan, numbers: Sequence[int]) -> list[np.ndarray]:
        """What the devices walk: a part each. The last part is filled up with its own first set, devices without one
        repeat the first: one shape, one compilation, and a part has the same company wherever it is walked.
        """
        filled: list[PlannedSet] = []
        for number in [*numbers, *[numbers[0]] * (self._mesh.size - len(numbers))]:
            sets = plan.sets_of(number)
            filled += sets + sets[:1] * (plan.sets_per_part - len(sets))
        control = np.stack([one.request.controls[plan.control_rows(one)].toarray() for one in filled])
        return [
            control.astype(np.float32) / np.float32(self.divisor),
            np.array([one.request.codes for one in filled], np.int32),
            np.array([one.request.source for one in filled], np.int32),
            np.array([one.request.address for one in filled], np.uint32),
            np.array([one.index for one in filled], np.uint32),
        ]

    def _fetched(
        self, plan: SetPlan, numbers: Sequence[int], walked: jax.Array
    ) -> Iterator[tuple[int, np.ndarray]]:
        shards = sorted(walked.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        for number, shard in zip(numbers, shards):
            sets = zip(plan.sets_of(number), np.asarray(shard.data))
            wanted = [cells[: planned.cells] for planned, cells in sets]
            yield number, np.concatenate(wanted) * np.float32(self.divisor)


@functools.lru_cache(maxsize=8)
def compiled(
    model: Denoiser,
    schedule: Schedule,
    sampler: SamplerOptions,
    zero_control: bool,
    feeds_back: bool,
    mesh: Mesh,
) -> Callable[..., jax.Array]:
    """The jitted walk over `mesh`, which has the one axis `data`; kept, so that the same walk is compiled once.

    (params, key, control [B, S, G], codes [B, 3], source [B], address [B], index [B]) -> cells [B, S, G] float32.
    """

    def walk(params, base, control, codes, source, address, index):
        control = jnp.zeros_like(control) if zero_control else control
        keys = jax.vmap(lambda a, i: jax.random.fold_in(jax.random.fold_in(base, a), i))(address, index)
        columns = (codes[:, 0], codes[:, 1], codes[:, 2])
        denoise = bind(model, params, *columns, source, feeds_back=feeds_back)
        return sample(denoise, control, schedule=schedule, options=sampler, keys=keys)

    # Every device walks its own sets by itself. Left to the partitioner, guidance, which stacks two branches over the
    # sets, would send cells to and fro.
    whole, dealt = PartitionSpec(), PartitionSpec("data")
    return jax.jit(
        jax.shard_map(
            walk, mesh=mesh, in_specs=(whole, whole, *[dealt] * 5), out_specs=dealt, check_vma=False
        )
    )
