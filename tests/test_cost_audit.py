"""The audit of times: the paper's table by hand, honest tables, falsified ones."""

import json

import numpy as np
import pytest
from cost_timings import A100, config

from vtscale_jax import settings
from vtscale_jax.cost import audit
from vtscale_jax.cost.__main__ import main, published
from vtscale_jax.cost.answer import first_token, least_seconds
from vtscale_jax.cost.audit import (
    IMPOSSIBLE,
    NOISE,
    OF_DEVICE,
    POSSIBLE,
    AuditError,
    Setting,
    TimedRow,
    read_table,
)
from vtscale_jax.cost.peak import stated
from vtscale_jax.devices import GPUS

# ml_collections loads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

SETTING = Setting((480, 640), (3, 3), 64)
QUERIES = (1, 8, 16, 32, 64, 128, 256, 384, 512, 768)
# Llama-2-7B: 32 layers of four 4096² and three 4096 × 11008 products, 2 a multiply-add.
PER_TOKEN = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)


@pytest.fixture(scope="module")
def model():
    return settings.model_config(config("paper"), "bfloat16")


@pytest.fixture(scope="module")
def least(model):
    """The roofline of a whole row by M on an A100."""

    def seconds(n_l):
        parts = first_token(model, SETTING.question(n_l), bytes_each=2)
        return sum(least_seconds(p, A100) for p in parts if p.name in OF_DEVICE)

    return {n_l: seconds(n_l) for n_l in QUERIES}


def verdicts(found):
    return {(pair.n_a, pair.n_b): pair.verdict for pair in found.pairs}


def test_the_papers_table_cannot_have_been(model):
    table = audit.read_file(published())
    found = audit.audit(table.rows, model, stated(GPUS["a100-40gb"]), SETTING)
    assert len(found.rows) == 9 and len(found.pairs) == 36
    bad = {pair for pair, verdict in verdicts(found).items() if verdict == IMPOSSIBLE}
    assert bad == {(256, 512), (256, 768), (512, 768)}
    pair = next(p for p in found.impossible if (p.n_a, p.n_b) == (256, 768))
    # By hand: 512 tokens of 12.95 GFLOP in 0.3038 − 0.3013 s are 2,650 TFLOP/s.
    assert pair.weight_flops == 512 * PER_TOKEN
    assert pair.flops_per_s == pytest.approx(512 * PER_TOKEN / 0.0025, rel=1e-9)
    assert pair.flops_per_s / 1e12 == pytest.approx(2652.57, abs=0.01)
    # What they take at least: these products and causal attention at 312 TFLOP/s, and
    # the same of the fusion decoder, which is smaller by far.
    attention = 4 * 32 * 4096 * (832 * 833 - 320 * 321) // 2
    alone = (512 * PER_TOKEN + attention) / 312e12
    assert alone < pair.least_extra_s < 1.1 * alone
    # Each time by itself is slow enough.
    assert {row.verdict for row in found.rows} == {POSSIBLE}
    assert verdicts(found)[16, 32] == NOISE  # 32 tokens in less time than 16


def test_a_device_that_could_makes_it_possible(model):
    """Negative control: the verdicts come from the device's peak."""
    table = audit.read_file(published())
    fast = A100._replace(flops=20 * A100.flops, bandwidth=20 * A100.bandwidth)
    assert not audit.audit(table.rows, model, fast, SETTING).impossible


def test_table_7_of_the_paper_against_arithmetic(model):
    slope = audit.published_slope(model)
    assert slope["published"] == pytest.approx((4.151 - 2.380) / 767 * 1e3)
    assert slope["weights"] == pytest.approx(12.952010752)


def honest_rows(least, seed, spread=0.002):
    """A fixed cost, and work at 45 % of the limit, give or take what clocks do."""
    rng = np.random.default_rng(seed)
    return [
        TimedRow(n, (0.02 + seconds / 0.45) * (1 + spread * rng.uniform(-1, 1)))
        for n, seconds in least.items()
    ]


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_table_has_no_impossible_pair(model, least, seed):
    found = audit.audit(honest_rows(least, seed), model, A100, SETTING)
    assert not found.impossible
    assert {row.verdict for row in found.rows} == {POSSIBLE}


@pytest.mark.parametrize("n_l", [384, 768])
def test_one_falsified_row_is_found(model, least, n_l):
    rows = [
        row._replace(ttft_s=0.5 * row.ttft_s) if row.n_l == n_l else row
        for row in honest_rows(least, 0)
    ]
    found = audit.audit(rows, model, A100, SETTING)
    assert found.impossible
    assert all(n_l in (pair.n_a, pair.n_b) for pair in found.impossible)


def test_a_row_below_its_roofline_is_impossible(model, least):
    rows = honest_rows(least, 0)
    rows = [
        row._replace(ttft_s=0.9 * least[8]) if row.n_l == 8 else row for row in rows
    ]
    found = {row.n_l: row for row in audit.audit(rows, model, A100, SETTING).rows}
    assert found[8].verdict == IMPOSSIBLE
    assert {row.verdict for n, row in found.items() if n != 8} == {POSSIBLE}
    assert found[8].flops_per_s == pytest.approx(found[8].flops / (0.9 * least[8]))


def test_nothing_is_claimed_where_reading_the_weights_hides_the_work(model):
    rows = [TimedRow(n, 0.2) for n in (1, 8, 16, 32, 64)]
    found = audit.audit(rows, model, A100, SETTING)
    assert not found.impossible
    assert all(pair.flops_per_s is None for pair in found.pairs)
    # Negative control: with more tokens the same is impossible.
    rows = [TimedRow(n, 0.2) for n in (256, 512)]
    assert audit.audit(rows, model, A100, SETTING).impossible


