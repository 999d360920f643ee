"""The authors' .ckpt -> our checkpoint bundle.

Nothing in the file is executed (pickles/) and every tensor is accounted for: it has a place in our network, or it is
on the list of those that the released code never reads, which the bundle keeps beside the weights.
"""

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from perturbdiff_jax.bundle import FILE, build_model, table_hashes, write_bundle
from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.covariate_tables import write_encodings
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.released.checkpoint import open_released
from perturbdiff_jax.released.describe import ConvertOptions, describe
from perturbdiff_jax.released.embeddings import ROLE, check_fits, read_asked, with_table
from perturbdiff_jax.released.export import KEPT
from perturbdiff_jax.released.names import account, check_shapes, from_released
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
    _heal(Path(output).resolve())
    check_output(output, overwrite=options.overwrite)
    began = time.monotonic()
    encoding = read_asked(options.embeddings) if options.embeddings else None
    released = open_released(source)
    where, layout = str(released.path), released.network.layout
    for remark in released.network.remarks:
        echo(f"{released.path.name}: {remark}")
    if options.weights == "live" and not released.both:
        echo(f"{released.path.name}: holds one set of weights only; it is used.")
    bundle = describe(released, options, echo)
    if encoding is not None:
        check_fits(encoding, bundle, where=where)
    # Names and shapes first: the numbers of a large file take a while.
    tensors = released.tensors(options.weights)
    account(tensors, layout, where=where)
    model = build_model(bundle, from_config(bundle.settings).model)
    wanted = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    check_shapes(tensors, layout, wanted, where=where)
    params, unused = from_released(tensors, layout, where=where)
    hashes = table_hashes(params)
    tables = {name: {**facts, "sha256": hashes[name]} for name, facts in bundle.tables.items()}
    bundle = dataclasses.replace(bundle, tables=tables)
    if encoding is not None:
        bundle = with_table(encoding, bundle, params, echo, where=where)
    with _new_bundle(output, overwrite=options.overwrite) as fresh:
        best = bundle.best_metric
        checkpoints = Checkpoints(fresh, metric=best["name"], mode=best["mode"], keep=1)
        checkpoints.save_weights(released.step, params)
        checkpoints.close()
        np.savez(fresh / KEPT, **unused)
        write_encodings(fresh, {} if encoding is None else {ROLE: encoding})
        write_bundle(fresh, bundle)
    weights = f"{options.weights} weights" if released.both else "the file's only weights"
    echo(
        f"{output}: {count_parameters(params):,} parameters ({weights}), {len(bundle.genes):,} genes, "
        f"{len(bundle.perturbations):,} perturbations, {len(bundle.cell_types):,} cell types, "
        f"{len(bundle.batches):,} batches; {time.monotonic() - began:.0f} s."
    )
    return Path(output)


def check_output(output: str | Path, *, overwrite: bool) -> None:
    """Raises RequestError unless a bundle may be written at `output`; only a bundle is ever replaced."""
    path = Path(output)
    if path.exists() and not (path / FILE).is_file():
        raise RequestError(
            f"--output {output}: is there and is no bundle, so it is left alone; choose another name."
        )
    if path.exists() and not overwrite:
        raise RequestError(f"--output {output}: is there already; --overwrite replaces it.")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RequestError(f"--output {output}: nothing can be written in {above}.")


@contextlib.contextmanager
def _new_bundle(output: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` to fill; it is renamed when the body succeeds and goes when it does not."""
    path = Path(output).resolve()
    fresh, old = (path.with_name(f".{path.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        check_output(output, overwrite=overwrite)  # somebody may have written there meanwhile
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)
    except OSError as error:
        raise RequestError(f"--output {output}: cannot be written ({error.strerror or error}).") from error
    finally:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)


def _heal(path: Path) -> None:
    """Removes what killed conversions left beside `path`; a bundle that one had moved aside comes back."""
    if not path.parent.is_dir():
        return
    for kind in ("old", "partial"):
        begin = f".{path.name}.{kind}-"
        for folder in [entry for entry in path.parent.iterdir() if entry.name.startswith(begin)]:
            if _at_work(folder.name.removeprefix(begin)):
                continue
            if kind == "old" and not path.exists():
                os.replace(folder, path)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _at_work(process: str) -> bool:
    """Whether a process of this number lives; yes for what is no number, and so not from here."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True
