"""The punctuation rule of the VQA evaluation tool, as VLMEvalKit has it.

The rule looks at the whole text before it touches one mark, so that a comma elsewhere
decides what becomes of a bracket:

    "Yes,there"       -> "Yes there"       "yes(ok)"    -> "yes ok "
    "Yes,there, (ok)" -> "Yesthere ok "    "1,000 (ok)" -> "1000 ok"
"""

import re

from vtscale_jax.eval.scoring.verdicts import Version

MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_JOINED = re.compile(r"\d,\d")
_PERIOD: dict[Version, re.Pattern[str]] = {
    # The look-behind of the paper's version is misspelled and sees nothing.
    "paper": re.compile(r"\.(?!\d)"),
    "current": re.compile(r"(?<!\d)\.(?!\d)"),
}
# A flag (re.UNICODE, 32) stands where the count belongs, in both versions.
_MOST_PERIODS = 32


def without_punctuation(text: str, version: Version) -> str:
    """The text after the rule PUNCT.

    A mark that stands beside a space somewhere in the text is deleted everywhere; one
    that does not becomes a space. Where the text has a comma between digits, all marks
    are deleted. Then the first 32 periods not before a digit are deleted (`current`:
    nor after one). Colon, asterisk, apostrophe and other alphabets' marks stay.
    """
    joined = _DIGITS_JOINED.search(text) is not None
    out = text
    for mark in MARKS:
        beside = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside or joined else " ")
    return _PERIOD[version].sub("", out, count=_MOST_PERIODS)
