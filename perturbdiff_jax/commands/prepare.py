"""`perturbdiff prepare`: h5ad files -> a store of grouped, split, normalised cells; merging and verifying stores."""

import argparse
import dataclasses

from perturbdiff_jax.commands.reading import add_reading, add_resources
from perturbdiff_jax.errors import RequestError


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add = parser.add_argument
    add("--input", nargs="+", metavar="A.h5ad", help="one or several h5ad files")
    add(
        "--merge",
        nargs="+",
        metavar="STORE",
        help="instead of --input: write an index over these stores (or folders of stores)",
    )
    add("--verify", metavar="STORE", help="check every byte of a store and do nothing else")
    add("--output", metavar="STORE", help="the store to write: a folder, or a URL such as s3://bucket/name")
    add("--perturbation-key", metavar="K", help="obs column of the perturbation")
    add("--control", metavar="LABEL", help="label of unperturbed cells in that column")
    add(
        "--unperturbed",
        action="store_true",
        help="no cell is perturbed: RNA-seq to pretrain on, without a screen",
    )
    add(
        "--cell-type-key",
        metavar="K",
        help="obs column of the cell type; without it all cells are of one type",
    )
    add("--batch-key", metavar="K", help="obs column of the batch, donor or replicate")
    add("--dose-key", metavar="K", help="obs column of the dose")
    add_reading(parser, "files")
    genes = parser.add_mutually_exclusive_group()
    genes.add_argument(
        "--hvg", type=int, default=2000, metavar="N", help="keep N highly variable genes (2,000)"
    )
    genes.add_argument(
        "--genes", metavar="FILE", help="keep the genes listed in this text, csv, json or pickled file"
    )
    genes.add_argument("--all-genes", action="store_true", help="keep every gene")
    add(
        "--absent-genes",
        choices=("drop", "zero"),
        help="listed genes that no file has: drop them (default), or keep the list whole, with unmeasured zeros",
    )
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
    add_resources(parser, "memory for cells")
    add(
        "--codec",
        default="lz4",
        choices=("lz4", "zstd"),
        help="lz4 is quickest to read; zstd is smaller, for archives and object stores",
    )
    add(
        "--scratch",
        metavar="DIR",
        help="where a store for a URL is prepared before it is copied (the system's temporary folder)",
    )
    add("--overwrite", action="store_true", help="replace a store that is there already")


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    _check_jobs(args)
    if args.verify:
        from perturbdiff_jax.data.store import Store

        print(Store.open(args.verify).verify(echo=lambda line: print(line, flush=True)))
        return
    rule = _rule(args)
    if args.merge:
        from perturbdiff_jax.data.storage.merge import MergeOptions, merge

        merge(args.merge, args.output, MergeOptions(**_given(args, MergeOptions), holdout=rule))
        return
    from perturbdiff_jax.data.prepare import PrepareOptions, prepare

    prepare(args.input, args.output, PrepareOptions(**_given(args, PrepareOptions), holdout=rule))


def _check_jobs(args: argparse.Namespace) -> None:
    """Exactly one of the three jobs, with what it needs."""
    jobs = [name for name in ("input", "merge", "verify") if getattr(args, name)]
    if len(jobs) != 1:
        found = ", ".join(f"--{name}" for name in jobs) or "none"
        raise RequestError(f"prepare: give one of --input, --merge and --verify; given: {found}.")
    screen = () if args.unperturbed else ("perturbation_key", "control")
    needed = {"input": ("output", *screen), "merge": ("output",), "verify": ()}
    missing = [f"--{name.replace('_', '-')}" for name in needed[jobs[0]] if getattr(args, name) is None]
    if missing:
        raise RequestError(f"prepare: the following arguments are required: {', '.join(missing)}")
    foreign = ("perturbation_key", "control", "cell_type_key", "batch_key", "dose_key", "layer", "genes")
    foreign += ("absent_genes", "gene_key", "map", "map_to")
    foreign = () if args.input else foreign if args.merge else ("output", *foreign)
    for name in foreign:
        if getattr(args, name) is not None:
            raise RequestError(f"prepare: --{name.replace('_', '-')} has no meaning with --{jobs[0]}.")
    if args.unperturbed and not args.input:
        raise RequestError(f"prepare: --unperturbed has no meaning with --{jobs[0]}.")
    if args.memory < 1:
        raise RequestError("--memory: allowed is a size above 0.")
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers}: allowed is 1 or more.")


def _rule(args: argparse.Namespace) -> dict | None:
    asked = (args.holdout, args.holdout_validation, args.holdout_batch, args.holdout_cell_type)
    if not any(asked):
        return None
    # Only now: it brings jax along, which takes memory.
    from perturbdiff_jax.data_options import HoldoutOptions

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
    return rule


def _given(args: argparse.Namespace, kind: type) -> dict:
    known = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(args).items() if name in known and value is not None}
    return {name: value for name, value in given.items() if name != "holdout"}
