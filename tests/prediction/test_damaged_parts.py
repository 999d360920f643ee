"""Parts of a prediction that are damaged are found, said and computed again."""

import numpy as np
import pytest
import scipy.sparse as sp
from small_jobs import broken, heard, some

from perturbdiff_jax.errors import RunError
from perturbdiff_jax.prediction import job as job_room
from perturbdiff_jax.prediction.parts import DamagedPart, PartFolder


@pytest.fixture
def unbroken(tmp_path):
    path = some().job.to_file(tmp_path / "unbroken" / "p.h5ad")
    return path.read_bytes()


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"request": 1}', '{"request": {}, "sets_per_part": 0}']
)
def test_a_record_that_is_lost_or_damaged_costs_no_part(tmp_path, unbroken, content):
    path = tmp_path / "p.h5ad"
    broken(path, some().job, 2)
    record = tmp_path / "p.h5ad.parts" / "request.json"
    record.unlink() if content is None else record.write_text(content)
    ours, lines = heard(some().job)
    assert ours.to_file(path).read_bytes() == unbroken
    assert lines == [f"Resuming {path}: 2 of 5 parts are there."]


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def empty(file):
    file.write_bytes(b"")


def text(file):
    file.write_text("cells")


def another_place(file):
    file.write_bytes((file.parent / "part-0000001.npz").read_bytes())


def array(file):
    np.save(file.with_suffix(".npy"), np.zeros(3))
    file.with_suffix(".npy").rename(file)


@pytest.mark.parametrize("damage", [cut, empty, text, another_place, array])
def test_a_damaged_part_is_computed_again_with_a_warning(tmp_path, unbroken, damage, capsys):
    path = tmp_path / "p.h5ad"
    broken(path, some().job, 3)
    file = tmp_path / "p.h5ad.parts" / "part-0000000.npz"
    damage(file)
    walked = broken(path, some().job, 0)
    assert walked == [0, 3, 4]
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {file}: damaged (") and said.endswith("); computed again.\n")
    assert some().job.to_file(path).read_bytes() == unbroken


def test_any_changed_byte_is_noticed_or_changes_nothing(tmp_path):
    cells = sp.random(20, 9, 0.4, format="csr", dtype=np.float32, random_state=0)
    with PartFolder(tmp_path / "p.h5ad", {"seed": 0}, sets_per_part=1) as parts:
        parts.write(3, cells)
        whole = parts.file(3).read_bytes()
        draw = np.random.default_rng(0)
        for _ in range(400):
            changed = bytearray(whole)
            changed[draw.integers(len(whole))] ^= 1 << draw.integers(8)
            parts.file(3).write_bytes(bytes(changed))
            try:
                found = parts.read(3, cells.shape)
            except DamagedPart as error:
                assert len(str(error).splitlines()) == 1
                continue
            assert (found != cells).nnz == 0
        parts.file(3).write_bytes(whole)
        assert (parts.read(3, cells.shape) != cells).nnz == 0
        with pytest.raises(DamagedPart, match="holds 20 cells, 21 belong there"):
            parts.read(3, (21, 9))


def test_a_part_that_is_damaged_at_the_very_end_is_said_and_mended_by_the_next(
    tmp_path, unbroken, monkeypatch
):
    path, whole = tmp_path / "p.h5ad", job_room.write_pieces

    def write_pieces(*arguments):
        cut(tmp_path / "p.h5ad.parts" / "part-0000002.npz")
        whole(*arguments)

    monkeypatch.setattr(job_room, "write_pieces", write_pieces)
    with pytest.raises(RunError, match=r"part-0000002\.npz: damaged .*\nGive the same command again"):
        some().job.to_file(path)
    assert not path.exists() and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    assert some().job.to_file(path).read_bytes() == unbroken
