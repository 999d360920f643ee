"""The predicted side: one or several named predictions, brought to the same conditions and the same genes.

Every prediction is scored on the conditions (perturbation, cell type[, batch]) and the genes that all of them have,
so that their numbers can stand beside each other; what that leaves out is said and recorded. Files of other tools
may number their genes instead of naming them. It must not know metrics.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import anndata as ad
import numpy as np

from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.evaluation.baselines import TRAINED_BASELINES
from perturbdiff_jax.evaluation.contexts import Context, Prediction, stack
from perturbdiff_jax.evaluation.inputs import DRAW, FIELDS, Keys, Side, read_predicted
from perturbdiff_jax.evaluation.metrics import mean_of, pearson
from perturbdiff_jax.evaluation.real_cells import Triple, triples
from perturbdiff_jax.evaluation.scored_genes import common_genes, measured_genes
from perturbdiff_jax.evaluation.stages import stage
from perturbdiff_jax.evaluation.summary import CEILING, OURS
from perturbdiff_jax.evaluation.training_share import TrainingShare
from perturbdiff_jax.evaluation.unseen import read_unseen

RESERVED = (*TRAINED_BASELINES, "control", CEILING)
_NAME = re.compile(r"\w[\w .+-]{0,59}")  # it becomes the name of a file, too


@dataclasses.dataclass(frozen=True)
class Predicted:
    """`sides` by name: their cells [n, G] share `genes` in one order; `conditions` are those of all of them.

    `target_sum`: counts per cell that they were normalised to, where one of them says so. `account` by name, for
    the record: cells and conditions scored, what was left out. `errors`: what models err, of those that tell it.
    `shares`: the share of the training cells that models of ours had.
    """

    sides: Mapping[str, Side]
    genes: tuple[str, ...]
    conditions: frozenset[Triple]
    target_sum: float | None
    account: Mapping[str, dict]
    left_out: list[str]  # conditions that not all of them have: "perturbation / cell type / batch"
    errors: Mapping[str, spread.Error]
    shares: Mapping[str, TrainingShare]

    def order_check(self, contexts: Sequence[Context]) -> dict[str, float]:
        """By name, Pearson correlation over genes of the mean predicted with the mean real control cell.

        Only of predictions whose genes were numbers: that their order is the real file's is a claim of whoever
        says so, and a wrong order gives a correlation near 0.
        """
        control = mean_of(stack(context.pooled_control() for context in contexts))
        return {
            name: round(pearson(mean_of(side.cells), control), 3)
            for name, side in self.sides.items()
            if self.account[name]["genes_by_position"]
        }

    def cells_for(self, context: Context) -> dict[str, Prediction]:
        """By name, the cells of the context's conditions; of several draws the first, which has as many as asked."""
        return {name: _cells_for(side, context) for name, side in self.sides.items()}

    def draws_for(self, name: str, context: Context) -> dict[int, Prediction]:
        """By number of the draw, the cells of the context's conditions; empty for files that number no draws."""
        side = self.sides[name]
        if DRAW not in side.conditions:
            return {}
        rows = np.flatnonzero((side.conditions["cell_type"] == context.cell_type).to_numpy())
        own = side.conditions.iloc[rows]
        found: dict[int, dict] = {int(draw): {} for draw in sorted(own[DRAW].unique())}
        for (draw, *key), at in own.groupby([DRAW, "batch", "perturbation"]).indices.items():
            if tuple(key) in context.real:
                found[int(draw)][tuple(key)] = side.cells[rows[at]]
        return found


def named(pred) -> dict[str, object]:
    """{name: h5ad path or AnnData} of a mapping, or of a single prediction, which is called "perturbdiff".

    Raises RequestError for a name that is empty, spelt like another or a baseline's, or unfit for a file's name.
    """
    if not isinstance(pred, Mapping):
        return {OURS: pred}
    if not pred:
        raise RequestError("pred: no prediction is given; give at least one, as NAME=PATH.h5ad.")
    seen: dict[str, str] = {}
    for name in pred:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name != name.strip():
            raise RequestError(
                f"pred: the name {name!r} is not allowed; allowed are letters, digits, blanks and . _ + - "
                "(a letter or digit first, at most 60)."
            )
        if name.casefold() in RESERVED:
            raise RequestError(
                f"pred: the name {name!r} is a baseline's or the ceiling's; taken: {', '.join(RESERVED)}."
            )
        if name.casefold() in seen:
            raise RequestError(f"pred: the names {seen[name.casefold()]!r} and {name!r} are the same.")
        seen[name.casefold()] = name
    return dict(pred)


