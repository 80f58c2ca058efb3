"""Where a pretrained model comes from: a folder, a file, or a name on the hub.

    pretrained = open_pretrained("weights.llm", "HuggingFaceTB/SmolLM2-135M-Instruct")
    pretrained.config["model_type"], pretrained.tensors.shapes, pretrained.tokenizer()

Every failure says the next step, in the words of the config field that named the model.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import transformers  # AutoTokenizer, which loads much more, is taken when it is used
from huggingface_hub import constants
from huggingface_hub import errors as hub
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedTokenizerBase

from vtscale_jax.weights import fetch
from vtscale_jax.weights.fetch import MODELS
from vtscale_jax.weights.files.tensors import (
    TORCH_FILES,
    TORCH_INDEX,
    TensorSource,
    open_tensors,
    read_json,
)

# What a model is made of. The top of the repository only: many hold the same weights
# once more as consolidated.safetensors, or in original/ and onnx/.
DEFAULT_PATTERNS = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.json", "vocab.txt", "merges.txt"),
    *("model*.safetensors", "model.safetensors.index.json"),
)
TORCH_PATTERNS = (TORCH_FILES, TORCH_INDEX)
# A folder with none of these holds no tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class PretrainedError(ValueError):
    """A pretrained model that cannot be had, or lacks a part."""


class Pretrained(NamedTuple):
    """A pretrained model, opened but not read.

    `config` is its Hugging Face config.json, with what generation_config.json says, if
    there is one, under "generation_config": some models name their end tokens only
    there. `tokenizer` makes the tokenizer, and raises PretrainedError where the model
    has none.
    """

    where: str
    config: dict[str, Any]
    tensors: TensorSource
    tokenizer: Callable[[], PreTrainedTokenizerBase]


def open_pretrained(
    field: str, value: str, *, files: Sequence[str] = DEFAULT_PATTERNS
) -> Pretrained:
    """The model that the config field `field` (as "weights.llm") names by `value`.

    `value` is a name that `fetch` knows (smollm2-135m), a folder in Hugging Face's
    layout (or one that holds a single .gguf file), a .gguf file, a .safetensors or .bin
    file with config.json beside it, or a name on the hub: "org/name", with "@revision"
    for a branch, tag or commit. `files` are patterns of what is fetched from the hub.
    What begins with "/", "." or "~", or exists, is local and never asked for on the
    hub.

    Raises PretrainedError with the next step when there is nothing to be had, and as
    the readers of the files do when it is damaged.
    """
    if value in MODELS:
        return _open_local(field, _fetched(field, value))
    local = Path(value).expanduser()
    if value.startswith(("/", ".", "~")) or (value and local.exists()):
        if not local.exists():
            raise PretrainedError(
                f"{field}: {value} does not exist, expected a folder with config.json "
                "and .safetensors files, or a .gguf file; check the path: "
                f"{_flag(field)}=FOLDER"
            )
        return _open_local(field, local)
    if not _is_hub_name(value):
        raise PretrainedError(
            f"{field}: got {value!r}, which is no file or folder here and no name on "
            f"the hub (org/name); give one of these: {_flag(field)}=FOLDER"
        )
    return _open_local(field, _download(field, value, files))


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str
) -> None:
    """PretrainedError when a tokenizer has ids beyond the embedding table's rows.

    Fewer are usual: tables are padded to a round number of rows.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise PretrainedError(
            f"{where}: the tokenizer's ids reach {largest}, but the embedding table "
            f"has {vocab_size} rows, expected ids below that; the tokenizer is of "
            "another model: give weights and tokenizer of the same one"
        )


def _fetched(field: str, name: str) -> Path:
    """A model that `fetch` knows by name, where it has put it."""
    found = fetch.cached(name)
    if found is None:
        raise PretrainedError(
            f"{field}: {name} is not on this machine yet; get it with\n"
            f"    python -m vtscale_jax.weights fetch {name}\n"
            f"or name another model: {_flag(field)}=FOLDER"
        )
    return found


def _flag(field: str) -> str:
    """How a model is named on the command line; a field without a dot is so already."""
    return f"--config.{field}" if "." in field else field


def _is_hub_name(value: str) -> bool:
    try:
        validate_repo_id(value.partition("@")[0])
    except hub.HFValidationError:
        return False
    return value.count("/") == 1 and not value.endswith((".gguf", ".safetensors"))


