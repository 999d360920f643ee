"""The low door: arrays in, arrays out. One pass of the network, or one walk, on expression / divisor.

Checks that shapes and codes are the model's, because an array carries no names that could tell.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.step import bind


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
    model: Denoiser, shape: tuple[int, ...], perturbation, cell_type, batch, source
) -> tuple[list[jax.Array], bool]:
    """(codes int32 [B] or [B, S], unconditional); `shape` is that of the cells. All None = unconditional.

    Raises:
      RequestError: some covariates without the others, a wrong shape, a code outside the vocabulary.
    """
    if source is not None:
        raise RequestError("source: this bundle knows no sources of data; leave it None.")
    given = {"perturbation": perturbation, "cell_type": cell_type, "batch": batch}
    absent = [name for name, code in given.items() if code is None]
    if len(absent) == len(given):
        return [jnp.zeros(shape[0], jnp.int32)] * len(given), True
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
    if len({code.ndim for code in codes}) > 1:
        raise RequestError("perturbation, cell_type and batch: give all codes per set, or all per cell.")
    return codes, False


@functools.partial(jax.jit, static_argnums=0)
def denoise(model: Denoiser, params: dict, codes, unconditional, xt, t, control, self_condition):
    """One pass: [B, S, G] -> [B, S, G] float32."""
    drop = jnp.full(xt.shape[0], unconditional)
    return bind(model, params, *codes)(xt, t, control, drop, self_condition)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def sample(
    model: Denoiser,
    schedule: Schedule,
    options: samplers.SamplerOptions,
    params: dict,
    codes,
    unconditional,
    control,
    init_noise,
    keys,
):
    """One walk: [B, S, G] -> [B, S, G] float32; `keys` [B] draw what `init_noise` does not give."""
    conditioned = bind(model, params, *codes)

    def network(xt, t, control, drop, self_condition):
        return conditioned(xt, t, control, drop | unconditional, self_condition)

    return samplers.sample(
        network, control, schedule=schedule, options=options, init_noise=init_noise, keys=keys
    )
