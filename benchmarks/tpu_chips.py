"""Data sheets of TPU chips and the shapes of their slices; every figure is a vendor's, none was measured here.

Sources, pages of the Cloud TPU documentation (read in November 2026): "TPU v5e", "TPU v5p", "TPU v6e" (peak compute,
HBM, interconnect, network and chips of a host). The clock follows from the peak: a matrix unit of n x n does 2 n^2
operations a cycle (v5e has 4 of 128, v5p 2 x 4 of 128; the page of v6e says 4 of 256 in one version and 2 in another,
which would need a clock of 3.5 GHz).
"""

import dataclasses
import math

GB = 1e9
TERA = 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip. Rates are per second and chip, bytes are decimal.

    Attributes:
      peak: bfloat16 operations.
      clock: cycles.
      memory, bandwidth: of HBM, bytes.
      links: bytes that a chip can send to its neighbours at once, over all links, one way.
      dimensions: of the torus.
      wraps: length of a dimension from which on it is closed to a ring; shorter ones are lines.
      network: bytes over the data-centre network.
      slice: most chips that the interconnect joins.
      host: chips of one host.
    """

    peak: float
    clock: float
    memory: float
    bandwidth: float
    links: float
    dimensions: int
    wraps: int
    network: float
    slice: int
    host: int

    def reduce_rate(self, shape: tuple[int, ...]) -> float:
        """Bytes per second that a chip of a slice of this shape can send in an all-reduce over all of it.

        On a closed ring all links work all the time; on a line half of what they could.
        """
        used = [side for side in shape if side > 1]
        closed = all(side >= self.wraps for side in used)
        return self.links * len(used) / self.dimensions * (1.0 if closed else 0.5)

    def ring_rate(self) -> float:
        """Bytes per second that a chip can send around a ring of neighbours, both ways."""
        return self.links / self.dimensions


CHIPS = {
    "v5e": Chip(
        peak=197 * TERA,
        clock=1.5 * GB,
        memory=16 * 2**30,
        bandwidth=819 * GB,
        links=200 * GB,  # 400 both ways
        dimensions=2,
        wraps=16,
        network=6.4 * TERA / 8 / 256,  # of a pod of 256 chips
        slice=256,
        host=8,
    ),
    "v5p": Chip(
        peak=459 * TERA,
        clock=1.75 * GB,
        memory=95 * 2**30,
        bandwidth=2765 * GB,
        links=600 * GB,
        dimensions=3,
        wraps=4,
        network=50 * GB / 8,
        slice=6144,
        host=4,
    ),
    "v6e": Chip(
        peak=918 * TERA,
        clock=1.75 * GB,
        memory=32 * 2**30,
        bandwidth=1600 * GB,
        links=400 * GB,
        dimensions=2,
        wraps=16,
        network=25.6 * TERA / 8 / 256,
        slice=256,
        host=8,
    ),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology like "v5e:4x4". KeyError for a kind that is not in the table."""
    return CHIPS[topology.partition(":")[0]]


def slice_shape(chip: Chip, chips: int) -> tuple[int, ...]:
    """The sides of a slice of so many chips (a power of two), as equal as they can be."""
    bits = round(math.log2(chips))
    return tuple(
        2 ** (bits // chip.dimensions + (k < bits % chip.dimensions)) for k in range(chip.dimensions)
    )
