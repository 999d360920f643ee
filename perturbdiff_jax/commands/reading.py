"""Options of the verbs that read h5ad files: what they hold, how genes are named, what may be spent on it."""

import argparse
import re


def add_reading(parser: argparse.ArgumentParser, what: str) -> None:
    """What a file's numbers and names mean; `what` are its files called in the help of --map."""
    add = parser.add_argument
    add("--layer", metavar="L", help="read this layer instead of X")
    add_gene_names(parser, what)
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


def add_gene_names(parser: argparse.ArgumentParser, what: str) -> None:
    """What the genes of a file are called; `what` as of `add_reading`."""
    add = parser.add_argument
    add("--gene-key", metavar="K", help="var column of the gene names; default: the index of var")
    add(
        "--map",
        metavar="TABLE.csv",
        help=f"two columns of names, such as ensembl_id,symbol: {what} are turned into the second one's names",
    )
    add("--map-to", metavar="COLUMN", help="the column of --map to turn names into (the second)")


def add_resources(parser: argparse.ArgumentParser, memory: str) -> None:
    """Memory and processes; `memory` says what it is spent on."""
    parser.add_argument(
        "--memory",
        type=size,
        default=2 * 1024**3,
        metavar="SIZE",
        help=f"{memory}: bytes, or such as 512MiB or 2GiB (2GiB)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes that read files (the CPUs at hand, at most 8)",
    )


def size(text: str) -> int:
    """Bytes of "512MiB", "2GiB", "1.5GB" or a plain number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(i?)B)?", text.strip(), flags=re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are bytes, or such as 512MiB, 2GiB or 2GB")
    number, letter, binary = found.groups()
    power = "KMGT".find(letter.upper()) + 1 if letter else 0
    return int(float(number) * (1024 if binary else 1000) ** power)
