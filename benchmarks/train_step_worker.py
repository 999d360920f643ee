"""Our side of train_step.py in a process of its own: a full-size network that does a step for each line of stdin.

The argument is a job as JSON; a line of stdin is JSON, and so is every answer. What the other side needs as well
(batch, clock, lines) is here too, and imports neither JAX nor PyTorch.
"""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

VOCABULARY = {"perturbation": 90, "cell_type": 18, "batch": 12}
MATRIX = 2048  # rows and columns of the product that measures the machine's ceiling


def arrays(job: dict) -> dict[str, np.ndarray]:
    """A batch: cells with 5 % of values above zero, [B, S, G] float32, and codes [B] int32."""
    draw = np.random.default_rng(0)
    shape = (job["sets"], job["cells"], job["genes"])
    made = {
        name: np.where(draw.random(shape) < 0.05, draw.exponential(0.1, shape), 0.0).astype(np.float32)
        for name in ("perturbed", "control")
    }
    codes = np.arange(job["sets"], dtype=np.int32)
    return made | {name: codes % size for name, size in VOCABULARY.items()}


def clocked(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds (of all threads) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def ceiling(product: Callable[[], object]) -> dict[str, float]:
    """FLOP/s of the quickest of five calls that multiply square float32 matrices of MATRIX rows."""
    return {"flops": 2 * MATRIX**3 / min(clocked(product)["wall"] for _ in range(5))}


def memory() -> int:
    """Peak resident bytes of this process so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def answer(facts: dict) -> None:
    """Prints one line for train_step.py."""
    print(json.dumps(facts), flush=True)


def orders() -> Iterator[dict]:
    """The lines of stdin: {"what": "step", "fed_back": bool, ...}, or "matrix", or "parts"."""
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """The package's own step as training compiles it, on a dense batch that is on the device already."""
    from perturbdiff_jax.main import prepare_process

    prepare_process()
    import jax
    import jax.numpy as jnp
    from step_trace import seconds_by_part

    from perturbdiff_jax import rng, sharding
    from perturbdiff_jax.array_types import Batch
    from perturbdiff_jax.diffusion import objective
    from perturbdiff_jax.diffusion.schedule import Schedule
    from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
    from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
    from perturbdiff_jax.state import count_parameters
    from perturbdiff_jax.step import StepParts, compile_step, initial_state
    from perturbdiff_jax.telemetry.flops import step_flops

    job = json.loads(sys.argv[1])
    sizes = {f"{name}s" if name != "batch" else "batches": size for name, size in VOCABULARY.items()}
    model = Denoiser(options=ModelOptions(**job["model"]), genes=job["genes"], **sizes)
    options = objective.ObjectiveOptions()
    parts = StepParts(
        model=model,
        tx=optimizer(OptimOptions(), 20_000),
        schedule=Schedule(),
        objective=options,
        ema=EmaOptions(),
        seed=0,
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    mask = np.ones((job["sets"], job["cells"]), np.float32)
    batch = jax.device_put(Batch(**arrays(job), mask=mask), sharding.batch_sharding(mesh))
    state = initial_state(parts, mesh)
    began = time.perf_counter()
    step = compile_step(parts, mesh).lower(state, batch).compile()
    facts = {"compile": time.perf_counter() - began, "parameters": count_parameters(state.params)}
    shape = {"sets": job["sets"], "cells": job["cells"]}
    facts["flops"] = [
        step_flops(model, dataclasses.replace(options, self_condition=float(back)), **shape)
        for back in (0, 1)
    ]
    answer(facts | {"jax": jax.__version__, "device": jax.devices()[0].device_kind})

    # The step is the one that users run, coins included: the number of a step decides how its coins fall.
    numbers: dict[bool, list[int]] = {False: [], True: []}
    for number in range(64):
        key = rng.key_for(parts.seed, "loss", jnp.int32(number))
        draws = objective.draw(key, (job["sets"], 1, 1), parts.schedule, options)
        if not draws.drop.any():
            numbers[bool(draws.self_condition.any())].append(number)

    def once(fed_back: bool) -> None:
        nonlocal state
        numbers[fed_back].append(numbers[fed_back].pop(0))
        state = dataclasses.replace(state, step=jnp.int32(numbers[fed_back][-1]))
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    square = jnp.ones((MATRIX, MATRIX))
    product = jax.jit(jnp.dot).lower(square, square).compile()
    for order in orders():
        if order["what"] == "matrix":
            answer(ceiling(lambda: product(square, square).block_until_ready()))
        elif order["what"] == "parts":
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    for _ in range(order["steps"]):
                        once(order["fed_back"])
                answer({"parts": seconds_by_part(folder, step.as_text(), order["steps"])})
        else:
            answer(clocked(lambda order=order: once(order["fed_back"])) | {"memory": memory()})


if __name__ == "__main__":
    main()
