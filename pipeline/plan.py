"""What a recipe asks for, what the store has of it, what is missing, and why."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.fingerprint import differences, fingerprint
from pipeline.graph import SCORE, SHARD, STAGES, Stage, named
from pipeline.identity import Digests
from pipeline.recipe.sections import Recipe
from pipeline.resolve import resolve
from pipeline.store import Store, damage, read_manifest
from stages.artifacts import MANIFEST, Manifest, PreferencePairs
from stages.config import Config
from stages.errors import RecipeError
from stages.model_files import max_positions
from stages.score.known import KnownLogprobs
from stages.train.config import TrainConfig


class State(StrEnum):
    HIT = "hit"  # finished and whole
    PARTIAL = "partial"  # begun, or damaged; what is good of it stays
    MISS = "miss"
    NOT_NEEDED = "not needed"  # by this recipe: nothing reads it


@dataclass(frozen=True)
class Identity:
    """One stage of a recipe, with all external names resolved, and the name of what it makes."""

    stage: Stage
    round: int  # from 1
    config: Config  # after the first round its models are those of the round before, which may not be made yet
    payload: dict[str, Any]
    fingerprint: str
    sources: dict[str, str]  # argument -> name of what it is made from; `models` is the training of the round before
    recipe: str  # its name

    @property
    def name(self) -> str:
        return named(self.stage.name, self.round)

    @property
    def origin(self) -> dict[str, Any]:
        """Told, and never hashed: the recipe's name, and the names of that whose identities are hashed."""
        hashed, unnamed = self.payload["config"], self.stage.models if self.round > 1 else ()
        config = self.config.model_dump(mode="json", include=hashed.keys() - set(unnamed))
        return {"recipe": self.recipe, "named": {key: value for key, value in config.items() if value != hashed[key]}}


@dataclass(frozen=True)
class Step(Identity):
    """How far the store is with it."""

    folder: Path
    state: State
    why: str
    new: float = 1.0  # the share of its rows that no earlier artifact answers

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)


def identify(recipe: Recipe, digests: Digests) -> dict[str, Identity]:
    """Raises RecipeError where a file or model that the recipe names is not there, or cannot do what is asked."""
    found: dict[str, Identity] = {}
    rounds = recipe.all_rounds
    given = [(stage, each) for stage in STAGES.values() if (each := getattr(recipe, stage.name)) is not None]
    resolved = [(stage, *resolve(each, stage, digests)) for stage, each in given]
    for stage, config, identity in resolved:
        if recipe.shard is not None and stage.name != "sample":
            for field in stage.models:
                if (model := getattr(config, field)) is not None:
                    _check_context(f"{stage.name}.{field}", model, recipe.shard.max_length)
        if not stage.loads:
            found[stage.name] = _identity(stage, 1, config, identity, found, recipe)
    again = ("always", "on policy") if rounds.sample else ("always",)
    first = [one for one in found.values() if one.stage.each_round in again]
    for number in range(2, rounds.count + 1):
        for one in first:
            hashed = one.payload["config"] | dict.fromkeys(one.stage.models, f"policy of round {number - 1}")
            found[named(one.stage.name, number)] = _identity(one.stage, number, one.config, hashed, found, recipe)
    for stage, config, identity in resolved:
        if stage.loads:  # the last policy, which has to be known by then
            found[stage.name] = _identity(stage, 1, config, identity, found, recipe)
    return found


def _identity(
    stage: Stage, number: int, config: Config, hashed: dict[str, Any], found: dict[str, Identity], recipe: Recipe
) -> Identity:
    """`hashed` is the config in which identities stand for names."""
    sources, rounds = {}, recipe.all_rounds
    for argument, made_by in stage.reads(config).items():
        if made_by in found:  # else the recipe has no such stage
            latest = named(made_by, rounds.count if argument in stage.loads else number)
            sources[argument] = latest if latest in found else made_by
    if stage is SHARD and "triples" in sources:
        for earlier in range(max(1, number - rounds.replay), number):
            sources[f"replayed-{earlier}"] = named("judge", earlier)
    if number > 1 and stage.models:
        sources["models"] = named("train", number - 1)
    inputs = {argument: found[name].fingerprint for argument, name in sources.items()}
    payload = {"stage": stage.name, "version": stage.version, "config": hashed, "inputs": inputs}
    return Identity(stage, number, config, payload, fingerprint(payload), sources, recipe.name)


