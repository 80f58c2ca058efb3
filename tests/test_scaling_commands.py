"""`python -m vtscale_jax.scaling fit`: the paper's Table 1, and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vtscale_jax.scaling.__main__ import main
from vtscale_jax.scaling.published import published_scores, table_1

ROOT = Path(__file__).parents[1]
DIVERGENCE = ROOT / "benchmarks/results/divergence/m64-embedded.json"
TIDY = "inputs,n_l,metric,score\n"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The paper's Appendix D as it is printed: a column for each metric."""
    scores = published_scores()
    path = tmp_path_factory.mktemp("published") / "appendix_d.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["inputs", "n_l", *scores.metrics()])
        for inputs in scores.inputs():
            of = [scores.of(metric, inputs) for metric in scores.metrics()]
            for place, m in enumerate(of[0].m):
                rows.writerow([inputs, m, *(one.score[place] for one in of)])
    return path


def python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, **options
    )


def fit_json(capsys, *arguments):
    """What `fit --json` prints, with fits by (metric, law)."""
    assert main(["fit", *map(str, arguments), "--json", "--replicates", "100"]) == 0
    told = json.loads(capsys.readouterr().out)
    return told, {(one["metric"], one["law"]): one for one in told["fits"]}


def run_json(*arguments):
    """The same in a process of its own, where types are not checked: much faster."""
    command = ["-m", "vtscale_jax.scaling", "fit", *map(str, arguments), "--json"]
    shown = python(*command, "--replicates", "100")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    return told, {(one["metric"], one["law"]): one for one in told["fits"]}


def tidy(tmp_path, rows, head=TIDY):
    path = tmp_path / "scores.csv"
    path.write_text(head + "".join(f"{row}\n" for row in rows))
    return path


def grown(metric="a", m=(1, 2, 4, 8), more=""):
    """Rows of scores that grow."""
    return [f"vqq,{n},{metric},{20 * n**0.2 + n % 3:.4f}{more}" for n in m]


