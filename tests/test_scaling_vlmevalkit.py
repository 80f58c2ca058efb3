"""Scores as VLMEvalKit itself wrote them, with the names and scales of the paper.

`tests/golden/scaling/vlmevalkit` has the files of scores of its run on made-up data
(commit 0ff0c3e, model fake_public).
"""

import shutil

import pytest

from vtscale_jax.scaling import vlmevalkit
from vtscale_jax.scaling.reading import read_scores
from vtscale_jax.scaling.scores import UPPER, ScoresError

# Read off the files by eye; shares of multiple choice times 100.
EXPECTED = {
    "POPE/Overall": 80.31496062992126,
    "POPE/acc": 70.75471698113208,
    "POPE/precision": 92.72727272727272,
    "POPE/recall": 70.83333333333334,
    "MME/Overall": 1675.0,
    "MME/Perception": 1200.0,
    "MME/Cognition": 475.0,
    "HallusionBench/aAcc": 73.68421052631578,
    "HallusionBench/fAcc": 52.38095238095239,
    "HallusionBench/qAcc": 62.5,
    "HallusionBench/Overall": 62.85505430242273,
    "COCO_VAL/BLEU-1": 66.94433262555098,
    "COCO_VAL/BLEU-4": 58.287266775948666,
    "COCO_VAL/ROUGE-L": 60.05351109785422,
    "COCO_VAL/CIDEr": 336.2032113499381,
    "OCRBench/Final Score": 29.0,
    "AI2D_TEST/Overall": 60.0,
    "RealWorldQA/Overall": 50.0,
    "MMStar/Overall": 41.66666666666667,
    "SEEDBench_IMG/Overall": 44.44444444444444,
    "SEEDBench2/Overall": 63.33333333333333,
    "SEEDBench2_Plus/Overall": 55.55555555555556,
    "ScienceQA_TEST/Overall": 48.57142857142857,
    "OCRVQA_TESTCORE/Overall": 55.00000000000001,
    "ChartQA_TEST/Overall": 50.0,
    "TextVQA_VAL/Overall": 61.59090909090911,
}
FAKE = {"fake_public": (8, "vqq")}


@pytest.fixture
def golden(golden_dir):
    return golden_dir / "scaling" / "vlmevalkit"


@pytest.fixture
def work(golden, tmp_path):
    """A work folder with one model, which tests may change."""
    return place(golden, tmp_path / "outputs", "net-m8-vqq")


def place(golden, work, model, into=""):
    """The golden scores as those of another model."""
    folder = work / model / into
    folder.mkdir(parents=True)
    for file in (golden / "fake_public").iterdir():
        shutil.copy(file, folder / file.name.replace("fake_public", model))
    return work


def by_metric(scores):
    return {one.metric: one.score.tolist() for one in scores.series}


def test_every_benchmark_has_the_papers_name_and_scale(golden):
    for path in (golden, golden / "fake_public"):
        scores = read_scores([path], models=FAKE)
        assert scores.metrics() == vlmevalkit.METRICS
        assert scores.inputs() == ("vqq",) and scores.notes == scores.excluded == ()
        for series in scores.series:
            assert series.m.tolist() == [8]
            assert series.score == pytest.approx([EXPECTED[series.metric]], rel=1e-12)
            assert series.upper == UPPER.get(series.metric, 100.0)
            assert series.n_items is None and series.items is None
    first = read_scores([golden], models=FAKE).of("POPE/acc", "vqq")
    assert first.score.tolist() == [70.75471698113208]


@pytest.mark.parametrize(
    "model, m, inputs",
    [
        ("net-m8-vqq", 8, "vqq"),
        ("m256", 256, ""),
        ("LLaVA_NL64_vq", 64, "vq"),
        ("q16.vq_ft", 16, "vq_ft"),
        ("net-vq-ft-M1", 1, "vq_ft"),
        ("Qwen2-VL-m32-VQFT", 32, "vq_ft"),
        ("net-m8-m8-vqq", 8, "vqq"),
    ],
)
def test_names_of_models_say_m_and_inputs(golden, tmp_path, model, m, inputs):
    scores = read_scores([place(golden, tmp_path / "o", model)])
    assert scores.inputs() == (inputs,)
    assert all(one.m.tolist() == [m] for one in scores.series)
    assert by_metric(scores).keys() == EXPECTED.keys()


