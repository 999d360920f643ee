"""A network of the released code inside this package's Denoiser, and comparisons that tell how close it is.

Everything compiled is kept with the network, so that one compilation serves all tests of a session.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.array_types import Batch
from perturbdiff_jax.diffusion.objective import Draws, ObjectiveOptions, set_losses
from perturbdiff_jax.diffusion.samplers import SamplerOptions, p_mean_variance, sample
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.released.hyper_parameters import short_name
from perturbdiff_jax.released.names import Layout
from perturbdiff_jax.step import StepParts, bind, loss_gradient

SCHEDULE = Schedule()
FORWARD = 2e-5  # one pass of the network
ENERGY = 2e-4  # the float32 diagonal of the released energy; see test_recorded_tables.py
WALK = 5e-5  # a whole walk; float64 coefficients instead of the released float32 would be worth up to 3e-4
TABLE = "GOLDEN_TABLE"  # names the file that collects what was measured


def agree(quantity: str, case: str, ours, recorded, *, atol: float) -> None:
    """Asserts equal shapes and a largest absolute difference of at most `atol`."""
    ours, recorded = (np.asarray(a, np.float64) for a in (ours, recorded))
    assert ours.shape == recorded.shape, f"{quantity}: {ours.shape}, recorded {recorded.shape}"
    _note(quantity, case, float(np.abs(ours - recorded).max(initial=0.0)), atol, "")


def agree_in_scale(quantity: str, case: str, ours, recorded, *, rtol: float) -> None:
    """Asserts a largest difference of at most `rtol` of the largest recorded value."""
    ours, recorded = (np.asarray(a, np.float64) for a in (ours, recorded))
    assert ours.shape == recorded.shape, f"{quantity}: {ours.shape}, recorded {recorded.shape}"
    apart = float(np.abs(ours - recorded).max() / np.abs(recorded).max())
    _note(quantity, case, apart, rtol, "of the largest value")


def agree_in_norm(quantity: str, case: str, ours, recorded, *, rtol: float, name: str = "") -> None:
    """Asserts |ours - recorded| <= rtol |recorded| in the L2 norm; what is recorded as 0 must be 0 here."""
    ours, recorded = (np.asarray(a, np.float64) for a in (ours, recorded))
    assert ours.shape == recorded.shape, f"{quantity} {name}: {ours.shape}, recorded {recorded.shape}"
    size, apart = np.linalg.norm(recorded), np.linalg.norm(ours - recorded)
    _note(
        quantity,
        case,
        float(apart / size if size else (np.inf if apart else 0.0)),
        rtol,
        "relative (L2)",
        name,
    )


def agree_mostly(quantity: str, case: str, ours, recorded, *, atol: float, share: float) -> None:
    """Asserts that at most `share` of all values are more than `atol` apart."""
    far = np.abs(np.asarray(ours, np.float64) - recorded) > atol
    _note(quantity, case, float(far.mean()), share, "share of all values")


def _note(quantity: str, case: str, largest: float, allowed: float, kind: str, name: str = "") -> None:
    if os.environ.get(TABLE):
        row = {"quantity": quantity, "case": case, "largest": largest, "allowed": allowed, "kind": kind}
        with open(os.environ[TABLE], "a") as file:
            file.write(json.dumps(row) + "\n")
    assert largest <= allowed, (
        f"{quantity} of {case} {name}: {largest:.2e} {kind} apart, allowed {allowed:.0e}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A recorded network: weights, and the sets that its recordings were made with."""

    name: str
    model: Denoiser
    params: dict
    layout: Layout
    codes: tuple[jax.Array, ...]  # perturbation, cell type, batch, each [B, S]
    source: jax.Array | None  # [B]
    drop_control: float = 0.0  # 1 = trained without control cells: its losses and walks see zeros

    @property
    def sets(self) -> int:
        return self.codes[0].shape[0]

    def denoise(self, *arguments):
        return bind(self.model, self.params, *self.codes, source=self.source)(*arguments)

    @functools.cached_property
    def one_pass(self):
        """`(xt, t, control, drop, self_condition) -> x0`, all of it an array."""
        return jax.jit(self.denoise)

    def control(self, cells):
        """The control cells that the sampler shows the network."""
        return jnp.zeros_like(cells) if self.drop_control == 1 else jnp.asarray(cells)

    @functools.cached_property
    def losses(self):
        """`(x0, control, draws) -> (mse [B], energy [B], arguments and result of the last call of the network)`."""

        def run(x0, control, draws):
            calls = []

            def watched(*arguments):
                calls.append((arguments, self.denoise(*arguments)))
                return calls[-1][1]

            found = set_losses(
                watched,
                x0,
                control,
                jnp.ones(x0.shape[:2]),
                draws,
                schedule=SCHEDULE,
                options=ObjectiveOptions(),
            )
            return *found, calls[-1]

        return jax.jit(run)

    @functools.cache  # noqa: B019 networks live as long as the session
    def moments(self, guidance: float):
        """`(xt, t, control, previous) -> (mean, variance, log variance, x0)` of a reverse step."""
        options = SamplerOptions(guidance=guidance)
        return jax.jit(lambda *arguments: p_mean_variance(self.denoise, SCHEDULE, options, *arguments))

    def walk(self, options: SamplerOptions, control, init_noise, step_noise=None) -> np.ndarray:
        """A whole walk from known noise."""
        run = jax.jit(
            lambda *arrays: sample(
                self.denoise,
                arrays[0],
                schedule=SCHEDULE,
                options=options,
                init_noise=arrays[1],
                step_noise=arrays[2],
            )
        )
        return np.asarray(run(self.control(control), init_noise, step_noise))

    def draws(self, t, noise, *, drop, self_cond, drop_control) -> Draws:
        """Known randomness; coins are those of the whole batch."""
        return Draws(
            t=jnp.asarray(t),
            eps=jnp.asarray(noise, jnp.float32),
            drop=jnp.full(self.sets, bool(drop)),
            drop_control=jnp.full(
                self.sets, self.drop_control == 1 or bool(self.drop_control and drop_control)
            ),
            self_condition=jnp.full(self.sets, bool(self_cond)),
        )

    def batch(self, x0, control, codes=None, source=None) -> Batch:
        """Cells as the train step takes them, by default with the network's own covariates."""
        codes = self.codes if codes is None else codes
        source = self.source if source is None else source
        return Batch(x0, control, *codes, mask=jnp.ones(x0.shape[:2]), source=source)

    def step_parts(self, rate: float) -> StepParts:
        """The released training: constant rate here, absent parameters skipped, the average of every step."""
        optim = OptimOptions(learning_rate=rate, warmup_steps=0, plateau=1.0, absent="skip")
        return StepParts(
            model=self.model,
            tx=optimizer(optim, 1000),
            schedule=SCHEDULE,
            objective=ObjectiveOptions(),
            ema=EmaOptions(rule="released", decay=0.99, every=1),
            seed=0,
        )

    @functools.cached_property
    def gradient(self):
        """`(params, batch, draws) -> (gradients, metrics)` of the total loss."""
        parts = self.step_parts(1.0)
        return jax.jit(lambda *given: loss_gradient(parts, *given))


def sources_of(layout: Layout, names) -> jax.Array | None:
    """Code of the input layer of each set, by the name of its data set."""
    if not layout.sources:
        return None
    return jnp.asarray([layout.sources.index(short_name(str(name))) for name in names], jnp.int32)


class watching:
    """Keeps the arguments and the result of submodules, by path, while a module runs inside the `with`."""

    def __init__(self, *paths: tuple[str, ...]):
        self.seen, self._paths = {}, paths

    def __enter__(self):
        def look(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path in self._paths:
                self.seen[context.module.path] = (args, out)
            return out

        self._interceptor = nn.intercept_methods(look)
        self._interceptor.__enter__()
        return self.seen

    def __exit__(self, *error):
        return self._interceptor.__exit__(*error)


def flat(tree, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """(path, leaf) of a tree of dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key), value
