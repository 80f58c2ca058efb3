"""The page and the plots of a run, against a made-up but complete run folder."""

import base64
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image
from sklearn.datasets import load_digits

from vtscale_jax.metrics import MalformedFile, wilson_interval
from vtscale_jax.report.page import duration, find, write_report
from vtscale_jax.report.pages import data_uri, environment
from vtscale_jax.report.plots import draw_curves, draw_families
from vtscale_jax.report.run_files import read_run

# family: (correct, correct with a blank page) of 500
SCORES = {
    "read": (310, 20),
    "locate": (402, 51),
    "count": (355, 148),
    "exists": (431, 262),
    "choice": (391, 127),
    "describe": (268, 251),
}
QUESTIONS = {
    "read": ("Read all digits in order.", "4 0 7 1", "4 0 7 7"),
    "locate": ("Which digit is in row 2, column 3?", "7", "1"),
    "count": ("How many 3s are on the page?", "2", "3"),
    "exists": ("Is there an 8 on the page?", "yes", "no"),
    "choice": ("Which digit is largest?\nA. 3\nB. 9\nC. 4\nD. 1", "B", "D"),
    "describe": ("Describe <b>the page</b> & its digits.", "A page of 16 digits.", ""),
}


def family_scores(correct, blank, n=500):
    low, high = wilson_interval(correct, n)
    blank_low, blank_high = wilson_interval(blank, n)
    return {
        "n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high,
        "blank_n": n, "blank_correct": blank, "blank_accuracy": blank / n,
        "blank_low": blank_low, "blank_high": blank_high,
    }  # fmt: skip


def metric_rows():
    rng = np.random.default_rng(0)
    for step in range(10, 2001, 10):
        warm = min(1.0, step / 100)
        yield {
            "step": step,
            "split": "train",
            "loss": 3.2 * math.exp(-step / 350) + 0.35 + 0.05 * rng.standard_normal(),
            "learning_rate": 1e-3 * warm * (1 + math.cos(math.pi * step / 2000)) / 2,
            "samples_per_s": 58 + 3 * rng.standard_normal(),
            "grad_norm": None if step == 30 else 1.0,
        }
        if step % 250 == 0:
            yield {
                "step": step,
                "split": "heldout",
                "loss": 3.1 * math.exp(-step / 360) + 0.45,
                **{
                    f"accuracy/{name}": (correct / 500) * (1 - math.exp(-step / 500))
                    for name, (correct, _) in SCORES.items()
                },
            }


def make_page(path, seed):
    images = load_digits().images
    picks = np.random.default_rng(seed).integers(0, len(images), 16)
    grid = np.block([[images[i] for i in row] for row in picks.reshape(4, 4)])
    pixels = (255 - grid * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC).save(path)


def sample_rows():
    for i, family in enumerate(list(QUESTIONS) * 2):
        question, answer, wrong = QUESTIONS[family]
        correct = i % 3 != 2
        yield {
            "id": f"page-{i // 2}/{i:04d}",
            "family": family,
            "question": question,
            "answer": answer,
            "prediction": answer if correct else wrong,
            "correct": correct,
            "blank_prediction": None if i % 4 == 3 else wrong,
            "flags": [] if i % 5 else ["truncated"],
            "image": f"samples/{i // 2:04d}.png" if i < 10 else None,
        }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path) -> Path:
    """A run folder as training leaves it: 6 families, 12 samples on 5 pages."""
    (folder / "samples").mkdir(parents=True)
    config = {
        "preset": "embedded",
        "stage": "adapt",
        "inputs": "vqq",
        "num_queries": 16,
        "seed": 0,
        "data": {"name": "Digit Pages", "train_pages": 4000, "views": [1, 4]},
        "optim": {"learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.05},
        "fusion": {"width": 128, "num_layers": 4},
    }
    manifest = {
        "versions": {"python": "3.12.4", "jax": "0.10.2", "vtscale_jax": "0.1.0"},
        "device": {"platform": "cpu", "count": 2},
        "git_revision": "0f3c2a9d",
        "hashes": {"base_weights": "sha256:" + "ab" * 32},
        "duration_s": 252.4,
    }
    families = {name: family_scores(*score) for name, score in SCORES.items()}
    evaluation = {
        "step": 2000,
        "num_queries": 16,
        "families": families,
        "notes": ["read: 16 tokens hold too few digits.", "One seed only."],
    }
    write_json(folder / "config.json", config)
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "evaluation.json", evaluation)
    write_rows(folder / "metrics.jsonl", metric_rows())
    write_rows(folder / "samples.jsonl", sample_rows())
    for i in range(5):
        make_page(folder / "samples" / f"{i:04d}.png", seed=i)
    return folder


