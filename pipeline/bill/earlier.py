"""What earlier artifacts of this store took, as their manifests and metrics say."""

from typing import Any

from pydantic import ValidationError

from pipeline.bill import work
from pipeline.bill.amounts import of_facts
from pipeline.bill.speed import START, Seen, Speed, of_earlier
from pipeline.plan import Step
from pipeline.store import Store
from stages.artifacts import Manifest, PolicyCheckpoint
from stages.errors import MissingArtifact
from stages.score.config import ScoreConfig, ScoreResources
from stages.train.config import TrainConfig, TrainResources
from stages.train.memory.sizes import Sizes, sizes_of

MOST = 8  # of the newest artifacts
ROWS = 1500.0  # rows a second that a core tokenizes


def of_shard(store: Store, cores: float) -> Speed:
    found: list[Seen] = []
    for manifest in store.manifests("shard")[:MOST]:
        seconds = manifest.provenance["seconds"]
        found.append(Seen(manifest.facts["rows"], seconds, min(START["shard"], 0.9 * seconds)))
    return of_earlier(found) or Speed(START["shard"], ROWS * cores, "by a rate that is usual on CPUs")


def of_score(step: Step, resources: ScoreResources, store: Store, sizes: Sizes) -> Speed | None:
    """Of earlier artifacts of the same model, backend and precision."""
    assert isinstance(step.config, ScoreConfig)
    config, found = step.config, list[Seen]()
    for manifest in store.manifests("score"):
        facts, pairs = manifest.facts, _facts_of(store, "shard", manifest, "pairs")
        if pairs is None or len(found) == MOST or not facts.get("scored") or not _alike(manifest, step, _OF_SCORE):
            continue
        amount = of_facts(pairs)
        share = facts["scored"] / max(facts["pairs"], 1)  # others were taken over
        busy = _busy(facts["actors"])
        operations = share * work.scored(sizes, amount, config, resources)
        seconds = max(manifest.provenance["seconds"], busy)  # a run that went on with an earlier one knows its own
        found.append(Seen(operations, seconds, seconds - busy))
    return of_earlier(found)


def of_train(step: Step, resources: TrainResources, store: Store) -> Speed | None:
    """Of earlier artifacts in the same precision, on as many workers; of the same model if there is one of it."""
    found: list[tuple[bool, Seen]] = []
    for manifest in store.manifests("train")[: 2 * MOST]:
        told = _alike(manifest, step, _OF_TRAIN) and manifest.provenance.get("resources", {}).get("workers", 1)
        if told and told == resources.fewest_workers and (seen := _trained(manifest, resources, store)) is not None:
            same = manifest.payload["config"]["policy"] == step.payload["config"]["policy"]
            found.append((same, seen))
    same_model = [seen for same, seen in found if same][:MOST]
    return of_earlier(same_model or [seen for _, seen in found][:MOST])


def of_drawn(step: Step, store: Store) -> tuple[Speed, float] | None:
    """In tokens a second, and the mean tokens of a completion: of earlier samples of the same models and precision."""
    found, lengths = [], []
    for manifest in store.manifests("sample")[:MOST]:
        facts = manifest.facts
        drawn = sum(each["drawn"] for each in facts["actors"].values())
        if not drawn or not _alike(manifest, step, _OF_SAMPLE):
            continue
        busy = _busy(facts["actors"])
        seconds = max(manifest.provenance["seconds"], busy)
        found.append(Seen(drawn, seconds, seconds - busy))
        lengths.append(facts["mean_tokens"])
    speed = of_earlier(found)
    return None if speed is None else (speed, sum(lengths) / len(lengths))


def _busy(actors: dict[str, dict[str, float]]) -> float:
    """Seconds of an actor's work, the mean; to load its model is not of the work, but of the start."""
    return sum(each["seconds"] - each.get("loading", 0.0) for each in actors.values()) / max(len(actors), 1)


_OF_SCORE = ("model", "backend", "dtype", "quantize")
_OF_TRAIN = ("dtype", "quantize")
_OF_SAMPLE = ("models", "dtype")


def _alike(manifest: Manifest, step: Step, fields: tuple[str, ...]) -> bool:
    made, asked = manifest.payload["config"], step.payload["config"]
    return all(made.get(field) == asked.get(field) for field in fields)


def _facts_of(store: Store, stage: str, manifest: Manifest, argument: str) -> dict[str, Any] | None:
    """Of one of the inputs of an artifact; None where it has been deleted."""
    if (name := manifest.payload["inputs"].get(argument)) is None:
        return None
    try:
        return Manifest.read(store.folder(stage, name)).facts
    except MissingArtifact:
        return None


def _trained(manifest: Manifest, resources: TrainResources, store: Store) -> Seen | None:
    folder = store.folder("train", manifest.fingerprint)
    pairs = _facts_of(store, "shard", manifest, "pairs")
    if pairs is None or not (folder / "policy" / "config.json").exists():
        return None
    sizes = sizes_of(str(folder / "policy"))
    if sizes is None:
        return None
    try:
        config = TrainConfig.model_validate(manifest.payload["config"])
    except ValidationError:  # of an earlier version
        return None
    kept = manifest.provenance.get("resources", {}).get("activation_checkpointing", "none")
    done = work.trained(sizes, of_facts(pairs), config, resources.model_copy(update={"activation_checkpointing": kept}))
    steps = [line["step_seconds"] for line in PolicyCheckpoint(folder).metrics if "step_seconds" in line]
    if not steps or len(steps) < work.steps_of(of_facts(pairs), config)[0]:
        return None  # stopped early, or gone on with
    busy = sum(steps)
    looks = busy * done.looks / max(done.flops, 1)  # as fast as the steps
    seconds = max(manifest.provenance["seconds"], busy + looks)  # one that went on with another knows its own
    return Seen(done.flops + done.looks, seconds, seconds - busy - looks)
