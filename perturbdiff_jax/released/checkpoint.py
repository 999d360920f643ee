"""A released checkpoint, opened and understood: its tensors by name, its facts, its network."""

import dataclasses
from pathlib import Path
from typing import Any

from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.released.archive import StoredTensor, open_checkpoint
from perturbdiff_jax.released.hyper_parameters import Facts, read_facts, shown
from perturbdiff_jax.released.network import Network, read_network

WEIGHTS = {"ema": "state_dict", "live": "current_model_state"}


@dataclasses.dataclass(frozen=True)
class Released:
    """A released checkpoint, opened: nothing but names and shapes has been read."""

    path: Path
    content: dict[str, Any]
    facts: Facts
    network: Network

    @property
    def both(self) -> bool:
        """Whether there are averaged and live weights; a file of other training, and the last of a run, has one set."""
        return self.content.get(WEIGHTS["live"]) is not None

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights; 0 where the file does not say."""
        said = self.content.get("global_step")
        return said if type(said) is int and 0 <= said < 2**31 else 0

    def tensors(self, weights: str) -> dict[str, Any]:
        """The tensors of one kind of weights; the only ones there are when a file holds no second set."""
        return self.content[WEIGHTS[weights if self.both else "ema"]]


def open_released(path: str | Path) -> Released:
    """Opens a checkpoint of the released code.

    Raises:
      RequestError: not such a file, a damaged one, or one that asks for something to be executed.
    """
    path = Path(path)
    content = open_checkpoint(path)
    tensors = _state_dict(content, WEIGHTS["ema"], path)
    if content.get(WEIGHTS["live"]) is not None:
        _state_dict(content, WEIGHTS["live"], path)
    if not any(name.startswith("cov_encoder.") for name in tensors):
        raise RequestError(
            f"{path}: not a checkpoint of the released code; its tensors are {shorten(tensors, 4) or 'none'}."
        )
    facts = read_facts(content.get("hyper_parameters"), str(path))
    return Released(path, content, facts, read_network(tensors, facts, str(path)))


def _state_dict(content: dict[Any, Any], key: str, path: Path) -> dict[str, Any]:
    """The tensors under `key`, refused when they are something else."""
    if key not in content:
        raise RequestError(f"{path}: has no {key}; not a Lightning checkpoint. It has {_names(content)}.")
    tensors = content[key]
    if not isinstance(tensors, dict) or not all(isinstance(t, StoredTensor) for t in tensors.values()):
        raise RequestError(f"{path}: its {key} is no dictionary of tensors; not a Lightning checkpoint.")
    if not all(isinstance(name, str) and name.isprintable() for name in tensors):
        raise RequestError(f"{path}: its {key} has names of tensors that are none; damaged.")
    return tensors


def _names(content: dict[Any, Any]) -> str:
    """Keys of a dictionary on one line."""
    return shorten((shown(key) for key in content), 6) or "nothing"
