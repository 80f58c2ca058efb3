"""Cleaning of document texts: each criterion by hand, and all against a plain version.

The encoder is a stand-in wherever the embedding itself is not what is tested.
"""

import json
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vtscale_jax.data.__main__ import main
from vtscale_jax.data.clean import questions
from vtscale_jax.data.clean.criteria import (
    DISSIMILAR,
    LENGTHS_APART,
    PRESETS,
    REPETITIVE,
    TOO_SHORT,
    Measured,
    ThresholdError,
    Thresholds,
    distinct_share,
    length_gap,
    measure,
    rejection,
    words,
)
from vtscale_jax.data.clean.encoders import (
    EncoderError,
    HashedWords,
    HiddenStates,
    cosines,
    open_encoder,
)
from vtscale_jax.data.clean.pairs import (
    DUPLICATE,
    MALFORMED,
    PairsError,
    RowError,
    parse_pair,
)
from vtscale_jax.data.clean.run import TOO_MANY, CleanError, clean
from vtscale_jax.data.prepared_folder import PreparedFolderError
from vtscale_jax.records import JSONLSource
from vtscale_jax.run_folder import held

MAIN = PRESETS["main"]
FINE = Measured(100, 100, 0.5, 0.0, 0.9)


class Angles:
    """A text's vector is at the angle whose cosine its last word says."""

    name, truncated = "angles", 0

    def __init__(self):
        self.seen = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.seen += texts
        cosine = np.array([float(text.split()[-1]) for text in texts])
        return np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1).astype(np.float32)


def distinct(number, stem="w"):
    return " ".join(f"{stem}{i}" for i in range(number))


def write_pairs(path, pairs):
    rows = [{"image": i, "src": s, "generated": g} for i, s, g in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- words ------------------------------------------------------------------------


def test_words_are_nltks():
    from nltk.tokenize import word_tokenize

    sentences = ["He can't pay $3.50 (or 20%), can he?", 'It "works", they say.']
    expected = [w for s in sentences for w in word_tokenize(s, preserve_line=True)]
    assert words("\n " + " ".join(sentences) + " ") == expected
    assert "ca" in expected and "n't" in expected


def test_untrained_punkt_splits_abbreviations():
    # What the docstring says; the trained splitter keeps "Mr." whole.
    assert words("Mr. Smith came.") == ["Mr", ".", "Smith", "came", "."]
    # Within a line no full stop but the last is taken off, sentence splitter aside.
    assert words("see v1.2 here") == ["see", "v1.2", "here"]


# --- criteria ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, window, expected",
    [
        (list("aabb"), 4, 0.5),
        (list("abcdaaaa"), 4, 0.25),  # only the last ones count
        (list("abc"), 256, 1.0),
        ([], 256, 0.0),
        (["a"] * 22 + ["b", "c", "d"], 25, 4 / 25),
    ],
)
def test_distinct_share(tokens, window, expected):
    assert distinct_share(tokens, window) == expected


@pytest.mark.parametrize(
    "a, b, gap", [(8, 10, 0.2), (10, 8, 0.2), (5, 5, 0.0), (0, 4, 1.0), (0, 0, 0.0)]
)
def test_length_gap(a, b, gap):
    assert length_gap(a, b) == gap


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"generated_tokens": 9}, TOO_SHORT),
        ({"original_tokens": 9}, TOO_SHORT),
        ({"generated_tokens": 10, "original_tokens": 10}, None),
        ({"distinct": 0.1199}, REPETITIVE),
        ({"distinct": 0.12}, None),
        ({"distinct": 3 / 25}, None),  # equality in the arithmetic that is used
        ({"length_gap": 0.2001}, LENGTHS_APART),
        ({"length_gap": 2 / 10}, None),
        ({"length_gap": 12 / 60}, None),
        ({"similarity": 0.6999}, DISSIMILAR),
        ({"similarity": 0.7}, None),
        ({"similarity": None}, None),
        # In the specification's order.
        ({"generated_tokens": 1, "distinct": 0.0, "length_gap": 1.0}, TOO_SHORT),
        ({"distinct": 0.0, "length_gap": 1.0, "similarity": 0.0}, REPETITIVE),
        ({"length_gap": 1.0, "similarity": 0.0}, LENGTHS_APART),
    ],
)
def test_rejection(change, reason):
    assert rejection(FINE._replace(**change), MAIN) == reason