@pytest.mark.parametrize(
    "model, words",
    [
        ("Qwen2-VL-7B", "does not say its number of vision tokens, expected m8, nl8"),
        ("net-m8b", "does not say"),
        ("mm8", "does not say"),
        ("net-m0", "does not say"),
        ("net-m8-q4", r"says more than one M \(4, 8\)"),
        ("net-m8-vq-vqq", r"says more than one inputs \(vq, vqq\)"),
    ],
)
def test_names_that_do_not_say_are_errors_with_the_option(
    golden, tmp_path, model, words
):
    work = place(golden, tmp_path / "o", model)
    with pytest.raises(ScoresError, match=words) as raised:
        read_scores([work])
    assert f"--model {model}=M,inputs" in str(raised.value)
    scores = read_scores([work], models={model: (4, "vq")})
    assert scores.inputs() == ("vq",) and scores.series[0].m.tolist() == [4]


def test_models_that_are_not_there_are_errors(work):
    with pytest.raises(ScoresError, match="--model nett: no such model.*net-m8-vqq"):
        read_scores([work], models={"nett": (4, "vq")})


def test_a_folder_may_say_what_its_files_do_not(golden, tmp_path):
    folder = tmp_path / "renamed-m16-vq"
    shutil.copytree(golden / "fake_public", folder)
    scores = read_scores([tmp_path])
    assert scores.inputs() == ("vq",) and scores.series[0].m.tolist() == [16]
    (folder / "x-m8_MMStar_acc.csv").write_text('"split","Overall"\n"none","0.5"\n')
    with pytest.raises(ScoresError, match="M is 8 by the name of the file, and 16 by"):
        read_scores([tmp_path])


def test_several_models_make_a_series(golden, tmp_path):
    work = tmp_path / "outputs"
    for model in ("net-m64-vqq", "net-m8-vqq", "net-m8-vq_ft"):
        place(golden, work, model)
    scores = read_scores([work])
    assert scores.of("POPE/acc", "vqq").m.tolist() == [8, 64]
    assert scores.of("POPE/acc", "vq_ft").m.tolist() == [8]
    place(golden, work, "other-m8-vqq")
    with pytest.raises(ScoresError, match="net-m8-vqq and other-m8-vqq are both of M"):
        read_scores([work])
    models = {"other-m8-vqq": (16, "vqq")}
    scores = read_scores([work], models=models)
    assert scores.of("POPE/acc", "vqq").m.tolist() == [8, 16, 64]


def test_folders_of_launches(golden, tmp_path, work):
    """Newer versions write to T… and link the last launch's files from above."""
    newer = place(golden, tmp_path / "newer", "net-m8-vqq", "T20260818_G1234567")
    assert by_metric(read_scores([newer])) == by_metric(read_scores([work]))
    top = newer / "net-m8-vqq"
    name = "net-m8-vqq_MMStar_acc.csv"
    (top / name).symlink_to(top / "T20260818_G1234567" / name)
    assert by_metric(read_scores([newer])) == by_metric(read_scores([work]))
    place(golden, newer, "net-m8-vqq", "T20260819_G1234567")
    with pytest.raises(ScoresError) as raised:
        read_scores([newer])
    for launch in ("T20260819_G1234567", "T20260818_G1234567"):
        assert f"{launch}/net-m8-vqq_AI2D_TEST_acc.csv" in str(raised.value)
    assert "both have the scores of net-m8-vqq on AI2D_TEST" in str(raised.value)


def test_other_benchmarks_are_noted(work):
    (work / "net-m8-vqq" / "net-m8-vqq_MMBench_acc.csv").write_text("x")
    (work / "net-m8-vqq" / "net-m8-vqq_MMStar_score.json").write_text("x")
    (work / "net-m8-vqq" / "net-m8-vqq_MMStar.xlsx").write_text("x")
    scores = read_scores([work])
    (note,) = scores.notes
    assert "none of the paper's benchmarks: net-m8-vqq/net-m8-vqq_MMB" in note
    assert "MMStar_score.json" in note and "xlsx" not in note
    assert len(scores.series) == 26


