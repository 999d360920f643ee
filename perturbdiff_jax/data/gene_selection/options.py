"""What a gene vocabulary is asked for, and which wishes are refused before anything is read."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from perturbdiff_jax.data.gene_naming.source_names import check_map
from perturbdiff_jax.data.preparation.options import check_reading, processors
from perturbdiff_jax.errors import RequestError

# A list under these names would be read in another form than the one that is written.
OTHER_FORMS = (".csv", ".tsv", ".json", ".pkl", ".pickle", ".h5ad")
REPORT = ".report.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyOptions:
    """What `gene_vocabulary` is asked for; the command line's options under the same names.

    `composites` is a number, or the path of a table with columns file and composite. `include` are gene lists or
    stores, all of whose genes are taken. `gene_key` is the column of var with the gene names (None: its index), `map` a
    table of two names for each gene, `map_to` its column whose names are written (None: the second). A gene is chosen
    from in a composite when files with at least the share `min_measured` of the composite's cells have it. `memory`
    (bytes) and `workers` do not change the result.
    """

    composites: int | str | pathlib.Path
    hvg: int = 2000
    include: Sequence[str | pathlib.Path] = ()
    layer: str | None = None
    values: str = "auto"
    total_key: str | None = None
    target_sum: float = 1e4
    gene_key: str | None = None
    map: str | pathlib.Path | None = None
    map_to: str | None = None
    min_measured: float = 0.5
    workers: int = dataclasses.field(default_factory=processors)
    memory: int = 2 * 1024**3
    overwrite: bool = False

    @property
    def count(self) -> int | None:
        """Number of composites; None when a table names them."""
        return self.composites if isinstance(self.composites, int) else None


def check_options(
    inputs: Sequence[str | pathlib.Path], output: pathlib.Path, options: VocabularyOptions
) -> None:
    """Raises RequestError for anything that is wrong whatever the files hold."""
    check_reading(inputs, options)
    count = options.count
    if count is not None and count < 1:
        raise RequestError(f"--composites {count}: allowed is 1 or more, or a csv table of file, composite.")
    if count is not None and count > len(inputs):
        raise RequestError(
            f"--composites {count}: only {len(inputs)} file(s) are given, and a file is never cut.\n"
            f"Allowed: 1 to {len(inputs)}."
        )
    if not 0 <= options.min_measured <= 1:
        raise RequestError(f"--min-measured {options.min_measured}: allowed is a share from 0 to 1.")
    check_map(options.map, options.map_to)
    paths = [pathlib.Path(path).resolve() for path in options.include]
    again = [str(path) for path in paths if paths.count(path) > 1]
    if again:
        raise RequestError(f"--include: {again[0]} is given twice.")
    tables = [path for path in (options.map, None if count else options.composites) if path is not None]
    _check_output(output, [*inputs, *options.include, *tables], overwrite=options.overwrite)


def report_path(output: pathlib.Path) -> pathlib.Path:
    """Where the account of a vocabulary lies: beside the list."""
    return output.with_name(output.name + REPORT)


def _check_output(output: pathlib.Path, read: Sequence[str | pathlib.Path], *, overwrite: bool) -> None:
    if output.suffix.lower() in OTHER_FORMS:
        raise RequestError(
            f"--output {output}: a text file is written, one name a line, and {output.suffix} is read otherwise.\n"
            "Allowed: a name such as genes.txt."
        )
    folder = output.absolute().parent
    if not folder.is_dir():
        raise RequestError(f"--output {output}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise RequestError(f"--output {output}: nothing can be written in {folder}.")
    for path in (output, report_path(output)):
        if path.is_dir():
            raise RequestError(f"--output {output}: {path} is a folder; give the name of a text file.")
        if path.resolve() in [pathlib.Path(other).resolve() for other in read]:
            raise RequestError(f"--output {output}: {path} is read by this command; it would be overwritten.")
        if path.exists() and not overwrite:
            raise RequestError(
                f"{path}: exists already. Give --overwrite to replace it, or another --output."
            )
