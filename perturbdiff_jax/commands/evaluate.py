"""`perturbdiff evaluate`: predictions + real cells -> metrics, beside simple rivals."""

import argparse
import pathlib

from perturbdiff_jax.errors import RequestError

EXPORTS = ("cell-eval", "cell-eval2")  # evaluation.exports.FORMATS, not imported before it is needed


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add = parser.add_argument
    add(
        "--pred",
        required=True,
        nargs="+",
        action="extend",
        metavar="[NAME=]PRED.h5ad",
        help="predictions of any tool; several are named and scored on what all of them have",
    )
    add("--real", required=True, metavar="REAL", help="real cells: h5ad (counts or log1p values) or a store")
    add("--output", required=True, metavar="DIR", help="gets metrics.csv, summary.json and more")
    add("--perturbation-key", required=True, metavar="K")
    add("--control", required=True, metavar="LABEL")
    add("--cell-type-key", metavar="K")
    add("--batch-key", metavar="K", help="compare with the real cells of the same batch only")
    add("--total-key", metavar="K", help="obs column of whole-transcriptome totals in a raw-count REAL")
    add(
        "--genes-by-position",
        action="store_true",
        help="predictions whose genes are numbers (STATE's) have REAL's genes, in its order",
    )
    add(
        "--baselines",
        metavar="STORE",
        help="score the simple rivals too, fitted on this store's training cells",
    )
    add(
        "--fraction",
        type=float,
        metavar="F",
        help="fit them on this share of its perturbed training cells (default: that of the predictions' own training)",
    )
    add("--fraction-seed", type=int, default=0, metavar="N", help="seed of that share (default 0)")
    add(
        "--pooled",
        action="store_true",
        help="also one row per perturbation over all cell types together (takes about as long again)",
    )
    add(
        "--export",
        nargs="+",
        default=[],
        choices=EXPORTS,
        metavar="TOOL",
        help=f"also write the h5ad pairs that these score: {', '.join(EXPORTS)}",
    )
    add(
        "--cache",
        metavar="DIR",
        help="keep the real cells' differential expression here for later calls (default: in --output)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of resampling")


def predictions(words: list[str]) -> str | dict[str, str]:
    """The path of a single prediction without a name, or {name: path} of NAME=PATH words.

    A word is a path when a file of that name exists or its part before the first "=" has a slash. Raises
    RequestError for a name that is given twice, and for a path without a name among several.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name or pathlib.Path(word).is_file():
            if len(words) == 1:
                return word
            raise RequestError(f"--pred {word}: several predictions need names; give NAME=PRED.h5ad.")
        if not path:
            raise RequestError(f"--pred {word}: no path after the name; give NAME=PRED.h5ad.")
        if name in found:
            raise RequestError(f"--pred: the name {name!r} is given to {found[name]} and to {path}.")
        found[name] = path
    return found


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    pred = predictions(args.pred)
    from perturbdiff_jax.evaluation.evaluate import evaluate

    evaluate(
        pred,
        args.real,
        args.output,
        perturbation_key=args.perturbation_key,
        control=args.control,
        cell_type_key=args.cell_type_key,
        batch_key=args.batch_key,
        store=args.baselines,
        fraction=args.fraction,
        fraction_seed=args.fraction_seed,
        total_key=args.total_key,
        genes_by_position=args.genes_by_position,
        pooled=args.pooled,
        export=args.export,
        cache=args.cache,
        seed=args.seed,
    )
    print(f"results in {args.output}; a page: perturbdiff report --workdir {args.output}")
