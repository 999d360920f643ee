"""Do all ways of the energy distance compile for a TPU that is not here, and what memory do they ask for?

    pip install -e ".[tpu]"
    python benchmarks/energy_aot.py [--topology v5e:2x2]

Compiles the value and the derivative for one chip, ahead of time, and prints a table of what the compiler says. Nothing
is run: times on a TPU are not known from here.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Names that the TPU library asks a virtual machine's metadata for.
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from perturbdiff_jax.kernels import blockwise, fused, gram
from perturbdiff_jax.kernels.distances import normalised
from perturbdiff_jax.run_record import write_json

SIZES = ((8, 256, 2000), (8, 256, 12_626), (1, 2048, 2000), (1, 20_000, 2000))
WAYS = {
    "gram": gram.energy,
    "blockwise": lambda *given: jax.lax.map(lambda one: blockwise.energy(*one), given),
    "fused": lambda *given: fused.energy(*given, fused.kernel_of("tpu")),
}


def compiled(way: str, backward: bool, cells: jax.ShapeDtypeStruct) -> dict:
    """What the compiler says of one program."""

    def values(x, y):
        return WAYS[way](x, y, normalised(x, None), normalised(y, None))

    def both(x, y):
        return jax.value_and_grad(lambda y: values(x, y).mean())(y)

    began = time.perf_counter()
    program = jax.jit(both if backward else values).lower(cells, cells).compile()
    memory = program.memory_analysis()
    return {
        "seconds": time.perf_counter() - began,
        "temporary": memory.temp_size_in_bytes,
        "kernels": program.as_text().count("tpu_custom_call"),
    }


def main() -> None:
    """Compiles everything and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--output", default="runs/energy_aot")
    args = parser.parse_args()
    topology = topologies.get_topology_desc(platform="tpu", topology_name=args.topology)
    chip = SingleDeviceSharding(topology.devices[0])
    print(f"{topology.devices[0].device_kind}\n")
    print("| size | way | derivative | memory beyond cells and result, MiB | compile, s |")
    print("|---|---|---|---|---|")
    rows = []
    for size in SIZES:
        cells = jax.ShapeDtypeStruct(size, jnp.float32, sharding=chip)
        for way in WAYS:
            for backward in (False, True):
                row = {"size": size, "way": way, "backward": backward, **compiled(way, backward, cells)}
                rows.append(row)
                shape = " x ".join(f"{n:,}" for n in size)
                figures = f"{row['temporary'] / 2**20:,.0f} | {row['seconds']:.1f}"
                print(f"| {shape} | {way} | {'yes' if backward else 'no'} | {figures} |", flush=True)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "energy_aot.json", {"topology": args.topology, "jax": jax.__version__, "rows": rows})


if __name__ == "__main__":
    main()
