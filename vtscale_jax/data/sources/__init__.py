"""The public sets and how their rows become records: one file for each.

Facts and rules are those of spec/data.md. Where the authors' code stops at a bad row,
here that row is left out and counted; where it loses good data together with bad, only
the bad is left out.
"""

NAMES = ("llava", "svit", "docdownstream", "vlmeval-tsv", "jsonl")
SVIT_KINDS = ("conversation", "detail_description", "complex_reasoning", "referring_qa")
