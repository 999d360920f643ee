"""Names that a bundle understands besides the exact ones, and what follows from them.

Released weights call a batch `<data set>_<batch>`; users' files say `<batch>`. A batch also tells the source of data,
and so the input layer, of networks that have several.
"""

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.errors import RequestError, shorten, unknown


def batch_names(bundle: Bundle, source: str | None = None) -> dict[str, str]:
    """Every way to name a batch -> its name in the vocabulary: the name itself, or the part behind its data set.

    A part that several batches have in common names none. With `source` (a source, or a data set) only batches of its
    data sets have such parts.

    Raises:
      RequestError: a source that the bundle does not have.
    """
    if source:
        named_source(bundle, source)
    full = _full_names(bundle, source or "")
    short = {label: names[0] for label, names in full.items() if len(names) == 1}
    return short | {name: name for name in bundle.batches}


def _full_names(bundle: Bundle, source: str = "") -> dict[str, list[str]]:
    """What stands behind the data set -> the batches that are called so, of one source or of all."""
    found: dict[str, list[str]] = {}
    for name in bundle.batches:
        dataset = dataset_of(bundle, name)
        if dataset is not None and source in ("", dataset, bundle.datasets[dataset]):
            found.setdefault(name[len(dataset) + 1 :], []).append(name)
    return found


def unknown_batch(bundle: Bundle, label: str, where: str) -> RequestError:
    """Error for a batch that has no name here, or several."""
    several = _full_names(bundle).get(label, ())
    if len(several) > 1:
        return RequestError(
            f"{where}: batch {label!r} may be any of {shorten(several)}; give the full name, or the source (--source)."
        )
    return unknown("batch", label, batch_names(bundle), where)


def dataset_of(bundle: Bundle, batch: str) -> str | None:
    """The data set that a batch's name begins with, the longest of several; None when there is none."""
    inside = [name for name in bundle.datasets if batch.startswith(f"{name}_")]
    return max(inside, key=len, default=None)


def source_code(bundle: Bundle, batch: str, asked: str | None = None) -> int:
    """Code of the source of data (input layer) that cells of `batch` go through; 0 where there is one for all.

    Raises:
      RequestError: the source that is asked for is unknown, or the batch does not tell and none was asked for.
    """
    if asked is not None:
        return named_source(bundle, asked)
    if len(bundle.sources) <= 1:
        return 0
    dataset = dataset_of(bundle, batch)
    if dataset is None:
        raise RequestError(
            f"batch {batch!r} does not tell its source; name one of {shorten(bundle.sources)} (--source)."
        )
    return bundle.sources.index(bundle.datasets[dataset])


def named_source(bundle: Bundle, name: str) -> int:
    """Code of a source given by its own name or by one of its data sets; RequestError when it is neither."""
    if not bundle.sources and name in bundle.datasets:
        return 0
    name = bundle.datasets.get(name, name)
    if name not in bundle.sources:
        if not bundle.sources:
            raise RequestError(
                f"source {name!r}: this bundle has one input layer for all data; leave it out."
            )
        raise unknown("source", name, bundle.sources)
    return bundle.sources.index(name)
