"""The finetune step in PyTorch, assembled from transformers' modules.

The same function as ours: CLIPVisionModel (its last norm over all tokens), local merge
and newline token, LlamaModel over embeddings as the fusion decoder, a linear projector,
a frozen LlamaForCausalLM, cross-entropy of the answers, clipping and AdamW. Weights
come from our tree by the names of the authors' checkpoints.

Three ways to arrange the batch compute the same loss:

    padded     every sample goes through the vision tower with as many views as the
               sample that has most, those that it lacks as zeros, and logits are taken
               at every position
    packed     the views that there are, and logits at every position
    frugal     the views that there are, and logits at loss positions only

The authors' code drops empty views before its tower and takes logits everywhere, so it
is "packed". "padded" is what processors that return one array for a batch give rise to
(transformers' LlavaNextImageProcessor pads views so).

Rows are right-padded and attention is causal, so no token that is read sees padding:
no mask is given, which lets scaled_dot_product_attention take its fastest kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from vtscale_jax.layers import BlockConfig
from vtscale_jax.types import Batch
from vtscale_jax.vlm import ModelConfig
from vtscale_jax.weights.naming.layouts import VLM_LAYOUT
from vtscale_jax.weights.naming.names import export_tree

Arrangement = Literal["padded", "packed", "frugal"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("padded", "packed", "frugal")
ATTENTION = ("sdpa", "eager")
IGNORED = -100  # a label that cross_entropy leaves out

# The beginnings of the authors' names, and the modules here; the first that fits.
_MODULES = (
    ("imgque_backbone.clip_model.vision_model.vision_embed_merge.", "merge."),
    ("imgque_backbone.clip_model.vision_model.token_LF", "newline"),
    ("imgque_backbone.clip_model.vision_model.pos_layrnorm.", "vision.post_layernorm."),
    ("imgque_backbone.clip_model.vision_model.", "vision."),
    ("imgque_backbone.imgque_model.", "fusion."),
    ("fusion_backbone.imgque_proj.", "projector."),
    ("llm_backbone.", "llm."),
)


class Inputs(NamedTuple):
    """A batch as tensors, with every index that the step needs made beforehand.

    `crops` are the views that there are and `padded` all with zeros for the others, of
    which `real` says where the former are; both [views, 3, height, width]. Pairs of
    index tensors say where tokens go: views into fusion rows, query vectors out of them
    and into the rows of the language model, and hidden states that have a target.
    """

    crops: Tensor
    padded: Tensor
    real: Tensor
    fusion_ids: Tensor
    view_places: tuple[Tensor, Tensor]
    vector_places: tuple[Tensor, Tensor]
    llm_ids: Tensor
    llm_places: tuple[Tensor, Tensor]
    loss_places: tuple[Tensor, Tensor]
    targets: Tensor
    labels: Tensor


def inputs(batch: Batch, tokens_per_crop: int) -> Inputs:
    """The tensors of a batch of ours; views that only fill its bucket are left out."""
    f, llm = batch.fusion, batch.llm
    assert llm is not None, "a batch of stage align has no LLM part"
    rows = len(f.ids)
    there = np.flatnonzero(f.crop_row < rows)
    row, rank = f.crop_row[there], f.crop_rank[there]
    crops = np.ascontiguousarray(f.crops[there].transpose(0, 3, 1, 2))
    views = int(rank.max()) + 1
    padded = np.zeros((rows * views, *crops.shape[1:]), np.float32)
    padded[row * views + rank] = crops

    columns = rank[:, None] * tokens_per_crop + np.arange(tokens_per_crop)
    sample, slot = np.nonzero(f.slots < f.ids.shape[1])
    loss_row, loss_slot = np.nonzero(llm.loss_mask)
    positions = llm.loss_positions[loss_row, loss_slot]
    targets = llm.loss_targets[loss_row, loss_slot]
    labels = np.full(llm.ids.shape, IGNORED, np.int64)
    labels[loss_row, positions] = targets

    def index(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.int64))

    def places(rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor]:
        return index(rows), index(columns)

    return Inputs(
        crops=torch.from_numpy(crops),
        padded=torch.from_numpy(padded),
        real=index(row * views + rank),
        fusion_ids=index(f.ids),
        view_places=places(row[:, None], columns),
        vector_places=places(sample, f.slots[sample, slot]),
        llm_ids=index(llm.ids),
        llm_places=places(sample, llm.slots[sample, slot]),
        loss_places=places(loss_row, positions),
        targets=index(targets),
        labels=index(labels),
    )


class TorchVLM(nn.Module):
    """The model; called on `Inputs` it returns the mean cross-entropy of answers."""

    def __init__(self, model: ModelConfig, attention: str):
        super().__init__()
        v, f, llm = model.vision, model.fusion, model.llm
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=v.blocks.width,
                intermediate_size=v.blocks.mlp_width,
                num_hidden_layers=v.blocks.num_layers,
                num_attention_heads=v.blocks.num_heads,
                image_size=v.image_size,
                patch_size=v.patch_size,
                hidden_act=v.blocks.activation,
                layer_norm_eps=v.blocks.norm_eps,
                **_of_the_run(attention),
            )
        )
        self.merge = nn.Conv2d(
            *(v.blocks.width, v.blocks.width, v.merge_kernel, v.merge_stride),
            padding=v.merge_kernel // 2,
            bias=False,
        )
        self.newline = nn.Parameter(torch.zeros(1, 1, v.blocks.width))
        rows = f.vocab_size + f.num_query_rows
        self.fusion = LlamaModel(_llama(f.blocks, rows, attention))
        self.projector = nn.Linear(f.blocks.width, llm.blocks.width, bias=False)
        tied = {"tie_word_embeddings": llm.tie_embeddings}
        self.llm = LlamaForCausalLM(
            _llama(llm.blocks, llm.vocab_size, attention, **tied)
        )
        self.llm.requires_grad_(False)
        self.grid, self.stride = v.grid, v.merge_stride

    def load(self, params: Mapping[str, Any]) -> None:
        """Takes the weights of our tree; RuntimeError unless they are all of them."""
        found = {
            name: torch.from_numpy(array)
            for name, array in under_torch_names(params).items()
        }
        if self.llm.config.tie_word_embeddings:
            found["llm.lm_head.weight"] = found["llm.model.embed_tokens.weight"]
        self.load_state_dict(found)

    def see(self, pixels: Tensor) -> Tensor:
        """Views → tokens [views, T, D]."""
        x = self.vision(pixel_values=pixels).last_hidden_state
        x = self.vision.post_layernorm(x)[:, 1:]
        views, _, width = x.shape
        grid = x.transpose(1, 2).reshape(views, width, self.grid, self.grid)
        merged = self.merge(grid) + grid[:, :, :: self.stride, :: self.stride]
        newline = self.newline.expand(views, 1, width)
        return torch.cat([merged.flatten(2).transpose(1, 2), newline], dim=1)

    def forward(self, given: Inputs, arrangement: Arrangement) -> Tensor:
        if arrangement == "padded":
            tokens = self.see(given.padded)[given.real]
        else:
            tokens = self.see(given.crops)
        rows = self.fusion.embed_tokens(given.fusion_ids)
        rows = rows.index_put(given.view_places, tokens)
        states = self.fusion(inputs_embeds=rows, use_cache=False).last_hidden_state
        vectors = self.projector(states[given.vector_places])
        x = self.llm.model.embed_tokens(given.llm_ids)
        x = x.index_put(given.llm_places, vectors)
        hidden = self.llm.model(inputs_embeds=x, use_cache=False).last_hidden_state
        if arrangement == "frugal":
            logits = self.llm.lm_head(hidden[given.loss_places])
            return cross_entropy(logits, given.targets)
        logits = self.llm.lm_head(hidden).flatten(0, 1)
        return cross_entropy(logits, given.labels.flatten(), ignore_index=IGNORED)

    def gradients(self) -> dict[str, np.ndarray]:
        """Those of the last backward pass, by name."""
        return {
            name: parameter.grad.numpy()
            for name, parameter in self.named_parameters()
            if parameter.grad is not None
        }


def under_torch_names(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters, or gradients, as arrays under the names of `TorchVLM`."""
    found = {}
    for name, array in export_tree(VLM_LAYOUT, tree).items():
        start, module = next(pair for pair in _MODULES if name.startswith(pair[0]))
        found[module + name[len(start) :]] = array
    return found


