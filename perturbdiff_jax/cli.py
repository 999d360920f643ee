"""Console command `perturbdiff`: dispatch to the verbs; their options are in commands/."""

import argparse
import sys
from collections.abc import Sequence

from perturbdiff_jax.commands import calibrate, convert, evaluate, genes, predict, prepare, report
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.main import guarded, prepare_process
from perturbdiff_jax.main import run as train_run

VERBS = {
    "prepare": ("h5ad files -> a store of grouped, split, normalised cells", prepare),
    "genes": ("many h5ad files -> one gene vocabulary: merge, then select", genes),
    "predict": ("checkpoint + control cells -> predicted cells", predict),
    "calibrate": ("checkpoint + held-out real cells -> how unsure its predictions have to be", calibrate),
    "evaluate": ("predictions + real cells -> metrics, beside simple rivals", evaluate),
    "report": ("results -> one page that opens offline", report),
    "convert": ("the authors' checkpoint -> bundle, or a look into it; bundle -> released names", convert),
}


class _Parser(argparse.ArgumentParser):
    """Tells usage errors like every other wrong request."""

    def error(self, message: str):
        raise RequestError(f"{message}\nSee: {self.prog} --help")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; exit code 0 done, 2 wrong request or input, 1 a fault of ours."""
    whole_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        if whole_process:
            prepare_process()
        # The same door as `python -m perturbdiff_jax.main`, whose flags come from the config file.
        return train_run(arguments[1:])
    parser = _Parser(
        prog="perturbdiff", description="Predicts how populations of cells respond to perturbations."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("train", help="config -> checkpoint bundle, predictions, metrics, report")
    for name, (text, module) in VERBS.items():
        module.fill(verbs.add_parser(name, help=text, description=text))

    def job() -> None:
        args = parser.parse_args(arguments)
        VERBS[args.verb][1].run(args)

    return guarded(job)


if __name__ == "__main__":
    sys.exit(run())
