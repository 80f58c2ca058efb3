"""From the ConfigDict of a run to the frozen settings that each part takes.

The one place that derives numbers from others (query rows from M, dtypes from the
backend, the step count from epochs), so that a config states each thing once.
"""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from vtscale_jax import fused_attention
from vtscale_jax.config_files import config_file
from vtscale_jax.fusion import FusionConfig
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.optim import OptimConfig
from vtscale_jax.rotary import RopeScaling
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import ModelConfig

INPUTS = {"vqq": "asked", "vq": "dropped"}
TOWERS = ("vision", "fusion", "llm", "text")
# What model.remat=auto chooses from. Blocks of the vision tower keep more for what they
# compute than those of the others.
LEAST_REMAT_FIRST = (
    *("none", "selective", "selective,vision", "selective,vision,fusion", "full"),
)


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """Compute dtype of the model and storage dtype of the frozen LLM."""

    compute: str
    llm_params: str


def resolve_dtypes(config: ConfigDict, backend: str) -> Dtypes:
    """bfloat16 on accelerators and float32 on CPU, unless the config says otherwise."""
    fast = "float32" if backend == "cpu" else "bfloat16"

    def resolve(name: str) -> str:
        value = config.model[name]
        if value not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"model.{name} is {value!r}, expected auto, float32 or bfloat16"
            )
        return fast if value == "auto" else value

    return Dtypes(resolve("dtype"), resolve("llm_param_dtype"))


def resolve_attention(config: ConfigDict, backend: str, dtype: str) -> str:
    """The kernel that computes attention in training; KernelError, a ValueError, for
    one that does not fit the backend, the dtype or a tower of the stage."""
    model = model_config(config, dtype)
    towers = ("vision", "fusion", "text" if config.stage == "align" else "llm")
    head_dims = {name: getattr(model, name).blocks.head_dim for name in towers}
    return fused_attention.choose(
        config.model.attention, platform=backend, dtype=dtype, head_dims=head_dims
    )


def resolve_remat(config: ConfigDict) -> dict[str, str]:
    """What each tower computes again in the backward pass (`BlockConfig.remat`).

    model.remat is "none", "selective" or "full" for all towers; or names, joined by
    commas, those with full, beside "selective" if that is what the others have. "auto"
    is chosen where a run is laid out (`prepare`), and nothing elsewhere. (Older runs
    say True for full and False for none.)
    """
    before: dict[Any, str] = {True: "full", False: "none"}
    value = str(before.get(config.model.remat, config.model.remat))
    words = {"full": TOWERS, "none": (), "auto": ()}.get(value, value.split(","))
    if not set(words) <= {*TOWERS, "selective"}:
        raise ValueError(
            f"model.remat is {value!r}, expected auto, none, selective, full, or the "
            f"towers with full remat, of {', '.join(TOWERS)}, joined by commas and "
            "with selective for the others: --config.model.remat=selective,vision"
        )
    others = "selective" if "selective" in words else "none"
    return {tower: "full" if tower in words else others for tower in TOWERS}


def num_followup_queries(config: ConfigDict) -> int:
    """N, the queries of follow-up questions: min(8, M) unless the config sets it."""
    chosen = config.num_followup_queries
    return min(8, config.num_queries) if chosen is None else chosen


def question_mode(config: ConfigDict) -> str:
    """How `tokens.fusion_sequence` treats the question: asked (vqq) or dropped (vq)."""
    if config.inputs not in INPUTS:
        raise ValueError(
            f"inputs is {config.inputs!r}, expected one of {tuple(INPUTS)}: vqq gives "
            "the fusion decoder the question, vq does not"
        )
    return INPUTS[config.inputs]


