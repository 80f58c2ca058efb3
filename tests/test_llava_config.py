"""The config of the baselines."""

import re

import pytest

from configs import llava
from vtscale_jax.eval.baselines.named import NAMES, named
from vtscale_jax.eval.baselines.pixels import check_variant
from vtscale_jax.eval.baselines.prompt import check_style


@pytest.mark.parametrize("preset", llava.PRESETS)
def test_what_a_config_names_is_there(preset):
    assert llava.REDUCERS == NAMES
    for reducer in NAMES:
        n = "" if reducer == "none" else ",n=16"
        config = llava.get_config(f"{preset},reducer={reducer}{n}")
        check_style(config.prompt)
        check_variant(config.pixels)
        options = config.reducer.to_dict()
        options.pop("n")
        assert named(options.pop("name"), **options).name.startswith(reducer)


def test_only_the_reducer_differs_between_baselines():
    """Prompt, pixels and dtype are one and the same in all rows of a table."""
    one = llava.get_config("7b,reducer=vispruner,n=64").to_dict()
    other = llava.get_config("n=64,7b,reducer=random").to_dict()
    differ = {name for name in one if one[name] != other[name]}
    assert differ == {"name", "reducer"}
    assert one["name"] != other["name"]
    assert llava.get_config().to_dict() == llava.get_config("embedded").to_dict()
    assert llava.get_config().reducer.n is None


def test_fields_can_be_set_and_strange_ones_not():
    config = llava.get_config("7b")
    config.reducer.n, config.prompt = 576, "hf"
    assert (config.reducer.n, config.prompt) == (576, "hf")
    assert llava.get_config("7b").reducer.n is None
    with pytest.raises(AttributeError, match="promt"):
        config.promt = "hf"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("13b", "'13b' is unknown; expected a preset ('embedded', '7b')"),
        ("reducer=fastv,n=64", "'reducer=fastv' is unknown"),
        ("reducer=pool,n=0", "'n=0' is unknown"),
        ("7b,reducer=pool", "has no n=, the tokens that pool is to leave"),
    ],
)
def test_arguments_that_mean_nothing(arg, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        llava.get_config(arg)