class Page(HTMLParser):
    """The parts of a page that the tests ask about."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open_tags, self.attributes, self.images = [], [], []
        self.rows, self.questions, self.sections, self.texts = [], {}, {}, []
        self.section = None
        self.feed(text)
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs.items()]
        if tag == "img":
            self.images.append(attrs)
        if tag not in self.VOID:
            self.open_tags.append((tag, attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open_tags.pop()[0] == tag

    def handle_data(self, data):
        text = " ".join(data.split())
        tags = [tag for tag, _ in self.open_tags]
        if not text or "style" in tags:
            return
        self.texts.append(text)
        if "td" in tags or ("th" in tags):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {text}".strip()
        for tag, attrs in self.open_tags:
            if "data-id" in attrs:
                self.questions.setdefault(attrs["data-id"], []).append(text)
            if tag == "section":
                self.sections.setdefault(attrs["id"], []).append(text)

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "m16-adapt")
    return folder, write_report(folder)


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run")


def test_page_is_self_contained(finished):
    folder, path = finished
    assert path == folder / "report.html"
    text = path.read_text()
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith("data:image/"), (tag, name, value[:80])
    assert (
        "url(" not in text
        and "@import" not in text
        and "http" not in text.replace("http-equiv", "")
    )
    assert not {"script", "link", "iframe"} & {tag for tag, _, _ in page.attributes}
    assert ("meta", "name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in text


def test_embedded_images_are_those_of_the_folder(finished):
    folder, path = finished
    embedded = [
        base64.b64decode(image["src"].split(",", 1)[1])
        for image in Page(path.read_text()).images
    ]
    expected = [folder / "plots/families.svg", folder / "plots/curves.svg"]
    expected += sorted((folder / "samples").iterdir())
    assert embedded == [file.read_bytes() for file in expected]
    assert all(image["alt"] for image in Page(path.read_text()).images)


def test_description_says_what_was_run(finished):
    page = Page(finished[1].read_text())
    assert "m16-adapt" in page.texts
    for fact in [
        "Stage “adapt”",
        "M = 16 vision tokens",
        "Preset “embedded”, data “Digit Pages”.",
        "up to step 2,000 on 2 × cpu in 4 min 12 s",
        "3,000 held-out questions of 6 families",
    ]:
        assert fact in page.text


def test_the_legend_names_each_kind_of_bar_once(run_dir):
    figure = draw_families(read_run(run_dir).evaluation)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["with the page", "with a blank page"]


def test_accuracy_table(finished):
    rows = {row[0]: row[1:] for row in Page(finished[1].read_text()).rows}
    read = rows["read"]
    assert read[0] == "310 / 500"
    assert read[1] == "62.0 % 57.7–66.1"
    assert read[2] == "4.0 % 2.6–6.1"
    assert read[3] == "+58.0 points"
    assert read[4] == "16 tokens hold too few digits."
    assert rows["describe"][3] == "+3.4 points intervals overlap"
    assert rows["describe"][4] == ""
    assert set(SCORES) <= set(rows)
    accuracy = " ".join(Page(finished[1].read_text()).sections["accuracy"])
    assert "One seed only." in accuracy
    assert accuracy.count("16 tokens hold too few digits") == 1


def test_every_sample_is_shown_and_marked(finished):
    page = Page(finished[1].read_text())
    rows = list(sample_rows())
    assert set(page.questions) == {row["id"] for row in rows}
    for row in rows:
        shown = page.questions[row["id"]]
        assert ("✓ right" in shown) == row["correct"]
        assert ("✗ wrong" in shown) == (not row["correct"])
        assert " ".join(row["question"].split()) in shown
        assert shown[shown.index("expected") + 1] == row["answer"]
        assert shown[shown.index("predicted") + 1] == (row["prediction"] or "nothing")
        assert ("blank page" in shown) == (row["blank_prediction"] is not None)
        assert set(row["flags"]) <= set(shown)
    assert "8 of the 12 questions shown were answered right." in page.text
    assert "2 questions without a saved page" in page.text


def test_settings_and_manifest(finished):
    rows = {row[0]: row[1:] for row in Page(finished[1].read_text()).rows}
    assert rows["optim.learning_rate"] == ["0.001"]
    assert rows["data.views"] == ["[1, 4]"]
    assert rows["hashes.base_weights"] == ["sha256:" + "ab" * 32]
    assert rows["versions.jax"] == ["0.10.2"]


def test_plots_are_drawn_and_reproducible(finished, tmp_path):
    folder, _ = finished
    for name in ("curves", "families"):
        with Image.open(folder / "plots" / f"{name}.png") as image:
            assert min(image.size) > 500
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("plots"))
    write_report(copy)
    for name in ("curves.svg", "families.svg"):
        assert (copy / "plots" / name).read_bytes() == (
            folder / "plots" / name
        ).read_bytes()


def test_plots_show_the_numbers(finished):
    run = read_run(finished[0])
    (ax,) = draw_families(run.evaluation).axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [
        score / 500 for correct, blank in SCORES.values() for score in (correct, blank)
    ]
    labels = [text.get_text() for text in ax.texts]
    assert labels == [f"{100 * height:.1f}" for height in heights]
    low, high = ax.containers[1].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(wilson_interval(310, 500))
    axes = {ax.get_title(): ax for ax in draw_curves(run.metrics).axes}
    heldout = axes["loss (log scale)"].lines[-1].get_xydata()
    expected = [(r["step"], r["loss"]) for r in metric_rows() if r["split"] != "train"]
    assert heldout == pytest.approx(np.array(expected))
    # The search for the best place depends on how busy the machine is, and warns.
    legends = [ax.get_legend() for ax in axes.values() if ax.get_legend()]
    assert len(legends) == 2 and all(legend._loc != 0 for legend in legends)
    rates = axes["learning rate"].lines[0].get_ydata()
    assert len(rates) == 200 and rates.max() == pytest.approx(1e-3, rel=0.01)


FILES = {
    "config.json": "settings",
    "manifest.json": "manifest",
    "metrics.jsonl": "curves",
    "evaluation.json": "accuracy",
    "samples.jsonl": "samples",
}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_in_its_section(finished, run_dir, name):
    assert " is missing" not in Page(finished[1].read_text()).text
    (run_dir / name).unlink()
    page = Page(write_report(run_dir).read_text())
    said = " ".join(page.sections[FILES[name]])
    assert f"{name} is missing: it is written" in said
    others = set(FILES.values()) - {FILES[name]}
    assert not any(" is missing" in " ".join(page.sections[s]) for s in others)


def test_one_file_is_enough_and_none_is_not(run_dir, tmp_path):
    for name in list(FILES)[:-1]:
        (run_dir / name).unlink()
    shutil.rmtree(run_dir / "samples")
    page = Page(write_report(run_dir).read_text())
    assert "samples/0000.png is missing" in page.text
    assert "do not say what was run" in page.text
    with pytest.raises(ValueError, match=r"holds none of config\.json"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder"):
        read_run(tmp_path / "absent")


def test_files_without_rows(run_dir):
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run_dir / name).write_text("")
    write_json(
        run_dir / "evaluation.json",
        {"step": 0, "num_queries": 1, "families": {}, "notes": []},
    )
    text = Page(write_report(run_dir).read_text()).text
    assert "metrics.jsonl holds no row yet" in text
    assert "samples.jsonl holds no row" in text
    assert "names no family" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{\n "a": 1,\n b\n}', r"config\.json, line 3"),
        ("manifest.json", "[]", r"manifest\.json, line 1: expected a JSON object"),
        ("metrics.jsonl", '{"step": 1, "split": "train"}\nx\n', r"jsonl, line 2"),
        ("metrics.jsonl", '{"split": "train"}\n', r"line 1: field 'step'"),
        (
            "metrics.jsonl",
            '{"step": 1, "split": "train", "loss": "low"}\n',
            r"line 1: field 'loss'.*'low'",
        ),
        ("samples.jsonl", '{"id": 3}\n', r"samples\.jsonl, line 1: field 'id'"),
        ("evaluation.json", '{"step": 1}', r"field 'families'"),
    ],
)
def test_malformed_files_are_named(run_dir, name, content, message):
    (run_dir / name).write_text(content)
    with pytest.raises(MalformedFile, match=message):
        write_report(run_dir)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("accuracy", 0.7, "family 'read': field 'accuracy'.*0.6200"),
        ("accuracy", 62.0, "a number from 0 to 1"),
        ("correct", 501, "0 to n = 500"),
        ("high", 0.5, "within low"),
        ("blank_low", None, "blank_low"),
    ],
)
def test_scores_that_contradict_themselves_are_refused(run_dir, field, value, message):
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    evaluation["families"]["read"][field] = value
    write_json(run_dir / "evaluation.json", evaluation)
    with pytest.raises(MalformedFile, match=message):
        write_report(run_dir)


def test_an_image_outside_the_folder_is_refused(run_dir):
    rows = list(sample_rows())
    rows[1]["image"] = "../secret.png"
    write_rows(run_dir / "samples.jsonl", rows)
    with pytest.raises(MalformedFile, match="line 2: field 'image'"):
        write_report(run_dir)


def test_find_takes_the_field_nearest_to_the_top():
    config = {"a": {"width": 1, "deep": {"stage": "no"}}, "b": {"width": 2}, "stage": 3}
    assert find(config, "stage") == 3
    assert find(config, "width") is None
    assert find(config, "absent") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(48.26, "48.3 s"), (252.4, "4 min 12 s"), (36300, "10 h 5 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vtscale_jax.report", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line(run_dir):
    done = command(str(run_dir))
    assert (done.returncode, done.stdout.strip()) == (0, str(run_dir / "report.html"))
    assert "example: python -m vtscale_jax.report runs/" in command("--help").stdout
    failed = command(str(run_dir / "nothing"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: run_dir is")
    assert failed.stdout == ""


def test_the_curves_show_where_a_curriculum_changes_m():
    rows = [
        {"step": step, "split": "train", "loss": 3 - step / 10, "num_queries": m}
        for step, m in ((1, 16), (2, 16), (3, 64), (4, 64), (5, 256))
    ]
    texts = [t.get_text().strip() for t in draw_curves(rows).axes[0].texts]
    assert texts == ["M = 16", "M = 64", "M = 256"]
    constant = [row | {"num_queries": 16} for row in rows]
    assert not draw_curves(constant).axes[0].texts


def test_only_images_are_embedded(tmp_path):
    image, text = tmp_path / "a.PNG", tmp_path / "a.txt"
    image.write_bytes(b"abc")
    assert data_uri(image) == "data:image/png;base64,YWJj"
    with pytest.raises(ValueError, match=r"ends in '.txt', expected one of .png"):
        data_uri(text)


def test_templates_escape_what_they_are_given(tmp_path):
    tmp_path.joinpath("a.html.jinja").write_text("<p>{{ name }}</p>")
    template = environment(tmp_path).get_template("a.html.jinja")
    assert template.render(name="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(UndefinedError, match="name"):
        template.render()
