"""The commands `kernel` and `theory`, and what they say of bad input."""

import importlib
import json

import numpy as np
import pytest
from divergence_results import make_result
from test_divergence_curves import branches, brute

from vtscale_jax import settings
from vtscale_jax.divergence.__main__ import main
from vtscale_jax.divergence.result import ResultError, read_result, write_result
from vtscale_jax.divergence.scores import ScoresError, read_scores
from vtscale_jax.divergence.summary import spread_of
from vtscale_jax.weights.embedded_llm import load_embedded_llm


def kernel(capsys, path, *options):
    status = main(["kernel", "--npz", str(path), *options])
    said = capsys.readouterr()
    return status, said.out if status == 0 else said.err


@pytest.mark.parametrize("reduction", ["mean", "max", "signed"])
@pytest.mark.parametrize("name", ["xla", "pallas", "reference"])
def test_kernel_prints_the_definitions(tmp_path, capsys, name, reduction):
    a, b = branches(4, 13, 6)
    lengths = np.array([13, 9, 1, 12])
    path = tmp_path / "states.npz"
    np.savez(path, a=a, b=b, len=lengths)
    options = ["--reduction", reduction, "--kernel", name, "--json"]
    status, out = kernel(capsys, path, *options)
    assert status == 0
    found = json.loads(out)
    assert found["counts"] == [int((lengths >= n).sum()) for n in range(1, 14)]
    assert found["psi_cross_aa"][0] is None  # no pair at n = 1: undefined, not 0
    for key, values in brute(a, b, lengths, reduction).items():
        known = np.array(found[key], float)
        largest = np.array(found["largest"][key], float)
        for n in range(13):
            some = values[~np.isnan(values[:, n]), n]
            if len(some) == 0:
                assert np.isnan([known[n], largest[n]]).all()
                continue
            np.testing.assert_allclose(known[n], some.mean(), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(largest[n], some.max(), rtol=1e-5, atol=1e-6)


def test_kernel_takes_any_floats_and_no_lengths(tmp_path, capsys):
    a, b = branches(2, 8, 5)
    found = []
    for dtype in (np.float64, np.float32):
        np.savez(tmp_path / "x.npz", a=a.astype(dtype), b=b.astype(dtype))
        found.append(kernel(capsys, tmp_path / "x.npz", "--json")[1])
    assert found[0] == found[1] and json.loads(found[0])["counts"] == [2] * 8
    status, table = kernel(capsys, tmp_path / "x.npz")
    assert status == 0 and len(table.splitlines()) == 9 and "psi_equal" in table


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"a": np.zeros((1, 2, 3))}, "holds ['a'], expected arrays a and b"),
        ({"a": np.zeros((1, 2, 3)), "b": np.zeros((1, 3, 3))}, "(1, 2, 3) and (1, 3"),
        ({"a": np.array(["x"]), "b": np.zeros(1)}, "a has dtype <U1"),
        (
            {"a": np.ones((1, 2, 3)), "b": np.ones((1, 2, 3)), "len": np.array([3])},
            "lengths[0] is 3, expected 1 to 2",
        ),
        (
            {"a": np.ones((1, 2, 3)), "b": np.ones((1, 2, 3)), "len": np.ones(1)},
            "len has dtype float64",
        ),
    ],
)
def test_kernel_names_what_is_wrong(tmp_path, capsys, arrays, said):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    status, error = kernel(capsys, path)
    assert status == 1 and said in error and str(path) in error
    path.write_bytes(b"PK nothing")
    assert "cannot be read as .npz" in kernel(capsys, path)[1]
    assert "cannot be read as .npz" in kernel(capsys, tmp_path / "none.npz")[1]


