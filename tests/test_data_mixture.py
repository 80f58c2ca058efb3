"""Mixtures: what is taken of each source, what is refused, and training on them."""

import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prepared_folders import picture, prepared, records, rewrite
from small_runs import manifest as run_manifest
from small_runs import small_config

from vtscale_jax.assemble import open_source
from vtscale_jax.data.array_record_source import ArrayRecordError, ArrayRecordSource
from vtscale_jax.data.array_records import pack
from vtscale_jax.data.commands.mixture import add_arguments, parse_source
from vtscale_jax.data.folder_source import FolderSource
from vtscale_jax.data.mixture import Mixture, index_file, make_mixture
from vtscale_jax.data.mixture_manifest import (
    MixtureError,
    drawn,
    ids_hash,
    read_manifest,
    taken_of,
)
from vtscale_jax.loader import Source, kept_records
from vtscale_jax.run_folder import RunFolder, RunFolderError
from vtscale_jax.train import train

SIZES = {"one": 12, "half": 9, "more": 5}


def silent(line: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A mixture of three sources, one of them packed, beside its folders."""
    root = tmp_path_factory.mktemp("data")
    for seed, (name, number) in enumerate(SIZES.items()):
        prepared(root / name, number, seed=seed)
    pack(root / "more", str(root / "more/images"), say=silent, shard_bytes=60_000)
    make_mixture(root / "mixture.json", sources(root), seed=3, subset=(7, 0.25))
    return root


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """The same, for a test to damage."""
    return shutil.copytree(made, tmp_path / "elsewhere")


def sources(root: Path) -> list[tuple[str, Path, float]]:
    weights = {"one": 1.0, "half": 0.5, "more": 2.5}
    return [(name, root / name, weight) for name, weight in weights.items()]


def all_ids(mixture: Mixture) -> list[str]:
    return [mixture[i].id for i in range(len(mixture))]


def test_each_source_gives_its_weight(made):
    mixture = Mixture(made / "mixture.json")
    assert isinstance(mixture, Source)
    ids = all_ids(mixture)
    # 12; half of 9, rounded up; 5 twice and half of 5, rounded up.
    assert len(mixture) == len(ids) == 12 + 5 + 13
    assert len(set(ids)) == len(ids)
    assert ids[:12] == [f"one/page-{i}" for i in range(12)]
    half = [int(one.removeprefix("half/page-")) for one in ids[12:17]]
    assert half == sorted(set(half)) and set(half) < set(range(9))
    assert ids[17:22] == [f"more/page-{i}" for i in range(5)]
    assert ids[22:27] == [f"more/page-{i}#2" for i in range(5)]
    extra = [int(re.fullmatch(r"more/page-(\d)#3", one)[1]) for one in ids[27:]]
    assert len(extra) == 3 and extra == sorted(set(extra))
    assert mixture[-1].id == ids[-1]
    with pytest.raises(IndexError):
        mixture[30]


def test_records_are_those_of_the_sources(made):
    mixture = Mixture(made / "mixture.json")
    stored = {name: FolderSource(made / name) for name in ("one", "half")}
    stored["more"] = ArrayRecordSource(made / "more")
    for i in range(len(mixture)):
        found = mixture[i]
        name, number = re.fullmatch(r"(\w+)/page-(\d+)(?:#\d)?", found.id).groups()
        assert found._replace(id="") == stored[name][int(number)]._replace(id="")
    assert mixture[0].image == str(made / "one/images/pages/0.png")
    assert mixture[17].image == (made / "more/images/pages/0.png").read_bytes()


def test_random_parts_depend_on_the_seed_and_the_source_alone():
    assert drawn("svit", 1000, 500, 0).tolist() == drawn("svit", 1000, 500, 0).tolist()
    assert set(drawn("svit", 1000, 500, 0)) != set(drawn("svit", 1000, 500, 1))
    assert set(drawn("svit", 1000, 500, 0)) != set(drawn("doc", 1000, 500, 0))
    assert len(drawn("svit", 1000, 2500, 0)) == 500
    assert len(drawn("svit", 1000, 2000, 0)) == 0
    # Every record has the same chance: within 5 standard deviations.
    counts = np.zeros(20)
    for seed in range(2000):
        counts[drawn("a", 20, 5, seed)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)
    assert [taken_of(10, w) for w in (1.0, 0.04, 0.05, 2.5, 0.25)] == [10, 1, 1, 25, 3]


def test_random_weights_by_counting(made, tmp_path):
    """How often each record is there, for weights drawn at random."""
    chance = random.Random(0)
    for trial in range(10):
        weights = {name: round(chance.uniform(0.1, 4), 2) for name in SIZES}
        mixture = make_mixture(
            tmp_path / f"{trial}.json",
            [(name, made / name, weight) for name, weight in weights.items()],
            seed=trial,
        )
        ids = all_ids(mixture)
        assert len(set(ids)) == len(ids)
        for name, number in SIZES.items():
            found = [one.split("#")[0] for one in ids if one.startswith(f"{name}/")]
            assert len(found) == max(1, int(weights[name] * number + 0.5))
            times = [found.count(f"{name}/page-{i}") for i in range(number)]
            assert max(times) - min(times) <= 1


def test_the_longest_are_among_those_taken(made):
    mixture = Mixture(made / "mixture.json")
    sizes = []
    for i in range(len(mixture)):
        turns = mixture[i].turns
        characters = sum(len(turn.question) + len(turn.answer) for turn in turns)
        sizes.append((len(turns), characters))
    for number in (1, 3, 50):
        found = [sizes[i] for i in mixture.longest(number)]
        assert max(found)[0] == max(sizes)[0]
        assert max(f[1] for f in found) == max(s[1] for s in sizes)
        best = sorted({s[1] for s in sizes}, reverse=True)[:number]
        assert set(best) <= {f[1] for f in found}
        assert len(found) <= 2 * number
    # A source of which a part is taken: its longest record may not be.
    half = make_mixture(made / "half.json", [("half", made / "half", 0.3)], seed=2)
    ids = all_ids(half)
    taken = sorted(int(one.removeprefix("half/page-")) for one in ids)
    assert 8 not in taken  # the longest of all, for this seed
    assert ids[half.longest(1)[-1]] == f"half/page-{taken[-1]}"


def test_the_hash_says_what_is_trained_on(made, tmp_path):
    mixture = Mixture(made / "mixture.json")
    reference = mixture.fingerprint
    # Not where things lie, nor the part for adaptation.
    moved = shutil.copytree(made, tmp_path / "moved")
    assert Mixture(moved / "mixture.json").fingerprint == reference
    assert Mixture(moved / "mixture.json", image_root="/x")[0].image == "/x/pages/0.png"
    other = make_mixture(tmp_path / "m.json", sources(made), seed=3, subset=(8, 0.5))
    assert other.fingerprint == reference
    assert all_ids(other) == all_ids(mixture)
    # But names, weights, order, the seed, and what is in the sources.
    first, *rest = sources(made)
    for changed, seed in (
        ([("other", *first[1:]), *rest], 3),
        ([(*first[:2], 2.0), *rest], 3),
        ([*rest, first], 3),
        (rest, 3),
        ([first, *rest], 4),
    ):
        other = make_mixture(tmp_path / "m.json", changed, seed=seed)
        assert other.fingerprint != reference
    rewrite(moved / "one", records(12, seed=9))
    other = make_mixture(tmp_path / "m.json", sources(moved), seed=3)
    assert other.fingerprint != reference


def test_stores_of_a_folder(made, tmp_path):
    packed = make_mixture(tmp_path / "a.json", [("m", made / "more", 1.0)])
    named = make_mixture(tmp_path / "b.json", [("m", made / "more/arrayrecord", 1.0)])
    in_place = make_mixture(
        tmp_path / "c.json", [("m", made / "more/records.jsonl", 1.0)]
    )
    assert packed.fingerprint == named.fingerprint != in_place.fingerprint
    assert [m.manifest.parts[0].store for m in (packed, in_place)] == [
        "arrayrecord",
        "jsonl",
    ]
    for i in range(5):
        one, other = packed[i], in_place[i]
        assert one._replace(image=None) == other._replace(image=None)


def test_an_index_beside_the_file_is_only_faster(copy):
    file = copy / "mixture.json"
    reference = [Mixture(file)[i] for i in range(30)]
    index = index_file(file, "one")
    assert index.is_file()
    good = index.read_bytes()
    for content in (b"", good[:100], index_file(file, "half").read_bytes()):
        index.write_bytes(content)
        assert [Mixture(file)[i] for i in range(30)] == reference
    shutil.rmtree(index.parent)
    assert [Mixture(file)[i] for i in range(30)] == reference


def test_a_pickled_mixture_reads_the_same_and_loads_no_framework(made, tmp_path):
    mixture = Mixture(made / "mixture.json")
    again = pickle.loads(pickle.dumps(mixture))  # noqa: S301
    assert [again[i] for i in range(30)] == [mixture[i] for i in range(30)]
    (tmp_path / "mixture").write_bytes(pickle.dumps(mixture))
    code = """
import pickle, sys
mixture = pickle.load(open(sys.argv[1], "rb"))
assert mixture[29].id.endswith("#3")
slow = {"jax", "grain", "tensorflow", "tensorflow_datasets", "torch", "transformers"}
print(sorted(slow & set(sys.modules)))
"""
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mixture")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert child.stdout.strip() == "[]", child.stderr


def change_text(root: Path) -> None:
    file = root / "half/records.jsonl"
    file.write_text(file.read_text().replace("It says", "It said", 1))


def prepare_anew(root: Path) -> None:
    rewrite(root / "half", records(9, seed=9))


def fewer(root: Path) -> None:
    rewrite(root / "half", records(8, seed=1))


def remove(root: Path) -> None:
    shutil.rmtree(root / "half")


def no_manifest(root: Path) -> None:
    (root / "half/manifest.json").unlink()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (change_text, "records.jsonl has changed: its SHA-256 is"),
        (prepare_anew, "its sha256 in .*half is [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (fewer, "its records in .*half is 8, expected 9"),
        (remove, "manifest.json cannot be read"),
        (no_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_source_that_has_changed_is_named(copy, change, match):
    Mixture(copy / "mixture.json")
    change(copy)
    with pytest.raises(MixtureError, match=f"source 'half': .*{match}") as caught:
        Mixture(copy / "mixture.json")
    assert "make the mixture anew, in a new run" in str(caught.value)


def test_a_packed_source_that_has_changed_is_named(copy):
    shard = next((copy / "more/arrayrecord").glob("*.array_record-*"))
    shard.write_bytes(shard.read_bytes() + b"\0")
    with pytest.raises(MixtureError, match=r"source 'more': .*expected [\d,]+ bytes"):
        Mixture(copy / "mixture.json")
    shutil.rmtree(copy / "more/arrayrecord")
    (copy / "more/images/pages/0.png").write_bytes(picture(77))
    pack(copy / "more", str(copy / "more/images"), say=silent)
    with pytest.raises(MixtureError, match="source 'more': its sha256"):
        Mixture(copy / "mixture.json")


def edit(*path, value):
    """A change of one field of a manifest."""

    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit("format", value=2), '"format": 1'),
        (edit("sha256", value="0"), "\"sha256\" is '0', but .* it was edited"),
        (edit("seed", value=4), '"sha256" is .* it was edited'),
        (edit("seed", value=-1), "seed: got -1"),
        (edit("seed", value=True), "seed: got True"),
        (edit("records", value=31), '"records" is 31, but .* 30'),
        (edit("sources", value=[]), '"sources" is not a list'),
        (edit("sources", 0, value=3), r"sources\[0\] has not the fields name"),
        (edit("sources", 1, "more", value=3), r"sources\[1\] has not the fields"),
        (edit("sources", 1, "taken", value=9), r"sources\[1\]: 9 taken of 9"),
        (
            edit("sources", 1, "taken", value="5"),
            r"sources\[1\].taken is '5', expected",
        ),
        (edit("sources", 1, "records", value=True), r"sources\[1\].records is True"),
        (edit("sources", 1, "weight", value=0.0), "source 'half': got the weight 0.0"),
        (edit("sources", 1, "store", value="x"), r"sources\[1\].store is 'x'"),
        (edit("sources", 1, "name", value="one"), "'one' is given twice"),
        (edit("sources", 1, "name", value="a/b"), "source name 'a/b'"),
        (edit("subset", value=None), "subset has not the fields"),
        (edit("subset", "fraction", value=2), "fraction: got 2.0"),
    ],
)
def test_edited_manifests(made, tmp_path, change, match):
    content = json.loads((made / "mixture.json").read_text())
    change(content)
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps(content))
    with pytest.raises(MixtureError, match=match):
        read_manifest(file)


def test_any_damage_is_a_documented_error(made, tmp_path):
    text = (made / "mixture.json").read_bytes()
    chance, file, refused = random.Random(0), tmp_path / "mixture.json", 0
    for _ in range(400):
        changed = bytearray(text)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            changed[place : place + chance.randint(0, 9)] = chance.randbytes(2)
        file.write_bytes(bytes(changed))
        try:
            read_manifest(file)
        except MixtureError as error:
            assert len(str(error)) > 40
            refused += 1
    assert refused > 200  # the rest hit versions, folders or the part for adaptation


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sources": []}, "expected at least one NAME=FOLDER"),
        ({"name": "a/b"}, "source name 'a/b'"),
        ({"weight": 0.0}, "weight 0.0"),
        ({"weight": -1.0}, "weight -1.0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": 1e9}, "at most 1000"),
        ({"folder": "nowhere"}, "'one': .*nowhere is no prepared folder"),
        ({"seed": -1}, "seed: got -1"),
        ({"subset": (0, 0.0)}, "fraction: got 0.0"),
        ({"subset": (-1, 0.1)}, "seed: got -1"),
    ],
)
def test_mixtures_that_cannot_be_made(made, tmp_path, change, match):
    change = dict(change)
    one = (
        change.pop("name", "one"),
        made / change.pop("folder", "one"),
        change.pop("weight", 1.0),
    )
    given = change.pop("sources", [one])
    with pytest.raises(MixtureError, match=match):
        make_mixture(tmp_path / "mixture.json", given, **change)
    assert not (tmp_path / "mixture.json").exists()


def test_names_and_repeats_stay_apart(made, tmp_path):
    twice = [("one", made / "one", 1.0), ("one", made / "half", 1.0)]
    with pytest.raises(MixtureError, match="'one' is given twice"):
        make_mixture(tmp_path / "mixture.json", twice)
    folder, rows = prepared(tmp_path / "doc", 4), records(4)
    rows[2]["id"] = "page-0#2"
    rewrite(folder, rows)
    with pytest.raises(MixtureError, match="'page-0#2': its weight 1.5 repeats"):
        make_mixture(tmp_path / "mixture.json", [("doc", folder, 1.5)])
    assert len(make_mixture(tmp_path / "mixture.json", [("doc", folder, 1.0)])) == 4


def test_the_part_for_adaptation(made):
    mixture = Mixture(made / "mixture.json")
    listed = mixture.manifest.subset
    ids = all_ids(mixture)
    kept = kept_records(30, (7, 0.25))
    assert (listed.seed, listed.fraction, listed.records) == (7, 0.25, 8)
    assert listed.sha256 == ids_hash(ids[i] for i in kept)
    assert listed.sha256 != ids_hash(ids[:8])
    mixture.check_subset(7, 0.25)
    mixture.check_subset(0, 1.0)  # a run on all records draws nothing
    for seed, fraction in ((8, 0.25), (7, 0.1)):
        with pytest.raises(MixtureError, match=f"--subset_seed {seed}") as caught:
            mixture.check_subset(seed, fraction)
        assert "--config.seed=7 --config.data.subset=0.25" in str(caught.value)


def test_a_part_with_another_hash(copy):
    file = copy / "mixture.json"
    content = json.loads(file.read_text())
    content["subset"]["sha256"] = "0" * 64
    file.write_text(json.dumps(content))
    with pytest.raises(MixtureError, match="has 8 records with the hash"):
        Mixture(file).check_subset(7, 0.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llava=data/llava", ("llava", "data/llava", 1.0)),
        ("svit=data/svit:0.5", ("svit", "data/svit", 0.5)),
        ("a=C:/data:2", ("a", "C:/data", 2.0)),
        ("a=b=c:0.5", ("a", "b=c", 0.5)),
        ("a=b:c", ("a", "b:c", 1.0)),
    ],
)
def test_sources_of_the_command_line(text, expected):
    name, folder, weight = parse_source(text)
    assert (name, str(folder), weight) == expected


@pytest.mark.parametrize("text", ["llava", "=data", "llava=", "llava=:0.5"])
def test_what_is_no_source(text):
    with pytest.raises(MixtureError, match="expected NAME=FOLDER"):
        parse_source(text)


def test_the_command(made, tmp_path):
    command = [sys.executable, "-m", "vtscale_jax.data", "mixture"]
    command += ["--out", str(tmp_path / "data/mixture.json"), "--seed", "3"]
    command += ["--subset_seed", "7", "--subset_fraction", "0.25"]
    given = [f"one={made}/one", f"half={made}/half:0.5", f"more={made}/more:2.5"]
    repo = Path(__file__).parents[1]
    child = subprocess.run([*command, *given], capture_output=True, text=True, cwd=repo)
    assert child.returncode == 0, child.stderr
    mixture = Mixture(tmp_path / "data/mixture.json")
    assert mixture.fingerprint == Mixture(made / "mixture.json").fingerprint
    assert "30 records" in child.stdout and mixture.fingerprint[:16] in child.stdout
    assert "make the mixture with --heldout N" in child.stdout
    child = subprocess.run([*command, "one"], capture_output=True, text=True, cwd=repo)
    assert child.returncode == 1 and "error: got 'one'; expected NAME=" in child.stderr
    assert add_arguments.__doc__


# -- training ---------------------------------------------------------------------


def asked(number: int, answer: str) -> list[dict]:
    """Records in the few words of the embedded tokenizer."""
    question = {"role": "user", "content": "What digit is in the top left cell?"}
    answered = {"role": "assistant", "content": answer}
    return [
        {"id": f"page-{i}", "image": "pages/0.png", "messages": [question, answered]}
        for i in range(number)
    ]


@pytest.fixture
def trainable(tmp_path) -> Path:
    for name, answer in (("first", "two"), ("second", "four")):
        prepared(tmp_path / name, 1)
        rewrite(tmp_path / name, asked(24, answer))
    pack(tmp_path / "second", str(tmp_path / "second/images"), say=silent)
    weighed = [("first", tmp_path / "first", 1.0), ("second", tmp_path / "second", 1.5)]
    make_mixture(tmp_path / "mixture.json", weighed, subset=(0, 0.5))
    return tmp_path


def config_of(root: Path, **more):
    changes = {
        "data__name": "mixture",
        "data__path": str(root / "mixture.json"),
        "data__heldout_path": str(root / "mixture.json"),
        "optim__steps": 2,
        "eval__every": 2,
    }
    return small_config(**(changes | more))


def test_training_refuses_changed_data(trainable):
    """Two steps; then the data change, and the same command is refused."""
    run = trainable / "run"
    train(config_of(trainable), run)
    assert run_manifest(run)["finished"]
    data = run_manifest(run)["inputs"]["data"]
    assert data["train"] == Mixture(trainable / "mixture.json").fingerprint
    folder = RunFolder(run)
    folder.write("manifest.json", folder.read("manifest.json") | {"finished": False})
    before = (run / "metrics.jsonl").read_text()
    rewrite(trainable / "first", asked(24, "three"))
    with pytest.raises(MixtureError, match=r"source 'first': its sha256 in .*first"):
        train(config_of(trainable), run)
    # Made anew, it is another mixture: a run of its own.
    weighed = [
        ("first", trainable / "first", 1.0),
        ("second", trainable / "second", 1.5),
    ]
    make_mixture(trainable / "mixture.json", weighed, subset=(0, 0.5))
    with pytest.raises(
        RunFolderError, match=r"cannot go on.*\n *data.heldout"
    ) as caught:
        train(config_of(trainable), run)
    assert f"data.train: {data['train']} when it was started" in str(caught.value)
    assert (run / "metrics.jsonl").read_text() == before
    # The data brought back, the run goes on.
    rewrite(trainable / "first", asked(24, "two"))
    make_mixture(trainable / "mixture.json", weighed, subset=(0, 0.5))
    train(config_of(trainable), run)
    assert run_manifest(run)["finished"]


def test_a_run_draws_the_part_of_the_manifest(trainable):
    config = config_of(trainable, data__subset=0.5)
    assert isinstance(open_source(config, "train"), Mixture)
    for more in ({"seed": 1}, {"data__subset": 0.1}):
        changed = config_of(trainable, **({"data__subset": 0.5} | more))
        with pytest.raises(MixtureError, match="this run draws the part"):
            open_source(changed, "train")
        open_source(changed, "heldout")  # of which nothing is drawn


def test_training_on_a_packed_folder(trainable):
    config = config_of(
        trainable,
        data__name="array_record",
        data__num_workers=1,  # the source is sent to a process of its own
        data__path=str(trainable / "second"),
        data__heldout_path=str(trainable / "second/arrayrecord"),
    )
    train(config, trainable / "packed")
    found = run_manifest(trainable / "packed")
    assert found["finished"]
    fingerprint = ArrayRecordSource(trainable / "second").fingerprint
    assert found["inputs"]["data"] == {"train": fingerprint, "heldout": fingerprint}
    with pytest.raises(ArrayRecordError):
        open_source(
            config_of(trainable, data__name="array_record", data__path="x"), "train"
        )


@pytest.mark.parametrize("name", ["jsonl", "array_record", "mixture"])
def test_paths_that_are_missing(name, tmp_path):
    config = config_of(tmp_path, data__name=name, data__heldout_path="")
    field = "path" if name == "mixture" else "heldout_path"  # it has its own
    config.data.path = "" if name == "mixture" else config.data.path
    with pytest.raises(ValueError, match=f"data.{field} is empty, expected a"):
        open_source(config, "heldout")
    with pytest.raises(ValueError, match=r"mixture.json"):
        open_source(config, "train")