def _open_local(field: str, path: Path) -> Pretrained:
    folder = path if path.is_dir() else path.parent
    gguf_files = sorted(folder.glob("*.gguf")) if path.is_dir() else []
    if path.is_file() and path.suffix == ".gguf":
        return _open_gguf(path)
    if gguf_files and not _has_weights(folder):
        if len(gguf_files) > 1:
            raise PretrainedError(
                f"{field}: {folder} holds {len(gguf_files)} .gguf files, expected one; "
                f"say which: {_flag(field)}={gguf_files[0]}"
            )
        return _open_gguf(gguf_files[0])
    config = folder / "config.json"
    if not config.is_file():
        raise PretrainedError(
            f"{field}: {folder} holds no config.json, expected one beside the weights "
            "(or a single .gguf file); copy it there from where the weights are from, "
            f"or give the folder of the model: {_flag(field)}=FOLDER"
        )
    found, generation = read_json(config), folder / "generation_config.json"
    if generation.is_file():
        found["generation_config"] = read_json(generation)
    return Pretrained(
        str(path),
        found,
        open_tensors(path),
        functools.partial(folder_tokenizer, folder),
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob(TORCH_FILES))


def _open_gguf(path: Path) -> Pretrained:
    # Only who has such a file needs the gguf library.
    from vtscale_jax.weights.gguf.model import open_gguf

    file = open_gguf(path)
    return Pretrained(str(path), file.config, file.tensors, file.tokenizer)


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder; PretrainedError where it has none, or one that
    transformers cannot read."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise PretrainedError(
            f"{folder}: holds no tokenizer, expected one of "
            f"{', '.join(TOKENIZER_FILES)}; copy the tokenizer's files of the model "
            "into the folder"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever the files lead to
        raise PretrainedError(
            f"{folder}: transformers cannot read its tokenizer ({_said(error)}); check "
            "config.json and the tokenizer's files, or fetch them again"
        ) from error


def _download(field: str, value: str, files: Sequence[str]) -> Path:
    """The local copy of a repository: its safetensors, or else PyTorch's files."""
    name, _, revision = value.partition("@")
    found = Path()
    for patterns in (files, (*files, *TORCH_PATTERNS)):
        try:
            found = Path(
                huggingface_hub.snapshot_download(
                    name, revision=revision or None, allow_patterns=list(patterns)
                )
            )
        except Exception as error:  # of the hub, the network or the disk
            raise _hub_error(field, value, error) from error
        if _has_weights(found):
            return found
    raise PretrainedError(
        f"{field}: {value} has no .safetensors or .bin files that could be had (the "
        f"local copy is {found}); take a repository with the unquantised weights, or "
        f"give a .gguf file itself: {_flag(field)}=FILE.{_other_way(name)}"
    )


def _hub_error(field: str, value: str, error: Exception) -> PretrainedError:
    """What went wrong on the way to the hub, and what to do about it."""
    name = value.partition("@")[0]
    page = f"https://huggingface.co/{name}"
    elsewhere = (
        f"download it elsewhere (hf download {name} --local-dir FOLDER) and give the "
        f"local folder: {_flag(field)}=FOLDER"
    )
    if isinstance(error, hub.GatedRepoError):
        said = f"is gated; accept the licence at {page}, log in with `hf auth login`"
        return PretrainedError(f"{field}: {value} {said}, and run again")
    if isinstance(error, hub.RevisionNotFoundError):
        said = f"has no revision {value.partition('@')[2] or 'main'!r}; see {page}"
        return PretrainedError(f"{field}: {value} {said}/tree/main")
    if isinstance(error, hub.RepositoryNotFoundError):
        return PretrainedError(
            f"{field}: {value} is no file or folder here and not on the hub, or is "
            f"private there; check the spelling (org/name, as in {page}), log in with "
            f"`hf auth login`, or give a local folder: {_flag(field)}=FOLDER"
        )
    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else _said(error)
    return PretrainedError(
        f"{field}: {value} is not here and cannot be fetched from the hub ({why}); "
        f"{elsewhere}.{_other_way(name)}"
    )


def _said(error: Exception) -> str:
    """An error's kind and its first line; those of the hub go on for paragraphs."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _other_way(name: str) -> str:
    """The command that gets a model without the hub, where there is one."""
    known = [key for key, model in MODELS.items() if model.repo.lower() == name.lower()]
    return f" Or: python -m vtscale_jax.weights fetch {known[0]}" if known else ""
