"""Number for number what the authors' PyTorch code computes (G2, G3, G4).

Every case has its negative controls: one weight of each module is moved by a little,
and the same check must then fail. Another golden folder, with other sizes, is made up
by our own model; it cannot show parity, but that no size is written into the checker.
"""

import functools
import json

import jax
import numpy as np
import pytest
from golden_folders import put_together
from safetensors.numpy import load_file, save_file

from vtscale_jax import paths
from vtscale_jax.stages import parameter_shapes
from vtscale_jax.types import Kind
from vtscale_jax.vlm import VLM
from vtscale_jax.weights import __main__ as command
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.naming import layouts, names
from vtscale_jax.weights.parity import golden_batches, golden_runs, goldens

# Cases of one shape share a compiled program; the other shapes wait for the slow run.
FAST = [
    ("G2_vision", "io"),
    ("G3_clip", "main"),
    ("G3_clip", "sharedpad"),
    ("G4_vlm", "main"),
    ("G4_vlm", "sharedpad"),
    ("G4_vlm", "gen_multi"),
]
SLOW = [
    ("G3_clip", "n1"),
    ("G3_clip", "dropquery"),
    ("G4_vlm", "n1"),
    ("G4_vlm", "dropquery"),
    ("G4_vlm", "noimage_row"),
    ("G4_vlm", "gen_single"),
]


@pytest.fixture(scope="module")
def folder(golden_dir, tmp_path_factory):
    return put_together(golden_dir, tmp_path_factory.mktemp("goldens"))


@pytest.fixture(scope="module")
def opened(folder):
    return functools.cache(lambda name: goldens.open_folder(folder / name))


def run(golden, case):
    """One report: the reports of a file taken together."""
    reports = goldens.check_file(golden, case)
    quantities = [q for report in reports for q in report.quantities]
    unchecked = [name for report in reports for name in report.unchecked]
    refused = "".join(report.refused for report in reports)
    return goldens.CaseReport(case, tuple(quantities), tuple(unchecked), refused)


def asked(golden, case):
    """Names of everything that the reference gives for a case."""
    described = {**golden.json.get("cases", {}), **golden.json.get("generation", {})}
    outputs = {n for n in golden.cases[case] if not n.startswith("in__")}
    norms = described.get(case, {}).get("grad_norms", {})
    return (outputs - {"pixel_values"}) | {f"grad_norm__{name}" for name in norms}


def assert_parity(golden, case):
    report = run(golden, case)
    assert not report.failed, report.line()
    assert not report.unchecked, report.line()
    assert asked(golden, case) <= {q.name for q in report.quantities}
    return report


@pytest.mark.parametrize("name, case", FAST)
def test_parity_with_the_authors_code(opened, name, case):
    assert_parity(opened(name), case)


@pytest.mark.slow
@pytest.mark.parametrize("name, case", SLOW)
def test_parity_with_the_authors_code_in_other_shapes(opened, name, case):
    assert_parity(opened(name), case)


def test_no_case_is_left_out(folder):
    listed = {(p.parent.name, p.stem) for p in folder.glob("*/*.npz")}
    assert listed == set(FAST + SLOW)


def test_blocks_are_checked_one_by_one(opened):
    """Blocks of all four transformers, each from the reference's own state."""
    clip = {q.name: q for q in run(opened("G3_clip"), "main").quantities}
    vlm = {q.name: q for q in run(opened("G4_vlm"), "main").quantities}
    vision = {q.name: q for q in run(opened("G2_vision"), "io").quantities}
    for quantities, name in [
        (vision, "block hidden_1 → hidden_2"),
        (vision, "norm hidden_2 → post_ln"),
        (clip, "block fusion_hidden_2 → fusion_last_hidden"),
        (clip, "block text_hidden_0 → text_hidden_1"),
        (clip, "norm text_hidden_2 → text_last_hidden"),
        (vlm, "block llm_hidden_0 → llm_hidden_1"),
        (vlm, "block llm_hidden_1 → llm_hidden_2"),
    ]:
        assert quantities[name].tolerance == 1e-5
    assert clip["out__loss"].tolerance == 1e-4
    assert clip["out__text_outlier_mask"].tolerance == 0


