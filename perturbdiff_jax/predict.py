"""From a checkpoint bundle to predicted cells: `load(path)` gives a Predictor, whose one path is enough.

    model = perturbdiff_jax.load("runs/quickstart")
    predicted = model.predict(adata, perturbations=["P05"], cell_type_key="cell_type", batch_key="batch")

`predict` speaks AnnData; `sample` and `denoise` are the low doors, arrays in and arrays out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata
import jax
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax import direct
from perturbdiff_jax import settings as run_settings
from perturbdiff_jax.bundle import Bundle, build_model, read_bundle, table_hashes
from perturbdiff_jax.checkpoint import WHICH, Checkpoints
from perturbdiff_jax.controls import ControlCells, from_anndata
from perturbdiff_jax.design import check_design, full_design, requests_of
from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.population import Walker
from perturbdiff_jax.predictions import assemble
from perturbdiff_jax.state import init_params
from perturbdiff_jax.telemetry.progress import Progress


def load(path: str | Path, *, which: str = "best") -> "Predictor":
    """Opens a bundle (or the work directory that holds one) with its averaged weights.

    Args:
      path: bundle directory.
      which: "best" checkpoint by the validation metric, or the "latest". One that is damaged is passed over, with a
        warning, for the next best or the next older.

    Raises:
      RequestError: not a bundle, incomplete, damaged, or of another version.
    """
    path = Path(path)
    if not (path / "bundle.json").exists() and (path / "bundle" / "bundle.json").exists():
        path = path / "bundle"
    if which not in WHICH:
        raise RequestError(f"which={which!r}: allowed are {', '.join(WHICH)}.")
    bundle = read_bundle(path)
    try:
        options = run_settings.from_config(bundle.settings)
    except RequestError as error:
        raise RequestError(f"{path / 'bundle.json'}: {error}") from None
    model = build_model(bundle, options.model)
    best = bundle.best_metric
    checkpoints = Checkpoints(
        path, metric=best["name"], mode=best["mode"], keep=options.train.keep, read_only=True
    )
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    step, params = checkpoints.weights(which, shapes)
    for covariate, found in table_hashes(params).items():
        if bundle.tables[covariate].get("sha256", found) != found:
            raise RequestError(
                f"{path}: the {covariate} table is not the one that bundle.json names (sha256 {found[:12]}...)."
            )
    return Predictor(path=path, bundle=bundle, options=options, model=model, params=params, step=step)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained model with everything that its predictions need."""

    path: Path
    bundle: Bundle
    options: run_settings.Settings
    model: Denoiser
    params: dict
    step: int

    @property
    def perturbations(self) -> list[str]:
        """Perturbations that can be asked for (without the control)."""
        return [name for name in self.bundle.perturbations if name != self.bundle.control]

    @property
    def cell_types(self) -> list[str]:
        """Cell types that can be asked for."""
        return list(self.bundle.cell_types)

    @property
    def batches(self) -> list[str]:
        """Batches that can be asked for."""
        return list(self.bundle.batches)

    @property
    def sources(self) -> list[str]:
        """Sources of data that have an input layer each; empty with one layer for all."""
        return list(self.bundle.sources)

    @property
    def zero_control(self) -> bool:
        """Control cells were always zeroed in training (marginal pretraining), so walks zero them as well."""
        return self.options.objective.drop_control == 1

    def predict(
        self,
        adata: anndata.AnnData | str | Path,
        perturbations: Sequence[str] | None = None,
        *,
        design: pd.DataFrame | None = None,
        cell_type_key: str | None = None,
        batch_key: str | None = None,
        total_key: str | None = None,
        gene_key: str | None = None,
        source: str | None = None,
        cells_per_condition: int | None = None,
        draws: int = 1,
        sampler: samplers.SamplerOptions | None = None,
        seed: int = 0,
        min_gene_overlap: float = 0.8,
        echo: Callable[[str], None] = print,
    ) -> anndata.AnnData:
        """Predicts the populations of conditions, given control cells of their contexts.

        Args:
          adata: control cells (AnnData or h5ad), raw counts or log1p-normalised; perturbed cells in it are ignored.
          perturbations: a name or names; each is predicted in every context of the control cells. Or give `design`.
          design: columns perturbation, cell_type, batch and optionally cells, draws; one row per condition.
          cell_type_key, batch_key, total_key: obs columns of `adata`.
          gene_key: var column with the gene names; by default the index of var.
          source: input layer, for networks with several whose batches do not tell.
          cells_per_condition: predicted cells of each condition and draw; by default as many as control cells.
          draws: independent populations of each condition (new noise, new order of control cells).
          sampler: how to walk; by default as the bundle says.
          seed: randomness; the same seed gives the same cells whatever else is asked for.
          min_gene_overlap: least share of the bundle's genes that the file must have.
          echo: receives remarks and progress.

        Returns:
          AnnData with X log1p-normalised float32 CSR, var_names the bundle's genes, obs with the key columns,
          `draw` and `seen_perturbation`; the control cells used are appended under the control label.

        Raises:
          RequestError: an unknown perturbation, cell type or batch (with the closest names), or unusable cells.
        """
        if (design is None) == (perturbations is None):
            raise RequestError("predict: give either perturbations or a design, not both.")
        if isinstance(perturbations, str):
            perturbations = [perturbations]
        somewhere = [(self.cell_types[0], self.batches[0])]
        asked = full_design(perturbations, somewhere) if design is None else design
        check_design(asked, self.bundle, cells_per_condition, draws)  # before a large file is read
        controls = from_anndata(
            adata,
            self.bundle,
            cell_type_key=cell_type_key,
            batch_key=batch_key,
            total_key=total_key,
            gene_key=gene_key,
            min_gene_overlap=min_gene_overlap,
            echo=echo,
        )
        if design is None:
            design = full_design(perturbations, list(controls.cells))
        return self.predict_design(
            design,
            controls,
            source=source,
            cells_per_condition=cells_per_condition,
            draws=draws,
            sampler=sampler,
            seed=seed,
            echo=echo,
        )

    def predict_design(
        self,
        design: pd.DataFrame,
        controls: ControlCells,
        *,
        source: str | None = None,
        cells_per_condition: int | None = None,
        draws: int = 1,
        sampler: samplers.SamplerOptions | None = None,
        sets_per_batch: int = 16,
        seed: int = 0,
        echo: Callable[[str], None] = print,
    ) -> anndata.AnnData:
        """`predict` for controls that are at hand already; columns of `design` as there."""
        sampler = self.options.sampler if sampler is None else sampler
        samplers.timesteps(self.options.schedule, sampler)  # refuses an impossible walk before any work
        seed = run_settings.checked_seed(seed)
        design = check_design(design, self.bundle, cells_per_condition, draws)
        if self.options.model.use_perturbation == "no":
            echo(
                "This network was trained without looking at perturbations: every name gets the same population."
            )
        if self.zero_control:
            echo("This network was trained without control cells: they tell the context and enter as zeros.")
        requests, contexts = requests_of(design, controls, self.bundle, source, echo)
        walker = Walker(
            self.model,
            schedule=self.options.schedule,
            sampler=sampler,
            cells_per_set=self.options.loader.cells_per_set,
            sets_per_batch=sets_per_batch,
            divisor=self.bundle.values["divisor"],
            seed=seed,
            zero_control=self.zero_control,
        )
        blocks, labels, used = [], [], {}
        progress = Progress(walker.sets_of(requests), "predict: sets", every=10.0)
        for request, cells, rows in walker(self.params, requests, progress=progress.show):
            # Nothing can exceed a cell whose whole total is one gene; a half-trained network may.
            blocks.append(sp.csr_matrix(np.minimum(cells, self.bundle.values["largest"])))
            labels += [(request.perturbation, request.cell_type, request.batch, request.draw)] * len(cells)
            context = contexts[(request.cell_type, request.batch)]
            used.setdefault(context, set()).update(rows.tolist())
        return assemble(
            blocks,
            labels,
            controls,
            used,
            bundle=self.bundle,
            checkpoint=str(self.path),
            step=self.step,
            sampler=sampler,
            seed=seed,
        )

    # The low door: arrays in, arrays out.
    denoise = direct.denoise
    sample = direct.sample
