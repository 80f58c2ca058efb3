"""What a config means: its data, tokenizers, batches and starting weights.

`train`, `ask` and `sweep` build their parts here, so that a run is read in one way.
"""

import dataclasses
from collections.abc import Sequence
from typing import cast

import transformers  # AutoTokenizer, which loads much more, is taken when it is used
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from vtscale_jax import settings
from vtscale_jax.buckets import fit_buckets
from vtscale_jax.collate import BatchSpec, collate
from vtscale_jax.data.array_record_source import ArrayRecordSource
from vtscale_jax.data.mixture import Mixture
from vtscale_jax.embedded.digit_pages import DigitPages, PageConfig, blank_page
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.encoders import Encoder, Here, Workers, readable
from vtscale_jax.encoding import Encoding, encode
from vtscale_jax.loader import Source, Stream
from vtscale_jax.records import JSONLSource
from vtscale_jax.tokens import QueryLayout, Tokenizer
from vtscale_jax.types import WHOLE, Batch, Record, Shards
from vtscale_jax.vision import VisionConfig
from vtscale_jax.weights import starting
from vtscale_jax.weights.fetch import MODELS
from vtscale_jax.weights.pretrained import open_pretrained

# Held-out pages of the evaluation, of its quick version while training, and of the
# loss are drawn with seeds of their own.
HELDOUT_SEEDS = {"loss": 1, "quick": 2, "final": 3}
# Data in files by data.name: what data.path and data.heldout_path name.
STORED = {
    "jsonl": "a JSONL file of records",
    "array_record": "a folder packed by prepare --store arrayrecord",
    "mixture": "a mixture.json",
}
PROBED = 64  # first records of a source that batch shapes are fitted to


