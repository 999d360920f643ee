"""A released checkpoint, opened and understood: its tensors by name, its facts, its network."""

import dataclasses
from pathlib import Path
from typing import Any

from perturbdiff_jax.released.archive import open_checkpoint

from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.released.hyper_parameters import Facts, read_facts
from perturbdiff_jax.released.network import Network, read_network

WEIGHTS = {"ema": "state_dict", "live": "current_model_state"}


@dataclasses.dataclass(frozen=True)
class Released:
    """A released checkpoint, opened: nothing but names and shapes has been read."""

    path: Path
    content: dict[str, Any]
    facts: Facts
    network: Network

    def tensors(self, weights: str) -> dict[str, Any]:
        """The tensors of one kind of weights; the only ones there are when a file holds no second set."""
        live = self.content.get(WEIGHTS["live"])
        return live if weights == "live" and live is not None else self.content[WEIGHTS["ema"]]


def open_released(path: str | Path) -> Released:
    """Opens a checkpoint of the released code.

    Raises:
      RequestError: not such a file, a damaged one, or one that asks for something to be executed.
    """
    path = Path(path)
    content = open_checkpoint(path)
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(hasattr(t, "read") for t in tensors.values()):
        raise RequestError(f"{path}: holds no state_dict of tensors; not a Lightning checkpoint.")
    if not any(name.startswith("cov_encoder.") for name in tensors):
        raise RequestError(
            f"{path}: not a checkpoint of the released code; its tensors are {shorten(tensors, 4)}."
        )
    facts = read_facts(content.get("hyper_parameters"), str(path))
    return Released(path, content, facts, read_network(tensors, facts, str(path)))
