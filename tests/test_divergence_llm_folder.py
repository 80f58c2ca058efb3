"""`measure --llm FOLDER --pairs FILE` from end to end, on a tiny Llama made here."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from authors_folders import word_tokenizer
from family_cases import weights
from safetensors.numpy import save_file
from test_divergence_curves import brute
from test_weights_commands import LLAMA, llama_tensors

from vtscale_jax.divergence.__main__ import main
from vtscale_jax.divergence.curves import REDUCTIONS
from vtscale_jax.divergence.estimate import derived
from vtscale_jax.divergence.result import CURVES, HISTOGRAMS, read_result
from vtscale_jax.llm import LLM
from vtscale_jax.weights import language_models
from vtscale_jax.weights.language_models import load_language_model
from vtscale_jax.weights.tokenizer_files import save_tokenizer

N = 10  # --max_length
LONGEST = 40  # row that is read, in tokens
TOLD = ("chosen", "rejected")  # branch A and branch B
WORDS = [f"w{i}" for i in range(60)]
MARKS = ["<unk>", "</s>", "<system>", "<user>", "<assistant>", "<end>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# System text, question, chosen, rejected: numbers of words. Both answers of the fifth
# are longer than N, the others end before.
SIZES = [(0, 3, 4, 6), (2, 4, 9, 7), (0, 1, 10, 12), (3, 2, 1, 5), (0, 6, 13, 12)]
CONFIG = LLAMA | {"hidden_size": 32, "intermediate_size": 48, "eos_token_id": 1}


def texts(sizes, seed=0):
    """Rows of the orca_dpo_pairs schema, words drawn at random."""
    rng = np.random.default_rng(seed)
    names = ("system", "question", "chosen", "rejected")
    return [
        {n: " ".join(rng.choice(WORDS, k)) for n, k in zip(names, row, strict=True)}
        for row in sizes
    ]


PAIRS = texts(SIZES)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(row):
    said = [("system", row["system"]), ("user", row["question"])]
    return [{"role": r, "content": text} for r, text in said if text]


def answered(row, name):
    return [*asked(row), {"role": "assistant", "content": row[name]}]


def write_chats(path, rows):
    """The TRL schema as Parquet: two whole conversations in a row."""
    chats = {n: [answered(row, n) for row in rows] for n in TOLD}
    pyarrow.parquet.write_table(pyarrow.table(chats), path)
    return path


def write_llm(folder, *, template=TEMPLATE, seed=0):
    """A Hugging Face folder of a Llama with words as tokens."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {name: x.shape for name, x in llama_tensors(CONFIG).items()}
    tensors = weights(shapes, seed)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer = word_tokenizer({w: i for i, w in enumerate(MARKS + WORDS)}, "</s>")
    tokenizer.chat_template = template
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("models") / "llm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", PAIRS)


def command(folder, pairs, out, *more, length=N):
    options = ["--llm", folder, "--pairs", pairs, "--out", out, "--replicates", 100]
    return ["measure", *map(str, [*options, "--max_length", length, *more])]


def measured(capsys, folder, pairs, out, *more, name="llm", length=N):
    """What a measurement says, and its result."""
    capsys.readouterr()
    status = main(command(folder, pairs, out, *more, length=length))
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out, read_result(out / f"{name}.json")


def refused(capsys, *arguments, **more):
    capsys.readouterr()
    assert main(command(*arguments, **more)) == 1
    said = capsys.readouterr().err
    progress, mark, error = said.partition("error: ")
    assert mark and progress.count("\n") == progress.count("step "), said
    assert "Traceback" not in said
    return error.removesuffix("\n(--traceback shows where)\n")


# ---- the same, computed another way --------------------------------------------------


def chat_ids(tokenizer, row, name):
    """Ids of the prompt and of an answer, cut out of the template's whole text."""
    text = {"tokenize": False}
    prompt = tokenizer.apply_chat_template(
        asked(row), add_generation_prompt=True, **text
    )
    whole = tokenizer.apply_chat_template(answered(row, name), **text)
    before, ids = (
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, whole)
    )
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert ids[: len(before)] == before and ids[-1] == end
    return before, ids[len(before) : -1]


def plain_ids(tokenizer, row, name):
    """Ids of system text and question, and of an answer, with nothing around them."""
    prompt = f"{row['system']} {row['question']}"
    return (tokenizer(x)["input_ids"] for x in (prompt, row[name]))


