"""Held-out records of mixtures: never trained on, drawn alike, refused when edited."""

import hashlib
import json
import pickle
import random
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from prepared_folders import prepared, records, rewrite
from small_runs import manifest as run_manifest
from small_runs import small_config

from vtscale_jax.assemble import open_source
from vtscale_jax.data import mixture as mixture_module
from vtscale_jax.data.__main__ import main
from vtscale_jax.data.array_record_source import ArrayRecordSource
from vtscale_jax.data.array_records import pack
from vtscale_jax.data.folder_source import FolderSource
from vtscale_jax.data.mixture import Mixture, make_mixture
from vtscale_jax.data.mixture_manifest import (
    FORMAT,
    MixtureError,
    default_heldout,
    held_out,
    ids_hash,
    read_manifest,
    taken_of,
)
from vtscale_jax.data.next_commands import BATCH, CONFIG, DRAWN, after_prepare
from vtscale_jax.loader import Source
from vtscale_jax.run_folder import RunFolder, RunFolderError
from vtscale_jax.sweep.cost import read_config
from vtscale_jax.train import train

SIZES = {"one": 12, "half": 9, "more": 5}
WEIGHTS = {"one": 1.0, "half": 0.5, "more": 2.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three prepared folders, one of them packed, and a mixture that holds out 6."""
    root = tmp_path_factory.mktemp("data")
    for seed, (name, number) in enumerate(SIZES.items()):
        prepared(root / name, number, seed=seed)
    pack(root / "more", str(root / "more/images"), say=lambda line: None)
    make_mixture(root / "mixture.json", sources(root), seed=3, heldout=(7, 6))
    return root


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """The same, for a test to damage."""
    return shutil.copytree(made, tmp_path / "elsewhere")


def sources(root: Path, weights=WEIGHTS) -> list[tuple[str, Path, float]]:
    return [(name, root / name, weight) for name, weight in weights.items()]


def opened(file: Path) -> tuple[Mixture, Mixture]:
    return Mixture(file), Mixture(file, split="heldout")


def all_ids(mixture: Mixture) -> list[str]:
    return [mixture[i].id for i in range(len(mixture))]


def test_nothing_held_out_is_trained_on(made, tmp_path):
    """For weights, numbers and seeds drawn at random, by counting."""
    chance = random.Random(0)
    for trial in range(25):
        weights = {name: round(chance.uniform(0.1, 4), 2) for name in SIZES}
        number, seed = chance.randint(1, 12), chance.randrange(100)
        file = tmp_path / f"{trial}.json"
        try:
            make_mixture(
                file, sources(made, weights), seed=trial, heldout=(seed, number)
            )
        except MixtureError as error:
            assert "would be held out" in str(error)
            continue
        mixture, heldout = opened(file)
        apart = all_ids(heldout)
        assert len(set(apart)) == len(apart) == number
        assert len(set(all_ids(mixture))) == len(mixture)
        ids = [one.split("#")[0] for one in all_ids(mixture)]
        assert not set(ids) & set(apart)
        for part in mixture.manifest.parts:
            every = {f"{part.name}/page-{i}" for i in range(SIZES[part.name])}
            left = every - set(apart)
            assert len(left) == part.left == part.records - part.heldout
            times = [ids.count(one) for one in left]
            assert sum(times) == part.taken == taken_of(len(left), part.weight)
            assert max(times) - min(times) <= 1
    assert trial == 24 and file.is_file()  # most of them can be made


def test_records_are_those_of_the_sources(made):
    stored = {name: FolderSource(made / name) for name in ("one", "half")}
    stored["more"] = ArrayRecordSource(made / "more")
    seen = set()
    for mixture in opened(made / "mixture.json"):
        assert isinstance(mixture, Source)
        for i in range(len(mixture)):
            found = mixture[i]
            name, page = found.id.split("#")[0].split("/page-")
            expected = stored[name][int(page)]
            assert found._replace(id="") == expected._replace(id="")
            seen.add(found.id.split("#")[0])
        assert mixture[-1] == mixture[len(mixture) - 1]
        with pytest.raises(IndexError):
            mixture[len(mixture)]
    assert mixture.split == "heldout" and len(mixture) == 6
    assert "heldout, 6 records" in repr(mixture)
    half = len(set(all_ids(Mixture(made / "mixture.json"))) & seen)
    assert len(seen) == 6 + half  # of "half" not all that is left is trained on


def test_each_record_is_as_likely_in_every_place():
    sizes, number = {"b": 7, "a": 2, "c": 11}, 5
    every = [(name, i) for name, size in sizes.items() for i in range(size)]
    counts, first = dict.fromkeys(every, 0), dict.fromkeys(every, 0)
    for seed in range(4000):
        drawn = held_out(sizes, number, seed)
        assert len(set(drawn)) == number
        first[drawn[0]] += 1
        for one in drawn:
            counts[one] += 1
    for found, share in ((counts, 5 / 20), (first, 1 / 20)):  # within 5 deviations
        away = np.abs(np.asarray(list(found.values())) - 4000 * share)
        assert away.max() < 5 * np.sqrt(4000 * share * (1 - share))


def test_the_draw_depends_on_seed_and_records_alone(made, tmp_path):
    reference = Mixture(made / "mixture.json", split="heldout")
    ids = all_ids(reference)
    assert ids_hash(ids) == reference.manifest.heldout.sha256
    backwards = list(reversed(sources(made)))
    others = dict.fromkeys(SIZES, 3.2)
    for given, seed in ((backwards, 3), (sources(made, others), 3), (backwards, 8)):
        make_mixture(tmp_path / "m.json", given, seed=seed, heldout=(7, 6))
        again = Mixture(tmp_path / "m.json", split="heldout")
        assert all_ids(again) == ids
        assert again.fingerprint == reference.fingerprint
    # Whichever split is opened first, and however often.
    for split in ("train", "heldout", "heldout", "train"):
        Mixture(made / "mixture.json", split=split)
    assert all_ids(Mixture(made / "mixture.json", split="heldout")) == ids
    make_mixture(tmp_path / "m.json", sources(made), seed=3, heldout=(6, 6))
    assert set(all_ids(Mixture(tmp_path / "m.json", split="heldout"))) != set(ids)


def test_fingerprints(copy, tmp_path):
    """By split; each changes with what is held out, and with what is in a source."""
    reference = [one.fingerprint for one in opened(copy / "mixture.json")]
    assert len(set(reference)) == 2
    moved = shutil.copytree(copy, tmp_path / "moved")
    assert [one.fingerprint for one in opened(moved / "mixture.json")] == reference
    for heldout in ((6, 6), (7, 7)):
        make_mixture(tmp_path / "m.json", sources(copy), seed=3, heldout=heldout)
        found = [one.fingerprint for one in opened(tmp_path / "m.json")]
        assert not set(found) & set(reference)
    make_mixture(tmp_path / "m.json", sources(copy), seed=4, heldout=(7, 6))
    found = [one.fingerprint for one in opened(tmp_path / "m.json")]
    assert found[0] != reference[0] and found[1] == reference[1]
    rewrite(copy / "one", records(12, seed=9))
    make_mixture(tmp_path / "m.json", sources(copy), seed=3, heldout=(7, 6))
    found = [one.fingerprint for one in opened(tmp_path / "m.json")]
    assert not set(found) & set(reference)


def test_nothing_held_out(made, tmp_path):
    """With 0 a mixture is what it is without any held-out part."""
    file = tmp_path / "m.json"
    mixture = make_mixture(file, sources(made), seed=3, heldout=(5, 0))
    assert len(mixture) == 12 + 5 + 13
    listed = json.loads(file.read_text())
    assert listed["heldout"] == {"seed": 5, "records": 0, "sha256": ids_hash([])}
    fields = ("name", "weight", "records", "taken", "sha256")
    content = {
        "format": FORMAT,
        "seed": 3,
        "sources": [{f: one[f] for f in fields} for one in listed["sources"]],
    }
    text = json.dumps(content, sort_keys=True)
    assert mixture.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(MixtureError, match="anew with --heldout N"):
        Mixture(file, split="heldout")
    with pytest.raises(MixtureError, match="split: got 'test'; expected one of"):
        Mixture(file, split="test")


def test_how_many_are_held_out_by_default(tmp_path):
    assert [default_heldout(n) for n in (99, 100, 51_199, 51_200, 10**6)] == [
        *(0, 1, 511, 512),
        512,
    ]
    folder = prepared(tmp_path / "a", 1)
    rewrite(folder, asked(230, "two"))
    mixture = make_mixture(tmp_path / "m.json", [("a", folder, 2.0)])
    assert len(Mixture(tmp_path / "m.json", split="heldout")) == 2
    assert len(mixture) == 2 * 228


def test_the_longest_of_each_split(made, tmp_path):
    """What shapes are fitted to: the longest of those that the split has, no others."""
    for trial in range(6):
        file = tmp_path / f"{trial}.json"
        make_mixture(file, sources(made), seed=trial, heldout=(trial, 6))
        for mixture in opened(file):
            sizes = []
            for i in range(len(mixture)):
                turns = mixture[i].turns
                sizes.append(
                    (len(turns), sum(len(t.question) + len(t.answer) for t in turns))
                )
            for number in (1, 2, 50):
                found = [sizes[i] for i in mixture.longest(number)]
                for by in (0, 1):
                    best = sorted({size[by] for size in sizes}, reverse=True)[:number]
                    assert max(best) == max(size[by] for size in found)
                best = sorted({size[1] for size in sizes}, reverse=True)[:number]
                assert set(best) <= {size[1] for size in found}


def test_what_is_sent_to_workers_does_not_grow(tmp_path):
    folder = prepared(tmp_path / "a", 1)
    rewrite(folder, asked(4000, "two"))
    size = {}
    for number in (0, 10):
        file = tmp_path / f"{number}.json"
        make_mixture(file, [("a", folder, 1.0)], heldout=(0, number))
        size[number] = len(pickle.dumps(Mixture(file)))
    assert size[10] - size[0] < 10 * 16  # not 8 bytes for each record


@pytest.mark.parametrize(
    ("heldout", "match"),
    [
        ((0, 26), "held out: got 26; expected a whole number from 0 on, below the 26"),
        ((0, -1), "held out: got -1"),
        ((0, True), "held out: got True"),
        ((-1, 3), "seed: got -1"),
        ((0, 25), "source '(one|half|more)': all its .* records would be held out"),
    ],
)
def test_parts_that_cannot_be_held_out(made, tmp_path, heldout, match):
    with pytest.raises(MixtureError, match=match):
        make_mixture(tmp_path / "mixture.json", sources(made), heldout=heldout)
    assert not (tmp_path / "mixture.json").exists()


# -- edited files -----------------------------------------------------------------


def signed(file: Path) -> None:
    """Gives an edited mixture.json the hash that its content has, where it has one."""
    content = json.loads(file.read_text())
    try:
        read_manifest(file)
    except MixtureError as error:
        found = re.search("\"sha256\" is .* gives '([0-9a-f]{64})'", str(error))
        content["sha256"] = found[1] if found else content["sha256"]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("seed", 4, "what is held out .seed 4, 6 records. is .* with the hash"),
        ("sha256", "0" * 64, "expected .* with 0000"),
    ],
)
def test_an_edited_part_is_refused(copy, field, value, match):
    file = copy / "mixture.json"
    content = json.loads(file.read_text())
    content["heldout"][field] = value
    file.write_text(json.dumps(content))
    for split in ("train", "heldout"):
        with pytest.raises(MixtureError, match="it was edited"):
            Mixture(file, split=split)
    signed(file)
    for split in ("train", "heldout"):
        with pytest.raises(MixtureError, match=match):
            Mixture(file, split=split)


@pytest.mark.parametrize(
    ("place", "field", "value", "match"),
    [
        (None, "heldout", None, "heldout has not the fields seed, records, sha256"),
        ("heldout", "records", 5, "heldout.records is 5, but the sources have 6"),
        ("heldout", "records", 6.0, "heldout.records is 6.0, expected int"),
        ("heldout", "seed", -2, "seed: got -2"),
        (0, "heldout", 12, r"sources\[0\]: 12 held out of 12 cannot be"),
        (0, "heldout", -1, r"sources\[0\]: -1 held out of 12 cannot be"),
        (0, "heldout", 0, r"sources\[0\]: .* taken of 12 is not its weight's share"),
        (0, "records", 10**400, r"held out of 1000+ cannot be"),
        (0, "weight", 10**400, r"sources\[0\].weight is 1000+, expected float"),
    ],
)
def test_fields_that_do_not_fit(copy, place, field, value, match):
    file = copy / "mixture.json"
    content = json.loads(file.read_text())
    one = content["sources"][place] if isinstance(place, int) else content
    (one[place] if isinstance(place, str) else one)[field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(MixtureError, match=match):
        read_manifest(file)


def test_any_edit_that_is_signed_is_refused_or_keeps_the_splits_apart(copy):
    """Numbers of sources and parts set at random, with the file's own hash mended."""
    file, chance, refused = copy / "mixture.json", random.Random(0), 0
    good = json.loads(file.read_text())
    for _ in range(150):
        content = json.loads(json.dumps(good))
        one = chance.choice([content["heldout"], *content["sources"]])
        field = chance.choice([f for f in one if type(one[f]) in (int, float)])
        one[field] = chance.choice([0, 1, 5, 6, 7, -1, 10**9, 10**30, 0.5, None, "x"])
        file.write_text(json.dumps(content))
        signed(file)
        try:
            mixture, heldout = opened(file)
        except MixtureError as error:
            assert len(str(error)) > 40
            refused += 1
            continue
        ids = {name.split("#")[0] for name in all_ids(mixture)}
        assert not ids & set(all_ids(heldout))
    assert refused > 100


def test_another_draw_is_refused(made, monkeypatch):
    """As by a version of numpy that draws otherwise: never trained on in silence."""

    def others(sizes, number, seed):
        return held_out(sizes, number, seed + 1)

    monkeypatch.setattr(mixture_module, "held_out", others)
    for split in ("train", "heldout"):
        with pytest.raises(MixtureError, match="numpy draws differently"):
            Mixture(made / "mixture.json", split=split)


# -- training ---------------------------------------------------------------------


def asked(number: int, answer: str) -> list[dict]:
    """Records in the few words of the embedded tokenizer."""
    question = {"role": "user", "content": "What digit is in the top left cell?"}
    told = {"role": "assistant", "content": answer}
    return [
        {"id": f"page-{i}", "image": "pages/0.png", "messages": [question, told]}
        for i in range(number)
    ]


@pytest.fixture
def trainable(tmp_path) -> Path:
    for name, answer in (("first", "two"), ("second", "four")):
        prepared(tmp_path / name, 1)
        rewrite(tmp_path / name, asked(24, answer))
    remade(tmp_path, (0, 8))
    return tmp_path


def remade(root: Path, heldout: tuple[int, int]) -> None:
    weighed = [("first", root / "first", 1.0), ("second", root / "second", 1.5)]
    make_mixture(root / "mixture.json", weighed, subset=(0, 0.5), heldout=heldout)


def config_of(root: Path, **more):
    changes = {
        "data__name": "mixture",
        "data__path": str(root / "mixture.json"),
        "optim__steps": 2,
        "eval__every": 2,
    }
    return small_config(**(changes | more))


def test_training_takes_the_held_out_part(trainable):
    run = trainable / "run"
    train(config_of(trainable), run)
    found = run_manifest(run)
    assert found["finished"]
    fingerprints = [one.fingerprint for one in opened(trainable / "mixture.json")]
    data = found["inputs"]["data"]
    assert [data["train"], data["heldout"]] == fingerprints
    # Another held-out part: a run of its own.
    folder = RunFolder(run)
    folder.write("manifest.json", folder.read("manifest.json") | {"finished": False})
    remade(trainable, (1, 8))
    with pytest.raises(RunFolderError, match="cannot go on") as caught:
        train(config_of(trainable), run)
    assert "data.heldout" in str(caught.value) and "data.train" in str(caught.value)


def test_which_records_a_config_holds_out(trainable):
    config = config_of(trainable, data__subset=0.5)
    mixture, heldout = (open_source(config, split) for split in ("train", "heldout"))
    assert (mixture.split, heldout.split) == ("train", "heldout")
    assert len(heldout) == 8
    heldout.check_subset(9, 0.3)  # nothing is drawn of it
    # A file that is named is read whole.
    config.data.heldout_path = str(trainable / "mixture.json")
    named = open_source(config, "heldout")
    assert named.split == "train" and len(named) == len(mixture)
    assert open_source(config, "train").fingerprint == mixture.fingerprint
    # A mixture without a part: the way out is named.
    remade(trainable, (0, 0))
    config.data.heldout_path = ""
    with pytest.raises(MixtureError, match="--heldout N .*--config.data.heldout_path="):
        open_source(config, "heldout")
    assert open_source(config, "train").split == "train"


# -- commands ---------------------------------------------------------------------


@pytest.fixture
def in_repo(monkeypatch) -> None:
    """Where the commands are typed."""
    monkeypatch.chdir(Path(__file__).parents[1])


# ml_collections loads config files so.
LOADING = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def next_command(said: str) -> list[str]:
    [line] = [line for line in said.splitlines() if line.startswith("Next:")]
    return shlex.split(line.removeprefix("Next:"))


@LOADING
@pytest.mark.usefixtures("in_repo")
@pytest.mark.parametrize(
    ("given", "number", "batch"),
    [([], 16, 16), (["--heldout", "5"], 5, 5), (["--heldout", "20"], 20, 16)],
)
def test_the_command_that_follows_can_be_run(tmp_path, capsys, given, number, batch):
    """Its arguments mean a config whose held-out records fill a batch."""
    folder = prepared(tmp_path / "a b", 1)
    rewrite(folder, asked(1600, "two"))
    out = tmp_path / "my mix.json"
    command = ["mixture", "--out", str(out), f"a={folder}", *given]
    command += ["--subset_seed", "7", "--heldout_seed", "2"] if given else []
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"held out of training: {number} others (seed {2 if given else 0})" in said
    words = next_command(said)
    assert words[:3] == ["python", "-m", "vtscale_jax.train"]
    config = read_config(words[3:])
    assert config.name == "m256-my mix" and config.stage == "adapt"
    assert (config.seed, config.data.subset) == (7 if given else 0, 0.1)
    mixture, heldout = (open_source(config, split) for split in ("train", "heldout"))
    assert mixture.fingerprint[:16] in said and len(heldout) == number
    assert config.data.batch_size == batch <= len(heldout)
    assert not config.data.require_image  # rows of text alone may have been kept


def test_without_held_out_records_the_command_says_what_to_do(made, tmp_path, capsys):
    out = tmp_path / "m.json"
    assert main(["mixture", "--out", str(out), f"one={made}/one"]) == 0
    said = capsys.readouterr().out
    assert "Next:" not in said and "make the mixture with --heldout N" in said
    assert main(["mixture", "--out", str(out), f"one={made}/one", "--heldout", "12"])
    assert "held out: got 12; expected" in capsys.readouterr().err


@LOADING
@pytest.mark.usefixtures("in_repo")
def test_commands_fit_the_config():
    config = read_config(["--config", CONFIG])
    assert config.data.batch_size == BATCH
    assert (config.seed, config.data.subset) == DRAWN


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, None), (1, "0"), (9, "4"), (200, "16"), (1599, "16"), (1600, ""), (10**6, "")],
)
def test_after_prepare_a_batch_is_held_out(number, expected):
    about = {"records": number, "options": {"label": "llava"}}
    found = after_prepare(Path("data/my llava"), about)
    if expected is None:
        assert found == []
        return
    words = shlex.split(found[0])
    assert words[-1] == "llava=data/my llava:1.0"
    assert ("--heldout" in words) == bool(expected)
    assert not expected or words[words.index("--heldout") + 1] == expected
