"""`perturbdiff predict`: checkpoint + control cells -> predicted cells."""

import argparse
import dataclasses
from collections.abc import Sequence

from perturbdiff_jax.commands.reading import add_gene_names
from perturbdiff_jax.errors import RequestError


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
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
    add_gene_names(parser, "genes of --input")
    add("--source", metavar="NAME", help="input layer, of networks with several whose batches do not tell")
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
    add(
        "--draw-batches",
        choices=("own", "all"),
        default="own",
        help="batch covariate of the draws: the condition's own, or all that training saw in turn (own)",
    )
    add(
        "--gene-table",
        metavar="TABLE.csv.gz",
        help="write changes, intervals, direction and calls of every gene",
    )
    add("--sampler", choices=("ddim", "ddpm", "fast"), help="default: the bundle's")
    add("--steps", type=int, metavar="N", help="network evaluations of the walk")
    add("--start", type=int, metavar="T", help="the walk begins at timestep T - 1")
    add("--guidance", type=float, metavar="W", help="0 = none")
    add("--seed", type=int, default=0, metavar="N")
    add("--which", default="best", choices=("best", "latest"), help="which checkpoint of the bundle (best)")


def split_names(text: str, known: Sequence[str]) -> list[str]:
    """Names out of "A,B"; commas inside a known name, such as [('DMSO_TF', 0.0, 'uM')], do not part it."""
    parts, names = text.split(","), []
    longest = 1 + max(name.count(",") for name in known)
    plain = {name.strip(): name for name in known}
    while parts:
        joined = {count: ",".join(parts[:count]).strip() for count in range(min(longest, len(parts)), 0, -1)}
        count = next((count for count, name in joined.items() if name in plain), 1)
        names.append(plain.get(joined[count], joined[count]))
        del parts[:count]
    return names


def run(args: argparse.Namespace) -> None:
    """Does the job."""
    import h5py

    from perturbdiff_jax import load
    from perturbdiff_jax.data.gene_naming.source_names import check_map
    from perturbdiff_jax.prediction.assembly import check_output
    from perturbdiff_jax.prediction.design import read_design, split_design
    from perturbdiff_jax.prediction.gene_table import write_gene_table

    if args.split and not args.store:
        raise RequestError("--split needs --store, the store that holds the split.")
    if not args.split and not args.input:
        raise RequestError("--input is needed: the control cells of the contexts to predict.")
    if args.split and args.input:
        raise RequestError("--split takes the control cells from --store; leave out --input.")
    named = [flag for flag in ("gene_key", "map", "map_to") if getattr(args, flag) is not None]
    if args.split and named:
        raise RequestError(
            f"--{named[0].replace('_', '-')} is about --input; the genes of --store have names."
        )
    check_map(args.map, args.map_to)
    inputs = [name for name in (args.input, args.design, args.store) if name]
    check_output(args.output, inputs)
    if args.gene_table:
        check_output(args.gene_table, [*inputs, args.output], flag="--gene-table", kind="csv")
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
        "draw_batches": args.draw_batches,
        "seed": args.seed,
        "source": args.source,
    }
    if args.split:
        from perturbdiff_jax.data.store import Store
        from perturbdiff_jax.prediction.controls import check_store, from_store
        from perturbdiff_jax.prediction.zero_shot import in_words_of

        store = Store.open(args.store)
        check_store(store, model.bundle)
        model = in_words_of(model, store)
        design = split_design(store, args.split)
        if args.cells_per_condition is not None:
            design = design.drop(columns="cells")
        path = model.predict_design_to(
            args.output, design, from_store(store, model.bundle, source=args.source), **common
        )
    else:
        design = read_design(args.design) if args.design else None
        names = None if args.design else split_names(args.perturbations, model.bundle.perturbations)
        path = model.predict_to(
            args.output,
            args.input,
            perturbations=names,
            design=design,
            cell_type_key=args.cell_type_key,
            batch_key=args.batch_key,
            total_key=args.total_key,
            gene_key=args.gene_key,
            map=args.map,
            map_to=args.map_to,
            min_gene_overlap=args.min_gene_overlap,
            **common,
        )
    with h5py.File(path) as file:
        cells, genes = file["X"].attrs["shape"]
    print(f"{cells:,} cells (control cells included) x {genes:,} genes: {path}")
    if args.gene_table:
        if model.error is None:
            print(
                "The error of this model is not known: intervals are those of its draws alone, and too narrow.\n"
                "`perturbdiff calibrate` learns it from real cells of conditions that were held out."
            )
        print(f"changes by gene: {write_gene_table(path, args.gene_table)}")