def test_presets_are_the_specifications():
    table = {
        name: (
            p.min_tokens,
            p.min_distinct,
            p.window,
            p.max_length_gap,
            p.min_similarity,
        )
        for name, p in PRESETS.items()
    }
    assert table == {
        "class_default": (10, 0.12, 256, 0.1, 0.5),
        "main": (10, 0.12, 256, 0.2, 0.7),
        "formula": (10, 0.12, 256, 0.7, 0.5),
    }


@pytest.mark.parametrize(
    "field, value",
    [
        ("min_tokens", 0),
        ("window", 0),
        ("min_distinct", 1.5),
        ("min_distinct", float("nan")),
        ("max_length_gap", -0.1),
        ("min_similarity", 2.0),
    ],
)
def test_thresholds_are_checked(field, value):
    with pytest.raises(ThresholdError, match=f"--{field} is"):
        Thresholds(**{field: value})


def test_repetition_is_of_the_generated_text():
    endless = "and so on " * 100
    assert rejection(measure(endless, distinct(300), 256), MAIN) == REPETITIVE
    # The authors' class swaps the two: the same pair the other way round passes here.
    assert rejection(measure(distinct(300), endless, 256), MAIN) is None


def plain_rejection(generated, original, similarity, limits):
    """The criteria once more, from the specification's table, with other means."""
    ours, theirs = generated.split(), original.split()
    if len(ours) < limits.min_tokens or len(theirs) < limits.min_tokens:
        return TOO_SHORT
    last = ours[max(0, len(ours) - limits.window) :]
    different = []
    for word in last:
        if word not in different:
            different.append(word)
    # Exact, in thousandths and hundredths: no rounding.
    if len(different) * 1000 < round(limits.min_distinct * 1000) * len(last):
        return REPETITIVE
    short, long = sorted([len(ours), len(theirs)])
    if (long - short) * 1000 > round(limits.max_length_gap * 1000) * long:
        return LENGTHS_APART
    return DISSIMILAR if similarity < limits.min_similarity else None


@pytest.mark.parametrize("preset", PRESETS)
def test_against_a_plain_version(preset):
    draw, limits, seen = random.Random(3), PRESETS[preset], set()
    for _ in range(2000):
        size = draw.choice([9, 10, 11, 25, 50, 100, 300])
        names = draw.choice([1, 2, 3, 6, 12, 30, 300])
        ours = " ".join(f"w{draw.randrange(names)}" for _ in range(size))
        change = draw.choice([1.0, 0.9, 0.8, 0.3, 0.25])
        theirs = distinct(max(1, round(size * change)))
        similarity = draw.choice([0.3, 0.49, 0.5, 0.6, 0.7, 0.71, 1.0])
        values = measure(ours, theirs, limits.window)._replace(similarity=similarity)
        expected = plain_rejection(ours, theirs, similarity, limits)
        assert rejection(values, limits) == expected, (ours, theirs, similarity)
        seen.add(expected)
    assert seen == {None, TOO_SHORT, REPETITIVE, LENGTHS_APART, DISSIMILAR}


# --- encoders ---------------------------------------------------------------------


def test_cosines():
    a = np.array([[1, 0], [1, 1], [3, 4], [0, 0]], np.float32)
    b = np.array([[0, 1], [2, 2], [4, 3], [1, 1]], np.float32)
    assert cosines(a, b) == pytest.approx([0, 1, 24 / 25, 0])
    b[1, 1] = np.nan
    with pytest.raises(EncoderError, match="NaN"):
        cosines(a, b)


def test_hashed_words():
    texts = ["the cat sat down", "down SAT the, cat!", "quarterly revenue x", "%%"]
    vectors = HashedWords().encode(texts)
    assert vectors.shape == (4, 4096)
    first = np.repeat(vectors[:1], 4, axis=0)
    assert cosines(first, vectors) == pytest.approx([1, 1, 0, 0], abs=1e-6)


def test_mpnet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EncoderError, match="pip install sentence-transformers"):
        open_encoder("mpnet")


