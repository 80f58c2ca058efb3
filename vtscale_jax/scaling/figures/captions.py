"""Title and caption of each figure; numbers are those of the paper (v1: its first
version) where a figure is one of it."""

from typing import NamedTuple

# Kinds of inputs whose figures have a number in the paper.
_NUMBERED = {"vqq": "Fig. 9", "vq_ft": "Fig. 10"}


class Caption(NamedTuple):
    """What a figure is called, and how it is to be read."""

    title: str
    text: str


def fits_caption(inputs: str) -> Caption:
    """Of the fits of one kind of inputs."""
    return Caption(
        _with(f"Scores and their laws{_of(inputs)}", _NUMBERED.get(inputs)),
        "Dots are scores, with 95 % of their own errors where these are known. Blue: "
        "the paper’s law S = c/M^α with its 95 % band; c and α stand above each panel. "
        "The law with the smallest AICc is drawn beside it where it is "
        "another. Light and dashed: the scores do not determine the law.",
    )


WITHOUT = Caption(
    "The power law with and without some M (Fig. 11)",
    "Hollow scores were left out of the second fit. How far the line moves is how much "
    "it hangs on them.",
)


def gains_caption(more: str, less: str) -> Caption:
    """Of S_more − S_less."""
    number = {("vqq", "vq_ft"): "Fig. 12", ("vqq", "vq"): "Fig. 13"}.get((more, less))
    return Caption(
        _with(f"What {more} adds to {less}", number),
        f"Score with {more} less score with {less} at each M. Above each panel: the "
        f"smallest and the largest gain over M as a share of the score with {less}. "
        "Lines are 95 % of the errors of the difference, where these are known.",
    )


RADAR = Caption(
    "Beside other models (Fig. 17)",
    "Each spoke is a metric, as a share of the best score on it. Other models were not "
    "evaluated here: their scores are published ones. A gap is a score that nobody "
    "published.",
)


def normalised_caption(inputs: str) -> Caption:
    """Of the curves from 0 to 1."""
    return Caption(
        _with(
            f"Normalised scores{_of(inputs)}", "Fig. 18" if inputs == "vqq" else None
        ),
        "Each metric from its lowest score over M (0) to its highest (1): where on the "
        "axis of M it gains, whatever its scale. A metric that hardly changes shows "
        "its noise here.",
    )


def clusters_caption(inputs: str) -> Caption:
    """Of the clusters of those curves."""
    return Caption(
        _with(
            f"Clusters of metrics{_of(inputs)}", "Fig. 19" if inputs == "vqq" else None
        ),
        "K-means of the normalised curves, k = 4 as in the paper. Clusters stand in "
        "falling order of the mean of their centre. K-means always finds clusters: "
        "that there are four kinds of metrics does not follow.",
    )


def comparison_caption(inputs: str) -> Caption:
    """Of the laws against each other."""
    return Caption(
        f"Which law predicts more tokens{_of(inputs)}",
        "Left: error of each law above the cut, fitted below it; the black bar is what "
        "repeating the last known score would have erred. A law that is not left of "
        "the bar adds nothing to it. Filled: the best of the row, as seen afterwards. "
        "Right: AICc above the smallest of the row; 2 hardly tells two laws apart, 10 "
        "does.",
    )


EXPONENTS = Caption(
    "The exponent α of the paper’s law",
    "With 95 % intervals. Left of 0 the score grows with M. Hollow and light: α is not "
    "identified by the scores.",
)
TOKEN_REDUCTION = Caption(
    "Methods that drop vision tokens (Table 5)",
    "Published scores over the number n of vision tokens that are kept.",
)
PSI_DELTA = Caption(
    "First version: the scaling form fitted to ψ_Δ (Fig. 10 there)",
    "The mean cosine of differences of hidden states, measured, and c/n^α fitted to it "
    "in logarithms; c′ is that of the first version’s (c′/n)^α. No scores are in it.",
)


def _of(inputs: str) -> str:
    return f", inputs {inputs}" if inputs else ""


def _with(title: str, number: str | None) -> str:
    return f"{title} ({number})" if number else title