def model_config(
    config: ConfigDict, dtype: str, *, attention: str = "xla"
) -> ModelConfig:
    """The model of a run. The fusion table gets M − 1 query rows: output M is ⟨eos⟩.

    `attention` is from `resolve_attention` where the model is trained.
    """
    model, remat = config.model, resolve_remat(config)

    def tower(kind: type, name: str, *, int8: bool = False, **more: Any) -> Any:
        part = model[name]
        values = {field: part[field] for field in part if field != "blocks"}
        run = {"dtype": dtype, "attention": attention, "unroll": model.unroll}
        run |= {"remat": remat[name], "int8": int8}
        return kind(**values, **more, blocks=block_config(part.blocks, **run))

    return ModelConfig(
        vision=tower(VisionConfig, "vision"),
        fusion=tower(FusionConfig, "fusion", num_query_rows=config.num_queries - 1),
        llm=tower(LLMConfig, "llm", int8=model.llm_int8),
        text=tower(TextConfig, "text"),
    )


def optim_config(config: ConfigDict, num_records: int) -> OptimConfig:
    """Hyperparameters of the stage; `optim.steps` None means `optim.epochs` epochs over
    `num_records` records, in updates of batch × accumulation samples."""
    values = dict(config.optim)
    epochs = values.pop("epochs")
    if values["steps"] is None:
        if epochs is None:
            raise ValueError("optim.steps and optim.epochs are both None: set one")
        samples = epochs * num_records
        values["steps"] = max(
            1, int(samples // (config.data.batch_size * values["accumulation"]))
        )
    values["rate_rules"] = tuple(map(tuple, values["rate_rules"]))
    return OptimConfig(**values)


def query_schedule(
    config: ConfigDict, optim: OptimConfig
) -> tuple[tuple[int, int], ...]:
    """(first batch, M) of each phase: M throughout, or the config's curriculum, which
    counts optimizer updates as `optim.steps` does.

    A curriculum must start at step 0, rise in both, end at M, and reach it.
    """
    schedule = tuple((int(first), int(m)) for first, m in config.query_schedule)
    if not schedule:
        return ((0, config.num_queries),)
    steps, queries = zip(*schedule, strict=True)
    rising = list(steps) == sorted(set(steps)) and list(queries) == sorted(set(queries))
    if steps[0] != 0 or queries[-1] != config.num_queries or not rising:
        raise ValueError(
            f"query_schedule is {schedule}, expected (first step, queries) pairs that "
            f"start at step 0, rise, and end at num_queries = {config.num_queries}"
        )
    if steps[-1] >= optim.steps:
        raise ValueError(
            f"query_schedule is {schedule}, but training ends at step {optim.steps}, "
            f"before M = {config.num_queries} is reached: raise optim.steps above "
            f"{steps[-1]}, or start the last phase earlier"
        )
    return tuple((first * optim.accumulation, m) for first, m in schedule)


def fingerprint(config: ConfigDict) -> str:
    """A short hash of all fields: equal configs have equal ones."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(config: ConfigDict) -> None:
    """ValueError, naming the field, for a setting that no part checks by itself."""
    made_for = tuple(config.made_for)
    if made_for != (config.preset, config.stage):
        raise ValueError(
            f"preset and stage are {config.preset!r} and {config.stage!r}, but the "
            f"other fields were set for {made_for}: name them with the config file, "
            "--config "
            + config_file(config.num_queries, config.preset, f"stage={config.stage}")
        )
    least = {
        "log.every": 1,
        "eval.every": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "eval.questions": 0,
        "eval.batch_size": 1,
        "eval.max_new_tokens": 1,
        "data.batch_size": 1,
        "data.headroom": 1,
        "optim.accumulation": 1,
        "num_queries": 1,
    }
    for field, smallest in least.items():
        part, _, name = field.rpartition(".")
        value = (config[part] if part else config)[name]
        if value < smallest:
            raise ValueError(
                f"{field} is {value}, expected at least {smallest} "
                f"(--config.{field}=...)"
            )


def block_config(part: ConfigDict, **run: Any) -> BlockConfig:
    """One tower's blocks; `run` are the fields that a run chooses for all towers."""
    values = part.to_dict()
    scaling = values.pop("rope_scaling", None)
    rope = None if scaling is None else RopeScaling(**scaling)
    return BlockConfig(**values, rope_scaling=rope, **run)
