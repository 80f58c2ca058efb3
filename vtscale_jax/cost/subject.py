"""What is timed: a model, an image and a question, from a run or from sizes alone.

    subject = of_run(Path("runs/m256-embedded"), (1, 256), picture, question)
    subject = of_config(config, (1, 256), picture, question_tokens=64)
    subject.conversation(256, most=33).ask(subject.question)

Time does not depend on what the weights are, only on their sizes and dtypes: the second
has random ones, made where they are used, and stands in for models that are not at
hand. It needs no tokenizer either: a word is a token.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vtscale_jax import paths, settings
from vtscale_jax.config_files import QUERIES
from vtscale_jax.conversation import Answering, ImageConversation
from vtscale_jax.cost.answer import Question
from vtscale_jax.encoding import Encoding, encode_questions
from vtscale_jax.images import ImageLike, load_image
from vtscale_jax.llm import held_in
from vtscale_jax.stages import get_stage, init_params, parameter_shapes
from vtscale_jax.stream import padded_length
from vtscale_jax.tokens import QueryLayout, Tokenizer, llm_sequence
from vtscale_jax.trained import open_trained, run_config
from vtscale_jax.types import Record, Turn
from vtscale_jax.views import view_grid
from vtscale_jax.vlm import ModelConfig

QUESTION = "how many digits are on the page ?"
WORD = "word"  # of drawn questions
INIT_STD = 0.02


class SubjectError(ValueError):
    """A model, image or question that cannot be timed."""


class Picture(NamedTuple):
    """An image as it is given to the model, its (height, width) in pixels, and what is
    said of it."""

    image: ImageLike
    size: tuple[int, int]
    about: str


class Prompt(NamedTuple):
    """The sizes of a question for one M: its own, and those that are computed, since
    rows are padded to a length of a small set (`stream.padded_length`)."""

    real: Question
    padded: Question


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model ready to answer one question about one image, at any M of `queries`.

    `config` is the run's or the given one; `llm_dtype` is that of the language model's
    parameters. Nothing ends an answer early: no token is taken for an end.
    """

    name: str
    config: ConfigDict
    params: dict[str, Any]
    model: ModelConfig
    llm_dtype: str
    encoding: Encoding
    first_query_id: int | None
    queries: tuple[int, ...]
    picture: Picture
    question: str

    def layout(self, num_queries: int) -> QueryLayout:
        """M query tokens for the question."""
        return QueryLayout(num_queries, None, self.first_query_id)

    def conversation(self, num_queries: int, most: int) -> ImageConversation:
        """A new conversation about the image: nothing is seen or read yet."""
        endless = (self.model.llm.vocab_size,)
        return ImageConversation(
            self.params,
            self.model,
            self.encoding,
            self.layout(num_queries),
            self.picture.image,
            Answering(most=most, eos_ids=endless),
        )

    def prompt(self, num_queries: int) -> Prompt:
        """The sizes of the question with M = `num_queries`."""
        record = Record("question", "image", (Turn(self.question, ""),))
        layout, encoding = self.layout(num_queries), self.encoding
        fused = len(encode_questions(record, encoding, layout).ids)
        tokenizer = cast(Tokenizer, encoding.llm_tokenizer)
        read = len(llm_sequence(record, tokenizer, str(encoding.template), layout).ids)
        height, width = self.picture.size
        grid = view_grid(width, height, encoding.max_local_views, encoding.view_size)
        # The question's ⟨eos⟩ is both a text token and the last query slot.
        slots = num_queries - 1
        real = Question((height, width), grid, fused - slots, num_queries, read)
        padded = real._replace(
            text_tokens=padded_length(fused) - slots, prompt_tokens=padded_length(read)
        )
        return Prompt(real, padded)


def picture_of(text: str) -> Picture:
    """The image that --image means: a file, or WIDTHxHEIGHT for drawn pixels that are
    in memory already. SubjectError or ImageError for neither."""
    size = re.fullmatch(r"([0-9]+)x([0-9]+)", text)
    if size is None:
        shown = load_image(text)
        digest = hashlib.sha256(Path(text).read_bytes()).hexdigest()[:16]
        width, height = shown.size
        about = f"{Path(text).name}, {width}×{height}, sha256 {digest}"
        return Picture(text, (height, width), about)
    width, height = int(size[1]), int(size[2])
    if min(width, height) < 1:
        raise SubjectError(f"--image {text}: expected sizes of 1 pixel or more")
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Picture(pixels, (height, width), f"{width}×{height} drawn pixels")