def test_noise_and_printed_digits_excuse_what_they_can(model):
    def verdict(noise, rounding):
        rows = [TimedRow(256, 0.3013, rounding), TimedRow(512, 0.3024, rounding)]
        found = audit.audit(rows, model, A100, SETTING, noise=noise)
        return found.pairs[0].verdict

    # It falls short by 10.4 ms, which is 3.4 % of the longer time.
    assert verdict(0.03, 0.0) == IMPOSSIBLE and verdict(0.04, 0.0) == NOISE
    assert verdict(0.0, 0.005) == IMPOSSIBLE and verdict(0.0, 0.006) == NOISE
    with pytest.raises(AuditError, match="--noise is 1.5"):
        verdict(1.5, 0.0)


def test_tables_are_read_in_any_order_with_their_printed_digits():
    text = "note,ttft_s, n_l\nx,0.3,256\ny,1.25e-1,8\nz,,64\n"
    table = read_table(text, "t.csv")
    assert [row.n_l for row in table.rows] == [8, 256]
    assert table.rows[0].rounding == pytest.approx(0.5e-3)
    assert table.rows[1].rounding == pytest.approx(0.05)
    assert table.ignored == ("note",)
    assert table.left_out == ("line 4 (n_l = 64): no time",)


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "line 1: expected one column n_l"),
        ("n_l,time\n1,2\n", "line 1: expected one column ttft_s"),
        ("n_l,ttft_s\n1,0.2\n", "has 1 rows"),
        ("n_l,ttft_s\n1,0.2\n8,0.3\n1,0.4\n", "line 4, column n_l: 1 stands in line 2"),
        ("n_l,ttft_s\n1,0.2\n8,fast\n", "line 3, column ttft_s: got 'fast'"),
        ("n_l,ttft_s\n1,0.2\n8,-0.3\n", "line 3, column ttft_s: got '-0.3'"),
        ("n_l,ttft_s\n1,0.2\n8,nan\n", "line 3, column ttft_s: got 'nan'"),
        ("n_l,ttft_s\n1,0.2\n8,0\n", "line 3, column ttft_s: got '0'"),
        ("n_l,ttft_s\n1,0.2\n8.5,1\n", "line 3, column n_l: got '8.5'"),
        ("n_l,ttft_s\n1,0.2\n-8,1\n", "line 3, column n_l: got '-8'"),
        ("n_l,ttft_s\n0,0.2\n8,1\n", "line 2, column n_l: got '0'"),
        ("n_l,ttft_s\n1,0.2\n,1\n", "line 3, column n_l: got ''"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_line_and_column(text, told):
    with pytest.raises(AuditError) as error:
        read_table(text, "t.csv")
    assert str(error.value).startswith("t.csv") and told in str(error.value)


def run(capsys, *words):
    status = main(["audit", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_lists_the_impossible_pairs_and_succeeds(capsys):
    status, out, _ = run(capsys, "--device", "a100-40gb")
    assert status == 0
    assert "3 of 36 pairs are impossible on NVIDIA A100-SXM4-40GB: 256 → 768: " in out
    assert "2,653 of 312 TFLOP/s" in out and "12.95 GFLOP" in out
    assert "does not shrink as tokens are added" in out
    assert "columns not read: gpu_util_pct, gpu_peak_gib, gpu_average_gib" in out
    # 366 TFLOP/s are implied from 16 to 64, where reading the weights hides the work.
    assert "nothing claimed, of 16 → 64" in out


def test_the_command_as_json_and_in_a_folder(capsys, tmp_path):
    folder = tmp_path / "audit"
    words = ("--device", "a100-80gb", "--json", "--out", str(folder))
    status, out, _ = run(capsys, *words)
    content = json.loads(out)
    assert status == 0 and content == json.loads((folder / "audit.json").read_text())
    assert content["impossible"] == [[256, 512], [256, 768], [512, 768]]
    assert content["table7"]["published"] == pytest.approx(2.309, abs=1e-3)
    assert content["peak"]["flops"] == 312e12
    rows = (folder / "pairs.csv").read_text().splitlines()
    assert len(rows) == 37 and rows[0].startswith("from n_l,to n_l")
    assert sum(row.endswith(",impossible") for row in rows) == 3
    assert all(row.count(",") == rows[0].count(",") for row in rows)


def test_anyones_table_with_another_model(capsys, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("n_l,ttft_s\n256,0.5000000\n4096,0.5000001\n")
    words = (str(table), "--device", "h100", "--config", "configs/m256.py:smol")
    status, out, _ = run(capsys, *words, "--noise", "0")
    assert status == 0 and "Table 7" not in out
    assert "1 of 1 pairs is impossible" in out
    # SmolLM2-135M: 30 layers of 4 attention products (3 of 9 heads for keys) and MLP.
    weights = 2 * 30 * (576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536)
    implied = 3840 * weights / 1e-7 / 1e12
    assert f"{implied:,.0f} of 989 TFLOP/s" in out


@pytest.mark.parametrize(
    "words, told",
    [
        (["--device", "a100"], "--device is 'a100', expected one of a100-40gb, "),
        (["--device", "h100", "--image", "wide"], "--image is 'wide'"),
        (["--device", "h100", "--question_tokens", "0"], "--question_tokens is 0"),
        (["--device", "h100", "--config", "configs/none.py"], "--config configs/none"),
        (["--device", "h100", "--config", "configs/m8.py:huge"], "'huge' is unknown"),
        (["--device", "h100", "--config", "configs/llava.py"], "is no config of this"),
        (["none.csv", "--device", "h100"], "none.csv cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(capsys, words, told):
    status, _, err = run(capsys, *words)
    assert status == 1 and told in err