# (folder, case, parameter, place in it): a weight that the case reads.
PERTURBED = [
    ("G2_vision", "io", "patch_embed/kernel", (7, 7, 1, 5)),
    ("G2_vision", "io", "blocks/attn/key/kernel", (1, 3, 4)),
    ("G2_vision", "io", "blocks/up/bias", (0, 3)),
    ("G2_vision", "io", "post_norm/scale", (9,)),
    ("G2_vision", "io", "merge/kernel", (1, 1, 8, 8)),
    ("G2_vision", "io", "newline", (8,)),
    ("G3_clip", "main", "vision/class_embed", (5,)),
    ("G3_clip", "main", "fusion/embed", (15, 3)),
    ("G3_clip", "main", "fusion/queries", (1, 3)),
    ("G3_clip", "main", "fusion/blocks/gate/kernel", (2, 3, 4)),
    ("G3_clip", "main", "fusion/norm/scale", (3,)),
    ("G3_clip", "main", "text/embed", (8, 3)),
    ("G3_clip", "main", "text/blocks/attn/out/kernel", (1, 3, 4)),
    ("G3_clip", "main", "text/projection/kernel", (3, 4)),
    ("G3_clip", "main", "align/projection/kernel", (3, 4)),
    ("G3_clip", "main", "align/logit_scale", ()),
    ("G4_vlm", "main", "vision/pos_embed", (4, 5)),
    ("G4_vlm", "main", "fusion/blocks/attn/value/kernel", (0, 3, 4)),
    ("G4_vlm", "main", "projector/kernel", (3, 4)),
    ("G4_vlm", "main", "llm/embed", (8, 3)),
    ("G4_vlm", "main", "llm/blocks/attn/query/kernel", (0, 3, 4)),
    ("G4_vlm", "main", "llm/head", (3, 4)),
    ("G4_vlm", "gen_multi", "llm/blocks/down/kernel", (1, 3, 4)),
]


def moved(golden, path, place, by=0.01):
    """The golden with one weight moved, by a hundredth where weights are of order 1."""
    flat = paths.flatten(golden.params)
    leaf = np.array(flat[path])
    leaf[place] += by * max(1.0, abs(leaf[place]))
    return golden._replace(params=paths.unflatten({**flat, path: leaf}))


@pytest.mark.parametrize("name, case, path, place", PERTURBED)
def test_one_moved_weight_is_seen(opened, name, case, path, place):
    report = run(moved(opened(name), path, place), case)
    assert report.failed and not report.refused
    # And not by a hair: a tenth of the move would be seen too.
    assert report.worst.badness > 10, report.line()


def test_a_moved_weight_is_seen_in_its_own_block_only(opened):
    golden = moved(opened("G3_clip"), "fusion/blocks/up/kernel", (1, 3, 4), by=0.05)
    failed = {q.name for q in run(golden, "main").quantities if q.failed}
    blocks = {name for name in failed if name.startswith("block fusion")}
    assert blocks == {"block fusion_hidden_1 → fusion_hidden_2"}


@pytest.mark.parametrize("case", ["main", "sharedpad"])
def test_padding_id_row_gets_no_gradient_but_is_used(opened, case):
    """Quirk 4: row 1 of the fusion table is frozen, row 2 (⟨eos⟩) is not."""
    golden = opened("G3_clip")
    arrays = dict(golden.cases[case])
    ids = arrays["in__que_input_ids"].copy()
    ids[0, 0] = 1
    batch = golden_batches.align_batch(
        {**arrays, "in__que_input_ids": ids}, golden.config.vision.tokens_per_crop
    )
    # The precision of the check, so that its compiled program is used again.
    with jax.default_matmul_precision("highest"):
        answers = golden_runs.align_answers(golden.config, golden.params, batch)
    table = answers.gradients["imgque_model.embed_tokens.weight"]
    assert not np.any(table[1]) and np.linalg.norm(table[2]) > 1e-3