@stage("reading")
def read_all(
    sources: Mapping[str, object],
    keys: Keys,
    real_genes: tuple[str, ...],
    unmeasured: Collection[str] = (),
    *,
    by_position: bool,
    echo: Callable[[str], None],
) -> Predicted:
    """Reads and aligns every prediction; `by_position` lets numbered genes be those of `real_genes` in order.

    Genes that are `unmeasured` in all real cells are left out. Raises RequestError for a file that cannot be scored,
    for predictions without a common condition, that share too few genes, or that were normalised to different totals.
    """
    sides, sums, account, errors, shares, told = {}, {}, {}, {}, {}, {}
    renamed = []
    for name, source in sources.items():
        what = "prediction" if len(sources) == 1 else f"prediction {name!r}"
        side, facts = read_predicted(source, keys, what)
        genes = _named_genes(side.genes, real_genes, by_position, f"{what} {_file(source)}")
        if genes != side.genes:
            renamed.append(name)
            side = dataclasses.replace(side, genes=genes)
        if facts.get("target_sum") is not None:
            sums[name] = float(facts["target_sum"])
        if (error := spread.Error.read(facts.get("model_error"))) is not None:
            errors[name] = error
        if (share := TrainingShare.read(facts)) is not None:
            shares[name] = share
        sides[name] = side
        account[name] = {"file": _file(source), "genes_by_position": name in renamed}
        told[name] = facts
    if by_position:
        echo(
            f"genes by position: {shorten(renamed)} got the {len(real_genes):,} gene names of the real cells"
            if renamed
            else "genes by position: no prediction has numbered genes; nothing was renamed"
        )
    if len(set(sums.values())) > 1:
        listed = ", ".join(f"{name} {value:g}" for name, value in sums.items())
        raise RequestError(
            f"predictions: uns['perturbdiff']['target_sum'] differs: {listed}.\n"
            "Their values are on different scales; predict for the same total."
        )
    genes = common_genes(sides)
    conditions, left_out = _common_conditions(sides)
    for name, side in sides.items():
        own = triples(side.conditions)
        account[name]["left_out_genes"] = len(side.genes) - len(genes)
        account[name]["left_out_conditions"] = len(own - conditions)
        if unseen := read_unseen(told[name], {perturbation for perturbation, *_ in conditions}):
            account[name]["unseen"] = unseen
    _tell(account, len(genes), len(conditions), left_out, echo)
    genes = measured_genes(genes, unmeasured, echo)
    sides = {name: _restrict(side, genes, conditions) for name, side in sides.items()}
    total = next(iter(sums.values()), None)
    return Predicted(sides, genes, conditions, total, account, left_out, errors, shares)


def _file(source) -> str:
    return "AnnData" if isinstance(source, ad.AnnData) else str(pathlib.Path(os.fspath(source)))


def _named_genes(
    genes: tuple[str, ...], real: tuple[str, ...], by_position: bool, where: str
) -> tuple[str, ...]:
    """`genes`, or the real file's when they are only numbers: 0, 1, 2, ... as STATE writes them."""
    numbered = genes == tuple(map(str, range(len(genes))))
    if not numbered or set(genes) <= set(real):
        return genes
    last = genes[-1]
    if not by_position:
        raise RequestError(
            f"{where}: var_names are the numbers '0' to {last!r}, which the real file lacks; allowed: gene names.\n"
            "If its genes stand in the order of the real file's, say --genes-by-position."
        )
    if len(genes) != len(real):
        raise RequestError(
            f"{where}: var_names are the numbers '0' to {last!r}, {len(genes):,} genes, but the real file has "
            f"{len(real):,}.\n--genes-by-position needs a real file of the same genes in the same order."
        )
    return real


def _common_conditions(sides: Mapping[str, Side]) -> tuple[frozenset[Triple], list[str]]:
    owned = {name: triples(side.conditions) for name, side in sides.items()}
    common = frozenset.intersection(*map(frozenset, owned.values()))
    if not common:
        examples = "; ".join(f"{name}: {shorten(_spoken(own), most=2)}" for name, own in owned.items())
        raise RequestError(
            "predictions: no condition (perturbation / cell type / batch) is in all files.\n"
            f"They have {examples}."
        )
    return common, _spoken(set().union(*owned.values()) - common)


def _spoken(conditions) -> list[str]:
    return [" / ".join(condition) for condition in sorted(conditions)]


def _tell(account, genes: int, conditions: int, left_out: list[str], echo) -> None:
    dropped = {name: facts["left_out_genes"] for name, facts in account.items() if facts["left_out_genes"]}
    if dropped:
        listed = ", ".join(f"{count:,} of {name}" for name, count in dropped.items())
        echo(f"genes: scored are the {genes:,} that all predictions have; left out: {listed}")
    if left_out:
        listed = ", ".join(
            f"{facts['left_out_conditions']} of {name}"
            for name, facts in account.items()
            if facts["left_out_conditions"]
        )
        echo(
            f"conditions: scored are the {conditions} that all predictions have; left out: {listed} "
            f"({shorten(left_out, most=4)})"
        )


def _restrict(side: Side, genes: tuple[str, ...], conditions: frozenset[Triple]) -> Side:
    """The side's cells of `conditions`, with its columns in the order of `genes`."""
    cells, table = side.cells, side.conditions
    rows = table[list(FIELDS)].itertuples(index=False, name=None)
    keep = np.array([row in conditions for row in rows], dtype=bool)
    if not keep.all():
        cells, table = cells[np.flatnonzero(keep)], table[keep].reset_index(drop=True)
    if genes != side.genes:
        position = {gene: i for i, gene in enumerate(side.genes)}
        cells = cells[:, [position[gene] for gene in genes]]
        cells.sort_indices()
    return Side(cells, table, genes)


def _cells_for(side: Side, context: Context) -> Prediction:
    rows = np.flatnonzero((side.conditions["cell_type"] == context.cell_type).to_numpy())
    own = side.conditions.iloc[rows]
    if DRAW in own:
        first = own[DRAW] == own.groupby(["batch", "perturbation"])[DRAW].transform("min")
        rows, own = rows[first.to_numpy()], own[first]
    found = own.groupby(["batch", "perturbation"]).indices
    return {key: side.cells[rows[at]] for key, at in found.items() if key in context.real}
