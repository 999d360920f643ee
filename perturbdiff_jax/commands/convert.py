"""`perturbdiff convert`: the authors' checkpoints -> bundles, a look into them, and bundles -> released names."""

import argparse

from perturbdiff_jax.errors import RequestError


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="a released .ckpt; with --export a bundle")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", metavar="BUNDLE", help="the bundle to write")
    what.add_argument("--inspect", action="store_true", help="only print what is inside")
    what.add_argument(
        "--export", metavar="PARAMS.npz", help="write a bundle's weights under the released names"
    )
    add(
        "--genes",
        metavar="FILE",
        help="gene names in the order of the network: text, csv, json or the authors' pickled list",
    )
    add("--weights", choices=("ema", "live"), help="averaged weights (default), or the last step's")
    add("--control", metavar="LABEL", help="label of unperturbed cells; known for the paper's three screens")
    add("--perturbation-key", metavar="K", help="obs column of the perturbation in files to come")
    add("--cell-type-key", metavar="K", help="obs column of the cell type in files to come")
    add("--batch-key", metavar="K", help="obs column of the batch in files to come")
    add("--cells-per-set", type=int, metavar="S", help="set size of predictions (256; 32 for Replogle)")
    add("--target-sum", type=float, metavar="N", help="total that cells were normalised to (10,000)")
    add("--divisor", type=float, metavar="X", help="what log1p values were divided by in training (10)")
    add(
        "--embeddings",
        metavar="perturbation=NAME=FILE",
        help="the file of vectors that the network was trained with (FILE@NAMES where it has no names): names that are "
        "in it alone can be predicted then",
    )
    add("--overwrite", action="store_true", help="replace a bundle that is there already")


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    told = ("genes", "weights", "control", "perturbation_key", "cell_type_key", "batch_key")
    told += ("cells_per_set", "target_sum", "divisor", "embeddings")
    given = {name: getattr(args, name) for name in told if getattr(args, name) is not None}
    if args.output is None and (given or args.overwrite):
        name = next(iter(given), "overwrite").replace("_", "-")
        raise RequestError(f"--{name} belongs to --output, the bundle to write.")
    if args.inspect:
        from perturbdiff_jax.released.inspect import inspect

        print(inspect(args.input))
    elif args.export:
        from perturbdiff_jax.released.export import export

        export(args.input, args.export)
    else:
        from perturbdiff_jax.convert import convert
        from perturbdiff_jax.released.describe import ConvertOptions

        convert(args.input, args.output, ConvertOptions(**given, overwrite=args.overwrite))
