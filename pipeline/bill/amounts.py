"""How many pairs, and tokens of them, `shard` makes: by its manifest where it has run, else by rows of its source."""

from dataclasses import dataclass
from typing import Any

from pipeline.bill.rows import SAMPLE, of_source, rows_of
from pipeline.bill.template import added
from pipeline.plan import State, Step
from stages.sample.asked import as_shard
from stages.sample.config import SampleConfig
from stages.sample.look import measure as measure_prompts
from stages.shard.config import ShardConfig, Source
from stages.shard.look import measure


@dataclass(frozen=True)
class Amount:
    """Of all pairs, held-out ones too. A labelled completion counts as a pair: it stands beside a mismatched one."""

    rows: int  # of the source
    pairs: float
    train: float
    prompt: float  # tokens of prompts, each once
    completions: float  # tokens of both completions
    longest: int  # of a sequence
    how: str  # "counted", or of what it is estimated
    exact: bool = False  # as the manifest has it

    @property
    def tokens(self) -> float:
        """As `shard` counts them: the prompt once a side."""
        return 2 * self.prompt + self.completions

    @property
    def packed(self) -> float:
        """As training lays them out: the prompt once a pair."""
        return self.prompt + self.completions


@dataclass(frozen=True)
class Prompts:
    count: int
    tokens: float
    how: str
    exact: bool = False


def amount_of(step: Step, steps: dict[str, Step]) -> Amount | None:
    """Of a `shard` step; None where its source is not on this machine. Raises RecipeError where it cannot be read."""
    config = step.config
    assert isinstance(config, ShardConfig)
    if step.state == State.HIT:
        return of_facts(step.manifest.facts)
    if "triples" in step.sources:
        return _of_samples(config, steps)
    found = [_of_source(source, config) for source in config.all_sources]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    trained = known[: config.num_trained]
    return Amount(
        rows=sum(each.rows for each in known),
        pairs=sum(each.pairs for each in known),
        train=(1 - config.eval_fraction) * sum(each.pairs for each in trained),
        prompt=sum(each.prompt for each in known),
        completions=sum(each.completions for each in known),
        longest=max(each.longest for each in known),
        how="; ".join(dict.fromkeys(each.how for each in known)),
    )


def of_facts(facts: dict[str, Any]) -> Amount:
    """As a manifest has them. One of before `prompt_tokens` was noted gives the median prompt."""
    prompt = facts.get("prompt_tokens")
    if prompt is None:
        prompt = facts["report"]["lengths"]["prompt"].get("median", 0) * facts["pairs"]
    return Amount(
        facts["rows"], facts["pairs"], facts["train"], prompt, facts["tokens"] - 2 * prompt, facts["longest"],
        "counted", exact=True,
    )  # fmt: skip


def _of_source(source: Source, config: ShardConfig) -> Amount | None:
    rows, seen = of_source(source, config), measure(source, config, SAMPLE)
    if rows is None or seen is None or not seen.counted:
        return None
    asked, answered = added(config, source, seen.told.of_messages)
    fewest = min(config.max_prompt_length or config.max_length // 2, config.max_length - 1)  # tokens a prompt keeps
    pairs, prompt, completions, longest = 0, 0, 0, 0
    for text, *others in (pair for made in seen.made for pair in made):
        sides = [each + answered for each in others]
        kept = min(text + asked, max(config.max_length - max(sides), fewest))
        sides = [min(each, config.max_length - kept) for each in sides]
        pairs, prompt, longest = pairs + 1, prompt + kept, max(longest, kept + max(sides))
        completions += sum(sides) * (2 if config.rows == "labelled" else 1)  # a mismatched one is about as long
    share = rows.count / seen.rows
    number = "rows counted" if rows.exact else "rows estimated by the size of files"
    how = f"{number}, tokens estimated from the first {seen.rows}"
    return Amount(rows.count, share * pairs, share * pairs, share * prompt, share * completions, longest, how)


def _of_samples(config: ShardConfig, steps: dict[str, Step]) -> Amount | None:
    """At most: each prompt makes one pair, of two answers as long as they may be."""
    sample = next((step.config for step in steps.values() if isinstance(step.config, SampleConfig)), None)
    asked = prompts_of(steps["sample"]) if "sample" in steps else None
    if sample is None or asked is None:
        return None
    said = min(sample.max_tokens, config.max_length)
    longest = min(config.max_length, sample.max_prompt_length + said)
    how = f"at most: a pair of each prompt, answers of {said} tokens; {asked.how}"
    train = asked.count * (1 - config.eval_fraction)
    return Amount(asked.count, asked.count, train, asked.tokens, 2.0 * asked.count * said, longest, how)


def prompts_of(step: Step) -> Prompts | None:
    """Of a `sample` step; None where its source is not on this machine."""
    config = step.config
    assert isinstance(config, SampleConfig)
    rows, seen = rows_of(as_shard(config)), measure_prompts(config, SAMPLE)
    if rows is None or seen is None:
        return None
    (source,) = as_shard(config).all_sources
    asked, _ = added(as_shard(config), source, of_messages=True)
    mean = sum(seen.lengths) / len(seen.lengths) + asked
    if step.state == State.HIT:
        facts = step.manifest.facts
        return Prompts(facts["prompts"], mean * facts["prompts"], "prompts counted", exact=True)
    share = len(seen.lengths) / seen.rows
    number = "prompts counted" if rows.exact and share == 1 else "prompts estimated"
    how = f"{number}, tokens estimated from the first {seen.rows}"
    return Prompts(round(share * rows.count), share * rows.count * mean, how)
