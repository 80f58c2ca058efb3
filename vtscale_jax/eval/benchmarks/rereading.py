"""What a workbook does to the texts that are written to it.

VLMEvalKit writes predictions to an .xlsx file and scores what it reads back: an empty
answer and the words for missing cells become `nan`, a column of nothing but numbers
becomes numeric, text that begins with `=` is a formula at the paper's commit and comes
back as 0. Nobody can list all of it, so texts are really written and read here, with
the same libraries.
"""

import io
from collections.abc import Sequence

import pandas as pd

from vtscale_jax.eval.benchmarks.tasks import Version


def workbook(frame: pd.DataFrame, version: Version) -> bytes:
    """The .xlsx file that VLMEvalKit writes of these columns."""
    # The newest commit writes a formula as the text it is.
    options = {"strings_to_formulas": False} if version == "current" else {}
    file = io.BytesIO()
    with pd.ExcelWriter(
        file, engine="xlsxwriter", engine_kwargs={"options": options}
    ) as writer:
        frame.to_excel(writer, index=False)
    return file.getvalue()


def reread(frame: pd.DataFrame, version: Version) -> pd.DataFrame:
    """The columns as they come back from the workbook, typed by pandas."""
    return pd.read_excel(io.BytesIO(workbook(frame, version)))


def as_reread(raw: Sequence[str], version: Version) -> list[str]:
    """The predictions that are scored when a model said `raw`, all in one workbook.

    `["Yes", "", "N/A"]` is read as `["Yes", "nan", "nan"]`, and `["5", ""]` as
    `["5.0", "nan"]`.
    """
    # The index keeps rows apart that would be blank lines otherwise.
    frame = pd.DataFrame({"index": range(len(raw)), "prediction": list(raw)})
    return [str(one) for one in reread(frame, version)["prediction"]]
