"""The two objectives: align (paper eq. 35) and answer generation (eq. 36)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Losses are float32 on every device; accelerators' products are not by themselves.
HIGHEST = jax.lax.Precision.HIGHEST


class AlignTerms(NamedTuple):
    """The align loss and its parts; `loss` = `contrastive` + `orthogonality`."""

    loss: Float[Array, ""]
    contrastive: Float[Array, ""]
    orthogonality: Float[Array, ""]
    similarity: Float[Array, "R R"]


def normalize(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / ‖x‖ along the last axis, without an epsilon, as the reference does."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def zero_outliers(
    r: Float[Array, "R E"], mask: Bool[Array, " R"]
) -> Float[Array, "R E"]:
    """Sets entries outside mean ± one (unbiased) standard deviation of the batch to 0.

    The statistics run over every entry of all unmasked rows and pass no gradient.
    Quirk 1: it depends on the batch and is applied in evaluation too. Kept, because the
    authors' stage-1 checkpoints were trained with it; batches of very few answers make
    it unstable.
    """
    rows = mask[:, None]
    values = jax.lax.stop_gradient(r)
    count = jnp.sum(mask) * r.shape[1]
    mean = jnp.sum(values, where=rows) / count
    deviation = jnp.sqrt(jnp.sum(jnp.square(values - mean), where=rows) / (count - 1))
    inside = jnp.abs(values - mean) <= deviation
    return jnp.where(inside, r, 0.0)


def mean_square_overlap(
    slots: Float[Array, "Q D"], mask: Bool[Array, " Q"]
) -> Float[Array, ""]:
    """Mean square of (E Eᵀ − I), where E are the unmasked slots at unit length.

    ‖E Eᵀ − I‖² = ‖Eᵀ E‖² − 2 tr(Eᵀ E) + Q, so the smaller one of the two Gram matrices
    will do, and Q² entries are not needed.
    """
    e = normalize(jnp.where(mask[:, None], slots, 1.0)) * mask[:, None]
    product = "QD,QE->DE" if e.shape[1] < e.shape[0] else "QD,PD->QP"
    gram = jnp.einsum(product, e, e, precision=HIGHEST)
    count = jnp.sum(mask)
    overlap = jnp.sum(jnp.square(gram)) - 2 * jnp.trace(gram) + count
    return overlap / jnp.maximum(count, 1) ** 2


def align_loss(
    questions: Float[Array, "R E"],
    answers: Float[Array, "R E"],
    logit_scale: Float[Array, ""],
    mask: Bool[Array, " R"],
    slots: Float[Array, "Q D"],
    slot_mask: Bool[Array, " Q"],
) -> AlignTerms:
    """Symmetric cross-entropy of question and answer vectors, plus orthogonal slots.

    `questions` are projected fusion states at ⟨eos⟩, `answers` projected text states
    (before outlier zeroing), row r of one belonging to row r of the other. `slots` are
    the fusion states at every query slot and ⟨eos⟩ of the batch, before projection, and
    all of them, across samples, are to be orthogonal. Masked rows and slots only fill
    buckets and change nothing.

    Every other answer of the batch is a negative: also an identical one, and also that
    of another question about the same image (spec: contrastive model).
    """
    q = normalize(jnp.where(mask[:, None], questions.astype(jnp.float32), 1.0))
    zeroed = zero_outliers(answers.astype(jnp.float32), mask)
    t = normalize(jnp.where(mask[:, None], zeroed, 1.0))
    similarity = jnp.einsum("RE,SE->RS", q, t, precision=HIGHEST)
    pairs = mask[:, None] & mask[None, :]
    logits = jnp.where(pairs, jnp.exp(logit_scale) * similarity, -jnp.inf)
    logits = jnp.where(mask[:, None] | mask[None, :], logits, 0.0)
    # Their own products, not `jnp.diagonal`: its gradient is a scatter in a branch.
    own = jnp.where(mask, jnp.exp(logit_scale) * jnp.sum(q * t, axis=1), 0.0)
    count = jnp.maximum(jnp.sum(mask), 1)  # a batch may have been skipped as a whole
    by_row = jnp.sum(jax.nn.logsumexp(logits, axis=1) - own, where=mask) / count
    by_column = jnp.sum(jax.nn.logsumexp(logits, axis=0) - own, where=mask) / count
    contrastive = (by_row + by_column) / 2

    orthogonality = mean_square_overlap(slots.astype(jnp.float32), slot_mask)
    return AlignTerms(
        contrastive + orthogonality, contrastive, orthogonality, similarity
    )


class AnswerTerms(NamedTuple):
    """Mean cross-entropy over answer tokens, their number, and how many of them the
    model would have chosen (of equally likely ones, none)."""

    loss: Float[Array, ""]
    count: Int[Array, ""]
    correct: Int[Array, ""]


def answer_loss(
    logits: Float[Array, "B A W"],
    targets: Int[Array, "B A"],
    mask: Bool[Array, "B A"],
) -> AnswerTerms:
    """Cross-entropy at answer tokens and the ⟨eos⟩ that ends each answer (eq. 36).

    The mean runs over the tokens of the whole batch together, so a long answer weighs
    more than a short one, as in the reference.
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    count = jnp.sum(mask)
    # Not by argmax, which XLA's CPU backend computes one number at a time: over a wide
    # vocabulary that takes longer than all the rest of the loss.
    as_likely = jnp.sum(logits >= picked[..., None], axis=-1)  # itself among them
    correct = jnp.sum((as_likely == 1) & mask)
    loss = jnp.sum(losses, where=mask) / jnp.maximum(count, 1)
    return AnswerTerms(loss, count, correct)
