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
from perturbdiff_jax.checkpoint import Bundle, Checkpoints, read_bundle
from perturbdiff_jax.controls import ControlCells, from_anndata
from perturbdiff_jax.design import check_design, full_design
from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.population import Request, Walker
from perturbdiff_jax.predictions import assemble
from perturbdiff_jax.state import init_params
from perturbdiff_jax.telemetry import Progress

WHICH = ("best", "latest")


def build_model(bundle: Bundle, options: run_settings.Settings) -> Denoiser:
    """The network of a bundle."""
    return Denoiser(
        options.model,
        genes=len(bundle.genes),
        perturbations=len(bundle.perturbations),
        cell_types=len(bundle.cell_types),
        batches=len(bundle.batches),
    )


def load(path: str | Path, *, which: str = "best") -> "Predictor":
    """Opens a bundle (or the work directory that holds one) with its averaged weights.

    Args:
      path: bundle directory.
      which: "best" checkpoint by the validation metric, or the "latest".

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
    model = build_model(bundle, options)
    best = bundle.best_metric
    checkpoints = Checkpoints(
        path, metric=best["name"], mode=best["mode"], keep=options.train.keep, read_only=True
    )
    step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
    if step is None:
        raise RequestError(f"{path}: the bundle is incomplete, it holds no checkpoint yet.")
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    try:
        params = checkpoints.restore_ema(step, shapes)
    except (OSError, ValueError, KeyError) as error:  # whatever Orbax meets: the files are not what they were
        raise RequestError(
            f"{path}: the bundle is damaged, checkpoint {step} cannot be read ({str(error).splitlines()[0][:200]})."
        ) from error
    checkpoints.close()
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

    def predict(
        self,
        adata: anndata.AnnData | str | Path,
        perturbations: Sequence[str] | None = None,
        *,
        design: pd.DataFrame | None = None,
        cell_type_key: str | None = None,
        batch_key: str | None = None,
        total_key: str | None = None,
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
            min_gene_overlap=min_gene_overlap,
            echo=echo,
        )
        if design is None:
            design = full_design(perturbations, list(controls.cells))
        return self.predict_design(
            design,
            controls,
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
        requests, sources = self._requests(design, controls, echo)
        walker = Walker(
            self.model,
            schedule=self.options.schedule,
            sampler=sampler,
            cells_per_set=self.options.loader.cells_per_set,
            sets_per_batch=sets_per_batch,
            divisor=self.bundle.values["divisor"],
            seed=seed,
        )
        blocks, labels, used = [], [], {}
        progress = Progress(walker.sets_of(requests), "predict: sets", every=10.0)
        for request, cells, rows in walker(self.params, requests, progress=progress.show):
            # Nothing can exceed a cell whose whole total is one gene; a half-trained network may.
            blocks.append(sp.csr_matrix(np.minimum(cells, self.bundle.values["largest"])))
            labels += [(request.perturbation, request.cell_type, request.batch, request.draw)] * len(cells)
            context = sources[(request.cell_type, request.batch)]
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

    def _requests(self, design, controls, echo):
        requests, sources = [], {}
        vocabularies = [
            {name: code for code, name in enumerate(names)}
            for names in (self.bundle.perturbations, self.bundle.cell_types, self.bundle.batches)
        ]
        for row in design.itertuples(index=False):
            context = (row.cell_type, row.batch)
            if context not in sources:
                sources[context], rule = controls.resolve(*context)
                if sources[context] != context:
                    echo(
                        f"context {context} has no control cells: uses those of {sources[context]} ({rule})."
                    )
            cells = controls.cells[sources[context]]
            names = (row.perturbation, *context)
            codes = tuple(table[name] for table, name in zip(vocabularies, names))
            wanted = int(row.cells) if row.cells > 0 else cells.shape[0]
            for draw in range(int(row.draws)):
                requests.append(Request(*names, codes, wanted, cells, draw))
        return requests, sources

    def denoise(
        self,
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
        """One pass of the network on expression / divisor: [B, S, G] -> [B, S, G] float32.

        `t` [B] int timesteps; codes [B] or [B, S] int; all covariates None = unconditional; `source` is for
        pretrained networks.

        Raises:
          RequestError: shapes, codes or timesteps that are not the model's.
        """
        cells = direct.checked_cells(self.model, xt=xt, control=control, self_condition=self_condition)
        codes = direct.checked_codes(self.model, cells[0].shape, perturbation, cell_type, batch, source)
        t = np.asarray(t)
        if t.shape != cells[0].shape[:1] or not ((t >= 0) & (t < self.options.schedule.steps)).all():
            raise RequestError(
                f"t: needed are {cells[0].shape[0]} timesteps from 0 to {self.options.schedule.steps - 1}."
            )
        xt, control, previous = cells
        return np.asarray(direct.denoise(self.model, self.params, *codes, xt, t, control, previous))

    def sample(
        self,
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
        seed: int = 0,
    ) -> np.ndarray:
        """Walks sets on expression / divisor, defaults as released: control [B, S, G] -> cells [B, S, G] float32.

        `init_noise` [B, S, G] replaces the drawn start; codes are [B] or [B, S] int, all None = unconditional;
        `source` is for pretrained networks.

        Raises:
          RequestError: shapes or codes that are not the model's, an impossible walk.
        """
        steps = start if steps is None else steps
        options = samplers.SamplerOptions(name=sampler, start=start, steps=steps, eta=eta, guidance=guidance)
        control, noise = direct.checked_cells(self.model, control=control, init_noise=init_noise)
        codes = direct.checked_codes(self.model, control.shape, perturbation, cell_type, batch, source)
        keys = jax.random.split(jax.random.key(run_settings.checked_seed(seed)), control.shape[0])
        schedule = self.options.schedule
        walked = direct.sample(self.model, schedule, options, self.params, *codes, control, noise, keys)
        return np.asarray(walked)
