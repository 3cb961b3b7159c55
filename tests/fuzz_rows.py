"""Rows of any kind are read or set aside, and nothing else: `python -m tests.fuzz_rows [COUNT]` tries many."""

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from stages.errors import RecipeError
from stages.shard.batch import Origin, Raw, tokenized
from stages.shard.config import Columns, Source
from stages.shard.shapes.tell import tell
from stages.shard.triple import Labelled, Rejected, Triple, outcomes

SHAPES: tuple[Any, ...] = (
    "explicit", "conversational", "sharegpt", "implicit", "hh", "ranked", "compared", "labelled"
)  # fmt: skip
PAIRINGS: tuple[Any, ...] = ("best_worst", "best_random", "adjacent", "all")
COLUMNS = (Columns(), Columns(margin="m", weight="w", system="s"), Columns(first="a", second="b", preference="m"))
README = Path(__file__).parent.parent / "stages/shard/shapes/README.md"
SEEDS = [json.loads(line) for line in README.read_text().splitlines() if line.startswith("{")]

ODD: list[Any] = [None, True, 0, -1, 1e308, float("nan"), "", "\ud800", [], {}, [[]], [None], {"role": "user"}]
ODD += [{"role": "\udfff", "content": "x", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]
ODD += ["<|im_end|>", "<think>", "a" * 3000, [{"type": "image"}], [{"type": "text", "text": None}]]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["user", "assistant", "gpt", "\n\nHuman: a\n\nAssistant: b", '[{"role": "user"}]', "\ud800", "NaN"]
    )
)
NAMES = st.sampled_from(sorted({key for seed in SEEDS for key in seed} | {"role", "content", "from", "value", "type"}))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A row of the README's examples, some of whose values, at any depth, are others."""
    row = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        row = replaced(row, draw(st.integers(0, 2**30)), draw(JSON | st.sampled_from(SEEDS)))
    return json.dumps(row)


ROWS = mutated() | JSON.map(json.dumps) | st.text(max_size=20)


def replaced(value: Any, where: int, by: Any) -> Any:
    """`value` with one of its parts, which `where` tells, replaced, removed or repeated."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or where % 5 == 0:
        return by
    key, rest = keys[where // 5 % len(keys)], where // 5 // len(keys)
    if isinstance(value, dict):
        if rest % 7 == 0:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: replaced(value[key], rest // 7, by)}
    if rest % 7 == 0:
        return value[:key] + value[key + 1 :]
    return [*value[:key], replaced(value[key], rest // 7, by), *value[key + (rest % 7 != 1) :]]


def check(row: str) -> None:
    """Raises where a row ends in anything but triples, labelled completions and rejections."""
    for columns in COLUMNS:
        with suppress(RecipeError):
            tell([row], columns, "set")
        for shape in SHAPES:
            for text in ("auto", "plain", "chat"):
                pairing = PAIRINGS[len(row) % 4]
                found = outcomes(row, shape, columns, pairing=pairing, text=text, kwargs_column="k")  # type: ignore[arg-type]
                assert found
                for each in found:
                    check_outcome(each)


def check_outcome(each: Any) -> None:
    if isinstance(each, Rejected):
        assert each.reason
        assert each.detail
        each.detail.encode()  # as a column of text takes it
        return
    assert isinstance(each, Triple | Labelled)
    sides = [each.chosen, each.rejected] if isinstance(each, Triple) else [each.completion]
    texts = [each.prompt, *sides]
    assert all(isinstance(text, str) for text in texts) or all(isinstance(text, list) for text in texts)
    for text in texts:
        for message in text if isinstance(text, list) else []:
            assert isinstance(message["role"], str)
            assert message["content"] is None or isinstance(message["content"], str)
            assert all(value is not None for key, value in message.items() if key != "content")
    if isinstance(each, Triple):
        assert each.margin is None or each.margin >= 0
    assert each.weight >= 0
    assert each.tools is None or all(isinstance(tool, dict) for tool in each.tools)


def plainly_mutated(drawn: random.Random, seeds: Sequence[Any] = SEEDS, least: int = 1) -> str:
    """Faster than hypothesis: a part of one row put into another."""
    row = drawn.choice(seeds)
    for _ in range(drawn.randint(least, 4)):
        row = replaced(row, drawn.getrandbits(40), drawn.choice([drawn.choice(ODD), drawn.choice(SEEDS)]))
    text = json.dumps(row)
    if drawn.random() < 0.1:
        at = drawn.randrange(len(text) + 1)
        text = text[:at] + drawn.choice(["", "\x00", "}", '"', "\\"]) + text[at + 1 :]
    return text


def check_tables(family: Any, shape: Any, count: int, drawn: random.Random) -> Counter[str]:
    """Rows of a shape, mutated or not, all the way to tables; what became of them. Raises where one is lost."""
    own = [row for row in SEEDS if tell([json.dumps(row)], Columns(), "set").shape == shape]
    rows = [Raw("set", i, plainly_mutated(drawn, own, least=0), 0) for i in range(count)]
    made: Any = "labelled" if shape == "labelled" or drawn.random() < 0.2 else "pairs"
    config = family.ours._config.model_copy(update={"rows": made})
    source = Source(source="set", text=drawn.choice(("auto", "plain", "chat")), pairing=drawn.choice(PAIRINGS))
    pairs, aside = tokenized(rows, Origin(source, shape, False), family.ours, config, 3)
    assert {*pairs["source_row"].to_pylist(), *aside["source_row"].to_pylist()} == set(range(count))
    return Counter(pairs=len(pairs)) + Counter(aside["reason"].to_pylist())


def main(count: int, seed: int = 0) -> None:
    drawn = random.Random(seed)
    for _ in range(count):
        text = plainly_mutated(drawn)
        try:
            check(text)
        except Exception as error:
            raise AssertionError(f"this row: {text}") from error
    print(f"{count} rows, each under all shapes: read or set aside")
    sys.path.insert(0, str(Path(__file__).parent))
    from chat_family import Family

    families, found = [Family(name) for name in ("chatml", "qwen3", "gpt-oss", "gemma")], Counter[str]()
    for _ in range(0, count, 50):
        found += check_tables(drawn.choice(families), drawn.choice(SHAPES), 50, drawn)
    print(f"{count} rows, tokenized: {dict(found)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