def _check_context(field: str, model: str, max_length: int) -> None:
    limit = max_positions(model)
    if limit is not None and max_length > limit:
        raise RecipeError(
            f"shard.max_length is {max_length}, but {field} {model} takes at most {limit} tokens. "
            f"Set shard.max_length to {limit} or less, or use a model with a longer context"
        )


def plan(recipe: Recipe, store: Store) -> list[Step]:
    """The stages in order, and what the store has of each. Raises as `identify` does."""
    digests = Digests(store.work / ".digests.json")
    steps = {name: look_up(identity, store) for name, identity in identify(recipe, digests).items()}
    digests.save()
    return [_if_needed(_with_news(step, steps, store), steps) for step in steps.values()]


def advice(steps: list[Step]) -> list[str]:
    """What the pairs at hand say against the training that is planned, if anything."""
    made = [step.manifest.facts for step in steps if step.stage == SHARD and step.state == State.HIT]
    configs = [step.config for step in steps if isinstance(step.config, TrainConfig)]
    return list(dict.fromkeys(said for facts in made for config in configs for said in config.advice(facts)))


def look_up(identity: Identity, store: Store) -> Step:
    """What the store has of it at this moment."""
    name = identity.stage.name, identity.fingerprint
    folder, draft = store.folder(*name), store.draft(*name)
    if (folder / MANIFEST).exists():
        problems = damage(folder, read_manifest(name[0], folder), content=False)
        state, why = (State.PARTIAL, "; ".join(problems[:3])) if problems else (State.HIT, "")
    elif draft.exists():
        finished = len(list(draft.glob("part-*.parquet")))
        state, why = State.PARTIAL, f"stopped before its end; finished parts: {finished}"
    else:
        state, why = State.MISS, _nearest(identity.payload, store)
    own = {field.name: getattr(identity, field.name) for field in fields(Identity)}
    return Step(**own, folder=folder, state=state, why=why)


def is_needed(one: Identity, others: Iterable[Identity]) -> bool:
    """A stage that others could read, and none of them does, has nothing to do."""
    others = list(others)
    could = any(one.stage.name in other.stage.inputs.values() for other in others)
    return not could or any(one.name in other.sources.values() for other in others)


def _if_needed(step: Step, steps: dict[str, Step]) -> Step:
    if is_needed(step, steps.values()):
        return step
    readers = [other for other in steps.values() if step.stage.name in other.stage.inputs.values()]
    why = "; ".join(f"{other.name} reads no {step.stage.output.__name__} with this recipe" for other in readers)
    return replace(step, state=State.NOT_NEEDED, why=why)


def _with_news(step: Step, steps: dict[str, Step], store: Store) -> Step:
    """Say how many pairs are new to the reference, whose scores of other pairs are taken over."""
    inputs = [steps[name] for argument, name in step.sources.items() if argument != "models"]
    if step.stage != SCORE or step.state == State.HIT or any(made.state != State.HIT for made in inputs):
        return step
    pairs, artifacts = PreferencePairs(inputs[0].folder), known(step, store)
    if not artifacts:
        return step
    (new, looked), total = KnownLogprobs(artifacts).count_new(pairs), pairs.manifest.facts["pairs"]
    share = new / max(looked, 1)
    told = str(new) if looked >= total else f"about {round(share * total)}"
    return replace(step, why=f"{step.why}; {told} of {total} pairs are new to this reference", new=share)


def known(identity: Identity, store: Store) -> list[Any]:
    """Artifacts that the same config, with the same models, made of other inputs."""
    wanted = shared(identity.stage, identity.payload)
    return [
        identity.stage.output(store.folder(manifest.stage, manifest.fingerprint))
        for manifest in store.manifests(identity.stage.name)
        if shared(identity.stage, manifest.payload) == wanted and manifest.fingerprint != identity.fingerprint
    ]


def shared(stage: Stage, payload: dict[str, Any]) -> Any:
    """What artifacts have in common of which one takes over what another has."""
    config = {key: value for key, value in payload["config"].items() if key not in stage.selects}
    return payload.get("version"), config, payload["inputs"].get("models")


def _nearest(payload: dict[str, Any], store: Store) -> str:
    """In what a new artifact differs from the most similar one there is."""
    stage = payload["stage"]
    known = [(differences(manifest.payload, payload), manifest) for manifest in store.manifests(stage)]
    if not known:
        return "never made"
    changed, manifest = min(known, key=lambda pair: len(pair[0]))
    named = [line.replace("config.", f"{stage}.", 1).replace("inputs.", "input ", 1) for line in changed]
    return f"{'; '.join(named)} (against {manifest.fingerprint[:12]})"