def test_command_prints_a_line_per_case_and_json(folder, tmp_path, capsys):
    assert command.main(["check-goldens", str(folder / "G2_vision")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert summary.keys() == {"cases", "failed", "max_error"}
    assert summary["cases"] == len(lines) == 6 and summary["failed"] == 0
    assert 0 < summary["max_error"] < 1e-5
    assert lines[0].startswith("ok   G2_vision/layers: max error")

    broken = tmp_path / "goldens" / "G2_vision"
    broken.mkdir(parents=True)
    for name in ("config.json", "io.npz"):
        (broken / name).write_bytes((folder / "G2_vision" / name).read_bytes())
    tensors = load_file(folder / "G2_vision" / "weights.safetensors")
    tensors["token_LF"][0, 0, 3] += 0.01
    save_file(tensors, broken / "weights.safetensors")
    assert command.main(["check-goldens", str(broken.parent)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["failed"] == 3 and json.loads(last)["max_error"] > 9e-3
    failed = {line.split(":")[0] for line in lines if line.startswith("FAIL")}
    variants = ("merge", "merge_keepcls", "nomerge")  # those with a newline token
    assert failed == {f"FAIL G2_vision/{variant}" for variant in variants}

    # A file that does not fit has failed; it is not passed over.
    del tensors["token_LF"]
    save_file(tensors, broken / "weights.safetensors")
    assert command.main(["check-goldens", str(broken.parent)]) == 1
    out = capsys.readouterr().out
    assert "token_LF" in out and json.loads(out.splitlines()[-1])["failed"] == 1


def test_unknown_quantities_are_named_and_nothing_found_is_an_error(
    opened, tmp_path, capsys
):
    golden = opened("G2_vision")
    arrays = {**golden.cases["io"], "halfmerge__last_hidden_state": np.zeros(3)}
    arrays["attention_7"] = np.zeros(3)
    reports = goldens.check_file(golden._replace(cases={"io": arrays}), "io")
    assert set(reports[0].unchecked) == {"halfmerge__last_hidden_state", "attention_7"}
    assert "not checked: " in reports[0].line()

    assert command.main(["check-goldens", str(tmp_path)]) == 1
    assert "found no goldens" in capsys.readouterr().err
    # Shapes and values that are not numbers fail too, and JSON stays valid.
    arrays = {**golden.cases["io"], "post_ln": np.zeros((2, 2))}
    arrays["hidden_1"] = np.full_like(arrays["hidden_1"], np.nan)
    report = run(golden._replace(cases={"io": arrays}), "io")
    assert report.failed and report.max_error == np.inf
    assert {q.name.split(" ")[0] for q in report.quantities if q.failed} >= {
        "post_ln",
        "hidden_1",
    }


def test_batches_refuse_what_the_reference_would_scramble(opened):
    arrays = dict(opened("G4_vlm").cases["main"])
    for name, value, message in [
        ("in__crop_index", np.array([0, 1, 0, 1, 1]), "expected ascending"),
        ("in__crop_index", np.array([0, 0, 0, 1, 2]), "from 0 to 1"),
        ("in__attention_mask", np.ones((2, 98)), "where the type is not PAD"),
        (
            "in__input_tps",
            np.where(arrays["in__input_tps"] == int(Kind.QED), 16, 1),
            "attention mask",
        ),
        (
            "in__input_tps",
            np.where(
                arrays["in__input_tps"] == int(Kind.QED), 16, arrays["in__input_tps"]
            ),
            r"got \[0, 0\] QED places",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            golden_batches.vlm_batch({**arrays, name: value}, 5)
    assert golden_batches.vlm_batch(arrays, 5).llm.loss_mask.sum() == 25
    answers = dict(opened("G3_clip").cases["main"])
    fewer = {n: x[:3] if "ans" in n else x for n, x in answers.items()}
    with pytest.raises(ValueError, match="got 3 answers for 4 questions"):
        golden_batches.align_batch(fewer, 5)


def other_config():
    """Grouped-query attention, tied embeddings, a padding id, no newline token, …"""
    vision = {
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 24,
        "patch_size": 6,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-4,
        "enable_token_crlf": False,
    }
    llm = {
        "vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    }
    clip = {
        "vision_config": vision,
        "text_config": {"pad_token_id": 4},
        "vocab_size": 29,
        "num_hidden_layers": 1,
        "imgque_config": None,
    }
    return {"imgque_config": clip, "llm_config": llm}


def other_arrays(rng, rows=2):
    """Two samples of one and two crops, one question each, N = 3, right-padded."""
    que, img, pad = int(Kind.QUE), int(Kind.QED), int(Kind.PAD)
    eos, ans, sys = int(Kind.EOS), int(Kind.ANS), int(Kind.SYS)
    que_kinds = np.array(
        [[que] * 4 + [img] * 2 + [eos, pad], [que] * 5 + [img] * 2 + [eos]]
    )
    llm_kinds = np.array([[sys] + [img] * 3 + [que] * 2 + [ans] * 3 + [pad] * 2] * 2)
    llm_kinds[1, -2:] = ans
    que_ids = rng.integers(5, 20, que_kinds.shape)
    que_ids[que_kinds == img] = np.tile([25, 26], rows)
    arrays = {
        "que_input_ids": que_ids,
        "que_input_tps": que_kinds,
        "que_attention_mask": (que_kinds != pad).astype(int),
        "input_ids": rng.integers(0, 37, llm_kinds.shape),
        "input_tps": llm_kinds,
        "attention_mask": (llm_kinds != pad).astype(int),
        "pixel_values": rng.normal(size=(3, 3, 24, 24)).astype(np.float32),
        "crop_index": np.array([0, 1, 1]),
    }
    return {f"in__{name}": array for name, array in arrays.items()}


def test_another_folder_with_other_sizes_passes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = other_arrays(rng)
    config = towers.vlm_config(other_config(), 25)
    shapes = parameter_shapes(VLM, config)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes
    )
    with jax.default_matmul_precision("highest"):
        batch = golden_batches.vlm_batch(arrays, config.vision.tokens_per_crop)
        ours = golden_runs.vlm_answers(config, params, batch)
    outputs = {f"out__{n}": value.array.copy() for n, value in ours.values.items()}
    # What the reference leaves at padding means nothing, and must not be read.
    for name, value in ours.values.items():
        if value.valid is not None:
            outputs[f"out__{name}"][~value.valid] = 1e6
    folder = tmp_path / "any_name"
    folder.mkdir()
    np.savez(folder / "some_case.npz", **arrays, **outputs)
    save_file(names.export_tree(layouts.VLM_LAYOUT, params), folder / "w.safetensors")
    norms = {n: float(np.linalg.norm(g)) for n, g in ours.gradients.items()}
    described = {"loss": float(ours.values["loss"].array), "grad_norms": norms}
    whole = {
        "config": other_config(),
        "llm_config": other_config()["llm_config"],
        "cases": {"some_case": described, "other_case": {}},
    }
    (folder / "config.json").write_text(json.dumps(whole))

    golden = goldens.open_folder(goldens.find_folders(tmp_path)[0])
    assert golden.config == config
    assert goldens.cases_without_file(golden) == ["other_case"]
    report = assert_parity(golden, "some_case")
    assert {"config:loss", "out__llm_hidden_3"} <= {q.name for q in report.quantities}
    # The tied table: looked up with its padding row frozen, and read as output head.
    table = ours.gradients["llm_backbone.model.embed_tokens.weight"]
    assert np.all(np.linalg.norm(table, axis=1) > 0)
    assert run(
        moved(golden, "llm/blocks/attn/key/kernel", (2, 3, 4)), "some_case"
    ).failed
