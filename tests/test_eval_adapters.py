"""Models of this package inside VLMEvalKit and lmms-eval, registered without patching.

Where a harness is installed its own base classes are used, else stand-ins with their
documented interface; the summary says which.
"""

import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import ROOT
from small_runs import small_config

from vtscale_jax.eval.models import Answer, AnsweringModel, Question
from vtscale_jax.train import train
from vtscale_jax.trained import RunError

HARNESSES = ("vlmeval", "lmms_eval")
INSTALLED = {name for name in HARNESSES if importlib.util.find_spec(name)}
sys.path.append(str(Path(__file__).parent / "harness_stand_ins"))  # after installed

from lmms_eval.api.instance import Instance  # noqa: E402
from lmms_eval.models.registry_v2 import ModelRegistryV2  # noqa: E402
from vlmeval.config import supported_VLM  # noqa: E402

from vtscale_jax.eval.adapters.__main__ import main, parse  # noqa: E402
from vtscale_jax.eval.adapters.lmms_eval import (  # noqa: E402
    AnsweringLmms,
    VTScaleLmms,
)
from vtscale_jax.eval.adapters.opening import (  # noqa: E402
    AdapterError,
    name_of,
    open_run,
)
from vtscale_jax.eval.adapters.vlmevalkit import (  # noqa: E402
    AnsweringVLM,
    VTScaleModel,
    limit_of,
    register,
)

PAPER = dict.fromkeys(
    (
        *("MME", "HallusionBench", "POPE", "COCO_VAL", "RealWorldQA", "MMStar"),
        *("SEEDBench_IMG", "SEEDBench2", "SEEDBench2_Plus", "ScienceQA_TEST"),
        "AI2D_TEST",
    ),
    32,
) | {"OCRBench": 512, "OCRVQA_TESTCORE": 100, "ChartQA_TEST": 100, "TextVQA_VAL": 10}
RED, BLUE = (255, 0, 0), (0, 0, 255)


class Echo(AnsweringModel):
    """Answers with what it was asked; raises at the word `fail`."""

    batch_size = 3
    batches_at_once = 1
    identity = {"kind": "echo"}

    def __init__(self):
        self.batches: list[list[Question]] = []

    def prepare(self, questions):
        return lambda: self._answer(questions)

    def _answer(self, questions):
        assert 1 <= len(questions) <= self.batch_size
        (_,) = {question.max_new_tokens for question in questions}  # as RunModel does
        self.batches.append(list(questions))
        if any(question.text == "fail" for question in questions):
            raise RuntimeError("too long for this model")
        return [
            Answer(f" it says: {one.text} ", True, 7 + len(one.text), 4, 1)
            for one in questions
        ]


def picture(file: Path, color=RED, mode="RGB") -> Path:
    Image.new(mode, (6, 4), color).save(file)
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two queries that has learnt nothing, but says something."""
    folder = tmp_path_factory.mktemp("adapters") / "m2-embedded"
    more = {"weights__llm": "embedded", "model__llm__blocks__num_layers": 4}
    train(small_config(2, optim__steps=1, data__num_records=16, **more), folder)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Images of which no two are alike."""
    folder, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(5)
    files = [folder / f"{i}.png" for i in range(4)]
    for file in files:
        noise = rng.integers(0, 256, (60, 40, 3), np.uint8)
        Image.fromarray(noise).save(file)
    return files


@pytest.fixture
def models():
    """VLMEvalKit's table of models, put back afterwards."""
    before = dict(supported_VLM)
    yield supported_VLM
    supported_VLM.clear()
    supported_VLM.update(before)


@pytest.mark.parametrize("name", HARNESSES)
def test_the_harness_is_the_installed_one(name):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: a stand-in with its interface was used")
    found = importlib.util.find_spec(name)
    assert found is not None and "harness_stand_ins" not in str(found.origin)


# VLMEvalKit


def test_a_message_becomes_a_question(tmp_path):
    echo = Echo()
    model = AnsweringVLM(echo)
    first = picture(tmp_path / "a.png", (*RED, 0), "RGBA")
    second = picture(tmp_path / "b.jpg", BLUE)
    message = [
        {"type": "image", "value": str(first)},
        {"type": "text", "value": "which of"},
        {"type": "image", "value": str(second)},
        {"type": "text", "value": "both is red?\n"},
    ]
    said = model.generate(message=message, dataset="ChartQA_TEST")
    assert said == "it says: which of\nboth is red?"
    ((question,),) = echo.batches
    assert (
        question.text == "which of\nboth is red?\n" and question.max_new_tokens == 100
    )
    assert [image.mode for image in question.images] == ["RGB", "RGB"]
    seen = [image.getpixel((1, 1)) for image in question.images]
    assert seen[0] == RED and np.allclose(seen[1], BLUE, atol=3)
    # The harness's short forms: a text alone, and paths among texts.
    assert model.generate("yes or no?") == "it says: yes or no?"
    assert model.generate([str(second), "what is it?"]) == "it says: what is it?"
    assert [len(q.images) for (q,) in echo.batches] == [2, 0, 1]
    assert not model.use_custom_prompt("MMStar")


