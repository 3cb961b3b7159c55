"""What a recipe asks for, what the store has of it, what is missing, and why."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.fingerprint import differences, fingerprint
from pipeline.graph import SHARD, STAGES, Stage, named
from pipeline.identity import Digests, file_identity, model_identity, source_identity
from pipeline.recipe.sections import Recipe
from pipeline.store import Store, damage
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

    @property
    def name(self) -> str:
        return named(self.stage.name, self.round)

    @property
    def sources(self) -> dict[str, str]:
        """Argument -> name of what it is made from; `models` is the training of the round before."""
        made = {argument: named(made_by, self.round) for argument, made_by in self.stage.reads(self.config).items()}
        return made | ({"models": named("train", self.round - 1)} if self.round > 1 else {})


@dataclass(frozen=True)
class Step(Identity):
    """How far the store is with it."""

    folder: Path
    state: State
    why: str

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)


def identify(recipe: Recipe, digests: Digests) -> dict[str, Identity]:
    """Raises RecipeError where a file or model that the recipe names is not there, or cannot do what is asked."""
    found: dict[str, Identity] = {}
    for stage in STAGES.values():
        config, identity = _resolve(getattr(recipe, stage.name), stage, digests)
        found[stage.name] = _identity(stage, 1, config, identity, found)
        for field in stage.models:
            _check_context(f"{stage.name}.{field}", getattr(config, field), recipe.shard.max_length)
    first = dict(found)
    for number in range(2, recipe.rounds + 1):
        for one in first.values():
            if one.stage.each_round:
                hashed = one.payload["config"] | dict.fromkeys(one.stage.models, f"policy of round {number - 1}")
                found[named(one.stage.name, number)] = _identity(one.stage, number, one.config, hashed, found)
    return found


def _identity(
    stage: Stage, number: int, config: Config, hashed: dict[str, Any], found: dict[str, Identity]
) -> Identity:
    """`hashed` is the config in which identities stand for names."""
    unnamed = Identity(stage, number, config, {}, "")
    inputs = {argument: found[name].fingerprint for argument, name in unnamed.sources.items()}
    payload = {"stage": stage.name, "version": stage.version, "config": hashed, "inputs": inputs}
    return replace(unnamed, payload=payload, fingerprint=fingerprint(payload))


def _resolve(config: Any, stage: Stage, digests: Digests) -> tuple[Config, dict[str, Any]]:
    """The config to run with (real paths, fixed revisions) and the one to hash (identities in their place)."""
    names: dict[str, tuple[Any, Any]] = {
        field: model_identity(getattr(config, field), digests, f"{stage.name}.{field}") for field in stage.models
    }
    sources: dict[str, list[tuple[str, str]]] = {}
    if stage.name == "shard":
        if config.source is not None:
            names["source"] = source_identity(config.source, digests, "shard.source")
        for key in ("sources", "eval"):
            sources[key] = [
                source_identity(each.source, digests, f"shard.{key}.{i}.source")
                for i, each in enumerate(getattr(config, key))
            ]
        names["tokenizer"] = model_identity(config.tokenizer, digests, "shard.tokenizer", tokenizer_only=True)
        files = [source_identity(name, digests, "shard.decontaminate") for name in config.decontaminate]
        names["decontaminate"] = tuple(name for name, _ in files), [identity for _, identity in files]
    resolved = config.model_copy(update={field: name for field, (name, _) in names.items()})
    hashed = config.model_dump(mode="json", exclude=set(stage.acceptance))
    identity = hashed | {field: identity for field, (_, identity) in names.items()}
    if stage.name == "shard" and config.chat.template is not None:
        path, digest = file_identity(config.chat.template, digests, "shard.chat.template")
        resolved = resolved.model_copy(update={"chat": config.chat.model_copy(update={"template": path})})
        identity["chat"] = identity["chat"] | {"template": digest}
    for key, found in sources.items():
        several = [
            each.model_copy(update={"source": name, "name": each.label})
            for each, (name, _) in zip(getattr(config, key), found, strict=True)
        ]
        resolved = resolved.model_copy(update={key: tuple(several)})
        identity[key] = [
            each.model_dump(mode="json") | {"source": content}
            for each, (_, content) in zip(several, found, strict=True)
        ]
    return resolved, identity


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
        problems = damage(folder, Manifest.read(folder), content=False)
        state, why = (State.PARTIAL, "; ".join(problems[:3])) if problems else (State.HIT, "")
    elif draft.exists():
        finished = len(list(draft.glob("part-*.parquet")))
        state, why = State.PARTIAL, f"stopped before its end; finished parts: {finished}"
    else:
        state, why = State.MISS, _nearest(identity.payload, store)
    own = {field.name: getattr(identity, field.name) for field in fields(Identity)}
    return Step(**own, folder=folder, state=state, why=why)


def _if_needed(step: Step, steps: dict[str, Step]) -> Step:
    """A stage that others could read, and none of them does, has nothing to do."""
    readers = [other for other in steps.values() if step.stage.name in other.stage.inputs.values()]
    if not readers or any(step.name in other.sources.values() for other in readers):
        return step
    why = "; ".join(f"{other.name} reads no {step.stage.output.__name__} with this recipe" for other in readers)
    return replace(step, state=State.NOT_NEEDED, why=why)


def _with_news(step: Step, steps: dict[str, Step], store: Store) -> Step:
    """Say how many pairs are new to a stage that takes over what it did for other inputs."""
    inputs = [steps[made_by] for made_by in step.stage.inputs.values()]
    if not step.stage.takes_over or step.state == State.HIT or any(made.state != State.HIT for made in inputs):
        return step
    pairs, artifacts = PreferencePairs(inputs[0].folder), known(step, store)
    if not artifacts:
        return step
    new, total = KnownLogprobs(artifacts).count_new(pairs), pairs.manifest.facts["pairs"]
    return replace(step, why=f"{step.why}; {new} of {total} pairs are new to this reference")


def known(identity: Identity, store: Store) -> list[Any]:
    """Artifacts that the same config, with the same models, made of other inputs."""
    same = ("version", "config")
    return [
        identity.stage.output(store.folder(manifest.stage, manifest.fingerprint))
        for manifest in store.manifests(identity.stage.name)
        if all(manifest.payload[key] == identity.payload[key] for key in same)
        and manifest.payload["inputs"].get("models") == identity.payload["inputs"].get("models")
        and manifest.fingerprint != identity.fingerprint
    ]


def _nearest(payload: dict[str, Any], store: Store) -> str:
    """In what a new artifact differs from the most similar one there is."""
    stage = payload["stage"]
    known = [(differences(manifest.payload, payload), manifest) for manifest in store.manifests(stage)]
    if not known:
        return "never made"
    changed, manifest = min(known, key=lambda pair: len(pair[0]))
    named = [line.replace("config.", f"{stage}.", 1).replace("inputs.", "input ", 1) for line in changed]
    return f"{'; '.join(named)} (against {manifest.fingerprint[:12]})"
