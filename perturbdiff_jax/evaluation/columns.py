"""Which obs columns an evaluation compares by, and which genes the real cells have: a look before the reading."""

import dataclasses
from collections.abc import Callable, Mapping

from perturbdiff_jax.evaluation.inputs import Keys, closing, open_file, own_account
from perturbdiff_jax.evaluation.real_cells import is_store


def open_store(store):
    """The Store at a path or address; an opened one, or None, stays what it is."""
    if store is None or hasattr(store, "groups"):
        return store
    from perturbdiff_jax.data.store import Store

    return Store.open(store)


def real_look(real) -> tuple[set[str], tuple[str, ...], dict]:
    """(obs columns, genes, a store's own names of its columns) of the real cells: h5ad, AnnData or store."""
    if is_store(real):
        store = open_store(real)
        names = store.manifest["keys"]
        return {column for column in names.values() if column}, tuple(map(str, store.genes)), names
    adata, _ = open_file(real, "real")
    with closing(adata, real):
        return set(adata.obs.columns), tuple(adata.var_names.astype(str)), {}


def find_keys(
    sources: Mapping[str, object],
    real_columns: set[str],
    manifest: Mapping[str, str | None],
    keys: Keys,
    echo: Callable[[str], None],
) -> Keys:
    """`keys` with the columns that nobody named: those of a prediction's or a store's account that all files have.

    sources: predictions by name; manifest: the store's names of its columns. A column that an account names and
    a file lacks is not compared by, and that is said.
    """
    accounts, columns, lacking = [], set(real_columns), {}
    for name, source in sources.items():
        what = "prediction" if len(sources) == 1 else f"prediction {name!r}"
        adata, _ = open_file(source, what)
        with closing(adata, source):
            account = own_account(adata).get("keys")
            accounts.append(dict(account) if isinstance(account, Mapping) else {})
            lacking[what] = set(adata.obs.columns)
            columns &= lacking[what]
    lacking["the real cells"] = real_columns
    accounts.append(dict(manifest))
    found = {}
    for field in ("cell_type", "batch"):
        guesses = list(dict.fromkeys(str(account[field]) for account in accounts if account.get(field)))
        usable = [column for column in guesses if column in columns]
        found[field] = getattr(keys, field) or (usable[0] if usable else None)
        if guesses and found[field] is None:
            without = [where for where, has in lacking.items() if guesses[0] not in has]
            echo(
                f"obs column {guesses[0]!r} is missing in {' and '.join(without)}: "
                f"cells are not told apart by {field.replace('_', ' ')}"
            )
    doses = [account["dose"] for account in accounts if account.get("dose")]
    return dataclasses.replace(keys, **found, dose=str(doses[0]) if doses else None)