def test_images_left_out_are_told_once(tmp_path, caplog):
    model = AnsweringVLM(Echo())
    files = [str(picture(tmp_path / f"{i}.png")) for i in range(2)]
    model.generate([files[0], "one"], "MMStar")
    assert not caplog.records
    for _ in range(2):
        model.generate([*files, "two"], "MMStar")
    (record,) = caplog.records
    assert "2 images" in record.getMessage() and "first 1" in record.getMessage()


def test_limits_are_the_papers():
    assert len(PAPER) == 15
    assert {name: limit_of(name) for name in PAPER} == PAPER
    assert limit_of("MMBench_DEV_EN") == limit_of("AMBER") == 32
    assert limit_of("DocVQA_VAL") == limit_of(None) == 512


def test_nothing_that_fails_becomes_an_answer(tmp_path):
    echo = Echo()
    model = AnsweringVLM(echo)
    with pytest.raises(RuntimeError, match="too long for this model"):
        model.generate("fail", "POPE")
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture(tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(AdapterError, match="broken.png: cannot be read as an image"):
        model.generate_inner([{"type": "image", "value": str(broken)}], "POPE")
    with pytest.raises(AdapterError, match="gone.png"):
        model.generate_inner([{"type": "image", "value": "gone.png"}], "POPE")
    with pytest.raises(AdapterError, match="MVBench has parts of type video"):
        model.generate_inner([{"type": "video", "value": "a.mp4"}], "MVBench")
    assert len(echo.batches) == 1


def test_registering_adds_one_model_and_opens_nothing(models):
    before = dict(models)
    register("m2-vqq", "no such run", num_queries=2)
    assert models.keys() - before.keys() == {"m2-vqq"}
    assert all(models[name] is made for name, made in before.items())
    with pytest.raises(RunError, match="no such run"):
        models["m2-vqq"]()
    with pytest.raises(AdapterError, match="has a model 'm2-vqq'"):
        register("m2-vqq", "another run")


# What VLMEvalKit's run.py does with a model, for one data set and one question.
SCRIPT = """
import argparse, json
from vlmeval.config import supported_VLM
import beside

parser = argparse.ArgumentParser()
for option in ("--data", "--model", "--judge"):
    parser.add_argument(option, nargs="+")
options = parser.parse_args()
assert __name__ == "__main__"
(name,) = options.model
model = supported_VLM[name]()
made = [
    model.generate([page, "what is here ?"], dataset=options.data[0])
    for page in beside.PAGES
]
beside.OUT.write_text(json.dumps({name: made}))
"""


def test_the_command_runs_the_script_on_the_run(run, pages, models, tmp_path, capsys):
    script, out = tmp_path / "run.py", tmp_path / "made.json"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text(
        f"from pathlib import Path\nPAGES = {list(map(str, pages))}\n"
        f"OUT = Path({str(out)!r})\n"
    )
    before = list(sys.argv), list(sys.path)
    rest = ["--", str(script), "--data", "TextVQA_VAL"]
    asked = ["--run", str(run), "--inputs", "vq", "--num_queries", "1", *rest]
    assert main([*asked, "--judge", "exact_matching"]) == 0
    said = capsys.readouterr().out
    assert "m1-embedded-vq" in said and "note:" not in said
    assert (list(sys.argv), list(sys.path)) == before
    ((name, made),) = json.loads(out.read_text()).items()
    assert name == name_of(run, inputs="vq", num_queries=1) == "m1-embedded-vq"
    # One by one through VLMEvalKit says what this package's own evaluation does.
    model = open_run(run, inputs="vq", num_queries=1, batch_size=4)
    images = [Image.open(page).convert("RGB") for page in pages]
    direct = model.answer([Question((i,), "what is here ?", 10) for i in images])
    assert made == [answer.text for answer in direct] and any(made)
    assert {answer.vision_tokens for answer in direct} == {1}
    # The same question, but for all queries, is another model, under another name.
    assert name_of(run) == "m2-embedded-vqq"
    assert main(["--run", str(run), "--name", "other-m2-vqq", *rest]) == 0
    assert "without --judge exact_matching" in capsys.readouterr().out
    ((name, other),) = json.loads(out.read_text()).items()
    assert name == "other-m2-vqq" and name in models and len(other) == len(pages)


def test_the_command_refuses(run, models, tmp_path, capsys, monkeypatch):
    script = tmp_path / "run.py"
    script.write_text("raise ValueError('of the script')")
    rest = ["--", str(script), "--data", "POPE"]
    assert main(["--run", str(tmp_path), *rest]) == 1
    assert "no config.json" in capsys.readouterr().err
    assert main(["--run", str(run), "--num_queries", "3", *rest]) == 1
    assert "learnt 2 queries" in capsys.readouterr().err
    assert main(["--run", str(run), "--name", next(iter(models)), *rest]) == 1
    assert "choose another --name" in capsys.readouterr().err
    with pytest.raises(ValueError, match="of the script"):
        main(["--run", str(run), *rest])
    with monkeypatch.context() as without:
        without.setattr(sys, "path", [])
        for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"]:
            without.delitem(sys.modules, name)
        assert main(["--run", str(run), *rest]) == 1
    assert "run.py: no package vlmeval lies beside it" in capsys.readouterr().err
    capsys.readouterr()
    for words, said in (
        (["--run", "x"], "say after --"),
        (["--run", "x", "--", str(tmp_path / "gone.py")], "no such file"),
        (["--run", "x", *rest, "--model", "llava"], "leave --model out"),
        (["--run", "x", *rest, "--config=a.json"], "leave --config out"),
    ):
        with pytest.raises(SystemExit):
            parse(words)
        assert said in capsys.readouterr().err
    with pytest.raises(AdapterError, match="inputs is 'qv'"):
        VTScaleModel(run, inputs="qv")


# lmms-eval


def request(i, text, docs=None, task="pope", **gen_kwargs):
    """A request as lmms-eval makes it; `docs` is looked up by `doc_to_visual`."""
    arguments = (text, gen_kwargs, lambda doc: doc["visuals"], i, task, "test")
    meta = {"task": task, "doc_id": i, "repeats": 1}
    return Instance("generate_until", arguments, i, metadata=meta)


def asked_of(model, docs, task="pope"):
    model.task_dict = {task: {"test": [{"visuals": doc} for doc in docs]}}
    return model


def test_answers_keep_their_order_and_limits_go_together():
    echo = Echo()
    limits = [16, 5, 16, 16, 5, None, 16]
    model = asked_of(AnsweringLmms(echo), [[]] * len(limits))
    requests = [
        request(i, f"q{i}", **({"max_new_tokens": n} if n else {}))
        for i, n in enumerate(limits)
    ]
    made = model.generate_until(requests)
    assert [one.text for one in made] == [f"it says: q{i}" for i in range(7)]
    assert [one.token_counts.input_tokens for one in made] == [9] * 7
    found = [
        (batch[0].max_new_tokens, [q.text for q in batch]) for batch in echo.batches
    ]
    assert found == [
        (16, ["q0", "q2", "q3"]),
        (16, ["q6"]),
        (5, ["q1", "q4"]),
        (1024, ["q5"]),
    ]
    assert (model.rank, model.world_size, model.is_simple) == (0, 1, True)
    assert model.generate_until([]) == []


@pytest.mark.parametrize(
    "until, said",
    [
        (["\n\n"], "it says: one\ntwo"),
        (["three", "two"], "it says: one"),
        ("\n", "it says: one"),
        ([], "it says: one\ntwo\n\nthree"),
        (None, "it says: one\ntwo\n\nthree"),
        (["four"], "it says: one\ntwo\n\nthree"),
    ],
)
def test_answers_end_before_stop_texts(until, said):
    model = asked_of(AnsweringLmms(Echo()), [[]])
    (made,) = model.generate_until([request(0, "one\ntwo\n\nthree", until=until)])
    assert made.text == said


@pytest.mark.parametrize(
    "gen_kwargs, said",
    [
        ({"temperature": 0.2}, "temperature 0.2"),
        ({"do_sample": True}, "do_sample True"),
        ({"temperature": 0, "num_beams": 3}, "num_beams 3"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"until": ["a", ""]}, "at least one character"),
    ],
)
def test_what_is_not_greedy_is_refused_before(gen_kwargs, said):
    echo = Echo()
    model = asked_of(AnsweringLmms(echo), [[], []])
    with pytest.raises(AdapterError, match="task pope.*") as raised:
        model.generate_until([request(0, "fine"), request(1, "not", **gen_kwargs)])
    assert said in str(raised.value) and not echo.batches


