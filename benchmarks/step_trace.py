"""Where the time of a compiled step goes: a trace of the profiler, its operations named after the modules they are of.

On a CPU operations run one after the other, so that their times add up to the step.
"""

import collections
import re
from pathlib import Path

# (text in the path of an operation, what it is called); the first that fits holds. Products of matrices and the
# elementwise work around them are counted together.
PARTS = (
    (r"embed_(perturbed|control)", "input layers"),
    (r"/attention/", "attention"),
    (r"/mlp_[xu]/", "MLPs"),
    (r"/modulate(_[xu])?/|/time/|/covariates|/condition/", "conditioning and modulation"),
    (r"/head/", "head"),
    (r"energy|\.\.\.ig|\.\.\.ij", "energy distance"),
    (r"Denoiser|/while/|blocks", "between them: norms, residuals, stacking of layers"),
    (r"jvp\(", "rest of the loss"),
    (r"random|_normal|_uniform|threefry|_bernoulli", "noise"),
)
REST = "optimizer and average"


def seconds_by_part(folder: str, hlo: str, steps: int) -> dict[str, float]:
    """Seconds of a step by part, from the trace of `steps` steps below `folder`; `hlo` is the compiled text."""
    from jax.profiler import ProfileData

    paths = operations(hlo)
    (file,) = Path(folder).rglob("*.xplane.pb")
    spent: dict[str, float] = collections.Counter()
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in paths:
                    spent[part_of(paths[event.name])] += event.duration_ns / 1e9 / steps
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def operations(hlo: str) -> dict[str, str]:
    """Name of each operation -> the path it was traced at; those that only run others are left out."""
    found = {}
    for line in hlo.splitlines():
        named = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*?[\])}] ([\w\-]+)\(", line)
        if named and named[2] not in ("while", "conditional", "call", "parameter", "tuple"):
            path = re.search(r'op_name="([^"]*)"', line)
            found[named[1]] = path[1] if path else ""
    return found


def part_of(path: str) -> str:
    """What an operation at this path is counted as."""
    for pattern, name in PARTS:
        if re.search(pattern, path):
            return name
    return REST
