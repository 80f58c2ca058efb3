"""Tables, figure and page of a latency measurement, from made-up times."""

import csv
import io
import re

import pytest
from cost_timings import A100, PUBLISHED, changed, honest, paper
from figure_texts import overlapping

from vtscale_jax.config_files import QUERIES
from vtscale_jax.cost import figure, report, tables
from vtscale_jax.cost.__main__ import published
from vtscale_jax.cost.audit import read_file, read_table
from vtscale_jax.cost.commands.latency import their_audit, write_results
from vtscale_jax.cost.latency import PARTS
from vtscale_jax.cost.rows import judge
from vtscale_jax.cost.verdicts import as_csv

# ml_collections loads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


@pytest.fixture(scope="module")
def model():
    return paper()


@pytest.fixture(scope="module")
def measured(model):
    """M = 256 is said to have been read faster than an A100 can."""
    return changed(honest(model, 12), 256, "prefill", 0.3)


@pytest.fixture(scope="module")
def judged(model, measured):
    return judge(measured, model, A100)


def parsed(heads, cells):
    return list(csv.DictReader(io.StringIO(as_csv(heads, cells))))


def test_table_6_has_times_and_a_rejected_row_has_none(judged):
    rows = {
        r["n_l"]: r
        for r in parsed(tables.TABLE_6, tables.table_6(judged.rows, PUBLISHED))
    }
    row = judged.rows[0]
    assert float(rows["1"]["ttft_s"]) == pytest.approx(row.first_token.median, abs=1e-6)
    assert float(rows["1"]["prefill_s"]) == pytest.approx(
        row.parts["prefill"].median, abs=1e-6
    )
    assert float(rows["1"]["decode_peak_share"]) == pytest.approx(0.5, rel=0.05)
    assert (
        rows["1"]["verdict"] == "possible" and rows["768"]["paper_ttft_s"] == "0.3038"
    )
    rejected = rows["256"]
    assert rejected["verdict"].startswith("rejected: prefill in ")
    for column in ("ttft_s", "ttft_p95_s", "prefill_s", "decode_tokens_per_s"):
        assert rejected[column] == ""
    assert rejected["repetitions"] == "12" and rejected["peak_memory_gib"] != ""


def test_table_6_can_be_audited_itself(judged):
    text = as_csv(tables.TABLE_6, tables.table_6(judged.rows, PUBLISHED))
    table = read_table(text, "table6.csv")
    assert [row.n_l for row in table.rows] == [1, 768]
    assert table.left_out == ("line 3 (n_l = 256): no time",)


def test_table_7_counts_without_padding_beside_the_papers(judged):
    rows = {r["n_l"]: r for r in parsed(tables.TABLE_7, tables.table_7(judged.rows))}
    # By hand, M = 1: 65 tokens of 12.95 GFLOP, and whole or causal attention.
    attention = 32 * 4 * 4096 * 65**2 / 1e9
    causal = 32 * 4 * 4096 * 65 * 66 / 2 / 1e9
    weights = 65 * 12.952010752
    assert float(rows["1"]["prefill_gflop"]) == pytest.approx(weights + attention, 1e-4)
    shown = float(rows["1"]["prefill_causal_gflop"])
    assert shown == pytest.approx(weights + causal, rel=1e-4)
    assert [rows[m]["paper_gflop"] for m in ("1", "256", "768")] == [
        "2380.0",
        "",
        "4151.0",
    ]
    for row in rows.values():
        on_device = sum(float(row[f"{name}_gflop"]) for name in tables.COUNTED[1:])
        assert float(row["total_gflop"]) == pytest.approx(on_device, rel=1e-4)
        assert float(row["total_causal_gflop"]) < float(row["total_gflop"])


def test_the_terminal_shows_no_time_of_a_rejected_row(judged):
    lines = tables.told(judged.rows, PUBLISHED)
    assert lines[0].split()[:3] == ["M", "TTFT", "ms"]
    assert lines[2].split()[0] == "256" and "rejected: prefill in" in lines[2]
    assert lines[2].split()[1:9] == ["–"] * 8
    assert "–" not in lines[1].split()[1:10]


def test_the_figure_stacks_the_parts_and_leaves_out_rejected_rows(judged):
    def heights(rows):
        left = figure.make_figure(rows, PUBLISHED).axes[0]
        bars = [[bar.get_height() for bar in group] for group in left.containers]
        assert len(bars) == len(PARTS) + 1  # and what lies between them
        return [sum(group) for group in zip(*bars, strict=True)]

    def whole(row):
        return pytest.approx(1e3 * row.first_token.median, rel=0.02)

    assert heights(judged.rows) == [whole(judged.rows[0]), whole(judged.rows[2])]
    believed = [row._replace(rejected="") for row in judged.rows]
    assert heights(believed) == [whole(row) for row in believed]


@pytest.mark.parametrize("queries", [(), (1,), (1, 256, 768), QUERIES])
def test_no_text_of_the_figure_lies_on_another(judged, queries):
    rows = [judged.rows[0]._replace(num_queries=m) for m in queries]
    theirs = {row.n_l: row.ttft_s for row in read_file(published()).rows}
    assert overlapping(figure.make_figure(rows, theirs)) == []
    assert overlapping(figure.make_figure(rows, {})) == []


def test_the_same_times_give_the_same_file(judged, tmp_path):
    drawn = figure.draw(judged.rows, PUBLISHED, tmp_path)
    assert drawn == tmp_path / "ttft.svg" and (tmp_path / "ttft.png").is_file()
    first = drawn.read_bytes()
    assert figure.draw(judged.rows, PUBLISHED, tmp_path).read_bytes() == first
    assert figure.draw(judged.rows, {}, tmp_path).read_bytes() != first


def test_the_page_has_everything_and_loads_nothing(judged, measured, tmp_path):
    theirs = their_audit(published())
    page = write_results(tmp_path, "paper", measured, judged, A100, theirs)
    text = page.read_text(encoding="utf-8")
    words = re.sub(r"<[^>]*>", " ", text)
    for said in (
        "M = 256 rejected: prefill in",
        "Only 12 repetitions",
        "1 of 3 pairs of rows impossible: 1 → 256: 255 tokens more in",
        "3 of 36 pairs are impossible on NVIDIA A100-SXM4-40GB",
        "12.95 GFLOP",
        "does not shrink as tokens are added",
        "counted by nobody",
        "640×480 drawn pixels",
        "device.kind",
        "versions.jax",
    ):
        assert said in words, said
    assert "No row implies more than the device can do" not in words
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    # The paper's 768 stand beside ours.
    assert "303.8" in words


def test_what_is_known_is_said_of_honest_times(model):
    measured = honest(model, 30)._replace(launches=[1] * 10 + [2] * 20)
    judged = judge(measured, model, A100)
    found = report.findings(measured, judged, A100)
    told = " ".join(one.text for one in found)
    assert "No row implies more than the device can do (312 TFLOP/s" in told
    assert "Timed in 2 launches" in told and "Only" not in told
    assert "No pair of rows is impossible, of 3." in told
    assert not [one for one in found if one.tone == "bad"]


def test_too_few_repetitions_for_pairs_are_said(model):
    measured = honest(model, 3)
    told = [
        one.text
        for one in report.findings(measured, judge(measured, model, A100), A100)
    ]
    assert "3 pairs of rows are not judged: too few repetitions to say." in told
    assert not any("No pair" in one for one in told)


def test_without_the_papers_config_its_table_is_not_audited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = their_audit(published())
    assert theirs.verdict.startswith("Not audited here") and theirs.pairs == ()
    assert theirs.times[768] == 0.3038