@pytest.mark.parametrize("name", ["", "llm:", "tfidf"])
def test_unknown_encoder(name):
    with pytest.raises(EncoderError, match="expected one of mpnet, hashed_words"):
        open_encoder(name, lambda *_, **__: None)


def test_hidden_states_are_means(tiny_language_model):
    model, identity = tiny_language_model
    encoder = HiddenStates("llm:tiny", model, identity)
    texts = ["a", "some words", "x" * 40, "", "some words"]
    vectors = encoder.encode(texts)
    assert encoder.truncated == 0
    assert not vectors[3].any()
    assert np.array_equal(vectors[1], vectors[4])
    # Alone, and so in another group and with other neighbours.
    for text, vector in zip(texts, vectors, strict=True):
        assert encoder.encode([text])[0] == pytest.approx(vector, abs=1e-5)
    by_hand = np.mean(hidden_states(model, "some words"), axis=0)
    assert vectors[1] == pytest.approx(by_hand, abs=1e-5)
    assert abs(vectors[0] - vectors[1]).max() > 1e-2
    encoder.encode(["y" * 600, "y" * 600 + "z"])
    assert encoder.truncated == 2


def hidden_states(model, text):
    import jax.numpy as jnp

    from vtscale_jax.llm import LLM

    ids = jnp.array([model.tokenizer.encode(text)], jnp.int32)

    def run(llm, ids):
        return llm(llm.embed(ids), ids >= 0).hidden

    variables = {"params": model.params}
    return np.asarray(LLM(model.config).apply(variables, ids, method=run))[0]


@pytest.fixture(scope="module")
def tiny_language_model():
    import jax
    import jax.numpy as jnp
    from tiny import model_config

    from vtscale_jax.llm import LLM

    config = model_config().llm

    def init(llm, ids):
        return llm(llm.embed(ids), ids >= 0)

    key, ids = jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
    params = LLM(config).init(key, ids, method=init)["params"]

    def encode(text, add_special_tokens=False):
        return [1 + ord(letter) % (config.vocab_size - 1) for letter in text]

    tokenizer = SimpleNamespace(encode=encode)
    model = SimpleNamespace(
        config=config, params=params, tokenizer=tokenizer, limit=512, where="tiny"
    )
    return model, {"weights_sha256": "0" * 64}


# --- rows -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, part",
    [
        (b"{", "expected one JSON object"),
        (b"\xff", "expected one JSON object"),
        (b"[" * 100_000, "expected one JSON object"),
        (b"[]", "expected an object"),
        (b'{"image": "a", "src": "b"}', "expected an object"),
        (b'{"image": "a", "src": "b", "generated": "c", "x": 1}', "expected an object"),
        (b'{"image": "a", "src": null, "generated": "c"}', "src: got None"),
        (b'{"image": 3, "src": "b", "generated": "c"}', "image: got 3"),
        (b'{"image": "none", "src": "b", "generated": "c"}', "expected a path"),
        (b'{"image": "/etc/p", "src": "b", "generated": "c"}', "below image_root"),
        (b'{"image": "a/../../p", "src": "b", "generated": "c"}', "below image_root"),
        (b'{"image": "a", "src": "b", "generated": "\\ud800"}', "broken Unicode"),
    ],
)
def test_rows_that_are_no_pairs(row, part):
    with pytest.raises(RowError, match=r"row 7") as caught:
        parse_pair(row, 7)
    assert part in str(caught.value)


def test_mutated_rows_raise_only_row_errors():
    draw, failed = random.Random(5), 0
    whole = json.dumps(
        {"image": "a/b.png", "src": "one é", "generated": "two"}
    ).encode()
    for _ in range(2000):
        row = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            row[draw.randrange(len(row))] = draw.randrange(256)
        try:
            pair = parse_pair(bytes(row), 1)
        except RowError:
            failed += 1
        else:
            assert pair.image
    assert 200 < failed < 2000


# --- questions --------------------------------------------------------------------


def test_lists_have_the_authors_sizes():
    lists = (
        questions.VERBS,
        questions.DETERMINERS,
        questions.NOUNS,
        questions.PURPOSES,
    )
    assert [len(set(one)) for one in lists] == [15, 7, 6, 3]


