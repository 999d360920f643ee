"""The side of energy_distance.py that runs on PyTorch: geomloss and torch.cdist, in an environment that has them."""

import json
import sys
from collections.abc import Callable

import torch
from energy_worker import answer, cells, serve


def energies(way: str) -> Callable:
    """(x, y) -> values [B]."""
    if way == "cdist":

        def mean(x, y):
            return torch.cdist(x, y).mean((1, 2))

        return lambda x, y: mean(x, y) - 0.5 * mean(x, x) - 0.5 * mean(y, y)
    from geomloss import SamplesLoss

    loss = SamplesLoss("energy", backend=way)
    if way == "online":  # takes one set at a time
        return lambda x, y: torch.stack([loss(a, b) for a, b in zip(x, y)])
    return loss


def prepare(order: dict) -> Callable[[], tuple]:
    """The work of an order."""
    x, y = (torch.tensor(a) for a in cells(order))
    function = energies(order["way"])

    def forward():
        with torch.no_grad():
            return function(x, y).numpy(), None

    def both():
        y.requires_grad_(True)
        y.grad = None
        values = function(x, y)
        values.mean().backward()
        return values.detach().numpy(), y.grad.numpy()

    return both if order["backward"] else forward


def main() -> None:
    """Serves."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    square = torch.ones(2048, 2048)
    answer({})
    serve(prepare, lambda: square @ square)


if __name__ == "__main__":
    main()