def _llama(
    blocks: BlockConfig, vocab_size: int, attention: str, **more: Any
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=blocks.width,
        intermediate_size=blocks.mlp_width,
        num_hidden_layers=blocks.num_layers,
        num_attention_heads=blocks.num_heads,
        num_key_value_heads=blocks.num_kv_heads,
        head_dim=blocks.head_dim,
        rms_norm_eps=blocks.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": blocks.rope_theta},
        hidden_act=blocks.activation,
        pad_token_id=None,
        **_of_the_run(attention),
        **more,
    )


def _of_the_run(attention: str) -> dict[str, Any]:
    """What transformers' configs take beside the fields of a model."""
    return {"attn_implementation": attention}


def gradient_errors(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """‖ours − theirs‖ / ‖theirs‖ of each tensor, by name.

    A tensor whose gradient is nothing but rounding (the bias of CLIP's keys moves every
    score of a query alike) is measured against 1e-4 of the norm of all together.
    ValueError when the two are not of the same tensors.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"gradients of one alone: {sorted(ours.keys() ^ theirs.keys())}; expected "
            "the same trainable tensors in both models"
        )
    norms = {name: float(np.linalg.norm(g)) for name, g in theirs.items()}
    floor = 1e-4 * float(np.linalg.norm(list(norms.values())))
    return {
        name: float(np.linalg.norm(ours[name] - g)) / max(norms[name], floor)
        for name, g in theirs.items()
    }


def make_step(
    model: TorchVLM,
    arrangement: Arrangement,
    *,
    rate: float,
    clip: float,
    compiled: bool = False,
) -> Callable[[Inputs], float]:
    """A function of `Inputs` that trains once and returns the loss as a number, and so
    waits for it. AdamW without decay, as ours is set here, in its fused form;
    `compiled` by torch.compile."""
    run: Any = torch.compile(model) if compiled else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )

    def step(given: Inputs) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = run(given, arrangement)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        return float(loss.detach())

    return step
