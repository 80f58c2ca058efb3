"""Questions from descriptions: the same command gives the same bytes however often it
was stopped and however many are asked at once; with a stand-in for the language model,
with a tiny one, and with a real one."""

import functools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from vtscale_jax.data.__main__ import main
from vtscale_jax.data.augment import ledger, prompts
from vtscale_jax.data.augment.descriptions import DescriptionError
from vtscale_jax.data.augment.ledger import Ledger, RepliesError, Reply
from vtscale_jax.data.augment.run import AugmentError, Choice, augment
from vtscale_jax.data.augment.writing import LLMAuthor, Text, WritingError
from vtscale_jax.data.prepared_folder import PreparedFolderError
from vtscale_jax.records import JSONLSource, RecordError
from vtscale_jax.weights import fetch

NAME = "smollm2-135m"
YES = "Question: Is the cat on the mat?\nAnswer: Yes"


# --- the whole, with a stand-in for the model --------------------------------------


class Scripted:
    """Writes a reply that depends on the ask alone; one in four is malformed. Stops
    like a killed command after `patience` batches."""

    def __init__(self, batch_size=3, patience=10_000):
        self.batch_size, self.patience = batch_size, patience
        self.asked = []

    def prompt_ids(self, ask: prompts.Ask) -> list[int]:
        return [1] * (20 + len(ask.record_id))

    def padded_length(self, prompt: list[int]) -> int | None:
        return None if len(prompt) > 28 else 32 * (1 + len(prompt) % 2)

    def write(self, asks, ids) -> list[Text]:
        assert 0 < len(asks) <= self.batch_size
        assert len({self.padded_length(one) for one in ids}) == 1
        if not self.patience:
            raise KeyboardInterrupt
        self.patience -= 1
        self.asked += [ask.key for ask in asks]
        return [self.reply(ask) for ask in asks]

    def reply(self, ask):
        drawn = int(prompts.rng_of(7, *ask.key).integers(1 << 30))
        if drawn % 9 == 0:
            return Text(YES, ledger.CUT, 9)
        if ask.kind == "yes_no":
            body = f"Is there a thing of number {drawn % 5}?\nAnswer: Yes"
        else:
            body = (
                f"Which one is it, {drawn}?\nA. a\nB. b\nC. c\nD. {'ad'[drawn % 4 > 0]}"
            )
            body += "\nAnswer: B"
        return Text(f"Question: {body}", ledger.ENDED, 12)


def description(i, **more):
    turns = [("Describe it.", f"Number {i}: " + "a long description " * 12)]
    return record(f"svit-{i}", turns, **more)


def record(name, turns, image="vg/1.jpg", **more):
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return {"id": name, "image": image, "messages": messages, **more}


