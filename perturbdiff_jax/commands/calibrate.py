"""`perturbdiff calibrate`: how much a model errs on held-out conditions, learned and kept in its bundle."""

import argparse


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="BUNDLE", help="bundle, or the work directory of a run")
    add("--store", required=True, metavar="STORE", help="real cells of conditions that training did not see")
    add(
        "--split",
        default="validation",
        choices=("validation", "test"),
        help="split of the store to learn from (validation); what is learned on test must not be judged there",
    )
    add("--conditions", type=int, default=64, metavar="N", help="at most so many conditions (64)")
    add("--cells", type=int, metavar="N", help="at most so many cells of each draw (as many as real ones)")
    add("--draws", type=int, default=8, metavar="K", help="populations of each condition (8)")
    add("--draw-batches", choices=("own", "all"), default="own", help="as of `predict` (own)")
    add("--seed", type=int, default=0, metavar="N")
    add("--which", default="best", choices=("best", "latest"), help="which checkpoint of the bundle (best)")


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    from perturbdiff_jax import load
    from perturbdiff_jax.data.store import Store
    from perturbdiff_jax.errors import RequestError
    from perturbdiff_jax.prediction import model_error

    for name in ("conditions", "draws", "cells"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise RequestError(f"--{name}={value}: must be at least 1.")
    model = load(args.checkpoint, which=args.which)
    found = model_error.learn(
        model,
        Store.open(args.store),
        split=args.split,
        conditions=args.conditions,
        cells=args.cells,
        draws=args.draws,
        draw_batches=args.draw_batches,
        seed=args.seed,
    )
    path = model_error.write(model.path, found)
    print(f"{found.told()}\n{path}")
