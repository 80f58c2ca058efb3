"""LLaVA-1.5 with a token reducer or without: the baselines that runs are compared with.

    configs/llava.py                              the tiny one that ships, all patches
    configs/llava.py:reducer=vispruner,n=64       64 of them, chosen by VisPruner
    configs/llava.py:7b                           LLaVA-1.5-7B, all 576 patches
    configs/llava.py:7b,reducer=visionzip,n=64

Any field can be overridden: --config.prompt=hf. The prompt and the pixels are the same
for every reducer, so that what differs between two rows of a table is the reducer.
"""

import re

from ml_collections import ConfigDict, config_dict

REDUCERS = ("none", "downsample", "pool", "random", "vispruner", "visionzip")

# `prompt` is a style of eval/baselines/prompt.py, `pixels` a variant of pixels.py. The
# large one is asked as the original evaluation asks it, which is how it was trained.
PRESETS = {
    "embedded": {"weights": "embedded", "prompt": "plain", "pixels": "crop"},
    "7b": {
        "weights": "llava-hf/llava-1.5-7b-hf",
        "prompt": "vicuna_v1",
        "pixels": "pad",
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """The config of a baseline; `arg` is a preset, reducer= and n=, joined by commas.

    Without n, all patches are read, which is what the reducer none takes. `weights` is
    "embedded", a folder or a name on the hub; `dtype` "auto" is bfloat16 on
    accelerators and float32 on CPU. `reducer.important` is VisPruner's share of tokens
    chosen by attention, `reducer.contextual` how many of VisionZip's are merged ones.
    """
    preset, reducer, n = _parse(arg)
    config = ConfigDict(
        {
            "name": f"llava-{preset}",
            "preset": preset,
            **PRESETS[preset],
            "dtype": "auto",
            "reducer": {
                "name": reducer,
                "n": config_dict.placeholder(int),
                "important": 0.5,
                "contextual": 10,
            },
            # Of the families of Digit Pages, as the embedded preset has them.
            "data": {"page": {"page_size": 96, "min_share": 0.5, "max_share": 0.75}},
            "eval": {"questions": 512, "max_new_tokens": 24},
        }
    )
    if n is not None:
        config.reducer.n = n
        config.name += f"-{reducer}-n{n}"
    return config.lock()


def _parse(arg: str) -> tuple[str, str, int | None]:
    preset, reducer, n = "embedded", "none", None
    for word in filter(None, arg.split(",")):
        if word in PRESETS:
            preset = word
        elif word.startswith("reducer=") and word[8:] in REDUCERS:
            reducer = word[8:]
        elif re.fullmatch("n=[1-9][0-9]*", word):
            n = int(word[2:])
        else:
            raise ValueError(
                f"config argument {word!r} is unknown; expected a preset "
                f"{tuple(PRESETS)}, reducer= one of {REDUCERS}, or n= a whole number "
                "of at least 1, joined by commas: configs/llava.py:7b,reducer=pool,n=64"
            )
    if reducer != "none" and n is None:
        raise ValueError(
            f"config argument {arg!r} has no n=, the tokens that {reducer} is to "
            f"leave: configs/llava.py:{preset},reducer={reducer},n=64"
        )
    return preset, reducer, n
