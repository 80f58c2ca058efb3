"""Config files as commands name them: one for each M of the paper, `base` for any M."""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

# The paper's query counts; each has a file of its own, configs/m<M>.py.
QUERIES = (1, 8, 16, 32, 64, 128, 256, 384, 512, 768)


def config_file(num_queries: int, *words: str) -> str:
    """What --config takes for M = `num_queries`, with presets and choices as `words`
    (those that are "" are left out).

    >>> config_file(16, "embedded", "inputs=vq")
    'configs/m16.py:embedded,inputs=vq'
    >>> config_file(4, "embedded")
    'configs/base.py:m=4,embedded'
    """
    own = num_queries in QUERIES
    file = f"configs/m{num_queries}.py" if own else "configs/base.py"
    given = [word for word in ("" if own else f"m={num_queries}", *words) if word]
    return ":".join([file, *([",".join(given)] if given else [])])


def read_config(words: Sequence[str]) -> ConfigDict:
    """The config that `--config=FILE:PRESETS --config.field=value …` mean, as `train`
    reads them; ValueError, in one line, for a file, preset or field that there is
    not."""
    values = flags.FlagValues()
    argv = ["command", *words]
    holder = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    try:
        values(argv)
        return holder.value.copy_and_resolve_references()
    except (AttributeError, flags.Error, OSError, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error