def load_tokenizer(config: ConfigDict, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer that `config.weights.<field>` names: "embedded"; "llm" or "clip",
    the one that belongs to `weights.llm` or `weights.clip`; a local folder, a .gguf
    file, or a name on the hub."""
    value = config.weights[field]
    if value in ("llm", "clip"):
        model = config.weights[value]
        if model == "embedded":
            return build_tokenizer()
        found = starting.pretrained(value, model)
        if found is None:
            raise ValueError(
                f"weights.{field} is {value!r}, the tokenizer of weights.{value}, but "
                f"weights.{value} is {model!r}, which has none: name a tokenizer "
                f"(--config.weights.{field}=FOLDER)"
            )
        return found.tokenizer()
    if value == "embedded":
        return build_tokenizer()
    if value in MODELS or value.endswith(".gguf"):
        return open_pretrained(f"weights.{field}", value).tokenizer()
    try:
        return transformers.AutoTokenizer.from_pretrained(value)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights.{field} is {value!r}, which gives no tokenizer: {error}\nGive a "
            "local folder with tokenizer.json, a reachable name on the hub, or "
            f'"embedded" (--config.weights.{field}=...)'
        ) from error


def open_source(config: ConfigDict, split: str) -> Source:
    """The records of the run: split "train", or "heldout" for the loss.

    Files have those of `data.path` and of `data.heldout_path`; a mixture without the
    second, the records that it holds out itself.
    """
    data = config.data
    if data.name == "digit_pages":
        return DigitPages(
            split,
            num_pages=data.num_records,
            seed=config.seed if split == "train" else HELDOUT_SEEDS["loss"],
            config=PageConfig(**data.page),
            families=tuple(data.families),
            questions_per_page=data.questions_per_page,
        )
    if data.name not in STORED:
        raise ValueError(
            f"data.name is {data.name!r}, expected digit_pages, {', '.join(STORED)}"
        )
    own = data.name == "mixture" and not data.heldout_path
    field = "path" if split == "train" or own else "heldout_path"
    path, image_root = data[field], data.image_root or None
    if not path:
        raise ValueError(
            f"data.{field} is empty, expected {STORED[data.name]}: "
            f"--config.data.{field}=PATH (and, where images are in files of their own, "
            "--config.data.image_root=FOLDER)"
        )
    if data.name == "array_record":
        source = ArrayRecordSource(path)
    elif data.name == "mixture":
        part = split if own else "train"  # a file of its own is read whole
        source = Mixture(path, split=part, image_root=image_root)
        if split == "train":
            source.check_subset(config.seed, data.subset)
    else:
        # A record without image is no reason to drop it here: where the stage needs
        # one (data.require_image), the loader stops at it by name.
        source = JSONLSource(path, image_root=image_root)
        left_out = ", ".join(f"{n:,} {why}" for why, n in source.rejected.items())
        print(f"{path}: {len(source):,} records; left out: {left_out or 'none'}")
        return source
    held = " held out" if own and split == "heldout" else ""
    print(f"{path}: {len(source):,} records{held}")
    return source


def family_questions(
    config: ConfigDict,
    number: int,
    seed_name: str,
    families: Sequence[str] | None = None,
) -> list[Record]:
    """`number` single-question held-out records of every family of Digit Pages:
    `families`, or those that the config names."""
    records = []
    for family in config.data.families if families is None else families:
        pages = DigitPages(
            "heldout",
            num_pages=number,
            seed=HELDOUT_SEEDS[seed_name],
            config=PageConfig(**config.data.page),
            families=(family,),
            questions_per_page=1,
        )
        asked = (pages[i] for i in range(number))  # a page is drawn at each look
        records += [record._replace(id=f"{family}-{record.id}") for record in asked]
    return records


def blanked(records: Sequence[Record], config: ConfigDict) -> list[Record]:
    """The same questions on a page without digits."""
    image = blank_page(PageConfig(**config.data.page)).image
    return [record._replace(image=image) for record in records]


def probed(source: Source) -> list[Record]:
    """The first records and the longest: batch shapes are fitted to them."""
    first = range(min(PROBED, len(source)))
    return [source[i] for i in sorted({*first, *source.longest(PROBED)})]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Everything about a run's data that does not change with the step.

    Stage align has no LLM and no tokenizer of one.
    """

    config: ConfigDict
    llm_tokenizer: PreTrainedTokenizerBase | None
    encoding: Encoding
    first_query_id: int
    tokens_per_crop: int

    def layout(self, num_queries: int) -> QueryLayout:
        """The query layout for M = `num_queries`."""
        followup = min(settings.num_followup_queries(self.config), num_queries)
        return QueryLayout(num_queries, followup, self.first_query_id)

    def buckets(
        self,
        probe: Sequence[Record],
        encoding: Encoding,
        num_queries: int,
        batch_size: int,
        shards: Shards = WHOLE,
        *,
        packed: bool = False,
    ) -> BatchSpec:
        """Batch shapes fitted to the records `probe`; `packed`: see `fit_buckets`."""
        data, layout = self.config.data, self.layout(num_queries)
        # Pages all have the same views; other images need not show their most here.
        pages = data.name == "digit_pages"
        return fit_buckets(
            readable(probe, encoding, layout),
            batch_size=batch_size,
            tokens_per_crop=self.tokens_per_crop,
            shard_count=shards.feeders,
            devices=len(shards.own),
            headroom=data.headroom,
            most_crops=None if pages else 1 + data.max_local_views,
            longest_answer=encoding.max_answer_length,
            packed=packed,
        )

    def training_shapes(
        self, probe: Sequence[Record], num_queries: int, shards: Shards = WHOLE
    ) -> BatchSpec:
        """Shapes of training batches with M = `num_queries`, fitted to `probe`."""
        size = self.config.data.batch_size
        packed = self.config.data.pack and self.config.stage != "align"
        return self.buckets(
            *(probe, self.encoding, num_queries, size, shards), packed=packed
        )

    def stream(
        self,
        source: Source,
        spec: BatchSpec,
        num_queries: int,
        start_step: int,
        shards: Shards = WHOLE,
        encoder: Encoder | None = None,
    ) -> Stream:
        """Training batches from `start_step` on, with M = `num_queries`, of samples
        that `encoder` makes (see `encoder`)."""
        data, seed = self.config.data, self.config.seed
        return Stream(
            source,
            self.encoding,
            spec,
            layout=self.layout(num_queries),
            seed=seed,
            subset=(seed, data.subset),
            start_step=start_step,
            shards=shards,
            encoder=encoder,
            num_threads=data.num_threads,
            prefetch=data.prefetch,
        )

    def encoder(self, source: Source) -> Encoder:
        """What makes samples of the records of `source`; to be closed."""
        number = self.config.data.num_workers
        if number == 0:
            return Here(source, self.encoding)
        return Workers(source, self.encoding, number)

    def heldout_batches(
        self,
        source: Source,
        spec: BatchSpec,
        num_queries: int,
        number: int,
        shards: Shards = WHOLE,
    ) -> list[Batch]:
        """This process's part of `number` batches of the training shapes, of the first
        records of `source`."""
        number = min(number, len(source) // spec.batch_size)
        if number == 0:
            raise ValueError(
                f"the held-out data has {len(source)} records, expected at least one "
                f"batch of {spec.batch_size}: add records to data.heldout_path (of a "
                "mixture: make it with a larger --heldout), or lower data.batch_size"
            )
        layout, rows = self.layout(num_queries), shards.rows(spec.batch_size)
        shapes = spec.agreed(shards)
        batches = []
        for first in range(0, number * spec.batch_size, spec.batch_size):
            records = [source[first + row] for row in rows]
            samples = [encode(record, self.encoding, layout) for record in records]
            batches.append(collate(samples, shapes, rows=rows))
        return batches


def assemble(config: ConfigDict, vision: VisionConfig) -> Parts:
    """Tokenizers and encoding of a run; errors name the config field at fault."""
    fusion_tokenizer = load_tokenizer(config, "fusion_tokenizer")
    llm_tokenizer = None
    if config.stage != "align":
        llm_tokenizer = load_tokenizer(config, "tokenizer")
    encoding = Encoding(
        stage=config.stage,
        fusion_tokenizer=cast(Tokenizer, fusion_tokenizer),
        view_size=vision.image_size,
        max_local_views=config.data.max_local_views,
        views=config.data.views,
        llm_tokenizer=cast(Tokenizer | None, llm_tokenizer),
        template=config.data.template,
        question=settings.question_mode(config),
        max_answer_length=config.model.text.max_length,
        truncate_answers=config.data.truncate_answers,
        require_image=config.data.require_image,
    )
    for tower, field, tokenizer in (
        ("fusion", "fusion_tokenizer", fusion_tokenizer),
        ("text", "fusion_tokenizer", fusion_tokenizer),
        ("llm", "tokenizer", llm_tokenizer),
    ):
        if tokenizer is None:
            continue
        rows = config.model[tower].vocab_size
        if len(tokenizer) > rows:
            raise ValueError(
                f"model.{tower}.vocab_size is {rows}, but the tokenizer of "
                f"weights.{field} has {len(tokenizer)} tokens: set "
                f"model.{tower}.vocab_size to at least that, or give the tokenizer "
                "that belongs to the weights"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of weights.{field} has no end-of-sequence token, which "
                "ends every answer: set eos_token in its tokenizer_config.json"
            )
    # Query ids begin after the text ids.
    first_query_id = config.model.fusion.vocab_size
    parts = Parts(
        config, llm_tokenizer, encoding, first_query_id, vision.tokens_per_crop
    )
    # Reports N > M now: `layout` lowers N for the first phases of a curriculum.
    QueryLayout(config.num_queries, settings.num_followup_queries(config))
    return parts


def prompts_encoding(parts: Parts) -> Encoding:
    """The run's encoding for prompts that the model is to continue."""
    return dataclasses.replace(parts.encoding, stage="adapt", prompts=True)