@functools.partial(jax.jit, static_argnames="config")
def read_row(params, row, keep, *, config):
    """Hidden states of a row after the last norm [T, D], and those of blocks [L, T, D].

    No prefix apart and no caches; padding stands behind the row, where it is not seen.
    """

    def run(module):
        return module(module.embed(row[None]), keep[None]).hidden

    hidden, sown = LLM(config).apply(
        {"params": params}, method=run, mutable="intermediates"
    )
    return hidden[0], sown["intermediates"]["blocks"]["hidden"][0][:, 0]


def states(llm, before, answer, layer):
    """Hidden states of the answer."""
    ids = before + answer
    row = jnp.asarray(ids + [0] * (LONGEST - len(ids)), jnp.int32)
    keep = jnp.arange(LONGEST) < len(ids)
    final, blocks = read_row(llm.params, row, keep, config=llm.config)
    hidden = final if layer == "final" else blocks[int(layer) - 1]
    return np.asarray(hidden)[len(before) : len(ids)]


def expected(folder, rows, *, layer="final", reduction="mean", ids=chat_ids):
    """Curves of every pair [C, P, N] and their lengths, by the definitions."""
    llm = load_language_model("test", str(folder), dtype="float32")
    both = np.zeros((2, len(rows), N, CONFIG["hidden_size"]), np.float32)
    lengths = []
    for place, row in enumerate(rows):
        read = [states(llm, *ids(llm.tokenizer, row, name), layer) for name in TOLD]
        lengths.append(min(N, *map(len, read)))
        for branch, found in zip(both, read, strict=True):
            branch[place, : lengths[-1]] = found[: lengths[-1]]
    return derived(brute(*both, lengths, reduction)), lengths


def check(result, curves, lengths):
    lengths = np.asarray(lengths)
    counts = [(lengths >= n).sum() for n in range(1, N + 1)]
    np.testing.assert_array_equal(result.counts, counts)
    for name, values in zip(CURVES, curves, strict=True):
        band = result.curve(name)
        for n in range(N):
            some = values[~np.isnan(values[:, n]), n]
            got = [band.mean[n], band.least[n], band.largest[n]]
            if len(some) == 0:
                assert np.isnan(got).all(), (name, n)
                continue
            known = [some.mean(), some.min(), some.max()]
            np.testing.assert_allclose(
                got, known, rtol=2e-4, atol=2e-5, err_msg=f"{name} at n = {n + 1}"
            )


def test_both_schemas_give_the_curves_of_the_definitions(
    folder, pairs, tmp_path, capsys
):
    chats = write_chats(tmp_path / "pairs.parquet", PAIRS)
    said, lines = measured(capsys, folder, pairs, tmp_path / "lines")
    assert f"llm: 5 rows of {pairs}" in said and "Result: " in said
    _, rows = measured(capsys, folder, chats, tmp_path / "rows")
    for name in CURVES:
        for one, other in zip(lines.curve(name), rows.curve(name), strict=True):
            np.testing.assert_array_equal(one, other)
    for name in HISTOGRAMS:
        np.testing.assert_array_equal(lines.histograms[name], rows.histograms[name])
    assert lines.pairs["rows"] == lines.pairs["used"] == len(PAIRS)
    assert lines.pairs["notes"] == {"cut": 1} and not lines.pairs["bad"]
    assert (lines.layer, lines.reduction, lines.kind) == ("final", "mean", "text")

    curves, lengths = expected(folder, PAIRS)
    assert lengths == [4, 7, 10, 1, 10]
    for result in (lines, rows):
        check(result, curves, lengths)
    # Controls: one word of one question; the answers of one pair the other way round;
    # other weights.
    other = [dict(row) for row in PAIRS]
    other[1]["question"] = f"w0 {other[1]['question']}"
    with pytest.raises(AssertionError):
        check(lines, *expected(folder, other))
    turned = [dict(row) for row in PAIRS]
    turned[1] |= {"chosen": PAIRS[1]["rejected"], "rejected": PAIRS[1]["chosen"]}
    with pytest.raises(AssertionError, match="psi_cross_aa"):
        check(lines, *expected(folder, turned))
    strange = write_llm(tmp_path / "strange", seed=1)
    with pytest.raises(AssertionError):
        check(lines, *expected(strange, PAIRS))


