"""`perturbdiff genes`: many h5ad files -> one gene vocabulary, merge then select (App. A.3.2 of the paper).

Files are merged into composites, the most highly variable genes of each composite are chosen, and their union with the
gene lists that are given is the vocabulary. The story in order: who has which genes and do they speak of the same ones;
what is merged with what; sums over every composite and its choice; the list and its account. Memory is bounded by
blocks of cells and by sums over the genes, whatever the size of the files. A refusal leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from perturbdiff_jax.data.gene_naming.source_names import open_map
from perturbdiff_jax.data.gene_selection.account import account, table, union
from perturbdiff_jax.data.gene_selection.composites import balanced, in_order, read_composites
from perturbdiff_jax.data.gene_selection.naming import check_naming
from perturbdiff_jax.data.gene_selection.notes import CHOICE, NAMES, VALUES, Notes
from perturbdiff_jax.data.gene_selection.options import VocabularyOptions, check_options, report_path
from perturbdiff_jax.data.gene_selection.reading import read_composite
from perturbdiff_jax.data.gene_selection.selection import choose
from perturbdiff_jax.data.gene_selection.sources import GeneNames, Source, read_files, read_lists
from perturbdiff_jax.data.preparation.progress import Progress
from perturbdiff_jax.data.preparation.workers import Workers
from perturbdiff_jax.data.prepare import PARALLEL, WORKER_BYTES
from perturbdiff_jax.errors import RequestError, shorten

UNSEEN = ("overwrite", "memory", "workers")  # options that leave the result as it is


@dataclasses.dataclass(frozen=True)
class GeneVocabulary:
    """`genes` sorted by name (by code point), each once; `report` as in the file beside the list."""

    genes: list[str]
    report: dict[str, Any]


def gene_vocabulary(
    inputs: Sequence[str | pathlib.Path],
    output: str | pathlib.Path,
    options: VocabularyOptions,
    *,
    echo: Callable[[str], None] = print,
) -> GeneVocabulary:
    """Writes the gene list `output`, one name a line, and `output`.report.json; prints a table.

    Every cell counts, normalised as in `prepare`: log1p(target_sum * count / total), the total being obs[total_key] or
    the cell's sum over all genes of its file; log1p values are taken as they are. A gene's mean and variance in a
    composite come from the cells of the files that have it (gene_selection/moments.py), and it may be
    chosen if those are at least `min_measured` of the composite's cells. Where all files have the same genes, the
    choice is scanpy.pp.highly_variable_genes(flavor="seurat") on the concatenated cells. The order of `inputs` does
    not matter. Raises RequestError for wrong input; then nothing is written.
    """
    output = pathlib.Path(output)
    check_options(inputs, output, options)
    report = str(report_path(output))
    notes = Notes(echo)
    paths = in_order(inputs)
    placed = None if options.count else read_composites(options.composites, paths)
    names = GeneNames()
    name_table = open_map(options.map, options.map_to, lambda text: notes.say(NAMES, text))
    files = read_files(paths, options, name_table, names, notes)
    lists = read_lists(options, name_table, names, notes)
    check_naming(files, lists, names, notes)
    notes.close(NAMES, report)
    composites = placed or balanced([source.cells for source in files], options.count)
    choices, encodings = [], {}
    progress = Progress(echo, "reading", sum(source.cells for source in files))
    with Workers(_processes(files, options)) as workers:
        for composite in composites:
            merged = [files[number] for number in composite.files]
            genes, moments, kinds = read_composite(
                merged, len(names.names), options, workers, progress, notes
            )
            encodings |= dict(zip(composite.files, kinds, strict=True))
            cells = sum(source.cells for source in merged)
            where = f"composite {composite.name} ({shorten([source.path for source in merged], 3)})"
            choices.append(choose(where, genes, moments, cells, options, notes))
    for kind in (VALUES, CHOICE):
        notes.close(kind, report)
    whole = union(len(names.names), choices, lists)
    times = {
        names.names[number]: count
        for number, count in zip(whole.numbers.tolist(), whole.times.tolist(), strict=True)
    }
    facts = account(whole, composites, choices, files, lists, encodings)
    chosen = sorted(times)
    told = {
        "genes": len(chosen),
        "options": {key: value for key, value in _plain(options).items() if key not in UNSEEN},
        **facts,
        "notes": notes.lines,
        "times_chosen": {name: times[name] for name in chosen},
    }
    _write(output, chosen, told)
    for line in table(facts, title=f"vocabulary {output}: {len(chosen):,} genes", report=report):
        echo(line)
    return GeneVocabulary(chosen, told)


def _processes(files: Sequence[Source], options: VocabularyOptions) -> int:
    """How many read: one where starting others does not pay."""
    if sum(source.stored for source in files) < PARALLEL:
        return 1
    pieces = sum(len(source.pieces) for source in files)
    return min(options.workers, pieces, max(1, options.memory // WORKER_BYTES))


def _plain(options: VocabularyOptions) -> dict[str, Any]:
    """Options as JSON takes them."""
    kinds = (int, float, str, bool, type(None))
    plain = {}
    for key, value in dataclasses.asdict(options).items():
        plain[key] = (
            list(map(str, value)) if key == "include" else value if isinstance(value, kinds) else str(value)
        )
    return plain


def _write(output: pathlib.Path, genes: Sequence[str], report: dict[str, Any]) -> None:
    """Both files aside, then renamed; the list last, so that where it is new its account is, too."""
    texts = {
        report_path(output): json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        output: "".join(f"{gene}\n" for gene in genes),
    }
    fresh = {path: path.with_name(f".{path.name}.partial-{os.getpid()}") for path in texts}
    try:
        for path, text in texts.items():
            fresh[path].write_text(text, encoding="utf-8")
        for path in texts:
            os.replace(fresh[path], path)
    except OSError as error:
        raise RequestError(f"--output {output}: cannot be written ({error.strerror}).") from error
    finally:
        for path in fresh.values():
            with contextlib.suppress(OSError):
                path.unlink()