def of_run(
    folder: Path, queries: Sequence[int], picture: Picture, question: str
) -> Subject:
    """The finished run in `folder`; no `queries` means those of the paper up to its own
    M. SubjectError for an M beyond that, RunError for a folder without such a run."""
    own = run_config(folder).num_queries
    queries = tuple(queries) or tuple(sorted({*(m for m in QUERIES if m < own), own}))
    beyond = [str(m) for m in queries if m > own]
    if beyond:
        raise SubjectError(
            f"--num_queries {','.join(beyond)}: {folder} has learnt {own} queries; "
            f"leave these out, or time its sizes with random weights (--config FILE)"
        )
    run = open_trained(folder, num_queries=max(queries))
    dtypes = settings.resolve_dtypes(run.config, jax.default_backend())
    return Subject(
        *(folder.resolve().name, run.config, run.params, run.model),
        dtypes.llm_params,
        *(run.encoding, run.layout.first_query_id, queries, picture, question),
    )


def of_config(
    config: ConfigDict,
    queries: Sequence[int],
    picture: Picture,
    *,
    question_tokens: int,
    seed: int = 0,
) -> Subject:
    """The sizes of a config with random weights; otherwise as `sizes_of`."""
    subject = sizes_of(config, queries, picture, question_tokens=question_tokens)
    params = random_params(subject.model, subject.llm_dtype, seed)
    return dataclasses.replace(subject, params=params)


def sizes_of(
    config: ConfigDict,
    queries: Sequence[int],
    picture: Picture,
    *,
    question_tokens: int,
) -> Subject:
    """A config's model without any weights, of which only sizes can be asked.

    No `queries` means the paper's. The prompt is M query tokens and `question_tokens`
    others, template included; SubjectError when the template alone has more. The config
    given is left as it is.
    """
    config = config.copy_and_resolve_references()
    queries = tuple(queries) or QUERIES
    with config.unlocked():
        config.num_queries = max(queries)
    dtypes = settings.resolve_dtypes(config, jax.default_backend())
    model = settings.model_config(config, dtypes.compute)
    apart = dataclasses.replace(model.llm.blocks, stacked=False)
    model = dataclasses.replace(model, llm=dataclasses.replace(model.llm, blocks=apart))
    words = Words(min(model.llm.vocab_size, model.fusion.vocab_size))
    encoding = Encoding(
        stage="adapt",
        fusion_tokenizer=words,
        view_size=model.vision.image_size,
        max_local_views=config.data.max_local_views,
        views=config.data.views,
        llm_tokenizer=words,
        template=config.data.template,
        question=settings.question_mode(config),
        prompts=True,
    )
    subject = Subject(
        *(config.name, config, {}, model, dtypes.llm_params, encoding),
        *(config.model.fusion.vocab_size, queries, picture, WORD),
    )
    least = subject.prompt(1).real.prompt_tokens - 1  # but for its query token
    if question_tokens < least:
        raise SubjectError(
            f"--question_tokens is {question_tokens}, but the template "
            f"{config.data.template!r} with a question of one word has {least}: give "
            "at least that"
        )
    question = " ".join([WORD] * (question_tokens - least + 1))
    return dataclasses.replace(subject, question=question)


class Words:
    """In place of a tokenizer: each word of a text is a token of its own, whatever it
    is. `size` bounds the ids."""

    eos_token_id: int | None = 2
    pad_token_id: int | None = 0

    def __init__(self, size: int) -> None:
        self._size = size

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids from 3 on, by the word's place in the text."""
        return [3 + n % (self._size - 3) for n in range(len(text.split()))]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """A word for each id."""
        return " ".join(f"{WORD}{each}" for each in token_ids)


def random_params(model: ModelConfig, llm_dtype: str, seed: int) -> dict[str, Any]:
    """Parameters of a `VLM` as `trained.open_trained` has them: the language model's in
    `llm_dtype`, made tensor by tensor on the device; the others float32.

    They are random, since a chip that multiplies zeros draws less power and may run
    faster than one that works.
    """
    stage = get_stage("adapt")
    shapes = paths.flatten(parameter_shapes(stage.model, model))
    small = [path for path in shapes if not path.startswith("llm/")]
    made = paths.flatten(init_params(stage, model, seed, small))
    key = jax.random.key(seed)
    for number, (path, leaf) in enumerate(shapes.items()):
        if path.startswith("llm/"):
            own = jax.random.fold_in(key, number)
            dtype = held_in(path, llm_dtype)
            made[path] = _tensor(own, shape=leaf.shape, dtype=dtype)
    return paths.unflatten({path: made[path] for path in shapes})


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _tensor(key: Any, *, shape: tuple[int, ...], dtype: str) -> jax.Array:
    if dtype == "int8":
        return jax.random.randint(key, shape, -127, 128, dtype)
    if len(shape) < 2:  # the scale of a norm, or of whole numbers
        return jnp.ones(shape, dtype)
    return INIT_STD * jax.random.normal(key, shape, dtype)
