"""Scores of run folders, written by the functions that write them after training."""

import json

import pytest

from vtscale_jax.eval.decoding import Answer
from vtscale_jax.eval.families import family_scores, sample_rows
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.scaling.reading import read_scores
from vtscale_jax.scaling.run_folders import read_runs
from vtscale_jax.scaling.scores import ScoresError
from vtscale_jax.types import Record, Turn

RIGHT = {"read": [True, False, False, False], "count": [True, True, False, True]}


def write_evaluation(folder, m, right, ids="page"):
    records, said = [], []
    for family, marks in right.items():
        for i, ok in enumerate(marks):
            turns = (Turn("how many ?", "3", family),)
            records.append(Record(f"{family}-{ids}-{i}", None, turns))
            said.append(Answer("3" if ok else "4", True))
    # All right on blank pages, which must not be taken for scores.
    blank = [Answer("3", True)] * len(records)
    folder.write_lines("samples.jsonl", sample_rows(records, said, blank))
    families = family_scores(records, said, blank)
    content = {"step": 9, "num_queries": m, "families": families, "notes": []}
    folder.write("evaluation.json", content)


def write_run(path, m=8, inputs="vqq", *, right=RIGHT, finished=True, **config):
    folder = RunFolder(path)
    about = {"preset": "embedded", "stage": "adapt", "data": {"name": "digit_pages"}}
    folder.write("config.json", about | {"num_queries": m, "inputs": inputs} | config)
    folder.write("manifest.json", {"finished": finished})
    write_evaluation(folder, m, right)
    return path


def write_evaluated(path, run, m=8, trained="vqq", inputs="vq", *, right=RIGHT, **more):
    folder = RunFolder(path)
    about = {"run": str(run), "num_queries": m, "trained_inputs": trained}
    folder.write("evaluated.json", about | {"inputs": inputs} | more)
    write_evaluation(folder, m, right)
    return path


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_run_is_read_by_family(tmp_path):
    run = write_run(tmp_path / "m8")
    scores = read_scores([run])
    assert scores.notes == () and scores.excluded == ()
    assert scores.metrics() == ("read", "count") and scores.inputs() == ("vqq",)
    series = scores.of("count", "vqq")
    assert series.m.tolist() == [8] and series.score.tolist() == [75.0]
    assert series.upper == 100.0 and series.n_items.tolist() == [4]
    assert series.items.tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert series.item_ids == tuple(f"count-page-{i}" for i in range(4))
    assert scores.of("read", "vqq").score.tolist() == [25.0]
    (read, _) = read_runs(run).scores
    assert read.where == f"{run}/evaluation.json, families.read"
    assert read.items == {"read-page-0": 1.0} | {
        f"read-page-{i}": 0.0 for i in (1, 2, 3)
    }


def test_a_sweep_is_three_kinds_of_inputs(tmp_path):
    for m, marks in ((1, [False] * 4), (8, [True] * 4)):
        right = RIGHT | {"count": marks}
        run = write_run(tmp_path / f"m{m}-vqq", m, right=right)
        write_run(tmp_path / f"m{m}-vq_ft", m, "vq")
        write_evaluated(tmp_path / f"m{m}-vq", run, m, finished=True)
    for name in ("logs", "cache", ".cache", "mine"):
        (tmp_path / name).mkdir()
    noted = read_scores([tmp_path]).notes
    assert noted == (f"{tmp_path}: not read, as they are no runs: cache, logs, mine",)
    (tmp_path / "sweep.json").write_text("{}")
    scores = read_scores([tmp_path])
    assert scores.inputs() == ("vqq", "vq_ft", "vq")
    assert scores.of("count", "vqq").m.tolist() == [1, 8]
    assert scores.of("count", "vqq").score.tolist() == [0.0, 100.0]
    assert scores.of("count", "vq_ft").score.tolist() == [75.0, 75.0]
    assert scores.of("count", "vqq").items.tolist() == [[0.0] * 4, [1.0] * 4]
    assert scores.notes == (f"{tmp_path}: not read, as they are no runs: mine",)


