"""Who the cells of a simulated data set are: names that the shipped hold-outs (configs/splits) apply to.

Held-out perturbations, donors and cell lines are those of the split file, in its order. What the file does not list
has names of the real data set, so that these perturbations are training everywhere.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perturbdiff_jax.data.simulate import SimulateOptions
from perturbdiff_jax.errors import RequestError

SPLITS = Path(__file__).resolve().parents[3] / "configs" / "splits"
# Shares of the perturbations: the rest is in training in every context.
VALIDATION, TEST = 1 / 6, 1 / 2
HELD_OUT = 1 / 3  # of the donors or cell lines, at least one


def _words(text: str) -> list[str]:
    return text.split()


CYTOKINES = _words(
    """
    APRIL C3a CD40L Decorin FasL GDNF IL-1-beta IL-12 IL-18 IL-20 IL-21 IL-22 IL-23 IL-26 IL-27
    IL-36Ra IL-5 LT-alpha2-beta1 OX40L RANKL TNF-alpha TPO TSLP IL-17D
    """
)
DONORS = [f"Donor{i + 1}" for i in range(12)]
BLOOD_CELLS = [
    "CD4 Naive", "CD14 Mono", "NK", "CD8 Memory", "B Naive", "CD4 Memory", "CD8 Naive", "CD16 Mono",
    "B Memory", "Treg", "NK CD56bright", "B Intermediate", "MAIT", "cDC", "pDC", "ILC", "HSPC",
    "Plasmablast",
]  # fmt: skip
DRUGS = _words(
    """
    Gemcitabine Erlotinib Panobinostat Vorinostat Topotecan Metformin Tamoxifen Simvastatin
    Lapatinib Sorafenib Ruxolitinib Bosutinib Adagrasib Belinostat Sunitinib
    """
)
DOSES = (0.05, 0.5, 5.0)  # micromolar
CANCER_LINES = _words(
    """
    CVCL_0023 CVCL_0546 CVCL_0459 CVCL_1056 CVCL_0131 CVCL_0069 CVCL_0218 CVCL_0320 CVCL_0399
    CVCL_0292
    """
)
PLATES = [f"plate{i + 1}" for i in range(14)]
GENES = _words(
    """
    GATA1 RPL3 RPS6 POLR2A PSMA1 PSMB5 EIF4A3 NUP98 SF3B1 SF3A1 RPA1 MCM3 MCM5 MCM6 PCNA TUBB HSPA9
    HSPA5 RPL10 RPL11 RPS3 RPS19 PSMD1 CDK1 AURKB PLK1 SMC1A RAD21 CTCF MYC KIF11 COPA COPB1
    """
)
SCREENED_LINES = ["jurkat", "k562", "rpe1"]
GEM_GROUPS = [str(i + 1) for i in range(56)]
TISSUE_CELLS = _words(
    """
    fibroblast hepatocyte neuron macrophage enterocyte astrocyte myocyte keratinocyte podocyte
    osteoblast
    """
)


def drug_label(name: str, dose: float) -> str:
    """As Tahoe100M spells a drug at a dose."""
    return f"[({name!r}, {dose}, 'uM')]"


# What is in training everywhere, by data set.
FREE = {
    "pbmc": CYTOKINES,
    "tahoe100m": [drug_label(name, dose) for name in DRUGS for dose in DOSES],
    "replogle": GENES,
}


def split_path(name: str) -> Path:
    """The shipped split file of a data set; RequestError where the package was installed without configs/."""
    path = SPLITS / f"{name}.json"
    if not path.is_file():
        raise RequestError(
            f"{path}: no such file; the simulated {name} needs the configs folder of a checkout."
        )
    return path


def split_content(name: str) -> dict[str, Any]:
    """The shipped hold-out of a data set."""
    return json.loads(split_path(name).read_text())


def perturbations(name: str, options: SimulateOptions) -> list[str]:
    """Some that are test in held-out contexts, some that are validation there, and some that are training anywhere."""
    lists = split_content(name)["holdout_perturbations"]
    # Tahoe's test list names some labels several times.
    pools = [list(dict.fromkeys(names)) for names in (lists["validation"], lists["test"], FREE[name])]
    count = options.perturbations
    _within("perturbations", count, 3, sum(map(len, pools)), options)
    wanted = [max(1, round(count * VALIDATION)), max(1, round(count * TEST))]
    wanted.append(max(1, count - sum(wanted)))
    taken = [min(want, len(pool)) for want, pool in zip(wanted, pools, strict=True)]
    while sum(taken) < count:
        left = [len(pool) - take for take, pool in zip(taken, pools, strict=True)]
        taken[left.index(max(left))] += 1
    while sum(taken) > count:
        taken[taken.index(max(taken))] -= 1
    return [name for take, pool in zip(taken, pools, strict=True) for name in pool[:take]]


def contexts(key: str, held_out: Sequence[str], others: Sequence[str], options: SimulateOptions) -> list[str]:
    """As many donors or cell lines (`key` of the options) as asked for, some of them held out and some not."""
    count = getattr(options, key)
    others = [name for name in others if name not in held_out]
    _within(key, count, 2, len(held_out) + len(others), options)
    held = min(len(held_out), max(1, int(count * HELD_OUT), count - len(others)))
    return [*held_out[:held], *others[: count - held]]


def some(key: str, names: Sequence[str], options: SimulateOptions) -> list[str]:
    """As many of `names` as `key` of the options says."""
    _within(key, getattr(options, key), 1, len(names), options)
    return list(names[: getattr(options, key)])


def _within(key: str, count: int, least: int, most: int, options: SimulateOptions) -> None:
    if not least <= count <= most:
        raise RequestError(
            f"simulate.{key}={count}: simulate.form={options.form} has {least} to {most} {key.replace('_', ' ')}."
        )
