"""The config of a stage, with what its external names stand for now."""

from typing import Any

from pipeline.graph import JUDGE, Stage
from pipeline.identity import Digests, file_identity, model_identity, source_identity
from stages.config import Config
from stages.evaluate.config import EvaluateConfig
from stages.judge.config import ChatJudge, FunctionJudge, RewardModel
from stages.judge.source import digest_of, modules_of


def resolve(config: Any, stage: Stage, digests: Digests) -> tuple[Config, dict[str, Any]]:
    """The config to run with (real paths, fixed revisions) and the one to hash (identities in their place)."""
    names: dict[str, tuple[Any, Any]] = {
        field: _models(named, digests, f"{stage.name}.{field}")
        for field in stage.models
        if (named := getattr(config, field)) is not None
    }
    if stage.name == "judge":
        return _judge(config, stage, digests)
    if stage.name == "sample":
        names["source"] = source_identity(config.source, digests, "sample.source")
        names["tokenizer"] = model_identity(config.tokenizer, digests, "sample.tokenizer", tokenizer_only=True)
    if stage.name == "evaluate" and config.prompts is not None:
        names["prompts"] = file_identity(config.prompts, digests, "evaluate.prompts")
    if stage.name == "evaluate" and config.judge is not None:
        names["judge"] = config.judge, _judge_of_texts(config)
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
    if stage.name in ("sample", "shard") and config.chat.template is not None:
        path, digest = file_identity(config.chat.template, digests, f"{stage.name}.chat.template")
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


def _models(names: str | tuple[str, ...], digests: Digests, field: str) -> tuple[Any, Any]:
    """As `model_identity`, of one or several."""
    if isinstance(names, str):
        return model_identity(names, digests, field)
    found = [model_identity(name, digests, f"{field}.{i}") for i, name in enumerate(names)]
    return tuple(name for name, _ in found), [identity for _, identity in found]


def _judge_of_texts(config: EvaluateConfig) -> Any:
    """As of the stage judge."""
    if isinstance(config.judge, ChatJudge):
        return config.judge.model_dump(mode="json", exclude=set(JUDGE.acceptance))
    return f"{config.judge} {digest_of(modules_of(str(config.judge), config.judge_folder, 'evaluate.judge'))}"


def _judge(config: Any, stage: Stage, digests: Digests) -> tuple[Config, dict[str, Any]]:
    """A function is its source, and that of what it imports from its folder."""
    identity = config.model_dump(mode="json", exclude=set(stage.acceptance))
    if isinstance(config, FunctionJudge):
        identity["function"] = f"{config.function} {digest_of(modules_of(config.function, config.folder))}"
    if isinstance(config, RewardModel):
        name, identity["model"] = model_identity(config.model, digests, "judge.model")
        return config.model_copy(update={"model": name}), identity
    return config, identity