@pytest.mark.parametrize(
    "trained, inputs, kind",
    [("vqq", "vq", "vq"), ("vq", "vq", "vq_ft"), ("vqq", "vqq", "vqq")],
)
def test_kinds_of_evaluations(tmp_path, trained, inputs, kind):
    folder = write_evaluated(tmp_path / "e", "gone", 4, trained, inputs)
    # What it was evaluated with goes before the config of a run beside it.
    RunFolder(folder).write("config.json", {"num_queries": 999, "inputs": "vq"})
    scores = read_scores([folder])
    assert scores.inputs() == (kind,) and scores.series[0].m.tolist() == [4]


def test_a_setting_that_the_paper_has_not_is_refused(tmp_path):
    folder = write_evaluated(tmp_path / "e", "gone", 4, "vq", "vqq")
    with pytest.raises(ScoresError, match="trained with vq and evaluated with vqq"):
        read_scores([folder])


def test_items_in_another_order_are_matched_by_id(tmp_path):
    one = write_run(tmp_path / "m1", 1)
    two = write_run(tmp_path / "m2", 2)
    lines = (two / "samples.jsonl").read_text().splitlines()
    (two / "samples.jsonl").write_text("\n\n".join(reversed(lines)))
    series = read_scores([one, two]).of("count", "vqq")
    assert series.items.tolist() == [[1.0, 1.0, 0.0, 1.0]] * 2


def test_other_questions_drop_the_items_with_a_note(tmp_path):
    write_run(tmp_path / "m1", 1)
    folder = RunFolder(write_run(tmp_path / "m2", 2))
    write_evaluation(folder, 2, RIGHT, ids="other")
    scores = read_scores([tmp_path])
    series = scores.of("read", "vqq")
    assert series.items is None and series.n_items.tolist() == [4, 4]
    assert len(scores.notes) == 2 and "not all M were asked" in scores.notes[0]


def test_unfinished_runs_are_named(tmp_path):
    write_run(tmp_path / "m1", 1)
    late = write_run(tmp_path / "m2", 2, finished=False)
    (tmp_path / "m4").mkdir()
    (tmp_path / "m4" / "config.json").write_text("{}")
    half = write_evaluated(tmp_path / "m8", "gone", finished=False)
    scores = read_scores([tmp_path])
    assert scores.series[0].m.tolist() == [1]
    assert scores.notes == tuple(
        f"{folder}: not read, as the run is not finished"
        for folder in (late, tmp_path / "m4", half)
    )
    for only in (late, half):
        with pytest.raises(ScoresError, match="can be used.*is not finished"):
            read_scores([only])


@pytest.mark.parametrize(
    "config, words",
    [
        ({"stage": "align"}, "stage align trains no language model"),
        ({"data": {"name": "jsonl"}}, "its data are jsonl, and only digit_pages"),
        ({}, "eval.questions 0"),
    ],
)
def test_runs_that_can_have_no_scores_say_why(tmp_path, config, words):
    write_run(tmp_path / "m1", 1)
    run = write_run(tmp_path / "m2", 2, **config)
    (run / "evaluation.json").unlink()
    with pytest.raises(ScoresError, match=f"m2 has no evaluation.json: .*{words}"):
        read_scores([tmp_path])


def test_two_folders_of_one_setting_are_both_named(tmp_path):
    one = write_run(tmp_path / "a", 4)
    two = write_run(tmp_path / "b", 4)
    with pytest.raises(ScoresError, match=f"{two} and {one} are both of M = 4"):
        read_scores([tmp_path])
    with pytest.raises(ScoresError, match=f"{two}.*the first is at {one}"):
        read_scores([one, two])


def test_runs_of_two_presets_are_noted(tmp_path):
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, preset="paper")
    (note,) = read_scores([tmp_path]).notes
    assert "different presets: embedded" in note and "paper" in note


def test_fewer_queries_than_were_learnt_are_noted(tmp_path):
    run = write_run(tmp_path / "m8", 8)
    write_evaluated(tmp_path / "first", run, 2)
    (note,) = read_scores([tmp_path]).notes
    assert "M = 2 are the first of the 8 queries" in note


def counts(content, **changes):
    content["families"]["read"] |= changes