def refused(capsys, *arguments):
    """The error that a command prints instead of a traceback."""
    assert main(["fit", *map(str, arguments)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    first, second = shown.err.splitlines()
    assert first.startswith("error: ") and "--traceback" in second
    return first


def test_table_1(wide):
    named = [row.metric for row in table_1()]
    asked = [part for name in named for part in ("--metric", name)]
    told, fits = run_json(wide, "--inputs", "vqq", *asked)
    assert len(named) == 18 and {one["metric"] for one in told["fits"]} == set(named)
    for row in table_1():
        found = fits[row.metric, "power"]
        assert found["inputs"] == "vqq" and found["errors"] == "log"
        assert found["c"] == pytest.approx(row.c, rel=1e-4), row.metric
        assert f"{found['alpha']:.4f}" == f"{row.alpha:.4f}", row.metric
        if found["identified"]:
            value = (found["c_prime"] / np.array(found["m"])) ** found["alpha"]
            expected = found["c"] / np.array(found["m"]) ** found["alpha"]
            np.testing.assert_allclose(value, expected, rtol=1e-9)
        else:
            assert found["c_prime"] is None
            assert "α cannot be told from 0" in found["problems"]
    # RealWorldQA does not grow; the paper prints α = −0.0030 without an interval.
    assert not fits["RealWorldQA/Overall", "power"]["identified"]
    assert fits["OCRBench/Final Score", "power"]["identified"]
    assert sum(fits[name, "power"]["identified"] for name in named) >= 12
    assert {one["metric"] for one in told["last_value"]} == set(named)
    assert all(one["extrapolation"] > 0 for one in told["last_value"])


def test_another_kind_of_inputs_by_a_line(wide, tmp_path):
    metrics = ("MME/Overall", "TextVQA_VAL/Overall")
    asked = [part for name in metrics for part in ("--metric", name)]

    def worst(path):
        _, fits = run_json(path, "--inputs", "vq_ft", *asked)
        errors = []
        for metric in metrics:
            one = published_scores().of(metric, "vq_ft")
            slope, start = np.polyfit(np.log(one.m), np.log(one.score), 1)
            found = fits[metric, "power"]
            errors += [found["c"] / np.exp(start) - 1, found["alpha"] / -slope - 1]
        return max(map(abs, errors))

    assert worst(wide) < 1e-5
    lines = wide.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("vq_ft,1,"))
    cells = lines[row].split(",")
    place = lines[0].split(",").index("MME/Overall")
    cells[place] = str(float(cells[place]) * 1.01)
    lines[row] = ",".join(cells)
    other = tmp_path / "other.csv"
    other.write_text("\n".join(lines))
    assert worst(other) > 1e-3


def test_a_file_without_items_with_items_and_with_errors(tmp_path, capsys):
    rows = grown()
    _, plain = fit_json(capsys, tidy(tmp_path, rows))
    assert plain["a", "power"]["errors"] == plain["a", "constant"]["errors"] == "log"
    assert plain["a", "power"]["interval_over"] == "budgets"
    head = "inputs,n_l,metric,score,n_items,upper\n"
    path = tidy(tmp_path, [f"{row},400,100" for row in rows], head)
    told, items = fit_json(capsys, path)
    assert items["a", "constant"]["errors"] == "items" and told["notes"] == []
    assert items["a", "power"]["interval_over"] == "items"
    head = "inputs,n_l,metric,score,stderr\n"
    _, known = fit_json(capsys, tidy(tmp_path, [f"{row},2.0" for row in rows], head))
    assert known["a", "constant"]["errors"] == "stderr"
    for fits in (plain, items, known):
        assert fits["a", "power"]["alpha"] == plain["a", "power"]["alpha"]
    weighted = [fits["a", "power_weighted"]["alpha"] for fits in (items, known)]
    assert len({*weighted, plain["a", "power"]["alpha"]}) == 3


def test_what_cannot_be_fitted_is_labelled_in_both_forms(tmp_path, capsys):
    rows = [*grown("a"), "vqq,32,a,nan", *grown("b"), "vqq,32,b,0", "vqq,64,b,-3"]
    path = tidy(tmp_path, rows)
    told, _ = fit_json(capsys, path)
    said = {(one["metric"], one["n_l"]): one for one in told["excluded"]}
    assert set(said) == {("a", 32), ("b", 32), ("b", 64)}
    assert said["a", 32]["where"] == f"{path}, line 6"
    assert "nan" in said["a", 32]["reason"]
    assert "no logarithm" in said["b", 64]["reason"]
    assert main(["fit", str(path), "--replicates", "100", "--law", "power"]) == 0
    lines = capsys.readouterr().out.splitlines()
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert any("b vqq at M = 32: 0 not above 0" in line for line in left_out)


def test_one_m_and_the_table_of_text(tmp_path, capsys):
    assert main(["fit", str(tidy(tmp_path, ["vqq,4,a,5"])), "--replicates", "100"]) == 0
    text = capsys.readouterr().out
    assert "not identified: too few M for an interval" in text
    assert "none: " in text and "usable scores" in text and "last value" in text


def test_scores_that_are_left_out_on_request(tmp_path, capsys):
    path = tidy(tmp_path, grown(m=(1, 2, 4, 8, 16)))
    told, fits = fit_json(capsys, path, "--exclude", "a=4,8")
    assert fits["a", "power"]["m"] == [1, 2, 16]
    assert {one["reason"] for one in told["excluded"]} == {"asked for"}


def test_seed_and_cut_are_taken(tmp_path, capsys):
    path = tidy(tmp_path, grown(m=(1, 2, 4, 8, 32)))
    one, first = fit_json(capsys, path)
    _, again = fit_json(capsys, path)
    other, second = fit_json(capsys, path, "--seed", "3", "--cut", "4")
    assert first == again and (one["seed"], other["seed"]) == (0, 3)
    ends = [fits["a", "power"]["intervals"] for fits in (first, second)]
    assert ends[0] != ends[1]
    assert (first["a", "power"]["cut"], second["a", "power"]["cut"]) == (8, 4)


def test_divergence_is_checked_against_scores(tmp_path, capsys):
    path = tidy(tmp_path, grown(m=(1, 2, 4, 8, 16, 32, 64)))
    told, fits = fit_json(capsys, path, "--divergence", DIVERGENCE)
    (check,) = told["theory_checks"]
    assert check["source"] == "m64-embedded" and check["metric"] == "a"
    assert check["fitted_m"] == [1, 2, 4, 8, 16] and check["predicted_m"] == [32, 64]
    assert check["verdict"] in ("predicts", "fails") and check["beyond"] == []
    assert "last value" in check["errors"]
    assert fits["a", "theory_measured"]["beta"] > 0
    longer = tidy(tmp_path, grown(m=(1, 2, 4, 8, 16, 32, 64, 128)))
    command = ["fit", str(longer), "--divergence", str(DIVERGENCE)]
    assert main([*command, "--replicates", "100", "--law", "theory_measured"]) == 0
    text = capsys.readouterr().out
    assert "Υ was not measured at M = " in text
    assert "Left out: M = 128, where Υ is not known." in text


@pytest.mark.parametrize(
    "head, rows, parts",
    [
        ("inputs,n_l,metric\n", ["vqq,1,a"], ("line 1", "'metric'", "score")),
        (TIDY, ["vqq,1,a,5", "vqq,2,a,six"], ("line 3", "field score is 'six'")),
        (TIDY, ["vqq,1,a,5", "vqq,2,a,6", "vqq,1,a,7"], ("line 4", "line 2")),
        (TIDY, ["vqq,0,a,5"], ("line 2", "field n_l is '0'")),
        (TIDY, ["vqq,1,a,nan"], ("no score that can be used", "line 2")),
        (TIDY, [], ("expected scores below",)),
        ("", [], ("is empty",)),
    ],
)
def test_hostile_tables(tmp_path, capsys, head, rows, parts):
    said = refused(capsys, tidy(tmp_path, rows, head))
    assert all(part in said for part in parts), said
    assert "scores.csv" in said


@pytest.mark.parametrize(
    "options, parts",
    [
        (("--inputs", "vqx"), ("--inputs is 'vqx'", "'vqq'")),
        (("--metric", "z"), ("--metric is 'z'", "'a'")),
        (("--law", "powr"), ("--law is 'powr'", "power", "theory_measured")),
        (("--law", "theory_measured"), ("needs one --divergence",)),
        (("--law", "power_weighted"), ("needs n_items or stderr",)),
        (("--exclude", "a=3"), ("a has no score at M = 3", "1, 2, 4")),
        (("--exclude", "b=1"), ("no metric 'b'",)),
        (("--model", "x=4"), ("--model x", "no such model")),
        (("--divergence", "none.json"), ("none.json",)),
    ],
)
def test_hostile_options(tmp_path, capsys, options, parts):
    path = tidy(tmp_path, grown(m=(1, 2, 4)))
    said = refused(capsys, path, "--replicates", "100", *options)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    "options, part",
    [
        (("--model", "x"), "is not NAME=M"),
        (("--model", "x=0"), "is not NAME=M"),
        (("--model", "x=4", "--model", "x=8"), "names x twice"),
        (("--exclude", "a"), "is not METRIC=M"),
        (("--exclude", "a=b"), "is not METRIC=M"),
        (("--cut", "0"), "no whole number"),
        (("--huber", "-1"), "no number above 0"),
        (("--huber", "nan"), "no number above 0"),
        (("--replicates", "99"), "at least 100"),
    ],
)
def test_options_that_are_none(capsys, options, part):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "scores.csv", *options])
    assert stopped.value.code == 2
    assert part in capsys.readouterr().err