@pytest.fixture
def described(tmp_path):
    """Twelve descriptions, one beyond the model's room, and four other records."""
    turn = ("Describe it.", "x" * 200)
    rows = [description(i) for i in range(12)] + [
        record("svit-too-long", [turn]),
        record("svit-talk", [turn, turn]),
        record("svit-brief", [("Describe it.", "x" * 199)]),
        record("svit-text", [turn], image=None),
        record("other-1", [turn]),
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CHOSEN = Choice(per_description=3, source="svit")


def run(described, out, author=None, *, choice=CHOSEN, seed=0, about=None):
    about = about or {"name": "scripted"}
    return augment(described, out, author or Scripted(), about, choice, seed=seed)


def content(out):
    names = ("records.jsonl", "manifest.json", "report.json")
    return {name: (out / name).read_bytes() for name in names}


def test_augment(described, tmp_path):
    report = run(described, tmp_path / "out")
    left_out = report["descriptions"]["left_out"]
    assert report["descriptions"]["chosen"] == 13
    assert {reason: found["count"] for reason, found in left_out.items()} == {
        "more than one turn": 1,
        "answer of fewer than 200 characters": 1,
        "no image": 1,
        "id does not begin with 'svit'": 1,
    }
    source = JSONLSource(tmp_path / "out/records.jsonl", min_chars=0)
    counted = 0
    for kind in prompts.KINDS:
        found = report["questions"][kind]
        rejected = {r: one["count"] for r, one in found["rejected"].items()}
        assert found["asked"] == 13 * 3 == found["accepted"] + sum(rejected.values())
        assert rejected["prompt too long for the model"] == 3
        assert rejected["cut at --max_new_tokens"] > 0
        assert 0 < found["accepted"] == found["share_accepted"] * 39
        counted += found["accepted"]
    # All images are the same, and there are five yes/no questions in all.
    repeated = report["questions"]["yes_no"]["rejected"]
    assert report["questions"]["yes_no"]["accepted"] == 5
    assert len(repeated["the same question about the same image"]["examples"]) == 5
    assert len(source) == counted
    assert {one.image for one in source} == {"vg/1.jpg"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["records"] == counted and manifest["sha256"] == source.fingerprint
    assert set(manifest["prompts_sha256"]) == {"yes_no.txt", "choice.txt", "topics.txt"}
    shares = report["as_kept"]["choice"]
    assert sum(shares["answers"].values()) == shares["questions"] > 10


def test_balance_is_reported(described, tmp_path):
    report = run(described, tmp_path / "out", choice=CHOSEN._replace(balance=True))
    assert report["as_written"]["yes_no"]["answers"] == {"Yes": 5, "No": 0}
    assert report["as_kept"]["yes_no"]["answers"] == {"Yes": 0, "No": 0}
    assert report["questions"]["yes_no"]["left_out_for_balance"] == 5
    letters = report["as_kept"]["choice"]["answers"].values()
    assert max(letters) - min(letters) <= 1


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_any_batch_size_gives_the_same(described, tmp_path, batch_size):
    run(described, tmp_path / "a")
    run(described, tmp_path / "b", Scripted(batch_size))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_stopped_at_any_moment_it_goes_on(described, tmp_path):
    run(described, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    replies = (tmp_path / "whole/replies.jsonl").read_bytes()
    asked = len(replies.splitlines())
    for cut in sorted(random.Random(2).sample(range(len(replies)), 25)):
        out = tmp_path / f"cut-{cut}"
        out.mkdir()
        job = (tmp_path / "whole/augment.json").read_bytes()
        (out / "augment.json").write_bytes(job)
        (out / "replies.jsonl").write_bytes(replies[:cut])
        author = Scripted()
        run(described, out, author)
        assert content(out) == expected
        there = replies[:cut].count(b"\n")
        assert len((out / "replies.jsonl").read_bytes().splitlines()) == asked
        # A batch of which only a part was there is asked as a whole.
        assert len(author.asked) <= asked - there + author.batch_size


def test_interrupted_it_goes_on(described, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(described, out, Scripted(patience=4))
    assert not (out / "manifest.json").exists()
    author = Scripted()
    run(described, out, author)
    run(described, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")
    again = Scripted(patience=0)
    run(described, out, again)  # nothing is asked any more
    assert not again.asked and content(out) == content(tmp_path / "whole")


def test_more_questions_ask_only_what_is_missing(described, tmp_path):
    few, out = CHOSEN._replace(per_description=1, kinds=("choice",)), tmp_path / "out"
    run(described, out, choice=few)
    author = Scripted(batch_size=1)
    run(described, out, author)
    run(described, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")
    assert len(author.asked) == 12 * (6 - 1)


def test_limit(described, tmp_path):
    report = run(described, tmp_path / "out", choice=CHOSEN._replace(limit=2))
    assert report["descriptions"]["chosen"] == 2
    assert report["descriptions"]["left_out"]["beyond --limit"]["count"] == 11


def test_another_seed_asks_otherwise(described, tmp_path):
    choice = CHOSEN._replace(kinds=("choice",))
    run(described, tmp_path / "a", choice=choice)
    run(described, tmp_path / "b", choice=choice, seed=1)
    a, b = (content(tmp_path / name)["records.jsonl"] for name in "ab")
    assert a != b and len(a.splitlines()) == len(b.splitlines())  # options move


def test_folder_of_another_augmentation(described, tmp_path):
    run(described, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(AugmentError, match=r"seed: 0 there, 1 now"):
        run(described, tmp_path / "out", seed=1)
    with pytest.raises(AugmentError, match=r"llm.name: scripted there, other now"):
        run(described, tmp_path / "out", about={"name": "other"})
    described.write_text(described.read_text() + json.dumps(description(99)) + "\n")
    with pytest.raises(AugmentError, match="records_sha256"):
        run(described, tmp_path / "out")
    assert content(tmp_path / "out") == before
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/manifest.json").write_text("{}")
    with pytest.raises(AugmentError, match="prepared folder of something else"):
        run(described, tmp_path / "prepared")


def test_other_files_are_not_written_over(described, tmp_path):
    before = described.read_bytes()
    with pytest.raises(PreparedFolderError, match=r"not empty \(it has "):
        run(described, described.parent)
    assert described.read_bytes() == before
    assert not (described.parent / "augment.json").exists()


def test_prepared_folder_as_input(described, tmp_path):
    folder = tmp_path / "descriptions"
    folder.mkdir()
    described.rename(folder / "records.jsonl")
    with pytest.raises(PreparedFolderError, match="cannot be read"):
        run(folder, tmp_path / "out")
    (folder / "manifest.json").write_text('{"images": "/data/images"}')
    run(folder, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["images"] == "/data/images"


@pytest.mark.parametrize(
    "rows, error, part",
    [
        ([], DescriptionError, "it is empty"),
        ([record("a", [("q", "x" * 20)])], DescriptionError, "1 answer of fewer"),
        ([description(1), description(1)], DescriptionError, "'svit-1' is there twice"),
        ([description(1, image="/etc/a.jpg")], RecordError, "prepare jsonl"),
        ([{"image": "a.jpg"}], RecordError, "records.jsonl:1"),
    ],
)
def test_input_without_descriptions(tmp_path, rows, error, part):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(error, match=part):
        run(path, tmp_path / "out", choice=Choice())


def test_damaged_replies(described, tmp_path):
    run(described, tmp_path / "out")
    draw, file = random.Random(4), tmp_path / "out/replies.jsonl"
    whole, failed = file.read_bytes(), 0
    for _ in range(500):
        broken = bytearray(whole)
        broken[draw.randrange(len(broken))] = draw.randrange(256)
        file.write_bytes(broken)
        try:
            Ledger(tmp_path / "out").read()
        except RepliesError as error:
            assert "delete the line" in str(error)
            failed += 1
    assert failed > 100


def test_ledger_keeps_what_it_is_given(tmp_path):
    kept = Ledger(tmp_path)
    replies = [Reply("é\n", "choice", n, "“text”\u2028", "ended", 3) for n in range(3)]
    with kept.writing():
        kept.append(replies[:2])
    with kept.file.open("ab") as file:
        file.write(b'{"record_id": "torn')
    with kept.writing():
        kept.append(replies[2:])
    assert list(kept.read().values()) == replies


# --- with a language model ---------------------------------------------------------


class Letters:
    """A tokenizer of 22 letters, with a chat template of sorts: of the prompt, only
    what is described."""

    chat_template = "there is one"

    def apply_chat_template(self, asked, *, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        first_line, *_ = asked[-1]["content"].splitlines()
        return first_line.removeprefix("A picture: ")

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [1 + ord(letter) % 22 for letter in text]

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(96 + token) for token in ids)


@pytest.fixture(scope="module")
def tiny_model():
    import jax
    import jax.numpy as jnp
    from tiny import model_config

    from vtscale_jax.llm import LLM

    config = model_config().llm

    def init(llm, ids):
        return llm.logits(llm(llm.embed(ids), ids >= 0).hidden)

    ids = jnp.zeros((1, 4), jnp.int32)
    params = LLM(config).init(jax.random.key(0), ids, method=init)["params"]
    return SimpleNamespace(
        where="tiny",
        config=config,
        params=params,
        tokenizer=Letters(),
        end_ids=(2,),
        limit=200,
    )


def author_of(model, batch_size=3, **more):
    fields = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 0}
    return LLMAuthor(model, batch_size=batch_size, **{**fields, **more})


def tiny_asks(number=7):
    lengths = [3 + 7 * i for i in range(number)]  # across two padded lengths
    return [
        prompts.Ask(f"r{i}", "yes_no", 0, "x" * length, "it", "Yes")
        for i, length in enumerate(lengths)
    ]


def written(author, asks):
    found = {}
    for length in (32, 64):
        group = [
            a for a in asks if author.padded_length(author.prompt_ids(a)) == length
        ]
        for start in range(0, len(group), author.batch_size):
            batch = group[start : start + author.batch_size]
            texts = author.write(batch, [author.prompt_ids(one) for one in batch])
            found |= {one.key: text for one, text in zip(batch, texts, strict=True)}
    assert len(found) == len(asks)
    return found


def test_replies_do_not_depend_on_the_batch(tiny_model):
    asks = tiny_asks()
    first = written(author_of(tiny_model), asks)
    assert written(author_of(tiny_model), asks) == first
    for batch_size in (1, 2, 7):
        assert written(author_of(tiny_model, batch_size), asks) == first
    assert written(author_of(tiny_model), asks[::-1]) == first
    assert {text.state for text in first.values()} == {ledger.ENDED, ledger.CUT}
    # Controls: the seed decides, and so does which question it is.
    assert written(author_of(tiny_model, seed=1), asks) != first
    other = [ask._replace(number=1) for ask in asks]
    assert list(written(author_of(tiny_model), other).values()) != list(first.values())
    greedy = author_of(tiny_model, temperature=0.0)
    assert list(written(greedy, other).values()) == list(written(greedy, asks).values())


def test_replies_are_those_of_generate(tiny_model):
    import jax
    import jax.numpy as jnp

    from vtscale_jax.generate import generate

    ask = tiny_asks(1)[0]
    author = author_of(tiny_model, temperature=0.0)
    ids = jnp.array([author.prompt_ids(ask)], jnp.int32)
    same = {"config": tiny_model.config, "max_new_tokens": 12, "eos_ids": (2,)}
    greedily = jax.jit(functools.partial(generate, **same))
    made = greedily(tiny_model.params, ids, jnp.ones_like(ids, bool))
    (text,) = author.write([ask], [author.prompt_ids(ask)])
    expected = [token for token in np.asarray(made[0]).tolist() if token != 2]
    assert text.text == "Question:" + Letters().decode(expected, True)
    assert text.tokens == len(expected)


def test_prompts_beyond_the_models_positions(tiny_model):
    author = author_of(tiny_model)
    assert author.padded_length([1] * 188) == 256
    assert author.padded_length([1] * 189) is None


def test_model_without_chat_template(tiny_model):
    base = SimpleNamespace(**{**vars(tiny_model), "tokenizer": SimpleNamespace()})
    base.tokenizer.chat_template = None
    with pytest.raises(WritingError, match="instruction-tuned"):
        author_of(base)


def test_command_says_what_is_wrong(described, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    absent = ["--llm", str(tmp_path / "absent")]
    assert main(["augment", str(described), *out, *absent]) == 1
    assert "--llm" in capsys.readouterr().err
    assert main(["augment", str(tmp_path / "no.jsonl"), *out, *absent]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["augment", str(described), *out, *absent, "--kinds", "open"]) == 1
    assert "expected some of yes_no, choice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.skipif(
    fetch.find(NAME) is None, reason=f"run: python -m vtscale_jax.weights fetch {NAME}"
)
def test_command_with_a_real_model(tmp_path, capsys):
    text = (
        "A wooden kitchen table stands by a window. On it are three green apples in a "
        "blue bowl and an open newspaper. A grey cat lies on the chair on the left and "
        "looks at a bird outside. A young man in a striped apron washes the dishes."
    )
    path = tmp_path / "records.jsonl"
    rows = [record("svit-1", [("Describe it.", text)])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = []
    for batch_size in (1, 4):
        out = tmp_path / f"out-{batch_size}"
        given = ["--max_new_tokens", "64", "--batch_size", str(batch_size)]
        command = ["augment", str(path), "--llm", NAME, "--out", str(out), *given]
        assert main([*command, "--dtype", "float32"]) == 0
        made.append(content(out))
    assert made[0] == made[1]
    report = json.loads(made[0]["report.json"])
    accepted = sum(found["accepted"] for found in report["questions"].values())
    rejected = sum(
        reason["count"]
        for found in report["questions"].values()
        for reason in found["rejected"].values()
    )
    assert accepted + rejected == 4 and accepted > 0
    source = JSONLSource(tmp_path / "out-1/records.jsonl")
    assert len(source) == accepted
    assert "accepted of 2 asked" in capsys.readouterr().out
