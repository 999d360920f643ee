"""Ways to spoil a released checkpoint, and the refusal that has to follow."""

import numpy as np
import pytest

from perturbdiff_jax.convert import convert
from perturbdiff_jax.errors import RequestError

COVARIATES, MODEL = "cov_encoding_cfg", "model_cfg"  # sections of hyper_parameters


def refused(path, output, options=None):
    """The message, after a look that nothing was left behind."""
    with pytest.raises(RequestError) as error:
        convert(path, output, options, echo=lambda _: None)
    assert not output.exists() and not list(output.parent.glob(f".{output.name}*"))
    text = str(error.value)
    assert len(text.splitlines()) <= 2 and len(text) < 600
    return text


def codes(name, **changes):
    """Changes codes of a vocabulary; None takes the name out."""

    def change(_, facts):
        vocabulary = facts[COVARIATES][name]
        vocabulary |= changes
        for label in [label for label, code in vocabulary.items() if code is None]:
            del vocabulary[label]

    return change


def setting(section, name, value):
    return lambda _, facts: facts[section].update({name: value})


def without(section, *names):
    return lambda _, facts: [facts[section].pop(name) for name in names]


def rows(name, more):
    """Gives a tensor more rows, or fewer."""

    def change(arrays, _):
        array = arrays[name]
        arrays[name] = np.concatenate([array, array[:1]] if more > 0 else [array[:more]])

    return change


def tensor(name, value):
    """Replaces, adds or (None) removes a tensor."""

    def change(arrays, _):
        arrays[name] = value(arrays[name]) if callable(value) else value
        if arrays[name] is None:
            del arrays[name]

    return change


def spoilt(value):
    def change(array):
        array = array.copy()
        array.flat[7] = value
        return array

    return change


def renamed(part, other):
    def change(arrays, _):
        for name in list(arrays):
            if part in name:
                arrays[name.replace(part, other)] = arrays.pop(name)

    return change


def named(case):
    """The name of a case in the list of tests."""
    return None if callable(case) else str(case)[:40]
