"""Paired tests of two evaluations, against counts by hand and by enumeration."""

import itertools
import json

import numpy as np
import pytest

from vtscale_jax.eval.compare import (
    Compared,
    CompareError,
    compare,
    compare_folders,
    holm,
    lines,
)


def test_right_and_wrong_items_are_compared_by_mcnemar():
    # 9 items are better, 2 worse: p = 2 · P(Bin(11, ½) ≤ 2) = 2 · (1 + 11 + 55) / 2^11.
    first = np.array([0.0] * 9 + [1.0] * 2 + [1.0] * 30 + [0.0] * 20)
    second = np.array([1.0] * 9 + [0.0] * 2 + [1.0] * 30 + [0.0] * 20)
    row = compare("t", first, second, 0)
    assert (row.better, row.worse, row.n) == (9, 2, 61)
    assert row.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert row.difference == pytest.approx(7 / 61)
    assert row.low < 7 / 61 < row.high and row.test.startswith("McNemar")
    mirrored = compare("t", second, first, 0)
    assert mirrored.difference == -row.difference and mirrored.p == row.p


def test_graded_items_are_compared_by_the_signs_of_their_differences():
    first = np.array([0.3, 0.6, 0.0, 0.9, 0.3, 0.2, 0.5, 0.5])
    second = np.array([0.6, 0.9, 0.3, 1.0, 0.2, 0.6, 0.9, 0.5])
    row = compare("t", first, second, 0)
    assert row.test.startswith("sign-flip")
    changed = (second - first)[:7]
    every = [abs(np.dot(s, changed)) for s in itertools.product((-1, 1), repeat=7)]
    exact = np.mean(np.array(every) >= changed.sum() - 1e-12)
    assert row.p == pytest.approx(exact, abs=0.01)


def test_the_interval_covers_the_difference():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        first = rng.random(150) < 0.5
        second = np.where(rng.random(150) < 0.6, first, rng.random(150) < 0.7)
        row = compare("t", first.astype(float), second.astype(float), 0)
        hits += row.low <= 0.4 * 0.2 <= row.high
    assert 0.90 <= hits / 200 <= 0.99


def test_equal_answers_differ_in_nothing():
    row = compare("t", np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0)
    assert (row.p, row.difference, row.low, row.high) == (1, 0, 0, 0)
    graded = compare("t", np.array([0.5, 1.0]), np.array([0.5, 1.0]), 0)
    assert graded.p == 1


def test_holm_is_holm():
    rows = [Compared("t", 1, 0, 0, 0, 0, 0, 0, 0, "", p) for p in (0.04, 0.01, 0.03)]
    assert [row.p_holm for row in holm(rows)] == pytest.approx([0.06, 0.03, 0.06])
    assert holm(rows)[0].p == 0.04


def write(folder, task="POPE", scorer="paper", data="x", scores=(1, 0, 1)):
    place = folder / task
    place.mkdir(parents=True)
    about = {"task": task, "scorer": scorer, "data_sha256": data}
    (place / "scores.json").write_text(json.dumps(about))
    rows = [{"index": str(i), "score": s} for i, s in enumerate(scores)]
    (place / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_folders_are_compared_task_by_task(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for task in ("POPE", "MME"):
        write(a, task)
    write(b, "MME", scores=(0, 0, 1))
    write(b, "ChartQA_TEST")
    (row,) = compare_folders(a, b)
    assert (row.task, row.n, row.better, row.worse) == ("MME", 3, 0, 1)
    assert "MME" in lines([row])[1] and "-33.3" in lines([row])[1]


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = tmp_path / "a"
    write(a)

    def refused(name, **other):
        write(tmp_path / name, **other)
        with pytest.raises(CompareError) as found:
            compare_folders(a, tmp_path / name)
        return str(found.value)

    assert "scorer is 'paper'" in refused("b", scorer="current")
    assert "data_sha256 is 'x'" in refused("c", data="y")
    assert "1 items are in one of" in refused("d", scores=(1, 0))
    assert "expected one that both have" in refused("e", task="MME")
    broken = tmp_path / "f"
    write(broken)
    (broken / "POPE" / "items.jsonl").write_text('{"index": "0"}\n')
    with pytest.raises(CompareError, match=r"items.jsonl:1 is no scored item"):
        compare_folders(a, broken)
    with pytest.raises(CompareError, match="is no folder"):
        compare_folders(a, tmp_path / "g")
