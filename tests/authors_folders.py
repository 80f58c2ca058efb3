"""Checkpoint folders as the authors publish them, made of the small goldens."""

import json
from pathlib import Path

from golden_folders import stage2_weights
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vtscale_jax.weights.tokenizer_files import save_tokenizer

VIEWS = 4
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def word_tokenizer(vocab, eos, placeholders=0):
    """A word-level tokenizer; placeholders are added as the authors' parser does."""
    words = {word: i for word, i in vocab.items() if "placeholder" not in word}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [word for word in words if word.startswith("<") and word.endswith(">")]
    core.add_special_tokens(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token=eos, unk_token="<unk>"
    )
    made.add_tokens([f"<|placeholder_qed_{i}|>" for i in range(placeholders)])
    return made


def processor(folder: Path, **changes):
    """The image processor's file."""
    content = {"image_processor_type": "Phi3VImageProcessor", "num_crops": VIEWS}
    content |= {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(content | changes))


def stage1(golden_dir: Path, folder: Path, *, placeholders=3, **changes) -> Path:
    """The stage-1 golden as a published folder; `changes` go into config.json."""
    golden = json.loads((golden_dir / "G3_clip" / "config.json").read_text())
    folder.mkdir(parents=True)
    config = golden["clip_config"] | changes
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(golden_dir / "G3_clip" / "weights.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    clip = word_tokenizer(
        golden["query_tokenizer_vocab"], "<|endoftext|>", placeholders
    )
    save_tokenizer(clip, folder / "clip")
    processor(folder)
    return folder


def stage2(golden_dir: Path, folder: Path, *, placeholders=3, **changes) -> Path:
    """The stage-2 golden as a published folder."""
    stage1(golden_dir, folder, placeholders=placeholders)
    golden = json.loads((golden_dir / "G4_vlm" / "config.json").read_text())
    config = golden["config"] | changes
    (folder / "config.json").write_text(json.dumps(config))
    tensors = stage2_weights(golden_dir)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(word_tokenizer(golden["llm_tokenizer_vocab"], "</s>"), folder)
    return folder
