"""`perturbdiff report`: results -> one page that opens offline."""

import argparse


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="directory of a run or of an evaluation"
    )
    parser.add_argument("--output", metavar="report.html", help="default: report.html in the directory")


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    from perturbdiff_jax.evaluation.page.report import write_report

    print(f"report {write_report(args.workdir, args.output)}")
