"""`perturbdiff evaluate`: predictions + real cells -> metrics, beside simple rivals."""

import argparse


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
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


def run(args: argparse.Namespace) -> None:
    """Does the job."""
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
