"""docs/tutorial.ipynb: its small form runs here; the committed one is that of a whole run and tells nothing private."""

import json
import os
import pathlib
import re
import shutil
import socket

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("cell_eval")

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
PICTURES = ("populations.png", "changes.png", "intervals.png", "scores.png")
PLACES = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|work|opt|var|mnt)/|[A-Z]:\\\\")


def outputs(notebook, kind=None):
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in found if kind in (None, output.output_type)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(The notebook after a run in its small form, the folder that it ran in.)"""
    docs = tmp_path_factory.mktemp("clone") / "docs"
    docs.mkdir()
    shutil.copytree(ROOT / "configs", docs.parent / "configs")
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERTURBDIFF_TUTORIAL", "small")
        patch.setenv("XLA_FLAGS", " ".join(flags))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        where = {"metadata": {"path": str(docs)}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return notebook, docs / "tutorial_files"


def test_the_small_form_runs_and_leaves_its_files(small):
    notebook, folder = small  # a cell that raises, or a command that fails, would have ended the run
    assert outputs(notebook, "error") == []
    made = {path.name for path in folder.iterdir()}
    assert made == {"screen.h5ad", "store", "run", "scores", *PICTURES}
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert (folder / "run" / "report.html").is_file() and (folder / "scores" / "report.html").is_file()
    models = json.loads((folder / "scores" / "summary.json").read_text())["models"]
    assert list(models)[:2] == ["perturbdiff", "copy of donor 1"] and len(models) == 12
    assert sum("image/png" in output.data for output in outputs(notebook, "display_data")) == len(PICTURES)


def test_the_committed_outputs_are_those_of_a_whole_run():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert outputs(notebook, "error") == []
    said = "".join(output.text for output in outputs(notebook, "stream"))
    assert "step 1,000/1,000" in said and "report tutorial_files/scores/report.html" in said
    assert sum("image/png" in output.data for output in outputs(notebook, "display_data")) == len(PICTURES)
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_the_committed_notebook_tells_of_no_machine_and_nobody():
    notebook = nbformat.read(NOTEBOOK, 4)
    told = json.dumps([notebook.metadata, [cell.metadata for cell in notebook.cells], _texts(notebook)])
    assert not PLACES.search(told), PLACES.search(told)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for word in {socket.gethostname(), os.environ.get("USER", ""), pathlib.Path.home().name} - {"", "root"}:
        assert not re.search(rf"\b{re.escape(word)}\b", told), word


def _texts(notebook):
    """All outputs but the pictures."""
    return [
        {
            kind: text
            for kind, text in output.get("data", {"text": output.get("text", "")}).items()
            if "image" not in kind
        }
        for output in outputs(notebook)
    ]


def test_the_readme_leads_to_it():
    assert "(docs/tutorial.ipynb)" in (ROOT / "README.md").read_text()
