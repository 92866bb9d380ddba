"""What one micro-batch takes: bytes kept for the backward pass and multiply-adds, counted without running anything.

Transformers and their heads are counted by formula; networks of convolutions are run on the meta device, which has
shapes but no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resgen.models.ar_resgen import ARResGen
from resgen.models.base import CodeModel
from resgen.models.heads import MixtureHead
from resgen.models.maskgit import MaskGIT
from resgen.models.resgen import ResGen
from resgen.models.rq_transformer import RQTransformer
from resgen.models.text import TextModel
from resgen.models.token_head import TokenHead
from resgen.models.valle import Valle
from resgen.nn.transformer import Transformer
from resgen.ops.blocks import rows_per_block
from resgen.ops.masking import mask_schedule

FLOAT = 4
"""Bytes of a float32 number: weights, the residual stream, norms and everything from the logits on."""
PROGRESS_POINTS = 100
Number = int | float
"""Counts are whole until they are divided."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one micro-batch.

    Attributes:
        activations: bytes by item that are in memory at the end of the forward pass or, for `loss workspace`, about
            that time.
        multiply_adds: of the matrices, forward.
        recomputed: multiply-adds that are done a second time in the backward pass.
    """

    activations: Mapping[str, Number] = field(default_factory=dict)
    multiply_adds: Number = 0
    recomputed: Number = 0

    def __add__(self, other: Work) -> Work:
        names = dict.fromkeys([*self.activations, *other.activations])
        return Work(
            activations={name: self.activations.get(name, 0) + other.activations.get(name, 0) for name in names},
            multiply_adds=self.multiply_adds + other.multiply_adds,
            recomputed=self.recomputed + other.recomputed,
        )

    def times(self, factor: Number) -> Work:
        """The same `factor` times."""
        return Work(
            activations={name: value * factor for name, value in self.activations.items()},
            multiply_adds=self.multiply_adds * factor,
            recomputed=self.recomputed * factor,
        )

    @property
    def operations(self) -> Number:
        """Floating-point operations of both passes: 3 x 2 x multiply-adds, and those that are repeated."""
        return 6 * self.multiply_adds + 2 * self.recomputed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch and how it is computed.

    Attributes:
        samples: B.
        positions: L, of every sample.
        size: bytes of a number in matrix products: 2 under bf16, else 4.
        recompute: keep the inputs of blocks only, and compute the rest again in the backward pass.
        fused: attention never holds its scores, as on accelerators; False for short sequences on CPUs, whose scores are
            kept.
        masked_share: of all tokens, on average.
    """

    samples: int
    positions: int
    size: int
    recompute: bool = False
    fused: bool = True
    masked_share: float = 1.0

    @property
    def rows(self) -> int:
        """Positions of the micro-batch."""
        return self.samples * self.positions


def mean_masked_share(schedule: str, num_tokens: int) -> float:
    """Mean of gamma(r) over training's uniform r: the share of tokens that the loss is of."""
    with torch.device("cpu"):  # numbers are needed, also where shapes are counted
        progress = (torch.arange(PROGRESS_POINTS, dtype=torch.float64) + 0.5) / PROGRESS_POINTS
        return float(mask_schedule(schedule, progress, num_tokens).mean())


