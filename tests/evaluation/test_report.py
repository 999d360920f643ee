"""The report page: every section, nothing asked of the network, user text escaped."""

import json
import pathlib
import re
import sys

import pytest

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation.page import drawing, glossary, run_files
from perturbdiff_jax.evaluation.page.report import write_report

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_run import NASTY, write_run
from html_document import SECTIONS, Document, read


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("full") / "runs & <co>", missing=0.1)


@pytest.fixture(scope="module")
def full(workdir):
    return read(write_report(workdir))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)


def test_every_section_is_there_and_is_linked(full):
    assert [a["id"] for tag, a in full.tags if tag == "section"] == list(SECTIONS)
    assert {f"#{name}" for name in SECTIONS} <= set(full.links)
    assert not [a for _, a in full.tags if a.get("class") == "absent"]


def test_nothing_leaves_the_page(full, workdir):
    assert all(link.startswith(("#", "data:")) for link in full.links)
    text = (workdir / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"data:image/png;base64,[\w+/=\s]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    policy = [a["content"] for _, a in full.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")
    assert len(text) < 3_000_000


def test_ids_are_unique_and_references_meet_them(full, workdir):
    assert len(full.ids) == len(set(full.ids))
    text = (workdir / "report.html").read_text(encoding="utf-8")
    wanted = {link[1:] for link in full.links if link.startswith("#")} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert wanted <= set(full.ids)


def test_user_text_is_escaped_and_complete(full, workdir):
    words = full.words()
    for name in NASTY:
        assert name in words
    text = (workdir / "report.html").read_text(encoding="utf-8")
    assert "<b>&'" not in text and not {"co", "nk"} & {tag for tag, _ in full.tags}


def test_every_figure_has_a_text_and_every_column_a_button(full):
    figures_there = sum(tag == "figure" for tag, _ in full.tags)
    images = [a for tag, a in full.tags if tag == "div" and a.get("role") == "img"]
    assert figures_there == len(images) == 3 + 1 + 4 + 3 + 4 + 4 + 4 + 2
    assert all(len(a["aria-label"]) > 20 for a in images)
    assert sum(tag == "th" and a.get("scope") == "col" for tag, a in full.tags) == sum(
        tag == "button" and a.get("role") != "tab" for tag, a in full.tags
    )


def test_text_stays_text_and_mathematics_is_not_parsed(full, workdir):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    assert "mathdefault" not in text and "font: " not in re.search(r"<svg aria.*?</svg>", text, re.S).group()
    assert re.search(r"<text[^>]*>control cells \+ mean delta</text>", text)


def test_best_is_bold_and_the_ceiling_stands_apart(full, workdir):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    table = re.search(r'<table id="models">.*?</table>', text, re.S).group()
    body, foot = table.split("<tfoot>")
    models = json.loads((workdir / "summary.json").read_text())["models"]
    directed = [m for m in glossary.METRICS.values() if m.better]
    assert body.count('class="best"') == len(directed) == table.count('role="img"')
    assert "ceiling" in foot and "ceiling" not in body.split("<tbody>")[1]
    assert body.count("<tr") == 1 + len(models) - 1


def test_all_models_at_the_best_are_bold(tmp_path, no_pictures):
    run = write_run(tmp_path, perturbations=("A", "B"), genes=5, cells=3)
    entry = {"energy": {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 2}}
    models = dict.fromkeys(("perturbdiff", "ridge", "control"), entry)
    (run / "summary.json").write_text(json.dumps({"models": models}))
    assert (
        re.search(r'<table id="models".*?</table>', write_report(run).read_text())
        .group()
        .count('class="best"')
        == 3
    )


def test_without_matplotlib_the_tables_remain(workdir, tmp_path, no_pictures):
    page = read(write_report(workdir, tmp_path / "a" / "b.html"))
    assert "matplotlib is not installed" in page.words() and "perturbdiff_jax[eval]" in page.words()
    assert not [tag for tag, _ in page.tags if tag == "figure"]
    assert sum(tag == "table" for tag, _ in page.tags) == 7


def test_a_long_table_is_cut_and_says_so(tmp_path, no_pictures, monkeypatch):
    from perturbdiff_jax.evaluation.page import picture_sections, sections

    for module in (sections, picture_sections):
        monkeypatch.setattr(module, "MOST_ROWS", 3)
    run = write_run(tmp_path, genes=3, cells=2)
    page = read(write_report(run))
    assert "Shown are the first 3 conditions; all 18 are in metrics.csv" in page.words()
    assert "3 of 18 conditions" in page.words()


def test_wrong_requests(tmp_path):
    with pytest.raises(RequestError, match="not a directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"nothing to report.*(?s:.)*metrics\.csv"):
        write_report(tmp_path)
    run = write_run(tmp_path / "run", perturbations=("A",), genes=2, cells=2)
    with pytest.raises(RequestError, match="is a directory"):
        write_report(run, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot write"):
        write_report(run, tmp_path / "file" / "report.html")


def test_a_failed_write_leaves_the_old_page(tmp_path, no_pictures, monkeypatch):
    run = write_run(tmp_path, perturbations=("A",), genes=2, cells=2)
    target = write_report(run)
    before, names = target.read_text(), sorted(p.name for p in run.iterdir())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run)
    assert target.read_text() == before and sorted(p.name for p in run.iterdir()) == names


def test_names_like_missing_values_survive(workdir):
    results = run_files.read_results(workdir)
    for table in (results.metrics, results.metrics_all, results.de, results.pca):
        assert {"NA", "1.0"} <= set(table["perturbation"])


def test_hover_texts_go_to_their_points():
    with drawing.canvas() as (figure, axes):
        axes.scatter([0, 1, 2], [0, 1, 2]).set_gid("points")
        axes.set_xlabel("a$b$ <c>")
        svg = drawing.to_svg(figure, "p", {"points": ["a & b", "<c>", "d"]})
    assert re.findall(r"<title>(.*?)</title>", svg) == ["a &amp; b", "&lt;c&gt;", "d"]
    assert "a$b$ &lt;c&gt;" in svg
    Document(svg)


def test_remarks_of_the_evaluation_are_shown(tmp_path, no_pictures):
    run = write_run(tmp_path, perturbations=("A", "B"), genes=5, cells=3)
    summary = json.loads((run / "summary.json").read_text())
    summary["settings"] |= {"problems": ["cell-eval lost pr_auc"], "undefined_rows": {"ridge": 2}}
    for scores in summary["models"].values():
        scores["roc_auc"] = dict.fromkeys(("mean", "low", "high"), None) | {"count": 0}
    (run / "summary.json").write_text(json.dumps(summary))
    words = read(write_report(run)).words()
    assert "cell-eval lost pr_auc" in words and "ridge: 2" in words
    assert "Without a value for any model, and left out: AUROC." in words
