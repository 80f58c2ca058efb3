"""Asks a trained model about an image: `python -m vtscale_jax.ask --run RUN …`.

    python -m vtscale_jax.ask --run runs/m256-embedded --image page.png \\
        --question "how many digits are on the page ?"
    python -m vtscale_jax.ask --run RUN --image page.png     # asks until an empty line
    python -m vtscale_jax.ask --llm smollm2-135m --question "What is a ViT?"

A second --question is a follow-up on the same image, with N query tokens in place of M.
Answers are streamed; after each comes where the time went. With --llm it is a text chat
with a language model alone.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from vtscale_jax.compilation import CompileClock, keep_compiled
from vtscale_jax.conversation import (
    Answering,
    Conversation,
    ImageConversation,
    TextConversation,
    Timing,
)
from vtscale_jax.generate import Sampling
from vtscale_jax.images import load_image
from vtscale_jax.tokens import Tokenizer, end_ids
from vtscale_jax.trained import open_trained
from vtscale_jax.weights.language_models import load_language_model

EXAMPLE = """\
example:
  $ python -m vtscale_jax.ask --run runs/m256-embedded --image page.png \\
        --question "what digits are on the page ? read all in order ."
  > what digits are on the page ? read all in order .
  4 0 7 7 1
    first token after 0.05 s: text 0.00, views 0.00, transfer 0.00, vision 0.02 …
"""


def questions(given: Sequence[str]) -> Iterator[str]:
    """Those given, or what is typed until an empty line."""
    if given:
        yield from given
        return
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if not line:
            return
        yield line


def timing_line(timing: Timing, compiling: float, tokens: int, seconds: float) -> str:
    """Where the time to the first token went, and how fast the others came.

    >>> timing_line(Timing(0.01, 0.2, 0.1, 0.09, 290, 290), 0.25, 11, 0.5)[:33]
    '  first token after 0.40 s: text '
    """
    line = f"  first token after {timing.first_token:.2f} s: "
    line += ", ".join(f"{name} {value:.2f}" for name, value in timing.parts.items())
    line += f" (read {timing.num_read} of {timing.num_tokens} tokens"
    if compiling > 0.005:
        line += f"; {compiling:.2f} s of it compiling"
    line += ")"
    if tokens > 1 and seconds > 0:
        line += f"\n  {tokens} tokens, {(tokens - 1) / seconds:.1f} tokens/s"
    return line


def converse(
    conversation: Conversation, given: Sequence[str], clock: CompileClock
) -> None:
    """Asks and prints until there are no more questions."""
    for question in questions(given):
        if given:
            print(f"> {question}")
        before = clock.seconds
        try:
            reply = conversation.ask(question)
        except ValueError as error:
            if given:
                raise
            print(f"error: {error}")  # who types may ask something else
            continue
        compiling, compiled = clock.seconds - before, clock.seconds
        tokens, seconds = 0, 0.0
        for piece in reply:
            print(piece.text, end="", flush=True)
            tokens, seconds = piece.num_tokens, piece.seconds
        print()
        if reply.ended == "length":
            print(f"  (cut after {tokens} tokens: --max_new_tokens)")
        # The first steps of an answer compile too; they count for no speed.
        seconds -= clock.seconds - compiled
        print(timing_line(conversation.timing, compiling, tokens, seconds))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.ask",
        description="Asks a trained model about an image, or a language model alone.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a finished run")
    source.add_argument(
        "--llm",
        help="a language model alone: a Hugging Face folder or name, a .gguf file, or "
        "smollm2-135m (see python -m vtscale_jax.weights fetch)",
    )
    parser.add_argument("--image", help="image file (with --run)")
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        help="may be repeated: follow-ups; without any, questions are typed",
    )
    parser.add_argument("--system", help="system text (with --llm)")
    parser.add_argument(
        "--num_queries", type=int, metavar="M", help="default: the run's"
    )
    parser.add_argument(
        "--num_followup_queries", type=int, metavar="N", help="default: the run's"
    )
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default) is greedy"
    )
    parser.add_argument("--top_k", type=int, default=0, help="0 (default): all")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stop", action="append", default=[], help="text that ends an answer"
    )
    parser.add_argument(
        "--int8", action="store_true", help="hold the language model's weights as int8"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of --llm; default: bfloat16 on accelerators, float32 on CPU",
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    options = parser.parse_args(arguments)
    of_runs = ("image", "num_queries", "num_followup_queries")
    for name in of_runs if options.llm else ("system", "dtype"):
        if getattr(options, name) is not None:
            other = "--run" if options.llm else "--llm"
            parser.error(f"--{name} goes with {other}")
    if options.max_new_tokens < 1:
        parser.error(
            f"--max_new_tokens is {options.max_new_tokens}, expected 1 or more"
        )
    return options


def start(options: argparse.Namespace) -> Conversation:
    """Loads what was named and begins the conversation."""
    answering = Answering(
        most=options.max_new_tokens,
        sampling=Sampling(options.temperature, options.top_k, options.top_p),
        seed=options.seed,
        stop=tuple(options.stop),
    )
    if options.llm:
        model = load_language_model(
            "--llm",
            options.llm,
            dtype=options.dtype or "auto",
            int8=options.int8,
            apart=True,
        )
        answering = answering._replace(eos_ids=model.end_ids, limit=model.limit)
        print(f"{model.where}: {model.config.blocks.num_layers} layers")
        return TextConversation(
            model.params, model.config, model.tokenizer, answering, options.system
        )
    if options.image is not None:
        load_image(options.image)  # before anything large is read
    run = open_trained(
        options.run,
        num_queries=options.num_queries,
        num_followup_queries=options.num_followup_queries,
        int8=options.int8,
    )
    print(
        f"{options.run}: M = {run.layout.num_queries}, "
        f"N = {run.layout.num_followup_queries}"
    )
    answering = answering._replace(eos_ids=end_ids(cast(Tokenizer, run.tokenizer)))
    return ImageConversation(
        run.params, run.model, run.encoding, run.layout, options.image, answering
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    keep_compiled()
    clock = CompileClock()
    try:
        converse(start(options), options.question, clock)
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130
    finally:
        clock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
