"""benchmarks/evaluation.py in its small form, its commands run in this process: starting five takes half a minute."""

import json
import pathlib
import runpy
import sys

import pytest

pytest.importorskip("cell_eval")
sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import evaluation as benchmark

from perturbdiff_jax import cli


def at_once(words, log):
    if words[:3] == benchmark.OURS:
        assert cli.run(words[3:]) == 0
    else:
        assert words[:4] == benchmark.THEIRS
        sys.argv = ["cell-eval", *words[3:]]
        runpy.run_module("cell_eval", run_name="__main__")
    return {"wall": 9.0, "cpu": 2.0, "peak": 0.5, "load": 0.1}


def test_the_small_form_scores_alike_with_both_tools_and_prints_its_tables(tmp_path, monkeypatch, capsys):
    assert benchmark.__file__.endswith("evaluation.py")
    monkeypatch.setattr(benchmark, "measured", at_once)
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--quick", f"--workdir={tmp_path}"])
    benchmark.main()
    told = json.loads((tmp_path / "evaluation.json").read_text())
    rows, apart = told["rows"], told["apart"]
    assert list(rows) == ["everything, cold", "cell-eval", "prediction, cold", "everything, warm", "page"]
    assert rows["everything, cold"]["models"] == 11 and rows["prediction, cold"]["models"] == 3
    stages = rows["everything, cold"]["stages"]
    assert {"reading", "energy distances", "real differential expression", "cell-eval's metrics"} <= set(
        stages
    )
    assert sum(stages.values()) == pytest.approx(9.0)
    assert len(apart) == 15 and max(apart.values()) < 1e-5
    printed = capsys.readouterr().out
    for text in ("| everything, cold | 11 | 9.0 |", "| energy distances |", "| pr_auc |"):
        assert text in printed
    assert {path.name for path in (tmp_path / "screen_160_4_60").iterdir()} == {
        "pred.h5ad",
        "real.h5ad",
        "store",
    }


def test_a_command_is_measured_and_one_that_fails_is_shown(tmp_path):
    words = [sys.executable, "-c", "x = bytearray(40 << 20); import time; time.sleep(0.3); print(len(x))"]
    got = benchmark.measured(words, tmp_path / "said.txt")
    assert (
        0.3 <= got["wall"] < 30 and got["peak"] > 0.04 and (tmp_path / "said.txt").read_text() == "41943040\n"
    )
    with pytest.raises(SystemExit, match=r"ended with 3:\nno such thing"):
        benchmark.measured([sys.executable, "-c", "print('no such thing'); exit(3)"], tmp_path / "said.txt")
