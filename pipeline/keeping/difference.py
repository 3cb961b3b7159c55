"""In what two recipes, or two artifacts, differ: what they were told, what came out, and who made them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.plan import Step
from stages.artifacts import Manifest
from stages.errors import RecipeError

_MISSING = object()


@dataclass(frozen=True)
class Side:
    """What is known of one stage of a recipe, or of one artifact."""

    stage: str
    state: str
    payload: dict[str, Any]
    origin: dict[str, Any]
    manifest: Manifest | None  # of a finished one

    @classmethod
    def of_step(cls, step: Step) -> "Side":
        there = step.manifest if (step.folder / "manifest.json").exists() else None
        return cls(step.name, step.state.value, step.payload, step.origin, there)

    @classmethod
    def of_artifact(cls, manifest: Manifest) -> "Side":
        return cls(manifest.stage, "finished", manifest.payload, manifest.provenance, manifest)

    def groups(self) -> dict[str, dict[str, Any]]:
        """Its fields by dotted names, as a recipe has them, in groups."""
        named = self.origin.get("named", {})
        config = {
            key: f"{named[key]} ({_short(value)})" if isinstance(named.get(key), str) else value
            for key, value in self.payload["config"].items()
        }
        inputs = {argument: fingerprint[:12] for argument, fingerprint in self.payload["inputs"].items()}
        found = {"config": config, "version of the stage": {"version": self.payload["version"]}, "inputs": inputs}
        if self.manifest is not None:
            told = {key: value for key, value in self.manifest.provenance.items() if key != "named"}
            found |= {"results": self.manifest.facts, "made by": told}
        return {group: dict(flat(fields)) for group, fields in found.items()}


@dataclass(frozen=True)
class Difference:
    """Of one stage."""

    stage: str
    states: tuple[str, str]
    groups: dict[str, dict[str, tuple[Any, Any]]] = field(default_factory=dict)  # group -> field -> both values

    @property
    def is_none(self) -> bool:
        return self.states[0] == self.states[1] and not any(self.groups.values())


def differences(first: Sequence[Side], second: Sequence[Side]) -> list[Difference]:
    """Of each stage of either, in the order of the first. A value that is not there is None."""
    ones, others = ({side.stage: side for side in sides} for sides in (first, second))
    return [_difference(stage, ones.get(stage), others.get(stage)) for stage in dict.fromkeys([*ones, *others])]


def of_artifacts(one: Manifest, other: Manifest) -> list[Difference]:
    """Raises RecipeError where they are of two stages."""
    if one.stage != other.stage:
        raise RecipeError(
            f"{one.fingerprint[:12]} is of the stage {one.stage}, {other.fingerprint[:12]} of {other.stage}: no "
            "fields in common. Compare artifacts of one stage"
        )
    return [_difference(one.stage, Side.of_artifact(one), Side.of_artifact(other))]


def _difference(stage: str, one: Side | None, other: Side | None) -> Difference:
    states = tuple(side.state if side else "not in it" for side in (one, other))
    if one is None or other is None:
        return Difference(stage, (states[0], states[1]))
    ones, others = one.groups(), other.groups()
    groups = {group: _changed(ones[group], others[group]) for group in ones if group in others}
    return Difference(stage, (states[0], states[1]), {group: found for group, found in groups.items() if found})


def _changed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key, _MISSING) != other.get(key, _MISSING)]
    return {key: (one.get(key), other.get(key)) for key in keys}


def flat(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Groups of groups, and lists of groups, by dotted names; other lists as they are."""
    for key, value in fields.items():
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            value = {str(i): each for i, each in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:19]}.."
