"""A bundle's weights under the released names, so that others can compare."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.predict import load
from perturbdiff_jax.prediction.assembly import check_output
from perturbdiff_jax.released.names import DOSE_ROWS, UNUSED, Layout, to_released
from perturbdiff_jax.settings import Settings

KEPT = "released_unused.npz"  # beside the weights of a converted bundle: what the released code never reads


def export(bundle: str | Path, output: str | Path, *, echo: Callable[[str], None] = print) -> Path:
    """Writes a bundle's weights under the released names, float32, as .npz (no pickles inside).

    Tensors that nothing reads come from the converted file; a bundle trained here has none, zeros stand in.

    Raises:
      RequestError: a network that the released code has no form for.
    """
    output = check_output(output, flag="--export", kind="npz")
    if output.suffix != ".npz":
        raise RequestError(f"--export {output}: must end in .npz.")
    model = load(bundle)
    layout = _layout(model.bundle, model.options)
    found = to_released(jax.tree.map(np.asarray, model.params), layout)
    if layout.perturbation == "drug":
        found[DOSE_ROWS] = np.array(model.bundle.doses["codes"], np.int32)
    kept = model.path / KEPT
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as stored:
            found |= {name: stored[name] for name in UNUSED if name in stored}
    else:
        found |= _zeros(len(model.bundle.genes), model.options.model.width)
        echo(f"{len(UNUSED)} tensors that the released code holds and never reads are written as zeros.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial.npz")
    try:
        np.savez(partial, **found)
        os.replace(partial, output)
    except OSError as error:
        raise RequestError(f"--export {output}: cannot be written ({error.strerror or error}).") from error
    finally:
        partial.unlink(missing_ok=True)
    echo(f"{output}: {len(found)} tensors, {sum(a.size for a in found.values()):,} numbers.")
    return output


def _layout(bundle: Bundle, options: Settings) -> Layout:
    if bundle.origin.get("layout"):
        kept = bundle.origin["layout"]
        return Layout(**{**kept, "sources": tuple(kept["sources"])})
    model = options.model
    reasons = {
        f"model.anchor={model.anchor}": model.anchor != "none",
        "model.norm_of_block_input=False": not model.norm_of_block_input,
        "model.use_cell_type=no": model.use_cell_type == "no",
    }
    wrong = [name for name, met in reasons.items() if met]
    if wrong:
        raise RequestError(f"--export: the released network has no form of {', '.join(wrong)}.")
    return Layout(depth=model.depth, batch=model.use_batch != "no")


def _zeros(genes: int, width: int) -> dict[str, np.ndarray]:
    shapes = (
        (width, 5120),
        (width,),
        (width,),
        (width,),
        (genes, width),
        (genes,),
        (2 * width, width),
        (2 * width,),
    )
    return {name: np.zeros(shape, np.float32) for name, shape in zip(UNUSED, shapes)}