def test_questions_are_drawn_by_seed_and_image():
    names = [f"{i}.png" for i in range(4000)]
    drawn = [questions.question(name) for name in names]
    assert drawn == [questions.question(name) for name in names]
    assert drawn != [questions.question(name, 43) for name in names]
    stops = sum(one.endswith(".") for one in drawn) / len(drawn)
    assert stops == pytest.approx(0.7, abs=0.03)  # four standard deviations
    for verb in questions.VERBS:
        share = sum(one.startswith(verb + " ") for one in drawn) / len(drawn)
        assert share == pytest.approx(1 / 15, abs=0.02)


# --- the whole --------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """One pair for each fate, and one whose image comes twice."""
    endless = distinct(10) + " and so on" * 200
    rows = [
        ("twice.png", distinct(50) + " 1", distinct(50, "old") + " 1"),
        ("fine.png", distinct(50) + " 1", f"  {distinct(50)} 0.8\n"),
        ("short.png", "a b", "a b"),
        ("endless.png", distinct(600), endless),
        ("apart.png", distinct(99) + " 1", distinct(78) + " 1"),
        ("edge.png", distinct(99) + " 1", distinct(79) + " 1"),
        ("unlike.png", distinct(50) + " 1", distinct(50) + " 0.6"),
        ("twice.png", distinct(50) + " 1", distinct(50, "new") + " 0.75"),
        ("../out.png", distinct(50), distinct(50)),
        ("long.png", distinct(1200) + " 1", distinct(1200) + " 1"),
    ]
    return write_pairs(tmp_path / "pairs.jsonl", rows)


def test_clean(pairs, tmp_path):
    out, encoder = tmp_path / "out", Angles()
    report = clean(pairs, out, limits=MAIN, encoder=encoder, images="pages")
    counts = {reason: found["count"] for reason, found in report["rejected"].items()}
    assert counts == {
        **{MALFORMED: 1, DUPLICATE: 1, TOO_SHORT: 1},
        **{REPETITIVE: 1, LENGTHS_APART: 1, DISSIMILAR: 1, TOO_MANY: 1},
    }
    assert (report["pairs"], report["kept"]) == (10, 3)
    # Only what passed the first three was encoded: five pairs.
    assert len(encoder.seen) == 10
    source = JSONLSource(out / "records.jsonl", image_root="pages")
    assert [source[i].id for i in range(3)] == ["fine.png", "edge.png", "twice.png"]
    fine, _, twice = (source[i] for i in range(3))
    assert fine.turns[0].answer == distinct(50) + " 0.8"
    assert fine.turns[0].question == questions.question("fine.png")
    assert twice.turns[0].answer.startswith("new0")  # the last row wins
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["records"], manifest["images"]) == (3, "pages")
    assert manifest["sha256"] == source.fingerprint
    assert manifest["options"]["encoder"] == "angles"
    assert "mpnet" in manifest["options"]["thresholds_are_for"]


def test_rejected_rows_are_logged_with_values(pairs, tmp_path):
    clean(pairs, tmp_path / "out", limits=MAIN, encoder=Angles())
    logged = {row["reason"]: row for row in rows_of(tmp_path / "out/rejected.jsonl")}
    assert len(logged) == 7 and logged[TOO_MANY]["characters"] > 5000
    assert logged[MALFORMED]["row"] == 9
    assert (logged[DUPLICATE]["row"], logged[DUPLICATE]["replaced_by"]) == (1, 8)
    assert logged[LENGTHS_APART]["length_gap"] == 0.21
    assert logged[LENGTHS_APART]["similarity"] is None
    assert logged[DISSIMILAR]["similarity"] == pytest.approx(0.6)
    assert logged[REPETITIVE]["distinct"] == 3 / 256


def test_cleaning_again_writes_the_same(pairs, tmp_path):
    written = []
    for _ in range(2):
        clean(pairs, tmp_path / "out", limits=MAIN, encoder=Angles())
        files = sorted((tmp_path / "out").glob("*.json*"))
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1] and len(written[0]) == 4


