"""Where a pretrained model comes from: folders, files, the hub and its refusals."""

import json
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from gguf_files import keys, model, write
from huggingface_hub import constants
from huggingface_hub import errors as hub
from safetensors.numpy import save_file

from vtscale_jax.embedded.vocabulary import build_tokenizer, save_tokenizer
from vtscale_jax.weights import fetch, pretrained
from vtscale_jax.weights.pretrained import (
    PretrainedError,
    check_tokenizer,
    open_pretrained,
)

FIELD = "weights.llm"
CONFIG = {"model_type": "llama", "hidden_size": 64}
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill(folder, *, weights="model.safetensors", tokenizer=True):
    """A model's folder in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if weights:
        save_file({"a": np.arange(6, dtype=np.float32)}, folder / weights)
    if tokenizer:
        save_tokenizer(folder)
    return folder


def no_hub(*args, **kwargs):
    raise AssertionError("the hub was asked for something local")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub; nothing of this computer's is seen."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache, name, **parts):
    """A repository in the cache, as a finished download leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return fill(repository / "snapshots" / COMMIT, **parts)


def test_a_local_folder_is_opened_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    folder = fill(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    # An existing folder is local, even when its name is that of a repository.
    for value in [str(folder), "org/name", "./org/name"]:
        found = open_pretrained(FIELD, value)
        assert found.config == CONFIG and found.tensors.shapes == {"a": (6,)}
    monkeypatch.setenv("HOME", str(tmp_path / "org"))
    assert open_pretrained(FIELD, "~/name").config == CONFIG
    tokenizer = open_pretrained(FIELD, str(folder)).tokenizer()
    text = "is there any 5 ?"
    assert tokenizer.encode(text) == build_tokenizer().encode(text)
    generation = {"eos_token_id": [1, 2]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found = open_pretrained(FIELD, str(folder))
    assert found.config == {**CONFIG, "generation_config": generation}


def test_a_single_file_has_its_config_beside_it(tmp_path):
    folder = fill(tmp_path / "model", weights="one.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, folder / "two.safetensors")
    found = open_pretrained(FIELD, str(folder / "two.safetensors"))
    assert found.config == CONFIG and set(found.tensors.shapes) == {"b"}
    assert found.tokenizer().vocab_size == build_tokenizer().vocab_size
    (folder / "config.json").unlink()
    with pytest.raises(PretrainedError, match=r"weights\.llm: .*holds no config.json"):
        open_pretrained(FIELD, str(folder / "two.safetensors"))


def test_a_gguf_file_or_a_folder_with_one(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    file = tmp_path / "model" / "small.gguf"
    file.parent.mkdir()
    write(file, model("llama")[0], keys("llama"))
    # Repositories of GGUF files often have the config.json of the original too.
    for config in [False, True]:
        if config:
            (file.parent / "config.json").write_text(json.dumps(CONFIG))
        for value in [file, file.parent]:
            found = open_pretrained(FIELD, str(value))
            assert found.where == str(file)
            assert found.config["model_type"] == "llama"
            assert found.config["hidden_size"] != CONFIG["hidden_size"]
            assert "model.embed_tokens.weight" in found.tensors.shapes
            # The tokenizer is the file's own: this one has none.
            with pytest.raises(ValueError, match="tokenizer"):
                found.tokenizer()
    write(file.parent / "other.gguf", model("llama")[0], keys("llama"))
    with pytest.raises(PretrainedError, match=r"holds 2 \.gguf files.*=.*/other\.gguf"):
        open_pretrained(FIELD, str(file.parent))
    # With the original weights beside them, those are meant.
    fill(file.parent)
    assert open_pretrained(FIELD, str(file.parent)).config == CONFIG


def test_a_fetched_model_goes_by_its_short_name(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    monkeypatch.setattr(fetch, "cached", lambda name: None)
    with pytest.raises(PretrainedError, match=r"(?s)not on this .* fetch smollm2-135m"):
        open_pretrained(FIELD, "smollm2-135m")
    folder = fill(tmp_path / "fetched")
    monkeypatch.setattr(fetch, "cached", lambda name: folder)
    assert open_pretrained(FIELD, "smollm2-135m").where == str(folder)


@pytest.mark.parametrize(
    "value, message",
    [
        ("/no/such/folder", r"/no/such/folder does not exist.*--config\.weights\.llm="),
        ("./model.gguf", r"\./model\.gguf does not exist"),
        ("~/nothing", "does not exist"),
        ("", "no file or folder here and no name on the hub"),
        ("a/b/c", "no file or folder here and no name on the hub"),
        ("plain", "no file or folder here and no name on the hub"),
        ("models/missing.gguf", "no file or folder here and no name on the hub"),
        ("org/na me", "no file or folder here and no name on the hub"),
    ],
)
def test_what_is_no_name_never_goes_to_the_hub(value, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_hub)
    with pytest.raises(PretrainedError, match=message):
        open_pretrained(FIELD, value)


def test_a_folder_without_config_or_tokenizer_says_so(tmp_path):
    folder = fill(tmp_path / "model", tokenizer=False)
    found = open_pretrained(FIELD, str(folder))
    with pytest.raises(PretrainedError, match=r"holds no tokenizer.*tokenizer\.json"):
        found.tokenizer()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(PretrainedError, match="cannot read its tokenizer"):
        found.tokenizer()
    (folder / "config.json").unlink()
    with pytest.raises(PretrainedError, match=r"weights\.llm: .*holds no config\.json"):
        open_pretrained(FIELD, str(folder))


def test_a_tokenizer_larger_than_the_table_is_refused():
    tokenizer = build_tokenizer()
    size = len(tokenizer)
    check_tokenizer(tokenizer, size, "here")
    check_tokenizer(tokenizer, size + 64, "here")
    with pytest.raises(
        PretrainedError, match=f"ids reach {size - 1}, but .* {size - 1}"
    ):
        check_tokenizer(tokenizer, size - 1, "here")
    # Tokens added outside the first vocabulary count too.
    tokenizer.add_tokens(["<image>"])
    with pytest.raises(PretrainedError, match="of another model"):
        check_tokenizer(tokenizer, size, "here")


def test_offline_the_cache_is_used(cache):
    assert constants.HF_HUB_OFFLINE  # tests/conftest.py
    folder = cached(cache, "org/name")
    found = open_pretrained(FIELD, "org/name")
    assert found.where == str(folder) and found.config == CONFIG
    assert found.tokenizer().vocab_size == build_tokenizer().vocab_size
    assert open_pretrained(FIELD, f"org/name@{COMMIT}").where == str(folder)
    with pytest.raises(PretrainedError, match="other is not here"):
        open_pretrained(FIELD, "org/name@other")


def test_offline_and_not_cached_says_what_to_do(cache):
    with pytest.raises(PretrainedError) as caught:
        open_pretrained(FIELD, "org/name")
    text = str(caught.value)
    assert "weights.llm: org/name is not here and cannot be fetched" in text
    assert "(HF_HUB_OFFLINE is set)" in text
    assert "hf download org/name --local-dir FOLDER" in text
    assert "--config.weights.llm=FOLDER" in text and "fetch" not in text[-30:]
    with pytest.raises(PretrainedError, match="weights fetch smollm2-135m$"):
        open_pretrained(FIELD, SMOL)
    # As AutoConfig and AutoTokenizer leave it: everything but the weights.
    cached(cache, "org/half", weights=None)
    with pytest.raises(
        PretrainedError, match=r"org/half has no \.safetensors or \.bin"
    ):
        open_pretrained(FIELD, "org/half")


class Repository:
    """A stand-in for the hub: which patterns were asked for, and what is there."""

    def __init__(self, folder, files):
        self.folder, self.files, self.asked = folder, files, []

    def __call__(self, name, *, revision=None, allow_patterns):
        kept = huggingface_hub.utils.filter_repo_objects(
            self.files, allow_patterns=allow_patterns
        )
        self.asked.append((name, revision, sorted(kept)))
        return str(self.folder)


def test_safetensors_are_preferred_and_nothing_twice(tmp_path, monkeypatch):
    there = [
        *("config.json", "tokenizer.json", "tokenizer.model", "README.md"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json", "consolidated.safetensors"),
        *("pytorch_model.bin", "original/model.safetensors", "onnx/model.onnx"),
        *("training_args.bin", "modeling.py", "generation_config.json"),
    ]
    asked = Repository(fill(tmp_path / "a"), there)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    open_pretrained(FIELD, "org/name@v1")
    expected = [
        *("config.json", "generation_config.json"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json", "tokenizer.json", "tokenizer.model"),
    ]
    assert asked.asked == [("org/name", "v1", expected)]
    # Without safetensors, PyTorch's files are asked for, and no other pickles.
    asked = Repository(fill(tmp_path / "b", weights=None), there)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    with pytest.raises(PretrainedError, match="or give a .gguf file itself"):
        open_pretrained(FIELD, "org/name")
    assert len(asked.asked) == 2
    assert set(asked.asked[1][2]) - set(expected) == {"pytorch_model.bin"}


def refusal(kind, status):
    """An error of the hub, as its client raises it."""
    answer = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("refused", response=answer)


@pytest.mark.parametrize(
    "error, online, message",
    [
        (
            lambda: refusal(hub.GatedRepoError, 403),
            True,
            r"is gated; accept the licence at https://huggingface\.co/org/name, log in "
            r"with `hf auth login`",
        ),
        (
            lambda: refusal(hub.RepositoryNotFoundError, 401),
            True,
            "no file or folder here and not on the hub.*check the spelling",
        ),
        (
            lambda: refusal(hub.RevisionNotFoundError, 404),
            True,
            "has no revision 'v1'",
        ),
        (
            lambda: hub.LocalEntryNotFoundError("ConnectError: no route"),
            True,
            r"cannot be fetched .*ConnectError: no route\); download it elsewhere",
        ),
        (
            lambda: refusal(hub.HfHubHTTPError, 503),
            True,
            r"cannot be fetched .*HfHubHTTPError.*--config\.weights\.llm=FOLDER",
        ),
        (lambda: OSError(28, "No space left on device"), True, "No space left"),
        (
            lambda: hub.LocalEntryNotFoundError("nothing cached"),
            False,
            "HF_HUB_OFFLINE is set",
        ),
    ],
)
def test_refusals_of_the_hub_name_the_next_step(error, online, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise error()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not online)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(PretrainedError, match=message) as caught:
        open_pretrained(FIELD, "org/name@v1")
    assert str(caught.value).startswith("weights.llm: org/name@v1 ")


def test_an_unreachable_hub_is_an_error_with_the_next_step(monkeypatch):
    """The hub's own client, without a network: its error is one that is understood."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    huggingface_hub.close_session()  # it remembers that it was offline
    with pytest.raises(PretrainedError, match="cannot be fetched.*download it elsewhe"):
        open_pretrained(FIELD, "org/name")
    huggingface_hub.close_session()


def test_the_names_of_gguf_are_not_needed_for_other_models(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vtscale_jax.weights.gguf.model", None)
    assert open_pretrained(FIELD, str(fill(tmp_path / "model"))).config == CONFIG
    assert pretrained.DEFAULT_PATTERNS[0] == "config.json"
