"""Several data sets of one simulated world, a file each: what marginal pretraining reads.

They share genes, gene programs and what a cell type expresses, so that knowledge of cell states carries over; each
lacks some genes and has batch effects of its own (see forms.py).
"""

import dataclasses
from pathlib import Path

from perturbdiff_jax.data.simulate import SimulateOptions, write_h5ad
from perturbdiff_jax.data.simulated import names
from perturbdiff_jax.data.simulated.forms import FORMS, simulate_form, write_split


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedSource:
    """A simulated data set on the disk and what `prepare` has to be told of it.

    `perturbation_key` None: no cell is perturbed, there is no control label and no hold-out.
    """

    name: str
    path: Path
    perturbation_key: str | None
    control: str
    cell_type_key: str
    batch_key: str
    split: Path | None


def write_sources(options: SimulateOptions, folder: str | Path) -> list[SimulatedSource]:
    """Writes pbmc.h5ad, tahoe100m.h5ad, replogle.h5ad and cellxgene.h5ad into `folder`, with their hold-outs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for form, kind in FORMS.items():
        split = None
        if kind.perturbation:
            output = folder / f"{kind.source}_split.json"
            split = write_split(names.split_path(kind.source), options, form, output)
        path = write_h5ad(simulate_form(options, form)[0], folder / f"{kind.source}.h5ad")
        found.append(SimulatedSource(name=kind.source, path=path, split=split, **kind.keys))
    return found
