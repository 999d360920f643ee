"""A trained model that predicts: AnnData in, AnnData or an h5ad out; `sample` and `denoise` take and give arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import pandas as pd

from perturbdiff_jax import settings as run_settings
from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.prediction import direct, request
from perturbdiff_jax.prediction.assembly import check_output
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.model_error import ModelError
from perturbdiff_jax.prediction.request import READING, read_request


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained model with everything that its predictions need."""

    path: Path
    bundle: Bundle
    options: run_settings.Settings
    model: Denoiser
    params: dict
    step: int
    error: ModelError | None = None  # what `perturbdiff calibrate` learned of this checkpoint

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
    def feeds_back(self) -> bool:
        """Trained with self-conditioning, so walks hand each estimate to the next pass."""
        return self.options.objective.self_condition > 0

    @property
    def zero_control(self) -> bool:
        """Control cells were zeroed in training (marginal pretraining), so walks zero them as well."""
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
        map: str | Path | None = None,
        map_to: str | None = None,
        source: str | None = None,
        cells_per_condition: int | None = None,
        draws: int = 1,
        draw_batches: str = "own",
        sampler: samplers.SamplerOptions | None = None,
        seed: int = 0,
        min_gene_overlap: float = 0.8,
        echo: Callable[[str], None] = print,
    ) -> anndata.AnnData:
        """Predicts the populations of conditions, given control cells of their contexts.

        Args:
          adata: control cells (AnnData or h5ad), raw counts or log1p-normalised; perturbed cells in it are ignored.
          perturbations: a name or names; each is predicted in every context of the control cells. Or give `design`.
          design: columns perturbation, cell_type, batch and optionally cells, draws; a condition in each row.
          cell_type_key, batch_key, total_key: obs columns of `adata`.
          gene_key: var column with the gene names; by default the index of var.
          map, map_to: table of two names for each gene, such as ensembl_id,symbol, and its column (by default the
            second) whose names the bundle has; names that it cannot turn are left out, aloud.
          source: input layer, for networks with several whose batches do not tell.
          cells_per_condition: predicted cells of each condition and draw; by default as many as control cells.
          draws: independent populations of each condition (new noise, new order of control cells).
          draw_batches: the covariate of draws is the condition's "own" batch, or in turn "all" that training saw.
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
        keys = {"cell_type_key": cell_type_key, "batch_key": batch_key, "total_key": total_key}
        named = {"gene_key": gene_key, "map": map, "map_to": map_to}
        reading = {**keys, **named, "min_gene_overlap": min_gene_overlap}
        asked = {"cells_per_condition": cells_per_condition, "draws": draws, "source": source, "echo": echo}
        design, controls = read_request(self, adata, perturbations, design, reading, **asked)
        asked |= {"draw_batches": draw_batches, "sampler": sampler, "seed": seed}
        return self.predict_design(design, controls, **asked)

    def predict_to(
        self,
        output: str | Path,
        adata: anndata.AnnData | str | Path,
        perturbations: Sequence[str] | None = None,
        *,
        design: pd.DataFrame | None = None,
        cells_per_condition: int | None = None,
        draws: int = 1,
        source: str | None = None,
        echo: Callable[[str], None] = print,
        **options: Any,
    ) -> Path:
        """`predict` into an h5ad, for any number of cells: memory is that of the control cells and a few sets.

        Finished parts lie in `OUTPUT.parts` until the file is there; the same call after one that was broken off, even
        by a kill, goes on with them and ends with the same file.

        Args:
          output: the file to write.
          options: all other arguments of `predict`, as there.

        Raises:
          RequestError: as `predict`; or `output` cannot be written, another process writes it, or the parts there are
            those of another request (the message names what differs).
          RunError: a full disk.
        """
        check_output(output)
        asked = {"cells_per_condition": cells_per_condition, "draws": draws, "source": source, "echo": echo}
        reading = {name: options.pop(name) for name in READING if name in options}
        design, controls = read_request(self, adata, perturbations, design, reading, **asked)
        return self.predict_design_to(output, design, controls, **asked, **options)

    def predict_design(self, design: pd.DataFrame, controls: ControlCells, **options: Any) -> anndata.AnnData:
        """`predict` for controls that are at hand already; columns of `design` as there, `options` as of `job`."""
        return self.job(design, controls, **options).in_memory()

    def predict_design_to(
        self,
        output: str | Path,
        design: pd.DataFrame,
        controls: ControlCells,
        *,
        anew: bool = False,
        **options: Any,
    ) -> Path:
        """`predict_to` for controls that are at hand already; `options` as of `job`.

        With `anew` finished parts of another request are removed, with a remark, instead of refused.
        """
        return self.job(design, controls, **options).to_file(output, anew=anew)

    # A request that is checked, and walks nothing yet.
    job = request.job
    # The low door: arrays in, arrays out.
    denoise = direct.denoise
    sample = direct.sample