MALFORMED = [
    (
        "config.json",
        lambda c: c.update(num_queries=0),
        "num_queries is 0, expected a w",
    ),
    ("config.json", lambda c: c.update(num_queries="8"), "num_queries is '8'"),
    ("config.json", lambda c: c.update(num_queries=True), "num_queries is True"),
    ("config.json", lambda c: c.update(num_queries=10**400), "num_queries is 1000"),
    ("config.json", lambda c: c.pop("inputs"), "lacks the field inputs"),
    (
        "config.json",
        lambda c: c.update(inputs="qv"),
        "inputs are 'qv', expected one of",
    ),
    ("config.json", lambda c: c.update(preset=3), "preset is 3, expected text"),
    (
        "evaluation.json",
        lambda c: c.update(num_queries=4),
        "num_queries is 4, expected 8",
    ),
    (
        "evaluation.json",
        lambda c: c.update(families=[]),
        r"families is \[\], expected a",
    ),
    ("evaluation.json", lambda c: c.update(families={}), "families is empty"),
    ("evaluation.json", lambda c: counts(c, n=0), "families.read.n is 0"),
    ("evaluation.json", lambda c: counts(c, n=5), "read has 1 right of 5, but 1 of 4"),
    ("evaluation.json", lambda c: counts(c, correct=2), "read has 2 right of 4, but 1"),
    (
        "evaluation.json",
        lambda c: counts(c, correct=1.0),
        "families.read.correct is 1.0",
    ),
    (
        "evaluation.json",
        lambda c: c["families"]["read"].pop("n"),
        "lacks the field families.read.n",
    ),
    (
        "evaluation.json",
        lambda c: c["families"].update(read=3),
        "families.read is 3, expected a table of fields",
    ),
]


@pytest.mark.parametrize("name, edit, words", MALFORMED)
def test_malformed_files_are_named_by_field(tmp_path, name, edit, words):
    run = write_run(tmp_path / "m8")
    change(run / name, edit)
    with pytest.raises(ScoresError, match=words) as raised:
        read_scores([run])
    assert str(raised.value).startswith(f"{run / name}: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "not JSON"),
        ("[1]", "expected a table of fields"),
        ('{"id": "a", "family": "read"}', "lacks the field correct"),
        ('{"id": "a", "family": "read", "correct": 1}', "correct is 1, expected true"),
        ('{"id": 7, "family": "read", "correct": true}', "id is 7, expected text"),
        ("SAME", "id 'read-page-0' again, expected it once"),
    ],
)
def test_malformed_lines_are_named(tmp_path, text, words):
    run = write_run(tmp_path / "m8")
    lines = (run / "samples.jsonl").read_text().splitlines()
    lines[2] = lines[0] if text == "SAME" else text
    (run / "samples.jsonl").write_text("\n".join(lines))
    with pytest.raises(ScoresError, match=words) as raised:
        read_scores([run])
    assert str(raised.value).startswith(f"{run / 'samples.jsonl'}, line 3: ")


def test_samples_of_another_evaluation_are_refused(tmp_path):
    run = write_run(tmp_path / "m8")
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"id": "a", "family": "tell", "correct": true}\n')
    with pytest.raises(ScoresError, match="questions of family 'tell', which"):
        read_scores([run])
    (run / "samples.jsonl").unlink()
    with pytest.raises(ScoresError, match="samples.jsonl cannot be read"):
        read_scores([run])


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "evaluation.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"1" * 5000])
def test_files_that_are_no_json_are_named(tmp_path, name, content):
    run = write_run(tmp_path / "m8")
    (run / name).write_bytes(content)
    with pytest.raises(ScoresError, match=f"{name}.*(not JSON|expected a|cannot be)"):
        read_scores([run])


def test_runs_and_tables_make_one_series(tmp_path):
    run = write_run(tmp_path / "m8")
    table = tmp_path / "more.csv"
    table.write_text("inputs,n_l,metric,score\nvqq,1,count,50\nvqq,1,read,0\n")
    scores = read_scores([run, table])
    series = scores.of("count", "vqq")
    assert series.m.tolist() == [1, 8] and series.score.tolist() == [50.0, 75.0]
    assert series.n_items is None and series.items is None
    assert [note.split(" is not")[0] for note in scores.notes] == [
        "read (vqq): n_items",
        "read (vqq): items",
        "count (vqq): n_items",
        "count (vqq): items",
    ]
