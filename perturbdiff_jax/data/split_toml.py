"""The split TOML of STATE / cell-load, unchanged, but strictly read.

    [datasets]                      name = path          (a remark: the cells are those given to prepare)
    [training]                      name = "train"
    [zeroshot]                      "name.celltype" = "train" | "val" | "test"
    [fewshot."name.celltype"]       val = [perturbations], test = [perturbations]

Semantics: a key is split at its first dot, so a cell type may hold dots and a dataset may not. zeroshot
val/test hold out every perturbed cell of the cell type; fewshot holds out the listed perturbations and the
rest of the cell type trains; a cell type in both is zeroshot; a perturbation in both val and test is test, so
that no test condition takes part in choosing the checkpoint. Controls serve every split. Where cell-load
ignores what it does not know, this is an error: dataset, cell type or perturbation unknown, or without cells.
All cells given to `prepare` count as the datasets named in the file, whatever the names.
"""

import tomllib
from collections.abc import Callable, Mapping

import numpy as np

from perturbdiff_jax.data.conditions import TEST, TRAIN, VALIDATION, Conditions
from perturbdiff_jax.errors import RequestError, shorten, unknown

SECTIONS = ("datasets", "training", "zeroshot", "fewshot")
WORDS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


def from_toml(conditions: Conditions, text: str, where: str, note: Callable[[str], None]) -> np.ndarray:
    """Split codes int8 [groups] from the text of a split TOML; `note` gets a sentence on every overlap
    resolved."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{where}: not valid TOML ({error}).") from error
    for name, section in content.items():
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS, where)
        if not isinstance(section, dict):
            raise RequestError(f"{where}: [{name}] must be a table.")
    datasets, training = content.get("datasets", {}), content.get("training", {})
    for name in datasets:
        if "." in name:
            raise RequestError(f"{where}: dataset name {name!r} has a dot; keys are split at the first dot.")
    for name, word in training.items():
        if datasets and name not in datasets:
            raise unknown("dataset under [training]", name, datasets, where)
        if word != "train":
            raise RequestError(f'{where}: [training] {name} = {word!r}; allowed is only "train".')
    zeroshot = _by_cell_type(content.get("zeroshot", {}), "zeroshot", datasets, where)
    fewshot = _by_cell_type(content.get("fewshot", {}), "fewshot", datasets, where)
    codes = np.full(len(conditions.perturbation), TRAIN, dtype=np.int8)
    for cell_type, lists in fewshot.items():
        _few(conditions, codes, cell_type, lists, where, note, overruled=cell_type in zeroshot)
    for cell_type, word in zeroshot.items():
        if not isinstance(word, str) or word not in WORDS:
            raise unknown(f"split word of zeroshot cell type {cell_type!r}:", word, WORDS, where)
        codes[conditions.selects("cell_type", [cell_type], f"{where}, zeroshot")] = WORDS[word]
    rest = [name for name in conditions.values("cell_type") if name not in {**zeroshot, **fewshot}]
    if rest and not training:
        raise RequestError(
            f"{where}: no dataset is marked for training, so {shorten(rest, 5)} would be unused.\n"
            'Add a section [training] with DATASET = "train".'
        )
    return codes


def _by_cell_type(section: Mapping, name: str, datasets: Mapping, where: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in section.items():
        dataset, dot, cell_type = key.partition(".")
        if not dot or not cell_type:
            raise RequestError(
                f'{where}: [{name}] key {key!r} is not "DATASET.CELLTYPE" (quoted, split at the first dot).'
            )
        if datasets and dataset not in datasets:
            raise unknown(f"dataset in [{name}] key {key!r}:", dataset, datasets, where)
        if found.get(cell_type, value) != value:
            raise RequestError(
                f"{where}: [{name}] gives cell type {cell_type!r} twice, with different values."
            )
        found[cell_type] = value
    return found


def _few(
    conditions: Conditions,
    codes: np.ndarray,
    cell_type: str,
    lists: object,
    where: str,
    note: Callable[[str], None],
    *,
    overruled: bool,
) -> None:
    place = f"{where}, fewshot {cell_type!r}"
    inside = conditions.selects("cell_type", [cell_type], f"{where}, fewshot")
    if not isinstance(lists, dict):
        raise RequestError(f"{place}: must be a table with the lists val and test.")
    for word, names in lists.items():
        if word not in WORDS:
            raise unknown("split word", word, WORDS, place)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RequestError(f"{place}: {word} must be a list of perturbation names.")
    named = {word: lists.get(word, []) for word in WORDS}
    trained = sorted(set(named["train"]) & {*named["val"], *named["test"]})
    if trained:
        raise RequestError(f"{place}: in train and held out at once: {shorten(trained, 5)}.")
    both = sorted(set(named["val"]) & set(named["test"]))
    if both and not overruled:
        note(f"{place}: {len(both)} perturbation(s) in both val and test count as test: {shorten(both, 5)}.")
    for word in ("train", "val", "test"):  # test last, so that it wins
        for name in named[word]:
            hit = inside & conditions.selects("perturbation", [name], place)
            if not hit.any():
                raise RequestError(f"{place}: perturbation {name!r} has no cells in this cell type.")
            codes[hit] = WORDS[word]
    if overruled:
        note(f"{place}: the cell type is also under [zeroshot], which wins.")
