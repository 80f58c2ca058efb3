"""A model of this package inside VLMEvalKit, registered without patching it.

    from functools import partial
    from vlmeval.config import supported_VLM
    from vtscale_jax.eval.adapters.vlmevalkit import VTScaleModel

    supported_VLM["m64-vqq"] = partial(VTScaleModel, run="runs/m64-embedded")

and then, in the same process, VLMEvalKit's unmodified run.py; `register` and
`python -m vtscale_jax.eval.adapters` do just that. Prompts are VLMEvalKit's own. What
goes wrong with a question is raised: VLMEvalKit stops at it, scores nothing, and keeps
most of what was answered before. (Its SKIP_ERR=1 writes "Failed to obtain answer: …" in
place of an answer, which counts as a wrong one: leave it unset.)
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmeval.config import supported_VLM  # pyright: ignore[reportMissingImports]
from vlmeval.dataset import DATASET_TYPE  # pyright: ignore[reportMissingImports]
from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

from vtscale_jax.eval.adapters.opening import AdapterError, open_run, read_image
from vtscale_jax.eval.benchmarks.tasks import TASKS
from vtscale_jax.eval.models import AnsweringModel, Question

# Of data sets beside the paper's fifteen, by VLMEvalKit's TYPE: the same as of the
# paper's own of that TYPE. All others may be long.
LIMITS = {"MCQ": 32, "Y/N": 32, "Caption": 32}
LONGEST = 512

_log = logging.getLogger(__name__)


class AnsweringVLM(BaseModel):
    """Any model that `vtscale_jax.eval` can ask, as a model of VLMEvalKit: one question
    at a time, greedily, by VLMEvalKit's prompts, with the paper's limits."""

    INTERLEAVE = False

    def __init__(self, model: AnsweringModel) -> None:
        super().__init__()
        self.model = model
        self._told_of_images = False

    def generate_inner(
        self, message: Sequence[dict[str, Any]], dataset: str | None = None
    ) -> str:
        """The stripped answer to a message, a list of {"type": "image" or "text",
        "value": a file or a text}: its texts joined by newlines, its images in order.

        AdapterError for other types and for files that are no image; what the model
        itself raises is let through, so that no failure is taken for an answer.
        """
        types = [part["type"] for part in message]
        if other := sorted({*types} - {"image", "text"}):
            raise AdapterError(
                f"a message of {dataset} has parts of type {', '.join(other)}, "
                "expected image and text: the model knows nothing else, leave this "
                "data set out"
            )
        files = [part["value"] for part in message if part["type"] == "image"]
        texts = [part["value"] for part in message if part["type"] == "text"]
        question = Question(
            tuple(read_image(file) for file in files),
            "\n".join(texts),
            limit_of(dataset),
        )
        (answer,) = self.model.answer([question])
        if answer.images_seen < len(files) and not self._told_of_images:
            self._told_of_images = True
            _log.warning(
                "%s: a question has %d images, of which the model looks at the first "
                "%d; so it is with further questions (said once)",
                *(dataset, len(files), answer.images_seen),
            )
        return answer.text.strip()


class VTScaleModel(AnsweringVLM):
    """The finished run in the folder `run`, over all devices of this process.

    `num_queries` takes its first M queries (default: all), `inputs` is "vqq" or "vq"
    (default: as trained). RunError where the folder holds no such run.
    """

    def __init__(
        self,
        run: str | Path,
        inputs: str | None = None,
        num_queries: int | None = None,
    ) -> None:
        super().__init__(open_run(run, inputs=inputs, num_queries=num_queries))


def limit_of(dataset: str | None) -> int:
    """How many tokens an answer may have: the paper's limits for its fifteen data sets,
    `LIMITS` for others of a TYPE that VLMEvalKit knows, else `LONGEST`."""
    if dataset is None:
        return LONGEST
    if dataset in TASKS:
        return TASKS[dataset].max_new_tokens
    return LIMITS.get(DATASET_TYPE(dataset), LONGEST)


def register(
    name: str,
    run: str | Path,
    *,
    inputs: str | None = None,
    num_queries: int | None = None,
) -> None:
    """Adds the run to VLMEvalKit's table of models, to be opened when it is asked.
    AdapterError for a name that is taken."""
    if name in supported_VLM:
        raise AdapterError(
            f"VLMEvalKit has a model {name!r} of its own: choose another --name"
        )
    supported_VLM[name] = partial(
        VTScaleModel, run=run, inputs=inputs, num_queries=num_queries
    )
