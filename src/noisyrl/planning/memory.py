"""Peak memory of one process, as lines a reader can add up: what it is, how much, and which key changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import torch

from noisyrl.ops.vocabulary import CHUNK_ELEMENTS
from noisyrl.planning.activations import BackboneBytes, LossBytes, backbone_bytes, loss_bytes
from noisyrl.planning.shape import Shape
from noisyrl.planning.workload import Workload

if TYPE_CHECKING:
    from noisyrl.experiment import Experiment

PHASES = ("sampling", "update", "optimizer")
_ALWAYS = frozenset(PHASES)
# float32 matrices of logits that live together while a chunk is differentiated: logits, log-probabilities,
# probabilities, their product, and the gradients of two of them (ops/vocabulary.py).
_SCORE_BUFFERS = 6
# What drawing a token takes per row and entry of the vocabulary: logits, two float32 and one float64 (rollout/draw.py).
_DRAW_BYTES = 4 + 4 + 4 + 8
_ROOM_TOKENS = 128  # the cache begins with this much room and grows by doubling (rollout/cache.py, rollout/fast.py)


@dataclass(frozen=True)
class Line:
    """One line of the page."""

    name: str
    bytes: float
    phases: frozenset[str] = _ALWAYS
    keys: str = ""
    """What makes it smaller."""


@dataclass(frozen=True)
class Layout:
    """How many processes there are and what each of them holds."""

    processes: int = 1
    sharded: bool = False
    """Weights, gradients and moments are divided among processes (FSDP); else each has them all."""
    gpu: bool = False
    base: float = 0.0
    """Bytes of interpreter and libraries, or of the GPU's context."""
    base_name: str = "interpreter and libraries, measured"
    allocator_frac: float = 0.0
    """What the allocator loses, as a share of what is allocated: an assumption."""

    @property
    def shards(self) -> int:
        return self.processes if self.sharded else 1


@dataclass(frozen=True)
class Networks:
    """The trained and the frozen networks of a run: parameters and bytes of each."""

    policy: int
    critic: int
    reference: int
    frozen: int
    """Of the critic's head, not trained: a copy of the output layer."""
    bytes_per_weight: int
    """As stored; gradients and each of Adam's two moments take the same."""
    decode_bytes: int
    """Of a weight and of a cache entry while sampling."""
    autocast: bool
    reference_bytes: int
    loss: LossBytes
    """What critic head and losses hold for each token."""

    @property
    def trained(self) -> int:
        return self.policy + self.critic


def networks(e: Experiment, shape: Shape, layout: Layout) -> Networks:
    """What an experiment trains and keeps."""
    loss = loss_bytes(e.algo, shape)
    own = e.algo.critic.backbone == "own"
    stored = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}[getattr(e.model, "dtype", "float32")]
    autocast = e.trainer.precision == "bf16"
    # FSDP with mixed precision keeps trained weights in float32 and gathers them in 16 bits (accelerate does both).
    mixed_shards = layout.sharded and autocast
    return Networks(
        policy=shape.parameters,
        critic=loss.head_parameters + (shape.backbone_parameters if own else 0),
        reference=shape.parameters if e.algo.needs_reference else 0,
        frozen=loss.head_frozen * shape.vocab_size // 64,
        bytes_per_weight=4 if mixed_shards else stored,
        decode_bytes=2 if mixed_shards else stored,
        autocast=autocast,
        reference_bytes=stored,
        loss=loss,
    )


def memory_lines(e: Experiment, shape: Shape, work: Workload, layout: Layout, nets: Networks) -> list[Line]:
    """All that one process holds, the phases in which it does, and what makes it less."""
    lines = [Line(layout.base_name, layout.base), *_states(nets, layout)]
    lines += _sampling(shape, work, nets) + _update(e, shape, work, nets, layout)
    if layout.shards > 1:
        layers = 2 * shape.layer_parameters + max(1, 2 - shape.tie_word_embeddings) * shape.embedding_parameters
        lines.append(Line("gathered weights of two layers and the ends", layers * nets.decode_bytes))
    largest = max(sum(line.bytes for line in lines if phase in line.phases) for phase in PHASES)
    lost = layout.allocator_frac * (largest - layout.base)
    return [*lines, Line("lost to the allocator, assumed", lost)] if lost else lines


