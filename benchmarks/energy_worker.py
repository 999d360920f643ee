"""One side of energy_distance.py in a process of its own: ours, or another library that runs on JAX or numpy.

The argument is a job as JSON (its side and threads); every line of stdin is an order, and every answer a line of JSON.
What the side with PyTorch needs as well is here too, and imports neither JAX nor PyTorch.
"""

import ctypes
import functools
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from train_step_worker import answer, ceiling, clocked, orders

DENSITY = 0.05  # of values above zero


def cells(order: dict) -> tuple[np.ndarray, np.ndarray]:
    """x and y [B, S, G] float32: expression as in train_step.py, y a little higher."""
    return _cells((order["sets"], order["cells"], order["genes"]))


@functools.lru_cache(maxsize=1)
def _cells(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    made = []
    for mean in (0.1, 0.11):
        values = draw.standard_exponential(shape, np.float32)
        values *= np.float32(mean) * (draw.random(shape, np.float32) < DENSITY)
        made.append(values)
    return tuple(made)


def status(name: str) -> int:
    """Bytes of a line of this process's status: VmRSS now, VmHWM the most since `forget_peak`."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def extra_memory(work: Callable[[], object]) -> dict[str, int]:
    """Bytes that a call takes at its peak beyond what was there before it.

    Freed memory is given back first: a call that finds it would seem to need none. The call is not timed, since it
    has to ask for its memory anew.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    work()
    return {"memory": max(0, status("VmHWM") - before)}


def serve(prepare: Callable[[dict], Callable[[], tuple]], product: Callable[[], object] | None) -> None:
    """Answers orders: "prepare" a way, "run" it, its "memory", its first "result" as a file; the "matrix" ceiling.

    `prepare` returns what is run, which returns (values [B], gradient [B, R, G] or None).
    """
    works: dict[tuple, Callable[[], tuple]] = {}
    found: tuple = ()  # what the way prepared last gave
    for order in orders():
        key = tuple(order.get(name) for name in ("sets", "cells", "genes", "way", "backward"))
        if order["what"] == "matrix":
            answer(ceiling(product) if product else {"flops": 0.0})
        elif order["what"] == "prepare":
            found = ()
            for other in [one for one in works if one[:3] != key[:3]]:
                del works[other]  # another size is over
            try:
                work = prepare(order)
                found = work()  # compiled, threads awake
            except Exception as error:  # what a library cannot do is a row without a number, with its reason
                answer({"failed": f"{type(error).__name__}: {error}"[:200]})
            else:
                works[key] = work
                answer({})
        elif order["what"] == "run":
            answer(clocked(works[key]))
        elif order["what"] == "memory":
            answer(extra_memory(works[key]))
        elif order["what"] == "result":
            value, gradient = found
            np.savez(order["file"], value=value, **({} if gradient is None else {"gradient": gradient}))
            found = value = gradient = None
            answer({})


def with_jax(function: Callable) -> tuple[Callable, Callable]:
    """(prepare, product) for `function(order)(x, y) -> [B]`, run by JAX."""
    import jax
    import jax.numpy as jnp

    def prepare(order: dict) -> Callable[[], tuple]:
        x, y = (jnp.asarray(a) for a in cells(order))
        energies = function(order)

        def both(x, y):
            (_, values), gradient = jax.value_and_grad(
                lambda y: (lambda v: (v.mean(), v))(energies(x, y)), has_aux=True
            )(y)
            return values, gradient

        compiled = jax.jit(both if order["backward"] else energies).lower(x, y).compile()

        def work():
            found = jax.block_until_ready(compiled(x, y))
            return found if order["backward"] else (found, None)

        return work

    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.dot).lower(square, square).compile()
    return prepare, lambda: product(square, square).block_until_ready()


def ours(order: dict) -> Callable:
    """A way of the package's own function, or a version of it as one would write it first."""
    import jax
    import jax.numpy as jnp

    from perturbdiff_jax.kernels.energy_distance import energy_distance

    if order["way"] != "naive":
        return functools.partial(energy_distance, way=order["way"])

    def mean(x, y):
        squared = jnp.square(x[:, None] - y[None]).sum(axis=-1)
        return jnp.where(squared > 1e-8, jnp.sqrt(jnp.maximum(squared, 1e-8)), 1e-4).mean()

    # One set after the other: the differences of all are more than this machine's memory.
    return lambda x, y: jax.lax.map(
        lambda one: mean(*one) - 0.5 * mean(one[0], one[0]) - 0.5 * mean(one[1], one[1]), (x, y)
    )


def ott(_: dict) -> Callable:
    """The same from ott-jax's cost matrices."""
    import jax
    from ott.geometry import costs, pointcloud

    def mean(x, y):
        return pointcloud.PointCloud(x, y, cost_fn=costs.Euclidean()).cost_matrix.mean()

    return jax.vmap(lambda x, y: mean(x, y) - 0.5 * mean(x, x) - 0.5 * mean(y, y))


def scipy(order: dict) -> Callable[[], tuple]:
    """The same from scipy's distances, in float64; there is no derivative."""
    from scipy.spatial.distance import cdist

    x, y = cells(order)

    def work():
        found = [
            cdist(a, b).mean() - 0.5 * cdist(a, a).mean() - 0.5 * cdist(b, b).mean() for a, b in zip(x, y)
        ]
        return np.array(found), None

    return work


def main() -> None:
    """Serves the side of the job."""
    job = json.loads(sys.argv[1])
    if job["side"] == "ours":
        from perturbdiff_jax.main import prepare_process

        prepare_process()
        served = with_jax(ours)
    else:
        served = with_jax(ott) if job["side"] == "ott-jax" else (scipy, None)
    answer({})
    serve(*served)


if __name__ == "__main__":
    main()
