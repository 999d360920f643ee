"""`perturbdiff genes`: many h5ad files -> one gene vocabulary, by merging files and selecting in each merged set."""

import argparse
import contextlib
import dataclasses

from perturbdiff_jax.commands.reading import add_reading, add_resources
from perturbdiff_jax.errors import RequestError


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add = parser.add_argument
    several = {"nargs": "+", "action": "extend"}
    add("--input", required=True, **several, metavar="A.h5ad", help="h5ad files, in any order")
    add(
        "--composites",
        required=True,
        metavar="N|TABLE.csv",
        help="merge the files into N data sets of about as many cells, or as a table of file, composite says",
    )
    add("--hvg", type=int, default=2000, metavar="N", help="highly variable genes of each composite (2,000)")
    add(
        "--include",
        **several,
        default=None,
        metavar="GENES",
        help="take all genes of these lists too (text, csv, json, pickled), or of stores that `prepare` made",
    )
    add("--output", required=True, metavar="GENES.txt", help="the list to write, for `prepare --genes`")
    add_reading(parser, "sources")
    add(
        "--min-measured",
        type=float,
        default=0.5,
        metavar="X",
        help="choose from genes that files with this share of a composite's cells have (0.5)",
    )
    add_resources(parser, "bounds workers, and files stored by genes")
    add("--overwrite", action="store_true", help="replace a list that is there already")


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers}: allowed is 1 or more.")
    from perturbdiff_jax.data.gene_vocabulary import VocabularyOptions, gene_vocabulary

    known = {field.name for field in dataclasses.fields(VocabularyOptions)}
    given = {name: value for name, value in vars(args).items() if name in known and value is not None}
    with contextlib.suppress(ValueError):
        given["composites"] = int(args.composites)
    gene_vocabulary(args.input, args.output, VocabularyOptions(**given))
