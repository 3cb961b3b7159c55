"""Bytes that a stage writes: as earlier artifacts of this store have them a token, else as is usual."""

from pipeline.bill.amounts import Amount, of_facts
from pipeline.store import Store
from stages.artifacts import Manifest, MissingArtifact
from stages.train.config import TrainConfig, TrainResources
from stages.train.memory.bill import adapters, moments
from stages.train.memory.sizes import Sizes

_OF_PAIR = 60  # bytes of a pair's names and numbers, compressed
_OF_ID = 1.6  # of a token id
_OF_LOGP = 3.8  # of a log-prob, which hardly compresses
_WIDE = {"float32": 4, "bfloat16": 2}


def pairs(amount: Amount, store: Store) -> float:
    return _like_earlier("shard", amount.packed, store) or _OF_PAIR * amount.pairs + _OF_ID * amount.packed


def logprobs(amount: Amount, store: Store) -> float:
    told = _like_earlier("score", amount.completions, store)
    return told or _OF_PAIR * amount.pairs + _OF_LOGP * amount.completions


def policy(sizes: Sizes, config: TrainConfig, resources: TrainResources, seconds: float | None) -> float:
    """The export, and the checkpoints that are kept: one at the end, and those that fall due before it."""
    trained = sizes.params if config.lora is None else adapters(sizes, config.lora.rank)
    due = 0 if seconds is None else int(seconds / 60 / resources.checkpoint_minutes)
    kept = min(resources.keep_checkpoints, 1 + due)
    whole = config.lora is None or config.lora.merge
    export = _WIDE[config.export_dtype] * (sizes.params if whole else trained)
    return export + kept * (4 + moments(config.optimizer)) * trained


def _like_earlier(stage: str, tokens: float, store: Store) -> float | None:
    """Of the newest artifact of this kind."""
    for manifest in store.manifests(stage)[:1]:
        facts = manifest.facts
        if stage == "score":
            try:
                facts = Manifest.read(store.folder("shard", manifest.payload["inputs"]["pairs"])).facts
            except (MissingArtifact, KeyError):
                return None
        made = of_facts(facts)
        size = sum(file.bytes for file in manifest.files if file.name.startswith("part-"))
        of = made.packed if stage == "shard" else made.completions
        return tokens * size / of if of else None
    return None
