"""The low door: arrays in, arrays out. One pass of the network, or one walk, on expression / divisor.

Checks that shapes and codes are the model's, because an array carries no names that could tell.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax import settings as run_settings
from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.step import bind
from perturbdiff_jax.vocabulary import named_source


def denoise(
    predictor: Any,
    xt,
    t,
    control,
    *,
    perturbation=None,
    cell_type=None,
    batch=None,
    self_condition=None,
    source=None,
) -> np.ndarray:
    """One pass of the network on expression / divisor.

    Args:
      predictor: the loaded model (predict.Predictor).
      xt: [B, S, G] noisy cells.
      t: [B] int timesteps.
      control: [B, S, G] control cells; used as they are.
      perturbation, cell_type, batch: int codes [B] or [B, S] (perturbation -1 = none); all None = unconditional.
      self_condition: [B, S, G] previous estimate, None = zeros.
      source: of networks with several input layers: a name or code of `predictor.sources`, or the name of a data set;
        one for all sets or one for each.

    Returns:
      [B, S, G] float32 estimate of x0.

    Raises:
      RequestError: shapes, codes, sources or timesteps that are not the model's.
    """
    model, steps = predictor.model, predictor.options.schedule.steps
    xt, control, previous = checked_cells(model, xt=xt, control=control, self_condition=self_condition)
    codes = checked_codes(model, xt.shape, perturbation, cell_type, batch)
    layers = checked_source(predictor.bundle, xt.shape[0], source)
    t = np.asarray(t)
    if t.shape != xt.shape[:1] or not ((t >= 0) & (t < steps)).all():
        raise RequestError(f"t: needed are {xt.shape[0]} timesteps from 0 to {steps - 1}.")
    return np.asarray(_denoise(model, predictor.params, *codes, layers, xt, t, control, previous))


def sample(
    predictor: Any,
    control,
    *,
    perturbation=None,
    cell_type=None,
    batch=None,
    source=None,
    init_noise=None,
    sampler: str = "ddim",
    start: int = 100,
    steps: int | None = None,
    eta: float = 0.0,
    guidance: float = 1.0,
    cutoff: float | None = None,
    spacing: str = "time",
    seed: int = 0,
) -> np.ndarray:
    """Walks sets of cells on expression / divisor; defaults as released.

    Args:
      predictor: the loaded model (predict.Predictor).
      control: [B, S, G] control cells; zeroed for networks that were trained without them (`zero_control`).
      perturbation, cell_type, batch, source: as in `denoise`.
      init_noise: [B, S, G] standard normal start; drawn when None.
      sampler, start, steps, eta, guidance, spacing: the walk (diffusion/samplers.py); `steps` None = every step.
      cutoff: smaller values become 0; None = the bundle's.
      seed: of what is drawn.

    Returns:
      [B, S, G] float32 cells.

    Raises:
      RequestError: shapes, codes or sources that are not the model's, an impossible walk.
    """
    options = samplers.SamplerOptions(
        name=sampler,
        start=start,
        steps=start if steps is None else steps,
        eta=eta,
        guidance=guidance,
        cutoff=predictor.options.sampler.cutoff if cutoff is None else cutoff,
        variance=predictor.options.sampler.variance,
        spacing=spacing,
    )
    model, schedule = predictor.model, predictor.options.schedule
    control, noise = checked_cells(model, control=control, init_noise=init_noise)
    if predictor.zero_control:
        control = jnp.zeros_like(control)
    codes = checked_codes(model, control.shape, perturbation, cell_type, batch)
    layers = checked_source(predictor.bundle, control.shape[0], source)
    keys = jax.random.split(jax.random.key(run_settings.checked_seed(seed)), control.shape[0])
    arrays = (predictor.params, *codes, layers, control, noise, keys)
    return np.asarray(_sample(model, schedule, options, predictor.feeds_back, *arrays))


def checked_cells(model: Denoiser, **arrays) -> list[jax.Array | None]:
    """Arrays [B, S, G] of one and the same shape as float32; None stays None.

    Raises:
      RequestError: another number of axes or genes, or shapes that differ.
    """
    first = None
    checked = []
    for name, array in arrays.items():
        if array is not None:
            array = jnp.asarray(array, jnp.float32)
            if array.ndim != 3 or array.shape[2] != model.genes:
                raise RequestError(
                    f"{name} has shape {array.shape}; needed is [sets, cells, {model.genes} genes]."
                )
            first = first or (name, array.shape)
            if array.shape != first[1]:
                raise RequestError(
                    f"{name} has shape {array.shape}, {first[0]} {first[1]}; they must be the same."
                )
        checked.append(array)
    return checked


def checked_codes(
    model: Denoiser, shape: tuple[int, ...], perturbation, cell_type, batch
) -> tuple[list[jax.Array], bool]:
    """(codes int32 [B] or [B, S], unconditional); `shape` is that of the cells. All None = unconditional.

    A covariate that the network does not look at may be left out.

    Raises:
      RequestError: some covariates without the others, a wrong shape, a code outside the vocabulary.
    """
    given = {"perturbation": perturbation, "cell_type": cell_type, "batch": batch}
    absent = [name for name, code in given.items() if code is None]
    if len(absent) == len(given):
        return [jnp.zeros(shape[0], jnp.int32)] * len(given), True
    looked_at = {name for name in given if getattr(model.options, f"use_{name}") != "no"}
    given |= {name: np.zeros(shape[:1], int) for name in absent if name not in looked_at}
    absent = [name for name in absent if name in looked_at]
    if absent:
        raise RequestError(
            f"{absent[0]} is None: give all of perturbation, cell_type and batch, or none (unconditional)."
        )
    sizes = (model.perturbations, model.cell_types, model.batches)
    codes = []
    for (name, code), size, least in zip(given.items(), sizes, (-1, 0, 0)):
        code = np.asarray(code)
        if code.shape not in (shape[:1], shape[:2]) or code.dtype.kind not in "iu":
            raise RequestError(
                f"{name}: {code.dtype} codes of shape {code.shape}; needed are whole numbers [sets] or [sets, cells]."
            )
        if code.size and not least <= code.min() <= code.max() < size:
            raise RequestError(
                f"{name}: codes from {code.min()} to {code.max()}; allowed are {least} to {size - 1}."
            )
        codes.append(jnp.asarray(code, jnp.int32))
    if len({code.ndim for code in codes}) > 1:  # one for the set is one for each of its cells
        codes = [code if code.ndim == 2 else jnp.broadcast_to(code[:, None], shape[:2]) for code in codes]
    return codes, False


def checked_source(bundle: Bundle, sets: int, source) -> jax.Array:
    """Codes int32 [sets] of the input layers, from names or codes, one for all sets or one each; None = 0.

    Raises:
      RequestError: an unknown source, a wrong number of them, none where the network has several.
    """
    if source is None:
        if len(bundle.sources) > 1:
            raise RequestError(f"source is needed, one for all sets or one each: {shorten(bundle.sources)}.")
        return jnp.zeros(sets, jnp.int32)
    given = np.atleast_1d(np.asarray(source))
    if given.shape not in ((1,), (sets,)) or given.dtype.kind not in "iuUSO":
        raise RequestError(f"source: needed is a name or code, or one for each of the {sets} sets.")
    if given.dtype.kind in "iu":
        if not 0 <= given.min() <= given.max() < max(1, len(bundle.sources)):
            raise RequestError(
                f"source: codes {given.min()} to {given.max()}; this bundle knows {len(bundle.sources)} sources."
            )
        codes = given
    else:
        codes = np.array([named_source(bundle, str(name)) for name in given])
    return jnp.asarray(np.broadcast_to(codes, (sets,)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _denoise(model: Denoiser, params: dict, codes, unconditional, source, xt, t, control, self_condition):
    drop = jnp.full(xt.shape[0], unconditional)
    return bind(model, params, *codes, source)(xt, t, control, drop, self_condition)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sample(
    model: Denoiser,
    schedule: Schedule,
    options: samplers.SamplerOptions,
    feeds_back: bool,
    params: dict,
    codes,
    unconditional,
    source,
    control,
    init_noise,
    keys,
):
    conditioned = bind(model, params, *codes, source, feeds_back=feeds_back)

    def network(xt, t, control, drop, self_condition):
        return conditioned(xt, t, control, drop | unconditional, self_condition)

    return samplers.sample(
        network, control, schedule=schedule, options=options, init_noise=init_noise, keys=keys
    )