def transformer_work(module: Transformer, batch: Batch, *, segments: int = 1, rotary: bool = False) -> Work:
    """All blocks and the output norm of a transformer.

    Kept per block and position, with s = `batch.size` and 4 bytes for what is float32, for width O, MLP width M:

        attention  4 (x, norm)  2 O  +  s (input of qkv) O  +  s (q, k, v) 3 O  +  s (attention's output, also the
                   input of the output map) O  +  s (what the gate multiplies) O  +  4 heads (log-sum-exp of scores)
        mlp        4 (x, norm)  2 O  +  s (its input) O  +  s (before and after the GELU) 2 M  +  s (what the gate
                   multiplies) O

    and 4 x 12 O per sample for the shared modulation. Rotated queries and keys are new tensors, s 2 O more: with the
    values, a fused kernel keeps those before the rotation. Without such a kernel the scores come on top, 4 heads L, and
    under bf16 a copy of them, 2 heads L. Multiply-adds per position: 4 O^2 + 2 O M + 2 L O, whether attention is causal
    or not.

    A test measures the bytes that autograd keeps for small models on the CPU and wants this estimate within 4 %.

    Args:
        module: on any device.
        batch: micro-batch.
        segments: sequences of `batch.positions` per sample, apart from each other.
        rotary: positions turn queries and keys.
    """
    block = module.blocks[0]
    attention: nn.Module = block.attention  # type: ignore[assignment]
    width, heads = module.out_bias.shape[1], int(attention.num_heads)  # type: ignore[arg-type]
    hidden = int(block.up.out_features)  # type: ignore[union-attr, arg-type]
    size, length, rows = batch.size, batch.positions, batch.rows * segments
    inner = (2 * FLOAT + 6 * size) * width
    if batch.fused:
        inner += FLOAT * heads + (2 * size * width if rotary else 0)
    else:
        inner += heads * length * (FLOAT + (size if size < FLOAT else 0))
    mlp = (2 * FLOAT + 2 * size) * width + 2 * size * hidden
    modulation = 12 * FLOAT * width * batch.samples
    one = {"attention": rows * inner + modulation / 2, "mlp": rows * mlp + modulation / 2}
    layers, stream = len(module.blocks), FLOAT * width * rows
    if batch.recompute:
        kept = {**one, "block inputs": layers * stream}
    else:
        kept = {name: layers * value for name, value in one.items()}
    products = layers * rows * width * (4 * width + 2 * hidden + 2 * length)
    return Work(
        activations={**kept, "other": 2 * stream},
        multiply_adds=products,
        recomputed=products if batch.recompute else 0,
    )


def generator_work(model: CodeModel, batch: Batch) -> Work:
    """A generator of any kind with its loss.

    Counted: the transformers (`transformer_work`), inputs and features, the head and the loss (`_head_work`), and for
    AR-ResGen its MLP. Not counted: codes, masks and embeddings of codes, the condition's vectors.

    Args:
        model: on the meta device, or any other.
        batch: micro-batch; `positions` are those of a sample, its prompt included.
    """
    if isinstance(model, Valle):
        return generator_work(model.first, batch) + generator_work(model.rest, replace(batch, masked_share=1.0))
    width, code_dim, depth = model.config.width, model.spec.code_dim, model.spec.depth
    rows, size = batch.rows, batch.size
    work = transformer_work(model.transformer, batch, rotary=not model.positions.is_grid)
    work += _linear(rows, model.input, FLOAT)
    for linear in (model.modulation.up, model.modulation.down):
        work += _linear(batch.samples, linear, FLOAT)
    if model.features is not None:
        conv = model.features.conv
        numbers = conv.in_channels * conv.kernel_size[0]
        work += Work(activations={"other": size * numbers * rows}, multiply_adds=numbers * width * rows)
    if isinstance(model, RQTransformer):
        levels = replace(batch, positions=depth)
        work += transformer_work(model.depth_transformer, levels, segments=batch.positions)
        work += _linear(rows * (depth - 1), model.depth_input, FLOAT)
        return work + _logits_work(rows * depth, rows, width, model.spec.codebook_size, size)
    if isinstance(model, MaskGIT):
        return work + _logits_work(rows, rows, width, model.spec.codebook_size, size)
    if isinstance(model, ARResGen):
        work += _linear(rows, model.known_input, FLOAT)
        hidden = model.config.head_width
        layers = model.config.head_layers
        kept = layers * rows * ((2 * FLOAT + 2 * size) * width + 2 * size * hidden) + 2 * FLOAT * width * rows
        work += Work(activations={"mlp": kept}, multiply_adds=layers * rows * 2 * width * hidden)
    assert isinstance(model, (ResGen, ARResGen))
    return work + _head_work(model.head, rows, code_dim, batch)


