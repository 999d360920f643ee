"""Several named predictions in one evaluation: the same conditions, genes and controls for all, or a refusal."""

import json

import pandas as pd
import pytest
from toy_cells import GENES, evaluated, foreign, numbered, prediction, screen, store_of

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.page.report import write_report


@pytest.fixture(autouse=True)
def no_cell_eval(monkeypatch):
    """What is tested here depends on no differential expression, which takes seconds."""
    monkeypatch.setattr(celleval, "installed", lambda: False)


def without(adata, name, cell_type):
    drop = (adata.obs["pert"] == name) & (adata.obs["type"] == cell_type)
    return adata[(~drop).to_numpy()].copy()


def rows_of(found, model):
    return found.rows[found.rows["model"] == model].drop(columns="model").reset_index(drop=True)


def test_each_is_scored_as_it_would_be_alone(tmp_path):
    raw = screen()
    ours, state = prediction(raw), foreign(raw)
    both = evaluated(tmp_path / "both", {"ours": ours, "state": state}, store=store_of(raw))
    models = list(dict.fromkeys(both.rows["model"]))
    assert models[:3] == ["ours", "state", "mean per perturbation"] and models[-1] == "ceiling"
    for name, pred in (("ours", ours), ("state", state)):
        alone = evaluated(tmp_path / name, pred, store=store_of(raw))
        pd.testing.assert_frame_equal(rows_of(both, name), rows_of(alone, "perturbdiff"))
        pd.testing.assert_frame_equal(rows_of(both, "ridge"), rows_of(alone, "ridge"))


def test_every_file_names_every_prediction(tmp_path):
    raw = screen()
    said = []
    sources = {"ours": prediction(raw), "state": foreign(raw)}
    found = evaluated(tmp_path / "run", sources, said=said, store=store_of(raw))
    own = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(own.columns) == ["model", "cell_type", "perturbation", *METRICS]
    assert own["model"].value_counts().to_dict() == {"ours": 6, "state": 6}
    record = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(record["settings"]["predictions"]) == ["ours", "state"]
    assert list(record["models"])[:2] == ["ours", "state"]
    assert list(record["cell_types"]) == ["A", "B"]
    mine = found.rows.query("model == 'state' and cell_type == 'B'")["energy"]
    assert record["cell_types"]["B"]["state"]["energy"]["mean"] == pytest.approx(mine.mean())
    assert record["cell_types"]["B"]["state"]["energy"]["count"] == 3
    text = "\n".join(said)
    assert "ours: ahead of the best baseline" in text and "state: ahead of the best baseline" in text
    assert "(state)" not in text  # no prediction is another's baseline


def test_a_single_named_one_keeps_the_files_of_a_single_one(tmp_path):
    raw = screen()
    found = evaluated(tmp_path / "run", {"state": foreign(raw)})
    assert list(found.summary) == ["state", "control", "ceiling"]
    own = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(own.columns) == ["cell_type", "perturbation", *METRICS] and len(own) == 6
    text = write_report(tmp_path / "run").read_text()
    assert "<tr class=ours>" in text and "perturbdiff</span>" not in text


def test_only_conditions_that_all_have_are_scored(tmp_path):
    raw = screen()
    said = []
    sources = {"ours": prediction(raw), "state": without(foreign(raw), "P3", "B")}
    found = evaluated(tmp_path / "run", sources, said=said)
    for model in ("ours", "state", "control"):
        own = rows_of(found, model)
        assert list(zip(own["cell_type"], own["perturbation"])) == [
            *(("A", name) for name in ("P1", "P2", "P3")),
            *(("B", name) for name in ("P1", "P2")),
        ]
    assert any("left out: 1 of ours (P3 / B / y)" in line for line in said)
    assert found.settings["conditions_left_out"] == ["P3 / B / y"]
    assert found.settings["predictions"]["ours"]["left_out_conditions"] == 1
    assert found.settings["predictions"]["state"]["left_out_conditions"] == 0


def test_only_genes_that_all_have_are_scored_in_the_first_ones_order(tmp_path):
    raw = screen()
    said = []
    order = GENES[::-1][:33]
    sources = {"ours": prediction(raw)[:, order].copy(), "state": foreign(raw)[:, GENES[3:30]].copy()}
    found = evaluated(tmp_path / "run", sources, said=said)
    shared = [gene for gene in order if gene in GENES[3:30]]
    cut = {name: pred[:, shared].copy() for name, pred in sources.items()}
    wanted = evaluated(tmp_path / "cut", cut)
    pd.testing.assert_frame_equal(found.rows, wanted.rows)
    assert any("left out" in line and f"{33 - len(shared)} of ours" in line for line in said)
    assert found.settings["genes"] == len(shared)


def test_numbered_genes_need_the_flag_and_then_score_as_if_named(tmp_path):
    raw = screen()
    sources = {"ours": prediction(raw), "state": numbered(foreign(raw))}
    with pytest.raises(RequestError, match=r"(?s)'state'.*'0' to '39'.*--genes-by-position"):
        evaluated(tmp_path / "refused", sources)
    assert not (tmp_path / "refused").exists()
    said = []
    found = evaluated(tmp_path / "run", sources, said=said, genes_by_position=True)
    named = evaluated(tmp_path / "named", {**sources, "state": foreign(raw)})
    pd.testing.assert_frame_equal(found.rows, named.rows)
    assert any("by position" in line and "state" in line for line in said)
    assert found.settings["genes_by_position_correlation"]["state"] > 0.8
    turned = numbered(foreign(raw)[:, GENES[::-1]].copy())
    wrong = evaluated(tmp_path / "wrong", {**sources, "state": turned}, genes_by_position=True)
    assert abs(wrong.settings["genes_by_position_correlation"]["state"]) < 0.5
    short = {**sources, "state": numbered(foreign(raw)[:, :30].copy())}
    with pytest.raises(RequestError, match="30 genes, but the real file has 40"):
        evaluated(tmp_path / "refused", short, genes_by_position=True)


def test_a_column_that_one_file_lacks_is_not_compared_by_and_that_is_said(tmp_path):
    raw = screen()
    state = foreign(raw)
    state.obs = state.obs.drop(columns="lot")
    said = []
    found = evaluated(tmp_path / "run", {"ours": prediction(raw), "state": state}, said=said, batch_key=None)
    assert found.settings["keys"]["batch"] is None and found.settings["keys"]["cell_type"] == "type"
    assert any("'lot' is missing in prediction 'state'" in line for line in said)


def test_the_page_shows_all_and_is_about_the_first(tmp_path):
    raw = screen()
    sources = {"our model": prediction(raw), "state": foreign(raw)}
    evaluated(tmp_path / "run", sources, store=store_of(raw))
    text = write_report(tmp_path / "run").read_text()
    assert "our model is ahead of the best baseline" in text and "PerturbDiff is" not in text
    table = text.split('<table id="models">')[1].split("</table>")[0]
    body = table.split("<tbody>")[1]
    assert body.startswith("<tr class=ours>") and body.index("our model") < body.index("state")
    assert "#0067a5" in body.split("</tr>")[0]  # our colour, though it has another name
    every = text.split('<table id="every">')[1].split("</table>")[0]
    assert every.count("<span>our model</span>") == every.count("<span>state</span>") == 6
