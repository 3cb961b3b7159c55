"""What each worker holds at the fullest moment of a step, as a backward pass begins that is not the step's first.

FSDP2 keeps weights, gradients and moments in float32, in shards; activations are counted from what autograd keeps of a
Llama's layer. Compiled layers keep less.
"""

from dataclasses import dataclass, fields

from stages.train.config import TrainConfig, TrainResources
from stages.train.memory.sizes import Sizes

CHUNK = 2**26  # logits that exist at a time (stages/logps/head.py)
_BYTES = {"float32": 4, "bfloat16": 2}
_SCALES = 2 * 4 / 256  # bytes a number: two blocks' scales (policy/adam8bit.py)
_PROCESS = {"cpu": 0.5e9, "cuda": 1.5e9}  # Python and its libraries; CUDA's context and kernels


@dataclass(frozen=True)
class Bill:
    """Bytes a worker."""

    weights: float  # this worker's shards
    gradients: float
    optimizer: float
    activations: float  # what the forward pass keeps for the backward pass
    working: float  # the more of what the head takes, with a chunk of logits, and a layer, put together by FSDP
    process: float

    @property
    def total(self) -> float:
        return sum(getattr(self, each.name) for each in fields(self))


def bill(sizes: Sizes, config: TrainConfig, resources: TrainResources, tokens: int) -> Bill:
    """`tokens`: a worker's, of the largest micro-batch."""
    ranks, wide, gpu = shards(resources), _BYTES[config.dtype], bool(resources.gpus_per_worker)
    trains_all = config.lora is None
    trained = sizes.params if config.lora is None else adapters(sizes, config.lora.rank)
    frozen = 0 if trains_all else base(sizes, wide, config.quantize is not None)
    alone = ranks == 1 and config.dtype == "float32" and not resources.cpu_offload  # then FSDP is left out
    held = 0 if gpu and resources.cpu_offload else 1 / ranks
    kept, again = activations(sizes, wide, resources.activation_checkpointing, tokens)
    gathered = 0 if alone else units(sizes, wide, trains_all)
    return Bill(
        weights=(4 * trained + frozen) * held,
        gradients=4 * trained * held,
        optimizer=moments(config.optimizer) * trained * held,
        activations=kept,
        working=max(head(sizes, wide, trains_all, tokens, alone), gathered + again),
        process=_PROCESS["cuda" if gpu else "cpu"],
    )


def shards(resources: TrainResources) -> int:
    """Workers that hold one copy of the weights between them; of an elastic run the fewest."""
    return resources.shard_size or resources.fewest_workers


def moments(optimizer: str) -> float:
    """Bytes a weight that is trained."""
    return 2 + _SCALES if optimizer == "adamw_8bit" else 8


def adapters(sizes: Sizes, rank: int) -> int:
    """Numbers of adapters on all linear layers of a dense model."""
    widths = 2 * (sizes.hidden + sizes.queries) + 2 * (sizes.hidden + sizes.keys) + 3 * (sizes.hidden + sizes.inner)
    return rank * sizes.layers * widths


def base(sizes: Sizes, wide: int, quantized: bool) -> float:
    """Bytes of what is frozen under adapters: in the compute precision, or in four bits and a scale every 64."""
    return wide * sizes.params if not quantized else 0.531 * (sizes.params - sizes.ends) + wide * sizes.ends


def units(sizes: Sizes, wide: int, trains_all: bool) -> float:
    """Two layers gathered in the compute precision; the gradient of one, and two float32 buffers to reduce it."""
    return sizes.layer * (2 * wide + (wide + 8 if trains_all else 0))


def head(sizes: Sizes, wide: int, trains_all: bool, tokens: int, alone: bool) -> float:
    """Logits of a chunk; of its weight a chunk's gradient; under FSDP also the sum, and what `units` has of a layer.

    Logits are of the tokens that are trained: two thirds, where prompt and completions are equally long.
    """
    chunk = min(2 * tokens // 3 * sizes.vocabulary, CHUNK) * (4 if wide == 4 else 6)
    if not trains_all:
        return chunk + (0 if alone else wide * sizes.head)
    return chunk + sizes.head * (4 if alone else 8 + 2 * wide)


def working_of_forward(sizes: Sizes, wide: int, tokens: int, gpu: bool) -> float:
    """Beside its weights, of a process that runs the forward pass alone: logits of a chunk, one layer, Python."""
    kept = activations(sizes, wide, "layer", tokens)
    return head(sizes, wide, False, tokens, alone=True) + kept[1] + _PROCESS["cuda" if gpu else "cpu"]


def activations(sizes: Sizes, wide: int, checkpointing: str, tokens: int) -> tuple[float, float]:
    """What is kept of all layers; and what there is of one that the backward pass computes again."""
    norms = 2 * sizes.hidden * (3 * 4 if wide == 4 else 8)  # float32 within a norm
    attention = wide * (2 * sizes.queries + 2.5 * sizes.keys)  # contexts put together, where a kernel wants them so
    whole = norms + attention + wide * 4 * sizes.inner
    products = wide * (2 * sizes.queries + 2 * sizes.keys + 2 * sizes.inner + 2 * sizes.hidden)
    kept = {"none": whole, "selective": products + wide * sizes.hidden, "layer": wide * sizes.hidden}[checkpointing]
    ends = 4 * wide * sizes.hidden  # of embedding, last norm, and what the head is given
    return tokens * (sizes.layers * kept + ends), tokens * (0 if checkpointing == "none" else whole)
