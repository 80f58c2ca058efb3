"""Every config file and preset at full size, by shapes alone.

The golden text lists parameter counts of all, and the paths of one of each preset. When
a change of the model is meant, rewrite it with `UPDATE_GOLDEN=1 pytest
tests/test_configs.py` and read the difference.
"""

import dataclasses
import importlib
import math
import os
import re

import pytest

from configs.base import INPUTS, STAGES
from configs.base import get_config as any_config
from configs.presets import PRESETS
from vtscale_jax import config_files, paths, settings
from vtscale_jax.config_files import config_file
from vtscale_jax.optim import make_optimizer
from vtscale_jax.stages import get_stage, parameter_shapes

QUERIES = (1, 8, 16, 32, 64, 128, 256, 384, 512, 768)


def load(num_queries: int, arg: str = ""):
    return importlib.import_module(f"configs.m{num_queries}").get_config(arg)


def shapes(num_queries: int, preset: str, stage: str):
    config = load(num_queries, f"{preset},stage={stage}")
    model = settings.model_config(config, "float32")
    table = get_stage(stage)
    return paths.partition(parameter_shapes(table.model, model), table.trains)


def count(tree: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in paths.flatten(tree).values())


def describe() -> str:
    lines = []
    for preset in PRESETS:
        for stage in STAGES:
            for num_queries in QUERIES:
                trainable, frozen = shapes(num_queries, preset, stage)
                groups = ", ".join(f"{g} {count(t):,}" for g, t in trainable.items())
                lines.append(
                    f"m{num_queries}:{preset},stage={stage}: trainable "
                    f"{count(trainable):,} ({groups}), frozen {count(frozen):,}"
                )
            trainable, frozen = shapes(256, preset, stage)
            for title, tree in (("trains", trainable), ("frozen", frozen)):
                for path, leaf in paths.flatten(tree).items():
                    lines.append(f"    {title} {path} {list(leaf.shape)}")
    return "\n".join(lines) + "\n"


def test_parameters_match_the_golden_text(golden_dir):
    golden = golden_dir / "configs.txt"
    text = describe()
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "see the first lines of this file"


def test_shapes_that_one_caller_takes_apart_are_whole_for_the_next():
    table, config = get_stage("adapt"), load(8)
    model = settings.model_config(config, "float32")
    first = parameter_shapes(table.model, model)
    del first.pop("llm")["blocks"], first["vision"]
    again = parameter_shapes(table.model, model)
    assert {"llm", "vision"} <= set(again) and "blocks" in again["llm"]


def test_sizes_of_the_paper():
    """CLIP ViT-L/14-336 has 303.2 M vision parameters without its last norm's twin,
    Llama-2-7B 6.738 B."""
    trainable, frozen = shapes(256, "paper", "finetune")
    assert count(frozen) == 6_738_415_616
    # 303,507,456 in CLIP (with pre and post norm), the merge convolution, the newline.
    assert count(trainable["vision"]) == 303_507_456 + 9 * 1024 * 1024 + 1024
    assert trainable["fusion"]["queries"].shape == (255, 1024)
    assert settings.model_config(load(256, "paper"), "float32").vision.grid == 24


@pytest.mark.parametrize("num_queries", QUERIES)
def test_only_the_number_of_queries_differs(num_queries):
    ours, base = load(num_queries).to_dict(), load(256).to_dict()
    differ = {name for name in base if ours[name] != base[name]}
    assert differ <= {"num_queries", "name"}
    assert settings.num_followup_queries(load(num_queries)) == min(8, num_queries)


def test_paper_hyperparameters():
    align = load(256, "paper,stage=align")
    assert (align.optim.steps, align.data.batch_size) == (1000, 256)
    assert (align.optim.learning_rate, align.optim.warmup) == (2e-5, 0.1)
    for stage in ("finetune", "adapt"):
        config = load(256, f"paper,stage={stage}")
        assert config.data.batch_size * config.optim.accumulation == 2560
        assert (config.optim.learning_rate, config.optim.warmup) == (2e-5, 0.03)
        assert config.optim.epochs == 2
        assert config.data.subset == (0.1 if stage == "adapt" else 1.0)


def test_every_trainable_parameter_is_covered_by_the_optimizer():
    for stage in STAGES:
        config = load(16, f"stage={stage}")
        trainable, _ = shapes(16, "embedded", stage)
        make_optimizer(settings.optim_config(config, 1000), trainable)


def test_names_tell_runs_apart():
    names = {
        load(m, f"{preset},stage={stage},inputs={inputs}").name
        for m in QUERIES
        for preset in PRESETS
        for stage in STAGES
        for inputs in INPUTS
    }
    assert len(names) == len(QUERIES) * len(PRESETS) * len(STAGES) * len(INPUTS)