def test_any_number_of_workers_writes_the_same(tmp_path):
    draw = random.Random(6)
    rows = [
        (f"{draw.randrange(250)}.png", distinct(40) + " 1", distinct(size) + " 0.9")
        for size in (draw.randrange(5, 60) for _ in range(300))
    ]
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    written = []
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        clean(pairs, out, limits=MAIN, encoder=Angles(), workers=workers)
        files = sorted(out.glob("*.json*"))
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1] and len(written[0]) == 4
    rejected = written[0]["rejected.jsonl"].decode().splitlines()
    reasons = {json.loads(line)["reason"] for line in rejected}
    assert reasons == {DUPLICATE, TOO_SHORT, LENGTHS_APART}


def test_thresholds_decide(pairs, tmp_path):
    loose = Thresholds(max_length_gap=0.7, min_similarity=0.5)
    report = clean(pairs, tmp_path / "out", limits=loose, encoder=Angles())
    # Now also apart.png and unlike.png.
    assert report["kept"] == 5


def test_what_was_there_stays_when_the_input_is_none(pairs, tmp_path):
    out = tmp_path / "out"
    clean(pairs, out, limits=MAIN, encoder=Angles())
    before = {file.name: file.read_bytes() for file in out.glob("[!.]*")}
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, part in (("absent.jsonl", "no such file"), ("empty.jsonl", "is empty")):
        with pytest.raises(PairsError, match=part):
            clean(tmp_path / name, out, limits=MAIN, encoder=Angles())
    assert {file.name: file.read_bytes() for file in out.glob("[!.]*")} == before


def test_folder_of_another_source(pairs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text('{"source": "llava"}')
    with pytest.raises(CleanError, match="prepared folder of something else"):
        clean(pairs, out, limits=MAIN, encoder=Angles())
    assert [file.name for file in out.glob("[!.]*")] == ["manifest.json"]


def test_other_files_are_not_written_over(pairs, tmp_path):
    """Not even where the pairs themselves have the name of what is written."""
    named = pairs.rename(tmp_path / "records.jsonl")
    before = named.read_bytes()
    with pytest.raises(PreparedFolderError, match=r"not empty \(it has records"):
        clean(named, tmp_path, limits=MAIN, encoder=Angles())
    assert named.read_bytes() == before


def test_nothing_imports_jax(repo_dir):
    names = [
        ".".join(path.relative_to(repo_dir).with_suffix("").parts)
        for folder in ("augment", "clean")
        for path in (repo_dir / "vtscale_jax/data" / folder).glob("*.py")
    ]
    names += [f"vtscale_jax.data.commands.{name}" for name in ("augment", "clean")]
    code = f"import sys, {', '.join(names)}; print('jax' in sys.modules)"
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, capture_output=True, text=True, cwd=repo_dir)
    assert len(names) > 10 and child.stdout == "False\n", child.stdout + child.stderr


def test_folder_in_use(pairs, tmp_path):
    with (
        held(tmp_path / "out", CleanError("held")),
        pytest.raises(CleanError, match="in use by another process"),
    ):
        clean(pairs, tmp_path / "out", limits=MAIN, encoder=Angles())
    assert not (tmp_path / "out/manifest.json").exists()


def test_command(tmp_path, capsys):
    text = "The annual report shows how revenue grew in every quarter of the year"
    rows = [("a.png", text, text + " ."), ("b.png", text, distinct(13))]
    path = write_pairs(tmp_path / "pairs.jsonl", rows)
    out = tmp_path / "out"
    asked = ["clean", str(path), "--out", str(out), "--encoder", "hashed_words"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "2 pairs: 1 kept, 1 rejected" in said
    assert "is for sentence-transformers/all-mpnet-base-v2" in said
    assert [row["id"] for row in rows_of(out / "records.jsonl")] == ["a.png"]
    assert main([*asked, "--min_similarity", "-1", "--preset", "formula"]) == 0
    options = json.loads((out / "manifest.json").read_text())["options"]
    assert (options["min_similarity"], options["max_length_gap"]) == (-1, 0.7)
    assert len(rows_of(out / "records.jsonl")) == 2


def test_command_says_what_is_wrong(tmp_path, capsys):
    absent = [str(tmp_path / "absent.jsonl"), "--out", str(tmp_path / "out")]
    assert main(["clean", *absent, "--encoder", "hashed_words"]) == 1
    assert "no such file; expected JSONL" in capsys.readouterr().err
    assert main(["clean", *absent, "--encoder", "w2v"]) == 1
    assert "expected one of mpnet" in capsys.readouterr().err
