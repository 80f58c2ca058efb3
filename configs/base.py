"""The base of every config: presets, stages and inputs joined by commas.

    configs/m256.py                     embedded preset, stage adapt
    configs/m16.py:stage=finetune       stage 2 from scratch
    configs/m256.py:paper,stage=align   the paper's stage 1
    configs/m64.py:inputs=vq            without the question in the fusion input
    configs/base.py:m=4,inputs=vq       any other M

Any field can be overridden: --config.data.batch_size=8.
"""

import re
from collections.abc import Callable

from ml_collections import ConfigDict, config_dict

from configs import presets

STAGES = ("align", "finetune", "adapt")
INPUTS = ("vqq", "vq")


def get_config(arg: str = "") -> ConfigDict:
    """The config of any M, which `arg` gives beside the other choices: m=4,paper."""
    words = [word for word in arg.split(",") if word]
    given = [word.removeprefix("m=") for word in words if word.startswith("m=")]
    if len(given) != 1 or not re.fullmatch("[1-9][0-9]*", given[0]):
        said = "no m=" if not given else ", ".join(f"m={text}" for text in given)
        raise ValueError(
            f"config argument {arg!r} has {said}, expected one whole number of at "
            "least 1, the queries: configs/base.py:m=4,embedded"
        )
    others = [word for word in words if not word.startswith("m=")]
    return with_queries(int(given[0]))(",".join(others))


def with_queries(num_queries: int) -> Callable[[str], ConfigDict]:
    """`get_config` of the config file for M = `num_queries`."""

    def get_config(arg: str = "") -> ConfigDict:
        preset, stage, inputs = _parse(arg)
        config = ConfigDict(
            {
                "name": "",
                "preset": preset,
                "stage": stage,
                "made_for": (preset, stage),
                "inputs": inputs,
                "num_queries": num_queries,
                "num_followup_queries": config_dict.placeholder(int),
                "query_schedule": (),
                "seed": 0,
            }
        )
        config.update(presets.PRESETS[preset](stage))
        name = f"m{num_queries}-{preset}"
        name += "" if stage == "adapt" else f"-{stage}"
        config.name = name + ("" if inputs == "vqq" else f"-{inputs}")
        if stage == "finetune" and not config.weights.init_from:
            config.weights.init_from = f"runs/m{num_queries}-{preset}-align"
        config.query_schedule = _up_to(config.query_schedule, num_queries)
        return config.lock()

    return get_config


def _up_to(
    schedule: tuple[tuple[int, int], ...], num_queries: int
) -> tuple[tuple[int, int], ...]:
    """A curriculum cut at M: the phase that would reach or pass it stays at M.

    >>> _up_to(((0, 16), (900, 64), (960, 256)), 64)
    ((0, 16), (900, 64))
    """
    phases = [(first, min(m, num_queries)) for first, m in schedule]
    return tuple(
        phase
        for number, phase in enumerate(phases)
        if number == 0 or phase[1] > phases[number - 1][1]
    )


def _parse(arg: str) -> tuple[str, str, str]:
    preset, stage, inputs = "embedded", "adapt", "vqq"
    for word in filter(None, arg.split(",")):
        if word in presets.PRESETS:
            preset = word
        elif word.startswith("stage=") and word[6:] in STAGES:
            stage = word[6:]
        elif word.startswith("inputs=") and word[7:] in INPUTS:
            inputs = word[7:]
        else:
            raise ValueError(
                f"config argument {word!r} is unknown; expected a preset "
                f"{tuple(presets.PRESETS)}, stage= one of {STAGES}, or inputs= one of "
                f"{INPUTS}, joined by commas: configs/m256.py:paper,stage=align "
                "(m= goes with configs/base.py)"
            )
    return preset, stage, inputs