def test_greedy_settings_are_taken():
    model = asked_of(AnsweringLmms(Echo()), [[]])
    greedy = {"temperature": 0.0, "do_sample": False, "num_beams": 1, "top_p": 1.0}
    more = {"image_aspect_ratio": "original", "until": ["\n\n"]}
    (made,) = model.generate_until([request(0, "q", **greedy, **more)])
    assert made.text == "it says: q"


def test_visuals_are_images(tmp_path, caplog):
    echo = Echo()
    file = picture(tmp_path / "a.png", BLUE)
    grey = Image.new("L", (3, 3), 9)
    docs = [None, [], grey, [str(file)], [[grey, file]], [{"array": [0.0]}], ["a.mp4"]]
    model = asked_of(AnsweringLmms(echo), docs)
    made = model.generate_until([request(i, f"q{i}") for i in range(5)])
    assert len(made) == 5
    seen = [q.images for batch in echo.batches for q in batch]
    assert [len(images) for images in seen] == [0, 0, 1, 1, 2]
    assert [i.getpixel((0, 0)) for i in seen[4]] == [(9, 9, 9), BLUE]
    (record,) = caplog.records
    assert "1 of 5 questions have more images" in record.getMessage()
    with pytest.raises(AdapterError, match="task pope, split test, item 5: .* dict"):
        model.generate_until([request(5, "sound")])
    with pytest.raises(AdapterError, match="item 6: a.mp4: cannot be read as an image"):
        model.generate_until([request(6, "video")])