def text_work(model: TextModel, batch: Batch, frames: int) -> Work:
    """The text model with its loss: transformer, convolutions, and the scores of the alignment.

    A frozen pretrained encoder is not counted.

    Args:
        model: on any device.
        batch: `positions` are text tokens.
        frames: mel frames of every utterance.
    """
    config, rows, size = model.config, batch.rows, batch.size
    work = transformer_work(model.transformer, batch, rotary=True)
    for kernel, count in ((config.kernel_size, config.prenet_layers), (config.duration_kernel_size, 2)):
        kept = (2 * FLOAT + 2 * size) * config.width  # x, norm, the convolution's input and output
        products = rows * kernel * config.width**2
        work += Work(activations={"convolutions": rows * kept}, multiply_adds=products).times(count)
    frame_rows, bands = batch.samples * frames, config.num_bands
    scores = batch.samples * batch.positions * frames
    work += _linear(rows, model.mel, size)
    # Scores and their prior in float64, and the choices of the search; mels, expanded means and differences.
    loss = {"loss workspace": 3 * 8 * scores, "head": 3 * FLOAT * bands * frame_rows}
    return work + Work(activations=loss, multiply_adds=scores * bands / 3)  # forward only: a third of both passes


def traced_work(run: Callable[[], object], weights: nn.Module, item: str) -> Work:
    """What a network of convolutions keeps and multiplies, from a run on the meta device in float32.

    Every storage that autograd keeps counts once; weights and buffers do not. Under bf16 the inputs of convolutions
    are half as large, while norms and activations stay: the count is then an upper limit.

    Args:
        run: the forward pass, called under `torch.device("meta")`.
        weights: whose tensors are left out.
        item: name of the activations.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*weights.parameters(), *weights.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), counter:
        result = run()
    count = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    del result  # until here every storage lives, so that no two have one address
    return Work(activations={item: count}, multiply_adds=counter.get_total_flops() / 2)


def quantizer_work(rows: int, depth: int, codebook_size: int, code_dim: int) -> Work:
    """Residual quantization with its commitment loss: the residuals of all levels are kept; no gradient passes the
    distances, so that their products are done once."""
    kept = {"quantizer": FLOAT * rows * code_dim * (2 * depth + 2)}
    return Work(activations=kept, multiply_adds=rows * depth * codebook_size * code_dim / 3)


def _linear(rows: int, layer: nn.Linear, size: int) -> Work:
    return Work(
        activations={"other": size * rows * layer.in_features},
        multiply_adds=rows * layer.in_features * layer.out_features,
    )


def _logits_work(tokens: int, rows: int, width: int, codebook_size: int, size: int) -> Work:
    """Logits of tokens and their cross-entropy: the maps' inputs and the logarithms of the softmax, and about once more
    the logits while the loss is computed."""
    logs = FLOAT * tokens * codebook_size
    return Work(
        activations={"head": size * tokens * width + logs, "loss workspace": logs * rows / tokens},
        multiply_adds=tokens * width * codebook_size,
    )


def _head_work(head: MixtureHead | TokenHead, rows: int, code_dim: int, batch: Batch) -> Work:
    """The heads of ResGen and AR-ResGen with their loss, for rows all of which have something masked.

    Either takes its gradients within the forward pass, a block of R rows at a time. Kept are the gradients of the rows,
    4 O, and of the head's weights, 4 P; the workspace has a second set of those.

    Logits of codes: the masked ones alone are multiplied, and the workspace is one level's for a block, their
    logarithms and their gradients, 3 x 4 R V, and what the levels see of those above, 2 x 4 D h.

    Mixture: the workspace is a block's means, which their gradients overwrite, and a copy of them in the product for
    the weights, 2 s R K h, with a rank its float32 terms, 4 x 4 R K h.
    """
    size = batch.size
    weights = sum(parameter.numel() for parameter in head.parameters())
    if isinstance(head, TokenHead):
        block = FLOAT * 3 * min(rows, rows_per_block(head.codebook_size, head.logits.weight.device))
        seen = 0 if head.steering is None else code_dim
        return Work(
            activations={
                "head": FLOAT * (rows * head.logits.in_features + weights),
                "loss workspace": block * head.codebook_size + FLOAT * (weights + 2 * rows * head.depth * seen),
            },
            multiply_adds=rows * batch.masked_share * (head.logits.in_features + seen) * head.logits.out_features,
        )
    projected = head.num_components * (head.rank or head.code_dim)
    chunk = min(rows, head.rows_per_chunk) * projected * (2 * size + (0 if head.rank is None else 4 * FLOAT))
    per_row = head.width * (head.affine.out_features + projected)
    if head.rank is not None:
        per_row += projected * (head.rank + head.code_dim)
    return Work(
        activations={
            "head": FLOAT * (rows * head.width + weights),
            "loss workspace": chunk + FLOAT * weights,
        },
        multiply_adds=rows * per_row,
    )