def _states(nets: Networks, layout: Layout) -> list[Line]:
    """Weights, gradients, moments, frozen copies."""
    each = nets.bytes_per_weight / layout.shards
    halved = ["model.dtype=bfloat16"] if nets.bytes_per_weight == 4 and not layout.sharded else []
    fewer = ["more plan.gpus" if layout.sharded else "plan.gpus with plan.sharding=full", *halved]
    spread = ", ".join(fewer)
    learning = frozenset({"update", "optimizer"})
    lines = [
        Line("policy: weights", nets.policy * each, keys=spread),
        Line("policy: gradients", nets.policy * each, learning, spread),
        Line("policy: Adam's two moments", 2 * nets.policy * each, keys=spread),
    ]
    if nets.critic:
        keys = f"algo.critic.backbone=shared, {spread}, a method without critic"
        lines += [
            Line("critic: weights", nets.critic * each, keys=keys),
            Line("critic: gradients", nets.critic * each, learning, keys),
            Line("critic: Adam's two moments", 2 * nets.critic * each, keys=keys),
        ]
    if nets.reference:
        lines.append(
            Line("reference: weights", nets.reference * nets.reference_bytes / layout.shards, keys="algo.kl_coef=0")
        )
    if nets.frozen:
        lines.append(Line("critic: frozen output layer", nets.frozen * nets.reference_bytes, keys="algo.critic"))
    if layout.processes > 1 and not layout.sharded:
        lines.append(Line("gradient buckets of replicas", nets.trained * each, learning, "plan.sharding=full"))
    # One pass over all weights at once on a GPU, one weight matrix at a time on a CPU.
    if layout.gpu:
        lines.append(Line("optimizer: temporary copies", nets.trained * each, frozenset({"optimizer"}), spread))
    return lines


def _sampling(shape: Shape, work: Workload, nets: Networks) -> list[Line]:
    rows, prompt = work.chunks[0], int(work.prompt_tokens.max())
    longest = int(work.response_tokens.max())
    capacity = prompt + _ROOM_TOKENS
    while capacity < prompt + longest:
        capacity *= 2
    capacity = min(capacity, 2 * (prompt + longest))
    cache = rows * capacity * shape.cache_elements * nets.decode_bytes
    # Prompts are read once for all their samples; of one layer the feed-forward part is the largest.
    reading = ceil(rows / work.samples) * prompt * (3 * shape.intermediate_size + 4 * shape.hidden_size)
    phase, keys = frozenset({"sampling"}), "rollout.batch_rows"
    return [
        Line("sampler: keys and values", cache, phase, f"{keys}, rollout.max_tokens"),
        Line("sampler: logits of a step", rows * shape.vocab_size * _DRAW_BYTES, phase, keys),
        Line("sampler: reading prompts", reading * nets.decode_bytes, phase, keys),
    ]


def _update(e: Experiment, shape: Shape, work: Workload, nets: Networks, layout: Layout) -> list[Line]:
    rows, length = max(work.micro_batches, key=lambda pair: pair[0] * pair[1])
    length = max(length, float(work.prompt_tokens.mean() + work.response_tokens.max()))
    dtype = torch.float32 if nets.bytes_per_weight == 4 else torch.bfloat16
    copies = 2 if e.algo.critic.backbone == "own" else 1
    checkpointing = e.trainer.activation_checkpointing
    distinct = None if layout.gpu or checkpointing else work.distinct_tokens(rows)
    read = rows if distinct is None else work.distinct_rows(rows)
    one = backbone_bytes(shape, read, ceil(length), dtype=dtype, autocast=nets.autocast, distinct=distinct)
    phase, keys = frozenset({"update"}), "trainer.micro_rows"
    if not checkpointing:
        keys += ", trainer.activation_checkpointing=true"
    tokens = rows * ceil(length)
    stream = tokens * shape.hidden_size * (4 if dtype == torch.float32 else 2)
    lines = [Line("update: activations of the policy", _kept(one, shape, stream, checkpointing), phase, keys)]
    if copies == 2:
        remedy = f"algo.critic.backbone=shared, {keys}"
        lines.append(Line("update: activations of the critic", _kept(one, shape, stream, checkpointing), phase, remedy))
    if one.weight_copies and layout.shards == 1:  # shards are gathered in 16 bits to begin with
        lines.append(Line("update: 16-bit copies of weights", copies * one.weight_copies, phase))
    said = rows * float(work.response_tokens.max()) * work.policy_frac
    scores = min(said * shape.vocab_size, max(CHUNK_ELEMENTS, shape.vocab_size)) * 4 * _SCORE_BUFFERS
    lines.append(Line("update: logits of a chunk", scores, phase, "trainer.micro_rows"))
    answered = float(work.response_tokens.max())
    lines.append(Line("update: losses", 2 * rows * answered * nets.loss.saved, phase, "trainer.micro_rows"))
    learning = frozenset({"update", "optimizer"})
    lines.append(
        Line("the step's values and credit", work.world_rows * answered * nets.loss.kept, learning, "trainer.prompts")
    )
    return lines


def _kept(one: BackboneBytes, shape: Shape, stream: float, checkpointing: bool) -> float:
    """All layers, and as much as one of them again for its gradients; recomputed: their inputs, and two of them."""
    layers = shape.num_hidden_layers
    return one.ends + (layers * stream + 2 * one.per_layer if checkpointing else (layers + 1) * one.per_layer)


def totals(lines: Sequence[Line]) -> dict[str, float]:
    """Bytes held in each phase."""
    return {phase: sum(line.bytes for line in lines if phase in line.phases) for phase in PHASES}
