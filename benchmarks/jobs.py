"""What `python -m benchmarks all` runs on which device, and for how long at most.

A job is one of the programs of this folder with the arguments that suit a device; each
runs in a process of its own. One that a device cannot do stands in the results as not
measured, with the reason.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NO_GPU = "no GPU at hand"
# Of a step at the paper's shapes, each device its share of eight: what fits one of
# 80 GB (`python -m vtscale_jax.parallel plan --topology a100-80gb:1`).
REMAT = {"align": "selective,vision,fusion", "finetune": "selective"}
FOLDER = "{folder}"  # in a command: an empty folder of the job, beside its log
QUERIES = "1,8,16,32,64,128,256,384,512,768"


class JobError(ValueError):
    """Jobs that are not there."""


class Run(NamedTuple):
    """How a job is done on a kind of device: a program and its arguments (`--out FILE`
    is added), and the seconds after which it is ended; `quick` are
    arguments that make it short and its figures rough. `asked` is what it should
    show, for as long as no such device was at hand."""

    words: tuple[str, ...]
    seconds: int
    quick: tuple[str, ...] = ()
    asked: str = ""


class Job(NamedTuple):
    """`runs` by platform as JAX names it; `elsewhere` is why others do not do it."""

    name: str
    about: str
    runs: Mapping[str, Run]
    elsewhere: str


def _paper_step(
    stage: str, num_queries: int, asked: str, *, attention: str = ""
) -> Job:
    words = ("benchmarks/train_step.py", "--preset", "paper", "--mfu", "--stage", stage)
    words += ("--num_queries", str(num_queries), "--remat", REMAT[stage])
    words += ("--attention", attention) if attention else ()
    return Job(
        "_".join(filter(None, ["paper_step", stage, f"m{num_queries}", attention])),
        f"a step of {stage} at the paper's shapes, M = {num_queries}"
        f"{attention and ', attention by '}{attention}: MFU, memory",
        {"gpu": Run(words, 90, asked=asked)},
        NO_GPU,
    )


# In the order in which they are run: where time is short, the last are lost.
JOBS = (
    Job(
        "train_step",
        "a finetune step beside the same step in PyTorch, float32",
        {"cpu": Run(("benchmarks/train_step.py",), 3600, ("--small",))},
        "it compares with PyTorch on a CPU; steps on a GPU are paper_step's",
    ),
    _paper_step("finetune", 256, "MFU ≥ 50 % on an H200 (aim 65 %)"),
    Job(
        "latency",
        "time to the first token by part and M, the embedded preset",
        {"cpu": Run(("benchmarks/latency.py",), 1800, ("--quick",))},
        "on a GPU it is paper_latency's",
    ),
    Job(
        "paper_latency",
        "time to the first token by part and M, the paper's shapes",
        {
            "gpu": Run(
                (
                    "benchmarks/latency.py",
                    *("--config", "configs/m768.py:paper"),
                    *("--num_queries", QUERIES, "--folder", FOLDER),
                    *("--new_tokens", "8"),  # decoding has a job of its own
                ),
                240,
                asked="at M = 1…768 a third of the paper's times at most",
            )
        },
        NO_GPU,
    ),
    _paper_step(
        *("finetune", 256, "MFU, beside that of XLA's attention"), attention="cudnn"
    ),
    _paper_step("finetune", 768, "MFU"),
    Job(
        "smol_run",
        "a short training of SmolLM2 on pages, as the command runs it",
        {
            "gpu": Run(
                ("benchmarks/short_run.py", "--preset", "smol", "--folder", FOLDER),
                75,
                asked="the loss falls; at most 2 % of the time waits for data",
            )
        },
        NO_GPU,
    ),
    Job(
        "run_memory",
        "memory of a run's train step beside its plan, embedded and SmolLM2",
        {
            "cpu": Run(
                ("benchmarks/run_memory.py",), 900, ("--config=configs/m16.py",)
            ),
            "gpu": Run(
                (
                    "benchmarks/run_memory.py",
                    *("--config", "configs/m256.py"),
                    *("--config", "configs/m64.py:smol,stage=finetune"),
                ),
                60,
                asked="as planned",
            ),
        },
        NO_GPU,
    ),
    _paper_step("align", 256, "MFU"),
    Job(
        "divergence",
        "kernels of D(n) beside PyTorch, the machine's peak, and over n",
        {
            "cpu": Run(
                ("benchmarks/divergence.py",),
                1800,
                ("--turns", "1", "--longest", "1024"),
            ),
            "gpu": Run(
                (
                    "benchmarks/divergence.py",
                    *("--turns", "1", "--no_enumerating", "--longest", "0"),
                ),
                75,
                asked="70 % of a matrix product's speed in bfloat16; the fused kernel",
            ),
        },
        NO_GPU,
    ),
    Job(
        "generate",
        "prefill and decoding of SmolLM2-135M's shapes beside transformers",
        {
            "cpu": Run(
                ("benchmarks/generate.py",), 1800, ("--rounds", "1", "--batches", "1")
            ),
            "gpu": Run(
                (
                    "benchmarks/generate.py",
                    *("--weights", "random", "--dtype", "bfloat16"),
                    *("--rounds", "1", "--no_first_token"),
                ),
                60,
                asked="decoding 1.2 × as fast as transformers",
            ),
        },
        NO_GPU,
    ),
    _paper_step("finetune", 1, "MFU"),
    _paper_step("align", 1, "MFU"),
    _paper_step("align", 768, "MFU"),
    Job(
        "loader",
        "images to views, records to batches, and how many are needed",
        {
            "cpu": Run(
                ("benchmarks/loader.py",),
                900,
                ("--repeats", "2", "--images", "2", "--records=96"),
            )
        },
        "it computes on the host only; see the results of a machine without a GPU",
    ),
    Job(
        "embedded_run",
        "a short training of the embedded preset, as the command runs it",
        {
            "cpu": Run(("benchmarks/short_run.py",), 600, ("--steps", "8")),
            "gpu": Run(("benchmarks/short_run.py",), 60, asked="the loss falls"),
        },
        NO_GPU,
    ),
)


def chosen(only: Sequence[str], skip: Sequence[str]) -> tuple[Job, ...]:
    """The jobs in `only` (all when it is empty) that are not in `skip`.

    A name stands for all jobs that go on from it: "paper_step" for each step at the
    paper's shapes. JobError for one that no job has.
    """

    def named(job: Job, names: Sequence[str]) -> bool:
        return any(
            job.name == name or job.name.startswith(f"{name}_") for name in names
        )

    for option, given in (("--only", only), ("--skip", skip)):
        for name in given:
            if not any(named(job, [name]) for job in JOBS):
                raise JobError(
                    f"{option} has {name!r}, expected some of "
                    f"{', '.join(job.name for job in JOBS)}, joined by commas"
                )
    return tuple(
        job for job in JOBS if (not only or named(job, only)) and not named(job, skip)
    )


def file_name(machine: Mapping[str, Any]) -> str:
    """What results of a machine (`record.device`) are called.

    >>> file_name({"platform": "gpu", "kind": "NVIDIA H200", "count": 1})
    'nvidia-h200'
    >>> file_name({"platform": "cpu", "kind": "cpu", "processor": "AMD EPYC 7B13",
    ...            "cores": 2})
    'amd-epyc-7b13-2-cores'
    """
    if machine["platform"] == "cpu":
        return _slug(f"{machine['processor']} {machine['cores']} cores")
    count = machine["count"]
    return _slug(machine["kind"]) + (f"-x{count}" if count > 1 else "")


def _slug(text: str) -> str:
    words = re.sub(r"\((r|tm)\)|@.*?hz", " ", text.lower())
    return "-".join(re.findall("[a-z0-9.]+", words))