def test_failures_and_other_requests_are_errors():
    model = asked_of(AnsweringLmms(Echo()), [[]])
    with pytest.raises(RuntimeError, match="too long for this model"):
        model.generate_until([request(0, "fail")])
    with pytest.raises(NotImplementedError, match="no likelihoods.*by seedbench_ppl"):
        model.loglikelihood([request(0, "a", task="seedbench_ppl")])
    with pytest.raises(NotImplementedError, match="one question at a time"):
        model.generate_until_multi_round([request(0, "a")])


def test_the_model_is_found_by_the_entry_point(tmp_path, monkeypatch):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = points["entry-points"]["lmms_eval.models"]
    lines = "\n".join(f"{name} = {value}" for name, value in declared.items())
    about = tmp_path / "made_up-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\n")
    (about / "entry_points.txt").write_text(f"[lmms_eval.models]\n{lines}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    assert registry.get_model_class("vtscale") is VTScaleLmms


TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function colours.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 7, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def test_lmms_eval_scores_a_task(tmp_path, monkeypatch):
    if "lmms_eval" not in INSTALLED:
        pytest.skip("lmms_eval is not installed: none of its tasks was run")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    file, data = picture(tmp_path / "a.png", BLUE), tmp_path / "data.json"
    rows = [
        {"question": f"q{i}", "answer": f"it says: q{min(i, 3)}", "file": str(file)}
        for i in range(5)
    ]
    data.write_text(json.dumps(rows))
    (tmp_path / "colours.yaml").write_text(TASK.format(data=data))
    (tmp_path / "colours.py").write_text("def visual(doc):\n    return [doc['file']]\n")
    echo = Echo()
    found = simple_evaluate(
        model=AnsweringLmms(echo),
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found["results"]["colours"]["exact_match,none"] == pytest.approx(4 / 5)
    assert [len(batch) for batch in echo.batches] == [3, 2]
    asked = [question for batch in echo.batches for question in batch]
    assert {question.max_new_tokens for question in asked} == {7}
    assert {q.images[0].getpixel((0, 0)) for q in asked} == {BLUE}
    counts = [
        one["token_counts"][0]["input_tokens"] for one in found["samples"]["colours"]
    ]
    assert counts == [9] * 5


def test_the_run_answers_in_lmms_eval(run, pages):
    model = VTScaleLmms.create_from_arg_string(
        f"run={run},num_queries=1,inputs=vq", {"batch_size": "4", "device": None}
    )
    asked_of(model, [[Image.open(page)] for page in pages])
    made = model.generate_until(
        [request(i, "what is here ?", max_new_tokens=10) for i in range(len(pages))]
    )
    alone = open_run(run, inputs="vq", num_queries=1)
    for page, one in zip(pages, made, strict=True):
        image = Image.open(page).convert("RGB")
        (direct,) = alone.answer([Question((image,), "what is here ?", 10)])
        assert one.text == direct.text
        assert one.token_counts.input_tokens == direct.prompt_tokens


@pytest.mark.parametrize(
    "given, said",
    [
        ({"batch_size": "auto"}, "--batch_size auto"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"max_batch_size": 8}, "no maximum"),
        ({"device": "cuda"}, "--device cuda: leave it out"),
        ({"inputs": "qv"}, "inputs is 'qv'"),
    ],
)
def test_what_has_no_meaning_here_is_refused(given, said):
    with pytest.raises(AdapterError) as raised:
        VTScaleLmms("a run", **given)
    assert said in str(raised.value)


def test_one_process_drives_all_devices(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AdapterError, match="without accelerate or torchrun"):
        VTScaleLmms("a run")
