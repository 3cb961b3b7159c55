"""Fingerprints of plain data, and identities of files, folders and hub names."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fingerprint import differences, fingerprint
from pipeline.identity import Digests, model_identity, source_identity
from stages.errors import RecipeError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_the_order_of_keys_does_not_matter_and_values_do(payload: dict[str, Any]) -> None:
    assert fingerprint(dict(reversed(payload.items()))) == fingerprint(payload)
    assert fingerprint(payload | {"more": 1}) != fingerprint(payload | {"more": 2})
    assert differences(payload, payload) == []


def test_a_fingerprint_is_pinned() -> None:
    """It names folders on disk: a change here orphans every artifact there is."""
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == (
        "84afbf1d4853005f9dd0c81cb1819b53ce86978340764c062160f6e8356665de"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "shard.source is empty. Name a file"),
        (" ", "shard.source is empty"),
        ("a" * 5000 + ".jsonl", r"shard.source: a{200} cannot be looked for: File name too long"),
        ("~no-such-user/a.jsonl", "cannot be looked for: Could not determine home"),
        ("org/x.ndjson", r"there is no file or folder org/x\.ndjson"),
        ("a\0b.jsonl", "there is no file or folder"),
        ("/dev/null", "there is no file or folder /dev/null"),
        ("/proc/self/mem", "/proc/self/mem cannot be read: Input/output error. Make it readable"),
    ],
)
def test_names_that_are_no_file(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source_identity(name, Digests(None), "shard.source")
    with pytest.raises(RecipeError):
        model_identity(name, Digests(None), "model")


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "payload.a.b is nan"), (Path("x"), "payload.a.b is a PosixPath"), ({1}, "payload.a.b is a set")],
)
def test_what_has_no_stable_identity_is_refused(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fingerprint({"a": {"b": value}})
    with pytest.raises(TypeError, match="only strings"):
        fingerprint({"a": {1: 2}})


def test_differences_name_the_key_and_both_values() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": 4}) == ["a.b: 1 -> 3", "d: None -> 4"]


def identity(folder: Path, tokenizer_only: bool = False) -> str:
    return model_identity(str(folder), Digests(None), "score.model", tokenizer_only)[1]


def test_a_model_is_its_content(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert identity(copy) == identity(tiny_model)
    whole, tokenizer = identity(copy), identity(copy, tokenizer_only=True)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert identity(copy) != whole
    assert identity(copy, tokenizer_only=True) == tokenizer  # other weights do not change the pairs
    (copy / "chat_template.jinja").write_text("other")
    assert identity(copy, tokenizer_only=True) != tokenizer


def test_a_source_is_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    digests = Digests(None)
    first = source_identity(str(tmp_path / "a.jsonl"), digests, "shard.source")
    assert first[1] == source_identity(str(tmp_path / "b.jsonl"), digests, "shard.source")[1]
    assert first[0] == str(tmp_path / "a.jsonl")
    both = source_identity(str(tmp_path / "*.jsonl"), digests, "shard.source")[1]
    assert both not in (first[1], source_identity(str(tmp_path / "a*.jsonl"), digests, "shard.source")[1])


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "a", tmp_path / "cache.json"
    file.write_text("one")
    digests = Digests(cache)
    one = digests.of_file(file)
    digests.save()
    cache.write_text(cache.read_text().replace(one, "remembered"))
    assert Digests(cache).of_file(file) == "remembered"
    file.write_text("other")
    assert Digests(cache).of_file(file) not in ("remembered", one)


def test_hub_names() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert model_identity(f"org/name@{commit}", Digests(None), "f") == (f"org/name@{commit}", f"hub:org/name@{commit}")
    with pytest.raises(RecipeError, match=r"f: org/name is no local path .* and the hub did not answer for this model"):
        model_identity("org/name", Digests(None), "f")
    for path in ("no/such/folder", "./none", "triples.jsonl", "data/triples.jsonl.gz"):
        with pytest.raises(RecipeError, match="f: there is no file or folder"):
            source_identity(path, Digests(None), "f")
