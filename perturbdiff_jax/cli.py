"""Console command `perturbdiff`: prepare, train, predict, evaluate, report. Argument parsing and dispatch only."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.main import guarded
from perturbdiff_jax.main import run as train_run


class _Parser(argparse.ArgumentParser):
    """Tells usage errors like every other wrong request."""

    def error(self, message: str):
        raise RequestError(f"{message}\nSee: {self.prog} --help")


def _prepare(parser: argparse.ArgumentParser) -> None:
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
    genes.add_argument("--genes", metavar="FILE", help="keep the genes listed in this text, csv or json file")
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


def _run_prepare(args: argparse.Namespace) -> None:
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


def _predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="BUNDLE", help="bundle, or the work directory of a run")
    add("--input", metavar="CONTROLS.h5ad", help="control cells of the contexts to predict")
    add("--output", required=True, metavar="PRED.h5ad", help="the predictions to write")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--perturbations", metavar="A,B", help="predict these in every context of the controls")
    what.add_argument(
        "--design", metavar="TABLE.csv", help="columns perturbation, cell_type, batch [, cells, draws]"
    )
    what.add_argument("--split", metavar="test", help="predict this split of --store, with its control cells")
    add("--store", metavar="STORE", help="the store, with --split")
    add("--cell-type-key", metavar="K", help="obs column of the cell type in --input")
    add("--batch-key", metavar="K", help="obs column of the batch in --input")
    add("--total-key", metavar="K", help="obs column of whole-transcriptome totals in --input")
    add(
        "--min-gene-overlap",
        type=float,
        default=0.8,
        metavar="X",
        help="least share of genes in common (0.8)",
    )
    add(
        "--cells-per-condition", type=int, metavar="N", help="default: as many as control (or held-out) cells"
    )
    add("--draws", type=int, default=1, metavar="K", help="independent populations of each condition (1)")
    add("--sampler", choices=("ddim", "ddpm", "fast"), help="default: the bundle's")
    add("--steps", type=int, metavar="N", help="network evaluations of the walk")
    add("--start", type=int, metavar="T", help="the walk begins at timestep T - 1")
    add("--guidance", type=float, metavar="W", help="0 = none")
    add("--seed", type=int, default=0, metavar="N")
    add("--which", default="best", choices=("best", "latest"), help="which checkpoint of the bundle (best)")


def _run_predict(args: argparse.Namespace) -> None:
    from perturbdiff_jax import load
    from perturbdiff_jax.design import read_design, split_design
    from perturbdiff_jax.predictions import check_output, write_predictions

    if args.split and not args.store:
        raise RequestError("--split needs --store, the store that holds the split.")
    if not args.split and not args.input:
        raise RequestError("--input is needed: the control cells of the contexts to predict.")
    if args.split and args.input:
        raise RequestError("--split takes the control cells from --store; leave out --input.")
    check_output(args.output, [name for name in (args.input, args.design, args.store) if name])
    model = load(args.checkpoint, which=args.which)
    given = {"name": args.sampler, "steps": args.steps, "start": args.start, "guidance": args.guidance}
    given = {name: value for name, value in given.items() if value is not None}
    default = model.options.sampler
    if "start" in given and "steps" not in given:
        given["steps"] = min(default.steps, given["start"])
    if given.get("name") == "ddpm" and "steps" not in given:
        given["steps"] = given.get("start", default.start)
    common = {
        "sampler": dataclasses.replace(default, **given),
        "cells_per_condition": args.cells_per_condition,
        "draws": args.draws,
        "seed": args.seed,
    }
    if args.split:
        from perturbdiff_jax.controls import check_store, from_store
        from perturbdiff_jax.data.store import Store

        store = Store.open(args.store)
        check_store(store, model.bundle)
        design = split_design(store, args.split)
        if args.cells_per_condition is not None:
            design = design.drop(columns="cells")
        predicted = model.predict_design(design, from_store(store), **common)
    else:
        design = read_design(args.design) if args.design else None
        names = None if args.design else [name.strip() for name in args.perturbations.split(",")]
        if names and len(names) > 1 and args.perturbations in model.perturbations:
            names = [args.perturbations]  # one label that contains commas, such as [('DMSO_TF', 0.0, 'uM')]
        predicted = model.predict(
            args.input,
            perturbations=names,
            design=design,
            cell_type_key=args.cell_type_key,
            batch_key=args.batch_key,
            total_key=args.total_key,
            min_gene_overlap=args.min_gene_overlap,
            **common,
        )
    path = write_predictions(predicted, args.output)
    print(f"{predicted.n_obs:,} cells (control cells included) x {predicted.n_vars:,} genes: {path}")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pred", required=True, metavar="PRED.h5ad", help="predictions")
    add("--real", required=True, metavar="REAL", help="real cells: h5ad (counts or log1p values) or a store")
    add("--output", required=True, metavar="DIR", help="gets metrics.csv, summary.json and more")
    add("--perturbation-key", required=True, metavar="K")
    add("--control", required=True, metavar="LABEL")
    add("--cell-type-key", metavar="K")
    add("--batch-key", metavar="K", help="compare with the real cells of the same batch only")
    add("--total-key", metavar="K", help="obs column of whole-transcriptome totals in a raw-count REAL")
    add(
        "--baselines",
        metavar="STORE",
        help="score the simple rivals too, fitted on this store's training cells",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of resampling")


def _run_evaluate(args: argparse.Namespace) -> None:
    from perturbdiff_jax.evaluation.evaluate import evaluate

    evaluate(
        args.pred,
        args.real,
        args.output,
        perturbation_key=args.perturbation_key,
        control=args.control,
        cell_type_key=args.cell_type_key,
        batch_key=args.batch_key,
        store=args.baselines,
        total_key=args.total_key,
        seed=args.seed,
    )
    print(f"results in {args.output}; a page: perturbdiff report --workdir {args.output}")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="directory of a run or of an evaluation"
    )
    parser.add_argument("--output", metavar="report.html", help="default: report.html in the directory")


def _run_report(args: argparse.Namespace) -> None:
    from perturbdiff_jax.evaluation.report import write_report

    print(f"report {write_report(args.workdir, args.output)}")


VERBS = {
    "prepare": ("h5ad files -> a store of grouped, split, normalised cells", _prepare, _run_prepare),
    "predict": ("checkpoint + control cells -> predicted cells", _predict, _run_predict),
    "evaluate": ("predictions + real cells -> metrics, beside simple rivals", _evaluate, _run_evaluate),
    "report": ("results -> one page that opens offline", _report, _run_report),
}


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; exit code 0 done, 2 wrong request or input, 1 a fault of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        # The same door as `python -m perturbdiff_jax.main`, whose flags come from the config file.
        return train_run(arguments[1:])
    parser = _Parser(
        prog="perturbdiff", description="Predicts how populations of cells respond to perturbations."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("train", help="config -> checkpoint bundle, predictions, metrics, report")
    for name, (text, fill, _) in VERBS.items():
        fill(verbs.add_parser(name, help=text, description=text))

    def job() -> None:
        args = parser.parse_args(arguments)
        VERBS[args.verb][2](args)

    return guarded(job)


if __name__ == "__main__":
    sys.exit(run())