def test_each_layer_has_a_result(folder, pairs, tmp_path, capsys):
    layers = ("--layer", "1", "--layer", "final")
    said, final = measured(capsys, folder, pairs, tmp_path, *layers)
    first = read_result(tmp_path / "llm-layer1.json")
    assert (first.layer, final.layer) == ("1", "final")
    assert sorted(p.name for p in tmp_path.glob("*.json")) == [
        *("llm-layer1.json", "llm.json"),
    ]
    next_command = said.splitlines()[-1]
    assert f"{tmp_path / 'llm-layer1.json'} {tmp_path / 'llm.json'}" in next_command
    curves, lengths = expected(folder, PAIRS, layer="1")
    check(first, curves, lengths)
    with pytest.raises(AssertionError):
        check(final, curves, lengths)
    assert "1 to 2" in refused(capsys, folder, pairs, tmp_path, "--layer", "3")


def test_a_finished_measurement_loads_no_model(
    folder, pairs, tmp_path, capsys, monkeypatch
):
    measured(capsys, folder, pairs, tmp_path)
    path = tmp_path / "llm.json"
    before = path.read_bytes()

    def load(*arguments, **more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(language_models, "load_language_model", load)
    said, _ = measured(capsys, folder, pairs, tmp_path)
    assert f"{path} is there already: not measured again" in said
    assert path.read_bytes() == before
    # The control: what is not finished does load it; other options are refused.
    with pytest.raises(AssertionError, match="the model was loaded"):
        main(command(folder, pairs, tmp_path, "--name", "other"))
    error = refused(capsys, folder, pairs, tmp_path, length=N - 1)
    assert "result of another measurement" in error
    assert f"num_positions: {N} there, {N - 1} now" in error
    assert path.read_bytes() == before


# ---- rows that are no pairs ----------------------------------------------------------


def test_bad_rows_are_counted_and_listed(folder, tmp_path, capsys):
    lacks = {name: text for name, text in PAIRS[0].items() if name != "rejected"}
    (long,) = texts([(0, 30, 4, 4)], seed=1)
    same = PAIRS[2]["chosen"]
    rows = [
        *(PAIRS[0], lacks, PAIRS[1] | {"chosen": "  "}, long),
        PAIRS[2] | {"rejected": same},  # in the file
        PAIRS[2] | {"rejected": f"{same} w1 w2"},  # once they are cut
        *(PAIRS[1], PAIRS[3], PAIRS[4]),
    ]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    limit = ("--max_prefix", "20")
    error = refused(capsys, folder, pairs, tmp_path, *limit)
    # What shows in tokens only is not known yet: nothing has been read.
    assert f"{pairs}: 3 of 9 rows (33.33%) are no pairs" in error
    assert "line 2: missing field: rejected: not there" in error
    assert "line 3: empty branch: chosen: got '  '" in error
    assert "line 5: same branches: chosen equals rejected" in error
    assert not list(tmp_path.glob("llm*"))

    share = ("--max_bad_share", "0.9")
    said, result = measured(capsys, folder, pairs, tmp_path, *limit, *share)
    found = {"missing field": [2], "empty branch": [3], "over-long": [4]}
    found["same branches"] = [5, 6]
    assert result.pairs["bad"] == {reason: len(x) for reason, x in found.items()}
    assert result.pairs["bad_lines"] == found
    assert (result.pairs["rows"], result.pairs["used"]) == (9, 4)
    listed = (tmp_path / "llm.bad_rows.jsonl").read_text().splitlines()
    listed = {row["line"]: row for row in map(json.loads, listed)}
    assert sorted(listed) == [2, 3, 4, 5, 6]
    for reason, lines in found.items():
        assert all(listed[line]["reason"] == reason for line in lines)
    prefix = 30 + len(["<user>", "<end>", "<assistant>"])
    assert f"the prefix has {prefix} tokens, at most 20" in listed[4]["detail"]
    assert f"all {N} tokens" in listed[6]["detail"]
    assert "over-long" in said
    check(result, *expected(folder, [PAIRS[i] for i in (0, 1, 3, 4)]))


def test_what_shows_in_tokens_only_stops_the_measurement_too(folder, tmp_path, capsys):
    (long,) = texts([(0, 30, 4, 4)], seed=1)
    pairs = write_lines(tmp_path / "pairs.jsonl", [*PAIRS, long])
    limit = ("--max_prefix", "20")
    error = refused(capsys, folder, pairs, tmp_path, *limit)
    assert "1 of 6 rows" in error and "line 6: over-long: the prefix has 33" in error
    assert "--max_bad_share 0.1667" in error
    assert not (tmp_path / "llm.json").exists()
    # The remedy that it names; what was measured is kept.
    share = ("--max_bad_share", "0.1667")
    said, result = measured(capsys, folder, pairs, tmp_path, *limit, *share)
    assert "going on: 1 of 1 chunks are measured" in said
    assert result.pairs["bad_lines"] == {"over-long": [6]}


# ---- what else would change the numbers ----------------------------------------------


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_model_that_reads_otherwise_is_another_one(pairs, tmp_path, capsys, file):
    """The weights are the same, but the prompt's text or the angles of the rotary
    embedding are not."""
    folder, out = write_llm(tmp_path / "llm"), tmp_path / "out"
    _, result = measured(capsys, folder, pairs, out)
    before = (out / "llm.json").read_bytes()
    path = folder / file
    text = path.read_text()
    content = json.loads(text)
    if file == "config.json":
        content["rope_theta"] *= 2
    else:
        content["chat_template"] = "w0 " + content["chat_template"]
    path.write_text(json.dumps(content))
    error = refused(capsys, folder, pairs, out)
    assert "is the result of another measurement" in error
    assert f"reading_sha256: {result.manifest['reading_sha256']} there" in error
    assert "weights_sha256" not in error and "pairs_sha256" not in error
    assert (out / "llm.json").read_bytes() == before
    # It does give other numbers.
    _, other = measured(capsys, folder, pairs, tmp_path / "other")
    assert not np.allclose(other.curve("D").mean, result.curve("D").mean, rtol=1e-4)
    path.write_text(text)
    assert "not measured again" in measured(capsys, folder, pairs, out)[0]


@pytest.mark.parametrize("reduction", ["max", "signed"])
def test_reductions_name_themselves(folder, pairs, tmp_path, capsys, reduction):
    asked = ("--reduction", reduction)
    _, result = measured(capsys, folder, pairs, tmp_path, *asked)
    assert result.reduction == reduction
    check(result, *expected(folder, PAIRS, reduction=reduction))
    for other in set(REDUCTIONS) - {reduction}:
        with pytest.raises(AssertionError, match="psi"):
            check(result, *expected(folder, PAIRS, reduction=other))
    error = refused(capsys, folder, pairs, tmp_path)
    assert f"reduction: {reduction} there, mean now" in error


def test_no_null_test_of_maxima(folder, pairs, tmp_path, capsys):
    """Between branches there are twice as many different pairs of positions as within
    one, so that the maximum over them is larger by chance alone."""
    asked = ("--null", "2", "--reduction")
    error = refused(capsys, folder, pairs, tmp_path, *asked, "max")
    assert "--null goes with the reductions mean and signed" in error
    assert "twice as many pairs" in error  # why
    assert not list(tmp_path.iterdir())
    _, result = measured(capsys, folder, pairs, tmp_path, *asked, "signed")
    assert result.null is not None and result.null["swaps"] == 2


# ---- what is not there ---------------------------------------------------------------


def test_what_is_missing_is_named(folder, pairs, tmp_path, capsys):
    missing = tmp_path / "no-model"
    error = refused(capsys, missing, pairs, tmp_path / "out")
    assert error.startswith(f"--llm: {missing} does not exist, expected a folder")
    assert "--llm=FOLDER" in error and "\n" not in error
    for suffix in ("jsonl", "parquet"):
        missing = tmp_path / f"no-pairs.{suffix}"
        error = refused(capsys, folder, missing, tmp_path / "out")
        assert str(missing) in error and "no such file" in error
        assert "check the path" in error and "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", [None, ""])
def test_without_a_chat_template_plain_text_is_left(tmp_path, capsys, template):
    folder, out = write_llm(tmp_path / "llm", template=template), tmp_path / "out"
    pairs = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    error = refused(capsys, folder, pairs, out)
    assert "no chat template" in error and "--prompt_form text" in error
    assert not list(out.glob("llm*"))
    if template is not None:
        return
    _, result = measured(capsys, folder, pairs, out, "--prompt_form", "text")
    assert result.manifest["prompt_form"] == "text"
    check(result, *expected(folder, PAIRS, ids=plain_ids))
    chatty = write_llm(tmp_path / "chatty")
    with pytest.raises(AssertionError):
        check(result, *expected(chatty, PAIRS))