def test_any_other_m_has_the_same_config(repo_dir):
    assert any_config("m=16").to_dict() == load(16).to_dict()
    assert any_config("inputs=vq,m=4,smol").name == "m4-smol-vq"
    ours, base = any_config("m=4,stage=finetune"), load(8, "stage=finetune")
    assert ours.num_queries == 4 and ours.query_schedule[-1][1] == 4
    differ = {name for name, value in base.items() if ours[name] != value}
    assert differ == {"num_queries", "name", "query_schedule", "weights"}
    files = {path.stem for path in (repo_dir / "configs").glob("m*.py")}
    assert files == {f"m{number}" for number in config_files.QUERIES}
    # What commands are printed with is what there is.
    for number in (4, 16):
        file, _, arg = config_file(number, "smol", "inputs=vq").partition(":")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert module.get_config(arg).name == f"m{number}-smol-vq"
    assert config_file(8) == "configs/m8.py" and config_file(9) == "configs/base.py:m=9"


@pytest.mark.parametrize("arg", ["", "smol", "m=0", "m=-1", "m=x", "m=4,m=8", "m=04"])
def test_any_m_must_be_one_whole_number(arg):
    with pytest.raises(ValueError, match="expected one whole number of at least 1"):
        any_config(arg)
    with pytest.raises(ValueError, match="m= goes with configs/base.py"):
        load(8, "m=4")


def test_unknown_arguments_and_keys_are_errors():
    with pytest.raises(ValueError, match="'papr' is unknown"):
        load(256, "papr")
    with pytest.raises(ValueError, match="stage=pretrain"):
        load(256, "stage=pretrain")
    with pytest.raises(AttributeError, match="num_query"):
        load(256).num_query = 3


def test_schedule_errors_name_the_field():
    config = load(256, "stage=finetune")
    optim = settings.optim_config(config, 1000)
    assert settings.query_schedule(config, optim)[-1][1] == 256
    # The curriculum counts updates, the loop batches.
    twice = dataclasses.replace(optim, accumulation=2)
    phases = zip(
        settings.query_schedule(config, optim),
        settings.query_schedule(config, twice),
        strict=True,
    )
    assert all(b == (2 * a[0], a[1]) for a, b in phases)
    with pytest.raises(ValueError, match=r"before M = 256 is reached: raise optim.st"):
        settings.query_schedule(config, dataclasses.replace(optim, steps=2000))
    config.query_schedule = ((0, 64), (10, 16), (20, 256))
    with pytest.raises(ValueError, match=r"query_schedule is .* start at step 0"):
        settings.query_schedule(config, optim)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["align", "finetune", "adapt"])
def test_presets_pass_their_own_check(preset, stage):
    config = load(64, f"{preset},stage={stage}")
    settings.check(config)
    settings.query_schedule(config, settings.optim_config(config, 100_000))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stage", "align", "--config configs/m64.py:embedded,stage=align"),
        ("preset", "paper", "--config configs/m64.py:paper,stage=adapt"),
        ("eval.every", 0, "eval.every is 0, expected at least 1"),
        ("log.every", 0, "log.every is 0"),
        ("checkpoint.every", -1, "checkpoint.every is -1"),
        ("optim.accumulation", 0, "optim.accumulation is 0"),
        ("data.batch_size", 0, "data.batch_size is 0"),
    ],
)
def test_bad_settings_are_found_before_anything_runs(field, value, message):
    config = load(64)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.check(config)


def test_setting_one_field_sets_no_other():
    """Placeholders are references: one that two fields share would tie them."""
    for preset in PRESETS:
        for stage in STAGES:
            config = load(16, f"{preset},stage={stage}")
            before = config.to_dict()
            with config.unlocked():
                config.optim.steps = 7
                config.num_followup_queries = 3
            after = config.to_dict()
            before["optim"]["steps"], before["num_followup_queries"] = 7, 3
            assert after == before
            assert load(16, f"{preset},stage={stage}").optim.steps != 7


@pytest.mark.parametrize(
    "value, expected",  # of vision, fusion, llm and text
    [
        ("none", ("none", "none", "none", "none")),
        ("auto", ("none", "none", "none", "none")),  # until a run is laid out
        ("full", ("full", "full", "full", "full")),
        ("vision,fusion", ("full", "full", "none", "none")),
        ("selective", ("selective", "selective", "selective", "selective")),
        ("selective,vision", ("full", "selective", "selective", "selective")),
    ],
)
def test_remat_is_chosen_tower_by_tower(value, expected):
    config = load(16)
    config.model.remat = value
    model = settings.model_config(config, "float32")
    towers = (model.vision, model.fusion, model.llm, model.text)
    assert tuple(tower.blocks.remat for tower in towers) == expected


@pytest.mark.parametrize("value", ["True", "vision,fusoin", "vision, fusion", ""])
def test_a_tower_without_a_name_is_an_error(value):
    config = load(16)
    config.model.remat = value
    with pytest.raises(ValueError, match="model.remat is .*expected auto, none, sel"):
        settings.model_config(config, "float32")
