"""Files and bundles of the recorded kinds, made once and shared: nobody changes them."""

import pytest
from recorded_files import convert, recording, write


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """`released(kind)`: the path of a checkpoint with averaged and live weights."""
    folder, made = tmp_path_factory.mktemp("released"), {}

    def path(kind):
        if kind not in made:
            made[kind] = write(folder / f"{kind}.ckpt", kind, both=True)
        return made[kind]

    return path


@pytest.fixture(scope="session")
def converted(released, tmp_path_factory):
    """`converted(kind)`: the path of its bundle, with the genes named G000, G001, ..."""
    folder, made = tmp_path_factory.mktemp("converted"), {}

    def path(kind):
        if kind not in made:
            genes = folder / f"{kind}.txt"
            genes.write_text("\n".join(f"G{i:03d}" for i in range(recording(kind)["control"].shape[2])))
            made[kind] = folder / kind
            code, _, err = convert("--input", released(kind), "--output", made[kind], "--genes", genes)
            assert (code, err) == (0, "")
        return made[kind]

    return path
