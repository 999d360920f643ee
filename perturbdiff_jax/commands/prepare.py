"""`perturbdiff prepare`: h5ad files -> a store of grouped, split, normalised cells."""

import argparse
import dataclasses

from perturbdiff_jax.errors import RequestError


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="A.h5ad",
        help="one or several h5ad files with the same genes",
    )
    add("--output", required=True, metavar="STORE", help="the store to write")
    add("--perturbation-key", required=True, metavar="K", help="obs column of the perturbation")
    add("--control", required=True, metavar="LABEL", help="label of unperturbed cells in that column")
    add(
        "--cell-type-key",
        metavar="K",
        help="obs column of the cell type; without it all cells are of one type",
    )
    add("--batch-key", metavar="K", help="obs column of the batch, donor or replicate")
    add("--dose-key", metavar="K", help="obs column of the dose")
    add("--layer", metavar="L", help="read this layer instead of X")
    add("--values", default="auto", choices=("auto", "counts", "lognorm"), help="what X or the layer holds")
    add(
        "--total-key",
        metavar="K",
        help="obs column of whole-transcriptome totals, for files with selected genes",
    )
    add(
        "--target-sum",
        type=float,
        default=1e4,
        metavar="N",
        help="total that every cell is normalised to (10,000)",
    )
    genes = parser.add_mutually_exclusive_group()
    genes.add_argument(
        "--hvg", type=int, default=2000, metavar="N", help="keep N highly variable genes (2,000)"
    )
    genes.add_argument(
        "--genes", metavar="FILE", help="keep the genes listed in this text, csv, json or pickled file"
    )
    genes.add_argument("--all-genes", action="store_true", help="keep every gene")
    add("--split", metavar="FILE", help=".json or .toml file that says what is held out")
    add(
        "--holdout",
        type=float,
        metavar="X",
        help="hold out this share of the perturbations as the test split",
    )
    add("--holdout-validation", type=float, default=0.0, metavar="X", help="and this share for validation")
    add("--holdout-batch", metavar="A,B", help="only in these batches")
    add("--holdout-cell-type", metavar="A,B", help="only in these cell types")
    add("--seed", type=int, default=0, metavar="N", help="seed of the hold-out and of the order of cells")
    add(
        "--cells-per-set",
        type=int,
        default=32,
        metavar="S",
        help="set size assumed by the closing table (32)",
    )
    add("--overwrite", action="store_true", help="replace a store that is there already")


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    from perturbdiff_jax.data.prepare import PrepareOptions, prepare
    from perturbdiff_jax.settings import HoldoutOptions

    rule = HoldoutOptions(
        fraction=args.holdout or 0.0,
        validation_fraction=args.holdout_validation,
        batch=args.holdout_batch,
        cell_type=args.holdout_cell_type,
        seed=args.seed,
    ).rule()
    if args.split and rule:
        raise RequestError("--split and --holdout: give one of them.")
    if not rule and (args.holdout_batch or args.holdout_cell_type):
        raise RequestError(
            "--holdout-batch and --holdout-cell-type say where: give --holdout, the share, too."
        )
    known = {field.name for field in dataclasses.fields(PrepareOptions)}
    given = {name: value for name, value in vars(args).items() if name in known and name != "holdout"}
    prepare(args.input, args.output, PrepareOptions(**given, holdout=rule))
