"""Expected step time and efficiency from 8 to 1,024 chips: arithmetic on the rows of tpu_aot.py and on data sheets.

    compute   cycles / clock: the compiler's estimate of everything but collectives; a set less takes a seventh of the
              difference between 8 sets and 1 less
    sum       2 (n - 1) / n V / rate inside a slice of n chips; over k slices 2 (k - 1) / k (V / n) / network more
    gather    what a chip must send in a group of 16 / rate of a ring
    step      max(compute, what overlaps) + what does not

V are the bytes of all gradients, as the compiled data-parallel step sums them. Nothing of this was run on a TPU.
"""

import dataclasses

from tpu_chips import CHIPS, Chip, slice_shape

GROUP = 16  # chips that share the parameters of a fully sharded step
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
CELLS = 256  # in a set
LOADED = 1.5e6  # cells per second that a core reads: benchmarks/README.md, streamed
SHIPPED = 422  # bytes of a cell on its way to the device, same table


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The rows of one kind of chip and form: data-parallel with 8 sets and 1 set a chip, and fully sharded with 8."""

    chip: Chip
    data: dict
    small: dict | None
    fsdp: dict

    def compute(self, sets: float, mesh: str = "data") -> float:
        """Seconds of a step without collectives, with so many sets for each chip."""
        data, own = (row["cost"]["cycles"] / self.chip.clock for row in (self.data, getattr(self, mesh)))
        one = self.small["cost"]["cycles"] / self.chip.clock if self.small else data / 8
        return own - (8 - sets) * (data - one) / 7

    def limit(self) -> float:
        """Seconds that 8 sets take at the least: at the peak of the products, at the full bandwidth of HBM."""
        cost = self.data["cost"]
        return max(cost["flops"] / self.chip.peak, cost["bytes"] / self.chip.bandwidth)

    def gradients(self) -> float:
        """Bytes of the gradients."""
        return sum(one["bytes"] for one in self.data["collectives"] if one["kind"] == "all-reduce")

    def summing(self, chips: int) -> tuple[float, float]:
        """Seconds to sum the gradients over the chips, inside slices and between them."""
        inside = min(chips, self.chip.slice)
        rate = self.chip.reduce_rate(slice_shape(self.chip, inside))
        return _sum(self.gradients(), inside, rate), self._between(chips)

    def _between(self, chips: int) -> float:
        inside = min(chips, self.chip.slice)
        return _sum(self.gradients() / inside, chips // inside, self.chip.network)

    def gathering(self, chips: int, overlaps: bool) -> float:
        """Seconds of a fully sharded step's collectives in groups of 16 (or of all chips, if they are fewer)."""
        group = min(chips, GROUP)
        share = ((group - 1) / group) / ((GROUP - 1) / GROUP)
        sent = 0.0
        for one in self.fsdp["collectives"]:
            sent += one["sent"] * (one["overlaps"] == overlaps) * (0.5 if one["in_branch"] else 1.0)
        return share * sent / self.chip.ring_rate()

    def data_step(self, chips: int, sets: float = 8) -> float:
        """Seconds of a data-parallel step. The compiled sums do not overlap with anything."""
        return self.compute(sets) + sum(self.summing(chips))

    def fsdp_step(self, chips: int, sets: float = 8) -> float:
        """Seconds of a fully sharded step: groups of 16, gradients of their shares summed over the groups."""
        inside = min(chips, self.chip.slice)
        groups = _sum(self.gradients() / GROUP, max(inside // GROUP, 1), self.chip.ring_rate())
        apart = self.gathering(chips, False) + groups + self._between(chips)
        return max(self.compute(sets, "fsdp"), self.gathering(chips, True)) + apart


def _sum(size: float, members: int, rate: float) -> float:
    return 2 * (members - 1) / members * size / rate


def _find(rows: list[dict], kind: str, **wanted) -> dict | None:
    wanted = {"batch": "packed", "sets": 8, "remat": "none"} | wanted
    fitting = [
        row for row in rows if row["topology"].startswith(f"{kind}:") and wanted.items() <= row.items()
    ]
    return min(fitting, key=lambda row: row["devices"], default=None)


def compiled_of(rows: list[dict], kind: str, form: str) -> Compiled | None:
    """The rows that the arithmetic needs; None if the data-parallel or the fully sharded one is missing."""
    data, fsdp = (_find(rows, kind, form=form, mesh=mesh) for mesh in ("data", "fsdp"))
    small = _find(rows, kind, form=form, mesh="data", sets=1)
    return Compiled(CHIPS[kind], data, small, fsdp) if data and fsdp else None


def tables(rows: list[dict]) -> str:
    """The tables of docs/scaling.md as Markdown. ValueError when there are no rows to make them of."""
    found = {
        (kind, form): one
        for form in ("finetuning", "pretraining")
        for kind in CHIPS
        if (one := compiled_of(rows, kind, form))
    }
    if not found:
        raise ValueError("no compiled rows: run benchmarks/tpu_aot.py first")
    texts = [_chip_table(found)]
    for form in ("finetuning", "pretraining"):
        of_form = {kind: one for (kind, name), one in found.items() if name == form}
        texts += [_weak_table(form, of_form)] if of_form else []
    finetuning = {kind: one for (kind, form), one in found.items() if form == "finetuning"}
    # The others were not compiled with one set for each chip.
    with_one_set = {kind: one for kind, one in finetuning.items() if one.small}
    texts += [_strong_table(with_one_set, 512)] if with_one_set else []
    return "\n\n".join([*texts, *([_limit_table(finetuning)] if finetuning else [])])


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = "|".join(["---"] * len(head))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _chip_table(found: dict) -> str:
    head = ["chip, form", "compute, ms", "at the least, ms", "utilisation", "gradients, MB", "fsdp sends, MB"]
    lines = []
    for (kind, form), one in found.items():
        compute = one.compute(8)
        use = one.data["cost"]["flops"] / one.chip.peak / compute
        sent = sum(one.gathering(GROUP, overlaps) for overlaps in (False, True)) * one.chip.ring_rate()
        lines.append([f"{kind}, {form}", f"{1e3 * compute:.1f}", f"{1e3 * one.limit():.1f}", f"{use:.0%}"])
        lines[-1] += [f"{one.gradients() / 1e6:,.0f}", f"{sent / 1e6:,.0f}"]
    return "### One chip, 8 sets of 256 cells\n\n" + _table(head, lines)


def _cell(seconds: float, compute: float) -> str:
    return f"{1e3 * seconds:.1f} ({compute / seconds:.0%})"


def _weak_table(form: str, found: dict[str, Compiled]) -> str:
    head = ["chips", "sets in a batch", *(f"{kind} {mesh}" for kind in found for mesh in ("data", "fsdp"))]
    lines = []
    for chips in COUNTS:
        line = [f"{chips:,}", f"{8 * chips:,}"]
        for one in found.values():
            line += [_cell(step(chips), one.compute(8)) for step in (one.data_step, one.fsdp_step)]
        lines.append(line)
    return f"### {form.capitalize()}, 8 sets for each chip: ms a step (efficiency)\n\n" + _table(head, lines)


def _strong_table(found: dict[str, Compiled], batch: int) -> str:
    head = ["chips", "sets a chip", *(f"{kind} {mesh}" for kind in found for mesh in ("data", "fsdp"))]
    lines = []
    for sets in (8, 4, 2, 1):
        chips = batch // sets
        line = [f"{chips:,}", f"{sets}"]
        for one in found.values():
            ideal = one.compute(8) * sets / 8
            line += [_cell(step(chips, sets), ideal) for step in (one.data_step, one.fsdp_step)]
        lines.append(line)
    title = f"### Finetuning, a batch of {batch} sets: ms a step (efficiency against 8 sets on a chip alone)"
    return f"{title}\n\n" + _table(head, lines)


def _limit_table(found: dict[str, Compiled]) -> str:
    head = ["chip", "chips", "cells in a batch", "sums in a slice, ms", "sums between slices, ms"]
    head += ["cells/s, all", "cores of a host that read", "MB/s to a host's chips"]
    lines = []
    for kind, one in found.items():
        for chips in (8, 256, 1024):
            seconds = one.data_step(chips)
            inside, between = one.summing(chips)
            read = 2 * 8 * CELLS * one.chip.host / seconds  # a control cell with each perturbed one
            line = [
                kind,
                f"{chips:,}",
                f"{8 * CELLS * chips:,}",
                f"{1e3 * inside:.1f}",
                f"{1e3 * between:.1f}",
            ]
            line += [f"{8 * CELLS * chips / seconds / 1e6:.1f} M", f"{read / LOADED:.1f}"]
            lines.append([*line, f"{read * SHIPPED / 1e6:,.0f}"])
    return "### What a host and the network must bear (finetuning, data-parallel)\n\n" + _table(head, lines)