def test_results_come_back_as_they_were(tmp_path):
    result = make_result(tmp_path, "one", longest=20)
    path = tmp_path / "one.json"
    again = read_result(path)
    write_result(tmp_path / "two.json", again)
    assert path.read_bytes() == (tmp_path / "two.json").read_bytes()
    for name, band in result.curves.items():
        for one, other in zip(band, again.curve(name), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8)
    with pytest.raises(KeyError, match="expected one of"):
        again.curve("psi")
    content = json.loads(path.read_text())
    for change, said in (
        ({"format": 0}, "format is 0, expected 1"),
        ({"counts": [1, 2]}, r"expected \(2,\) as counts"),
        ({"curves": {}}, "curves lacks D"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ResultError, match=said):
            read_result(path)
    del content["fits"]
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match="lacks fits"):
        read_result(path)
    with pytest.raises(ResultError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def scores_of(result, kappa, beta, budgets):
    means = {name: band.mean for name, band in result.curves.items()}
    upsilon = spread_of(means)
    return {m: float(kappa * upsilon[m - 1] ** (beta / 2)) for m in budgets}


def test_theory_finds_kappa_and_beta(tmp_path, capsys):
    result = make_result(tmp_path, "one", longest=40)
    scores = scores_of(result, 30.0, 0.4, (1, 2, 4, 8, 16, 32))
    path, tidy, wide = (tmp_path / name for name in ("one.json", "t.csv", "w.csv"))
    rows = [f"vqq,{m},read,{s!r}" for m, s in scores.items()]
    rows += [f"vqq,{m},other,1.0" for m in scores] + ["vqq,999,read,50.0"]
    tidy.write_text("\n".join(["inputs,n_l,metric,score", *rows]) + "\n")
    lines = [f"vqq,{m},{s!r}" for m, s in scores.items()]
    wide.write_text("\n".join(["inputs,n_l,read", *lines]) + "\n")
    for table, beyond in ((tidy, [999]), (wide, [])):
        command = ["theory", str(path), "--scores", str(table), "--metric", "read"]
        assert main([*command, "--json"]) == 0
        fit = json.loads(capsys.readouterr().out)["scores"]
        assert fit["kappa"] == pytest.approx(30, rel=1e-6)
        assert fit["beta"] == pytest.approx(0.4, rel=1e-6)
        assert fit["beyond"] == beyond
        assert main(command) == 0
        assert "β 0.4 (0.4 to 0.4)" in capsys.readouterr().out
    # Without scores it says what the result says.
    assert main(["theory", str(path)]) == 0
    assert "n_balance" in capsys.readouterr().out


def test_tables_of_scores_that_are_none(tmp_path):
    path = tmp_path / "s.csv"
    for text, asked, said in (
        ("m,score\n1,2\n", ("x",), r"columns \['m', 'score'\], expected n_l"),
        ("n_l,metric,score\n1,x,2\n", ("y",), r"expected one of \['x'\]"),
        ("n_l,metric,score\n1,x,two\n", ("x",), "line 2: x is 'two'"),
        ("n_l,metric,score\n1,x,2\n1,x,3\n", ("x",), "line 3: a second score"),
        ("n_l,metric,score\n2.5,x,2\n", ("x",), "n_l is '2.5', expected a whole"),
        ("n_l,metric,score\nnan,x,2\n", ("x",), "n_l is 'nan', expected a number"),
        ("n_l,metric,score\n1,x,inf\n", ("x",), "x is 'inf', expected a number"),
        ("inputs,n_l,x\nvq,1,2\nvqq,1,2\n", ("x",), r"expected one of \['vq', 'vqq'\]"),
    ):
        path.write_text(text)
        with pytest.raises(ScoresError, match=said):
            read_scores(path, *asked)
    path.write_text("inputs,n_l,x\nvq,8,2\nvqq,1,3\nvqq,4,5\n")
    assert read_scores(path, "x", "vqq") == {1: 3.0, 4: 5.0}
    with pytest.raises(ScoresError, match="cannot be read"):
        read_scores(tmp_path / "none.csv", "x")


def test_embedded_llm_has_the_sizes_of_its_preset():
    config = importlib.import_module("configs.base").with_queries(8)("")
    assert load_embedded_llm().config == settings.model_config(config, "float32").llm
