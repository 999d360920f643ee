"""The authors' .ckpt -> our checkpoint bundle.

Nothing in the file is executed (pickles.py) and every tensor is accounted for: it has a place in our network, or it is
on the list of those that the released code never reads, which the bundle keeps beside the weights.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from perturbdiff_jax.checkpoint import Bundle, Checkpoints, build_model, write_bundle
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.released.checkpoint import WEIGHTS, Released, open_released
from perturbdiff_jax.released.describe import ConvertOptions, describe
from perturbdiff_jax.released.export import KEPT
from perturbdiff_jax.released.names import entries, from_released
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.state import count_parameters, init_params


def convert(
    source: str | Path,
    output: str | Path,
    options: ConvertOptions | None = None,
    *,
    echo: Callable[[str], None] = print,
) -> Path:
    """Writes the bundle of a released checkpoint; the directory appears whole or not at all.

    Args:
      source: the .ckpt file.
      output: the bundle to write.
      options: what the file does not say.
      echo: receives remarks.

    Raises:
      RequestError: anything wrong with the file, the gene list or the output.
    """
    options = options or ConvertOptions()
    output = Path(output)
    if options.weights not in WEIGHTS:
        raise RequestError(f"--weights {options.weights}: allowed are {', '.join(WEIGHTS)}.")
    if output.exists() and not options.overwrite:
        raise RequestError(f"--output {output}: is there already (--overwrite replaces it).")
    if output.exists() and not (output / "bundle.json").is_file():
        raise RequestError(f"--output {output}: is there and no bundle; --overwrite replaces bundles only.")
    began = time.monotonic()
    released = open_released(source)
    for remark in released.network.remarks:
        echo(f"{released.path.name}: {remark}")
    if options.weights == "live" and released.content.get(WEIGHTS["live"]) is None:
        echo(f"{released.path.name}: holds one set of weights only; it is used.")
    bundle = describe(released, options, echo)
    params, unused = from_released(
        released.tensors(options.weights), released.network.layout, where=str(released.path)
    )
    _check_shapes(params, bundle, released)
    _write(output, bundle, params, unused, step=int(released.content.get("global_step") or 0))
    echo(
        f"{output}: {count_parameters(params):,} parameters ({options.weights} weights), {len(bundle.genes):,} genes, "
        f"{len(bundle.perturbations):,} perturbations, {len(bundle.cell_types):,} cell types, "
        f"{len(bundle.batches):,} batches; {time.monotonic() - began:.0f} s."
    )
    return output


def _check_shapes(params: dict, bundle: Bundle, released: Released) -> None:
    """Every array has the shape that the network of `bundle` asks for; names the released tensor otherwise."""
    model = build_model(bundle, from_config(bundle.settings).model)
    wanted = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    for entry in entries(released.network.layout):
        ours, theirs = params, wanted
        for key in entry.path:
            ours, theirs = ours[key], theirs[key]
        if ours.shape != theirs.shape:
            raise RequestError(
                f"{released.path}: {entry.name} makes {'/'.join(entry.path)} {ours.shape}; the network of this "
                f"file needs {theirs.shape}."
            )


def _write(output: Path, bundle: Bundle, params: dict, unused: dict[str, np.ndarray], step: int) -> None:
    """Writes the bundle aside and renames it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        best = bundle.best_metric
        checkpoints = Checkpoints(partial, metric=best["name"], mode=best["mode"], keep=1)
        checkpoints.save_weights(step, params)
        checkpoints.close()
        np.savez(partial / KEPT, **unused)
        write_bundle(partial, bundle)
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