def test_paths_that_are_not_there(tmp_path, capsys):
    assert "is not there" in refused(capsys, tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no scores" in refused(capsys, tmp_path / "empty")


def test_a_folder_that_cannot_be_made_is_said(tmp_path, capsys):
    path = tidy(tmp_path, grown(m=(1, 2, 4)))
    taken = tmp_path / "taken"
    taken.write_text("")
    command = ["report", str(path), "--replicates", "100", "--out", str(taken / "x")]
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "taken" in shown


def test_traceback_when_asked_for(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        main(["fit", str(tmp_path / "none.csv"), "--traceback"])


def test_help_loads_nothing():
    code = """
import sys
from vtscale_jax.scaling.__main__ import main
try:
    main(["fit", "--help"])
except SystemExit:
    print({"jax", "scipy", "matplotlib", "numpy", "sklearn"} & set(sys.modules))
"""
    shown = python("-c", code)
    assert shown.stdout.splitlines()[-1] == "set()", shown.stdout + shown.stderr
    assert "--inputs" in shown.stdout
    # The same look at a command that needs SciPy sees it.
    code = code.replace('"fit", "--help"', '"fit", "none.csv", "--traceback"')
    shown = python("-c", code.replace("except SystemExit", "except ValueError"))
    assert "'scipy'" in shown.stdout.splitlines()[-1], shown.stdout + shown.stderr


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_pipe_that_closes_is_no_error(tmp_path, form):
    path = tidy(tmp_path, [row for name in "ab" for row in grown(name, (1, 2, 4))])
    command = [sys.executable, "-m", "vtscale_jax.scaling", "fit", str(path), *form]
    child = subprocess.Popen(
        [*command, "--replicates", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()  # before anything is written
    said = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(60) == 1
    assert said == ""
