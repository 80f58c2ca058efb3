"""The main figures of benchmarks: targets, rejected ones, and what has none."""

import json

import pytest

from benchmarks import figures, record


def test_targets_are_held_to_unrounded():
    one = figures.Figure("a", 1.1999, "{:.2f} ×", 1.2)
    assert (one.text, one.asked, one.met) == ("1.20 ×", "≥ 1.20 ×", "no")
    assert one._replace(value=1.2).met == "yes"
    assert one._replace(at_most=True).asked == "≤ 1.20 ×"
    assert one._replace(at_most=True).met == "yes"
    assert one._replace(target=None).met == one._replace(target=None).asked == ""


def test_more_than_a_device_can_do_is_rejected():
    one = figures.Figure("MFU", 1.01, "{:.0%}", 0.5, share=True)
    assert (one.text, one.met) == ("rejected: 101%, more than can be", "")
    assert one._replace(value=1.0).met == "yes"
    result = json.loads((figures.RESULTS / "divergence.json").read_text())
    assert not any(one.rejected for one in figures.of("divergence", result))
    made = figures.of("divergence", result | {"peak_share": 1.2})
    assert len([one for one in made if one.rejected]) == 1


def test_latency_is_held_to_the_paper_at_its_shapes_only():
    row = {"num_queries": 8, "first_token": {"median": 0.05}, "rejected": ""}
    row |= {"decode_tokens_per_s": 90.0, "paper_over_ours": 6.0}
    late = {**row, "num_queries": 16, "rejected": "faster than the device"}
    late["paper_over_ours"] = None  # as it is recorded of what is rejected
    result = {"config": "configs/m768.py:paper", "rows": [row, late]}
    result["impossible_pairs"] = [{}]
    found = [(one.text, one.met) for one in figures.of("latency", result)]
    assert found == [
        *[("50.0 ms", ""), ("6 ×", "yes")],
        *[(f"rejected: {said}, faster than the device", "") for said in ("50.0 ms",)],
        *[("rejected: 90, faster than the device", ""), ("1", "no")],
    ]
    others = figures.of("latency", {**result, "config": "configs/m256.py"})
    assert len(others) == len(found) - 1


def test_one_step_has_a_target_of_utilisation():
    row = {"preset": "paper", "stage": "finetune", "num_queries": 256}
    row |= {"mfu": {"measured": 0.55, "data sheet": 0.45}, "median_s": 0.1}
    row |= {"memory": 9, "planned_memory": {"peak": 10}}
    found = figures.of("train_step_presets", {"rows": [row, {**row, "stage": "align"}]})
    assert [one.met for one in found] == ["yes", *[""] * 7]
    assert found[0].text == "55.0%" and found[3].text == "0.9 ×"


def test_a_run_that_was_not_measured_has_no_figure():
    row = {"config": "configs/m16.py", "planned": 100, "taken": 104}
    missing = record.not_measured("configs/m64.py:smol", "no weights of SmolLM2")
    (figure,) = figures.of("run_memory", {"rows": [row, missing]})
    assert figure.what == "configs/m16.py: memory beside the plan"
    assert figures.of("run_memory", {"rows": [missing]}) == []


def test_a_result_of_another_form_is_named():
    with pytest.raises(figures.FigureError, match="known of 'other', expected one of"):
        figures.of("other", {})
    with pytest.raises(figures.FigureError, match="loader has no field 'images_per"):
        figures.of("loader", {})
    before = {"batch_8_over_one_by_one": 2.4, "table": {}}
    with pytest.raises(figures.FigureError, match="evaluation has a field of another"):
        figures.of("evaluation", before)
