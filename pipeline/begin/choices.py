"""What follows from data, model and machine: the fields of a first recipe and cluster file that fit them."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.begin.data import Data
from pipeline.begin.machine import Machine
from pipeline.begin.model import Model
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.memory.bill import bill
from stages.train.memory.look import tokens

ROOM = 0.8  # of a worker's memory that the formula may fill
LONG = 4096  # tokens; longer pairs are rare, and cost memory for all
_OF_TEMPLATE = 1.1, 40  # a template adds about so many tokens: a share, and what opens and closes turns
_SMALL = 1_000_000_000  # weights


@dataclass(frozen=True)
class Chosen:
    value: Any
    why: str


@dataclass(frozen=True)
class Training:
    """How training fits into a worker's memory."""

    recipe: dict[str, Chosen]
    cluster: dict[str, Chosen]
    fits: str  # in words


def max_length(data: Data, model: Model) -> Chosen:
    """The next power of two above the longest row seen, within what the model can take."""
    share, more = _OF_TEMPLATE
    wanted = 2 ** math.ceil(math.log2(max(128, data.longest * share + more))) if data.longest else 1024
    most = min(model.context or LONG, LONG)
    told = f"tokens of prompt and answer: the longest of the first {data.looked} rows has about {data.longest}"
    told += ", without its chat template" if data.longest and (data.as_chat or data.shape != "explicit") else ""
    if wanted > most:
        bound = f"all that the model takes, {model.context:,}" if most == model.context else "a bound for memory"
        return Chosen(most, f"{told}; {bound}: longer prompts lose their start")
    return Chosen(wanted, told)


def eval_fraction(data: Data) -> Chosen:
    """A tenth, but no fewer than 20 prompts of a small set, and no more than 2,000 of a large one."""
    share = min(0.3, max(0.1, 20 / data.rows.count), 2000 / data.rows.count)
    share = float(f"{share:.1g}")
    return Chosen(share, f"of the prompts are held out, about {round(share * data.rows.count):,}: they judge training")


def global_batch(data: Data, share: float) -> Chosen:
    """A power of two: the usual 64, less where an epoch would have fewer than 20 steps."""
    pairs = max(1, round(data.rows.count * (1 - share)))
    batch = min(64, max(4, 2 ** math.floor(math.log2(max(pairs / 20, 1)))))
    what = "labelled completions" if data.kind == "labelled" else "pairs"
    about = "" if data.rows.exact else "about "
    return Chosen(batch, f"{what} a step: {about}{math.ceil(pairs / batch):,} steps an epoch")


def lr(model: Model, lora: bool) -> Chosen:
    if lora:
        return Chosen(5e-6, "adapters take about ten times the rate of whole models")
    if model.params and model.params < _SMALL:
        return Chosen(1e-6, "of small models; try 3.0e-7 to 1.0e-5 with raydpo sweep")
    return Chosen(5e-7, "of most published recipes of 7B and more (configs/recipes/published)")


def score_resources(model: Model, machine: Machine) -> Chosen:
    if not machine.gpus:
        return Chosen(
            {"actors": 1, "cpus_per_actor": machine.cpus, "max_tokens_per_batch": 2048},
            "one scorer with all cores; a batch bounds its memory",
        )
    each = 1
    if machine.gpu_memory:
        while each < machine.gpus and 2 * model.params > 0.7 * machine.gpu_memory * each:
            each *= 2
    each = min(each, machine.gpus)
    return Chosen(
        {"actors": machine.gpus // each, "gpus_per_actor": each},
        f"an engine on each {f'{each} GPUs' if each > 1 else 'GPU'}, for {2 * model.params / 1e9:.1f} GB of weights",
    )


def training(model: Model, machine: Machine, longest: int) -> Training:
    """The first of several ways, the fastest first, that fits into the memory of a worker."""
    dtype = "bfloat16" if machine.gpus else "float32"
    base = TrainConfig(policy=model.name, dtype=dtype)
    ways, whole = _ways(machine, longest), machine.gpu_memory if machine.gpus else machine.memory
    if model.sizes is None or not whole:
        careful = next(way for way in ways if way[1].get("activation_checkpointing") == "layer")
        return _said(*careful, machine, "memory that is not known here: of the model, or of this machine")
    for of_recipe, of_cluster in ways:
        resources = TrainResources(**of_cluster)
        room = whole if machine.gpus else whole / resources.fewest_workers
        lora = {"lora": Lora()} if "lora" in of_recipe else {}
        config = base.model_copy(update=of_recipe | lora)
        needs = bill(model.sizes, config, resources, tokens(resources, longest)).total
        if needs <= ROOM * room:
            told = f"about {needs / 1e9:.1f} GB of the {room / 1e9:.1f} GB of each worker, by formula"
            return _said(of_recipe, of_cluster, machine, told)
    told = f"not enough: {needs / 1e9:.1f} GB of the {room / 1e9:.1f} GB of each worker. A cluster with more is needed"
    return _said(of_recipe, of_cluster, machine, told)


def _ways(machine: Machine, longest: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    least = max(512, 2 ** math.ceil(math.log2(1.5 * longest)))  # a pair of that length is alone in a micro-batch
    if machine.gpus:
        workers = {
            "workers": machine.gpus,
            "gpus_per_worker": 1,
            "cpus_per_worker": max(1, machine.cpus // machine.gpus),
        }
        large, checkpointing = max(16384, least), ["none", "selective", "layer"]
    else:
        count = 2 if machine.cpus > 1 else 1
        workers = {"workers": count, "cpus_per_worker": machine.cpus // count}
        large, checkpointing = max(1024, least), ["none", "layer"]
    sizes = [large] if large == least else [large, least]
    kept: list[dict[str, Any]] = [
        {"activation_checkpointing": each} if each != "none" else {} for each in checkpointing
    ]
    whole: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, workers | {"max_tokens_per_microbatch": size} | each) for size in sizes for each in kept
    ]
    careful = whole[-1][1]
    alone = careful | ({"workers": 1, "cpus_per_worker": machine.cpus} if not machine.gpus else {})
    return [
        *whole,
        ({"optimizer": "adamw_8bit"}, careful),
        ({"lora": {"rank": 16, "alpha": 32}}, careful),
        *([({}, alone), ({"lora": {"rank": 16, "alpha": 32}}, alone)] if alone != careful else []),
        ({"lora": {"rank": 16, "alpha": 32}, "quantize": "nf4"}, alone),
    ]


def _said(of_recipe: dict[str, Any], of_cluster: dict[str, Any], machine: Machine, fits: str) -> Training:
    each = "one a GPU" if machine.gpus else "two are faster than one" if of_cluster["workers"] > 1 else "all cores"
    why = {
        "optimizer": "moments of a byte each: with eight a weight it would not fit",
        "lora": "adapters alone are trained: the whole model would not fit",
        "quantize": "the base under them in four bits: in more it would not fit",
        "workers": each,
        "gpus_per_worker": "",
        "cpus_per_worker": "",
        "max_tokens_per_microbatch": "of a forward pass: it bounds memory, and changes no result",
        "activation_checkpointing": "computed again for the backward pass, to save memory",
    }
    return Training(
        {key: Chosen(value, why[key]) for key, value in of_recipe.items()},
        {key: Chosen(value, why[key]) for key, value in of_cluster.items()},
        fits,
    )
