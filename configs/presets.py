"""The presets: sizes, data and recipe for each stage. A preset is a function of the
stage that returns the fields which `base` does not set."""

from ml_collections import config_dict

FAMILIES = ("read", "locate", "count", "exists", "choice", "describe")


def _blocks(width: int, mlp_width: int, num_heads: int, num_layers: int, **more):
    return {
        "width": width,
        "mlp_width": mlp_width,
        "num_heads": num_heads,
        "num_layers": num_layers,
        **more,
    }


def _clip(width: int, mlp_width: int, num_heads: int, num_layers: int) -> dict:
    return _blocks(
        width, mlp_width, num_heads, num_layers, norm_eps=1e-5, activation="quick_gelu"
    )


def _fusion(width: int, mlp_width: int, num_layers: int) -> dict:
    """Heads of 64, no grouped queries, as the authors build it from the CLIP config."""
    return _blocks(width, mlp_width, width // 64, num_layers, norm_eps=1e-6)


def _data(
    stage: str, name: str, page_size: int, min_share: float, max_share: float, **more
) -> dict:
    """Where records come from: `name` is "digit_pages", or for files "jsonl",
    "array_record" or "mixture", and each reads its own fields. Digits take `min_share`
    to `max_share` of the side of their cell. Stage adapt sees a random tenth of the
    records."""
    return {
        "name": name,
        "page": {
            "page_size": page_size,
            "min_share": min_share,
            "max_share": max_share,
        },
        "num_records": 32768,
        "questions_per_page": 4,
        "families": FAMILIES,
        "path": "",
        "heldout_path": "",
        "image_root": "",
        "max_local_views": 9,
        # "exact": the pixels of the authors' code; "fast": nearly those, in less time.
        "views": "exact",
        # Room in the batch shapes for texts longer than the longest of those probed.
        "headroom": 1.25,
        # Answers that the text tower has no positions for (stage align) are cut, as the
        # authors do; otherwise one ends the run by name.
        "truncate_answers": False,
        # Short conversations share rows of the language model (one process only).
        "pack": False,
        # Batches prepared ahead; worker processes that prepare them (0: threads only);
        # and the share of samples that may be skipped for an unreadable image.
        "prefetch": 4,
        "num_workers": 0,
        "max_unreadable": 0.01,
        "subset": 0.1 if stage == "adapt" else 1.0,
        **more,
    }


def _optim(**values) -> dict:
    return {
        "steps": config_dict.placeholder(int),
        "epochs": config_dict.placeholder(float),
        "learning_rate": 1e-3,
        "warmup": 0.03,
        "final_share": 0.0,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "clip_norm": 1.0,
        "accumulation": 1,
        "rate_rules": ((r".*", 1.0),),
        **values,
    }


def _run(log_every: int, eval_every: int, questions: int, save_every: int) -> dict:
    """How often to log, evaluate and save, in steps; `questions` per family in the
    final evaluation, a sixteenth of them while training, and whether they are asked
    about a blank page too."""
    return {
        "log": {"every": log_every},
        "eval": {
            "every": eval_every,
            "questions": questions,
            "blank": True,
            "batch_size": 64,
            "max_new_tokens": 24,
            # Benchmarks and families by name ("POPE,ChartQA_TEST"), the folder of the
            # benchmarks' tables, and whose rules score them: "paper" or "current".
            "tasks": "",
            "data": "",
            "scorer": "paper",
        },
        "checkpoint": {"every": save_every, "keep": 2},
        # A loss so many standard deviations above the last `window` stops the run.
        "stop": {"spike": 30.0, "window": 100},
        # Seconds: for all hosts to come at the start, and without a sign of life.
        "hosts": {"wait_s": 600.0, "timeout_s": 300.0},
    }


def _mesh(data: int, fsdp: int, frozen: str) -> dict:
    """Devices by axis (-1: what the others leave), and whether frozen parameters are
    "sharded" too or "replicated"."""
    return {"mesh": {"data": data, "fsdp": fsdp, "tensor": 1, "frozen": frozen}}


def embedded(stage: str) -> dict:
    """Tiny models whose weights ship in the package, on 96-pixel Digit Pages: nine
    local views of 32 pixels, one per cell, and the global view."""
    # The pre-trained vision tower learns more slowly than the fresh fusion decoder.
    young = {
        "learning_rate": 1.2e-3,
        "weight_decay": 0.01,
        "b2": 0.98,
        # The phases with more queries come last and need a rate to learn at.
        "final_share": 0.1,
        "rate_rules": ((r"vision/.*", 0.3), (r".*", 1.0)),
    }
    optim = {
        "align": _optim(steps=800, warmup=0.1, **young),
        "finetune": _optim(steps=2400, warmup=0.03, **young),
        # A rate as high as the others' unlearns at first what the base knows.
        "adapt": _optim(epochs=1.0, learning_rate=1.5e-4, warmup=0.03, b2=0.98),
    }[stage]
    # Few query tokens at first: seeing is learnt from them several times as fast.
    query_schedule = {
        "align": ((0, 16), (600, 64), (700, 256)),
        "finetune": ((0, 16), (1600, 64), (2000, 256)),
        "adapt": (),
    }[stage]
    # The align loss takes every other answer of the batch for a negative, so it needs
    # families whose answers differ from page to page.
    families = ("read", "locate", "describe") if stage == "align" else FAMILIES
    return {
        "model": {
            "dtype": "auto",
            "llm_param_dtype": "auto",
            # Of training: "xla", or a fused kernel, "cudnn" (GPU) or "splash" (TPU).
            # "auto" is "xla" everywhere until one has been measured on its device.
            "attention": "auto",
            # What the backward pass computes again in place of keeping it: "none",
            # "selective" (all but products with weights), "full" (whole blocks);
            # "selective,vision" is full for the vision tower and selective for others;
            # "auto" is the least with which a step fits the device.
            "remat": "none",
            "unroll": 1,
            # The frozen language model's kernels as int8: half the memory of bfloat16.
            "llm_int8": False,
            "vision": {
                "image_size": 32,
                "patch_size": 8,
                "blocks": _clip(128, 512, 4, 4),
            },
            "fusion": {
                "vocab_size": 70,
                "frozen_id": config_dict.placeholder(int),
                "blocks": _fusion(128, 512, 4),
            },
            "llm": {
                "vocab_size": 70,
                "tie_embeddings": False,
                "blocks": _blocks(128, 352, 4, 4, num_kv_heads=2, norm_eps=1e-5),
            },
            "text": {
                "vocab_size": 70,
                "max_length": 32,
                "projection_width": 128,
                "blocks": _clip(128, 512, 4, 2),
            },
        },
        "weights": {
            "clip": "embedded",
            "llm": "embedded",
            "init_from": "embedded" if stage == "adapt" else "",
            "tokenizer": "embedded",
            "fusion_tokenizer": "embedded",
        },
        "data": _data(
            stage,
            "digit_pages",
            *(96, 0.5, 0.75),
            families=families,
            questions_per_page=3 if stage == "align" else 4,
            template="plain",
            batch_size=16 if stage == "adapt" else 32,
            require_image=True,
            num_threads=1,
        ),
        "optim": optim,
        "query_schedule": query_schedule,
        **_run(
            log_every=10,
            eval_every=50 if stage == "adapt" else 200,
            questions=512,
            save_every=100,
        ),
        **_mesh(data=-1, fsdp=1, frozen="replicated"),
    }


def smol(stage: str) -> dict:
    """SmolLM2-135M-Instruct, frozen, behind the shipped vision tower and fusion decoder
    on pages of four times the area: 192 pixels, 36 local views.

    The shipped ones are aligned already, so that finetune begins from them. Another
    CLIP: `stage=align` with weights.clip=FOLDER, whose sizes are taken from it.
    """
    base = embedded(stage)
    small = base["model"]
    return {
        "model": {
            **small,
            "remat": "auto",
            "llm": {
                "vocab_size": 49152,
                "tie_embeddings": True,
                "blocks": _blocks(
                    576,
                    1536,
                    9,
                    30,
                    num_kv_heads=3,
                    norm_eps=1e-5,
                    rope_theta=100000.0,
                ),
            },
        },
        "weights": {
            "clip": "embedded",
            "llm": "smollm2-135m",
            "init_from": {
                "align": "",
                "finetune": "embedded",
                "adapt": "runs/m256-smol-finetune",
            }[stage],
            "tokenizer": "llm",
            "fusion_tokenizer": "clip",
        },
        "data": _data(
            stage,
            "digit_pages",
            # A digit is as large as on the small pages, and the page holds more white.
            *(192, 0.25, 0.375),
            families=base["data"]["families"],
            max_local_views=36,
            template="smollm2",
            batch_size=32,
            require_image=True,
            num_threads=4,
        ),
        "optim": _optim(
            steps={"align": 1000, "finetune": 6000, "adapt": 600}[stage],
            learning_rate=5e-4,
            warmup=0.1 if stage == "align" else 0.03,
        ),
        **_run(log_every=10, eval_every=500, questions=512, save_every=200),
        **_mesh(data=-1, fsdp=1, frozen="replicated"),
    }


def paper(stage: str) -> dict:
    """CLIP ViT-L/14-336, a 20-layer fusion decoder and Llama-2-7B, with the paper's
    hyperparameters (Appendices B and C): align 1,000 steps of 256; finetune two epochs
    and adapt 10 % of the data, in updates of 5 per device × 8 devices × 64."""
    align = stage == "align"
    optim = {
        "align": _optim(steps=1000, learning_rate=2e-5, warmup=0.1),
        "finetune": _optim(
            epochs=2.0, learning_rate=2e-5, warmup=0.03, accumulation=64
        ),
        "adapt": _optim(epochs=2.0, learning_rate=2e-5, warmup=0.03, accumulation=64),
    }[stage]
    return {
        "model": {
            "dtype": "auto",
            "llm_param_dtype": "auto",
            "attention": "auto",
            "remat": "auto",
            "unroll": 1,
            # The frozen language model's kernels as int8: half the memory of bfloat16.
            "llm_int8": False,
            "vision": {
                "image_size": 336,
                "patch_size": 14,
                "blocks": _clip(1024, 4096, 16, 24),
            },
            # frozen_id 1: the authors' padding_idx (see fusion.FusionConfig).
            "fusion": {
                "vocab_size": 49408,
                "frozen_id": 1,
                "blocks": _fusion(1024, 4096, 20),
            },
            "llm": {
                "vocab_size": 32000,
                "tie_embeddings": False,
                "blocks": _blocks(4096, 11008, 32, 32, norm_eps=1e-5),
            },
            "text": {
                "vocab_size": 49408,
                "max_length": 512,
                "projection_width": 768,
                "blocks": _clip(768, 3072, 12, 12),
            },
        },
        "weights": {
            "clip": "openai/clip-vit-large-patch14-336",
            "llm": "meta-llama/Llama-2-7b-chat-hf",
            "init_from": "runs/m256-paper-finetune" if stage == "adapt" else "",
            "tokenizer": "llm",
            "fusion_tokenizer": "clip",
        },
        "data": _data(
            stage,
            "jsonl",
            *(1008, 0.25, 0.4),
            template="llama-2-vision",
            batch_size=256 if align else 40,
            require_image=align,
            truncate_answers=align,
            num_threads=4,
            num_workers=16,
        ),
        "optim": optim,
        **_run(log_every=10, eval_every=500, questions=0, save_every=100),
        **_mesh(data=1, fsdp=-1, frozen="sharded"),
    }


PRESETS = {"embedded": embedded, "smol": smol, "paper": paper}