def test_several_splits_are_excluded_with_their_names(work):
    file = work / "net-m8-vqq" / "net-m8-vqq_ScienceQA_TEST_acc.csv"
    file.write_text('"split","Overall"\n"dev","0.5"\n"test","0.4"\n')
    scores = read_scores([work])
    (one,) = scores.excluded
    assert one[:3] == ("vqq", "ScienceQA_TEST/Overall", 8)
    assert one.reason == "no score: 2 rows (dev, test) and none for all data"
    assert one.where == f"{file}, Overall" and len(scores.series) == 25


def test_nan_is_excluded(work):
    file = work / "net-m8-vqq" / "net-m8-vqq_MME_score.csv"
    file.write_text('"perception","reasoning"\n"","475.0"\n')
    file = work / "net-m8-vqq" / "net-m8-vqq_COCO_VAL_score.json"
    file.write_text('{"Bleu": [1, 2, 3, NaN], "ROUGE_L": 5, "CIDEr": 6}')
    scores = read_scores([work])
    excluded = [one.metric for one in scores.excluded]
    assert excluded == ["MME/Overall", "MME/Perception", "COCO_VAL/BLEU-4"]
    assert scores.of("MME/Cognition", "vqq").score.tolist() == [475.0]
    assert scores.of("COCO_VAL/BLEU-1", "vqq").score.tolist() == [1.0]


BAD = [
    (
        "MMStar_acc.csv",
        '"split","Overall"\n"none","41.7"\n',
        "is 41.7, expected a share",
    ),
    (
        "MMStar_acc.csv",
        '"split","Overall"\n"none","many"\n',
        "Overall is 'many', expect",
    ),
    ("MMStar_acc.csv", '"split","all"\n"none","0.4"\n', "columns split, all, expected"),
    ("MMStar_acc.csv", '"split","Overall"\n', "has no scores"),
    (
        "MMStar_acc.csv",
        '"split","Overall"\n"none"\n',
        "line 2: has 1 cells, expected 2",
    ),
    ("MMStar_acc.csv", '"split","Overall\n"none"', "not CSV"),
    ("POPE_score.csv", '"split","acc"\n"random","60"\n', "0 rows with split Overall"),
    ("POPE_score.csv", "split,acc\nOverall,60\nOverall,1\n", "2 rows with split Overa"),
    ("POPE_score.csv", "split,acc\nOverall,60\n", "columns split, acc, expected 'Over"),
    ("MME_score.csv", "perception\n1\n", "expected 'reasoning'"),
    ("OCRBench_score.json", "{", "not JSON"),
    ("OCRBench_score.json", "[1]", "expected a table of fields"),
    ("OCRBench_score.json", '{"Final Score": "29"}', "Final Score is '29', expected a"),
    ("OCRBench_score.json", '{"Final Score": true}', "Final Score is True"),
    ("OCRBench_score.json", "{}", "Final Score is None"),
    (
        "OCRBench_score.json",
        '{"Final Score": ' + "1" * 400 + "}",
        "Final Score is 1111.*…, expected a number",
    ),
    ("COCO_VAL_score.json", '{"Bleu": [1, 2]}', r"Bleu is \[1, 2\], expected a list"),
    ("COCO_VAL_score.json", '{"Bleu": [1, 2, 3, "4"]}', r"Bleu\[3\] is '4'"),
    ("COCO_VAL_score.json", '{"Bleu": [1, 2, 3, 4]}', "ROUGE_L is None"),
    ("OCRBench_score.json", '{"Final Score": 1001}', "is 1001, expected 0 to 1000"),
    ("TextVQA_VAL_acc.csv", '"Overall"\n"-1"\n', "is -1, expected 0 to 100"),
]


@pytest.mark.parametrize("name, text, words", BAD)
def test_files_that_vlmevalkit_does_not_write_so_are_named(work, name, text, words):
    file = work / "net-m8-vqq" / f"net-m8-vqq_{name}"
    assert file.exists()
    file.write_text(text)
    with pytest.raises(ScoresError, match=words) as raised:
        read_scores([work])
    assert str(raised.value).startswith(f"{file}")


def test_bytes_that_are_no_text_are_named(work):
    file = work / "net-m8-vqq" / "net-m8-vqq_MMStar_acc.csv"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScoresError, match="MMStar_acc.csv cannot be read"):
        read_scores([work])


def test_a_work_folder_and_a_table_are_joined(work, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("inputs,n_l,POPE/acc\nvqq,1,60\n")
    scores = read_scores([work, table])
    assert scores.of("POPE/acc", "vqq").m.tolist() == [1, 8]
