"""The pairs at hand: what is on disk, a few parts at a time, read once a node."""

import hashlib
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages import schema
from stages.artifacts import Manifest, PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError
from stages.spans import count
from stages.train.held_out import HeldOut
from stages.train.objective.losses import Logps, PairLogps
from stages.train.objective.named.paired import Sigmoid
from stages.train.objective.report import report
from stages.train.pairs.node_cache import NodeCache
from stages.train.pairs.order import Order
from stages.train.pairs.pair_set import PairSet, count_pairs

PARTS, ROWS = 24, 20


def spans_of(length: int) -> list[int]:
    """All but every third token."""
    return [min(edge, length) for start in range(0, length, 3) for edge in (start, start + 2)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreferencePairs, ReferenceLogprobs]:
    """480 pairs of random ids in 24 parts; every 10th is held out, every 15th could not be scored."""
    folder, random = tmp_path_factory.mktemp("written"), np.random.default_rng(0)
    for part in range(PARTS):
        rows = [
            {
                "pair_id": hashlib.sha256(f"{part} {row}".encode()).hexdigest()[:32],
                "split": "train" if (part * ROWS + row) % 10 else "eval",
                **{
                    f"{side}_ids": random.integers(0, 300, random.integers(1, 30)).tolist()
                    for side in ("prompt", "chosen", "rejected")
                },
                "weight": 1.0 + row % 3,
                "source": "none",
                "source_row": part * ROWS + row,
            }
            for row in range(ROWS)
        ]
        for row in rows:  # every third token is context
            row |= {f"{side}_trained": spans_of(len(row[f"{side}_ids"])) for side in schema.PAIR_SIDES}
        pairs = pa.Table.from_pylist(rows, schema=schema.PAIRS)
        token_logps = [
            None if row["source_row"] % 15 == 1 else -random.random(count(row[f"{side}_trained"]), np.float32)
            for row in rows
            for side in schema.PAIR_SIDES
        ]
        schema.write_part(pairs, folder / "pairs" / f"part-{part:05d}.parquet")
        schema.write_part(schema.logprobs_table(pairs, token_logps), folder / "logprobs" / f"part-{part:05d}.parquet")
    return PreferencePairs(folder / "pairs"), ReferenceLogprobs(folder / "logprobs")


def test_rows_are_those_of_the_split_that_have_log_probs(written: tuple, tmp_path: Path) -> None:
    expected = []
    for part in written[0].parts:
        pairs = written[0].read(part)
        scored = written[1].read(part, pairs).to_pylist()
        both = [pair | logprobs for pair, logprobs in zip(pairs.to_pylist(), scored, strict=True)]
        expected += [row for row in both if row["split"] == "train" and row["error"] is None]
    pairs = PairSet(*written, "train", NodeCache(str(tmp_path)))
    assert len(pairs) == len(expected) == pairs.counts.sum()
    numbers = np.random.default_rng(1).permutation(len(pairs))[:50]
    for row, number in zip(pairs.read(numbers), numbers, strict=True):
        assert row == {name: expected[number][name] for name in row}
        assert {"prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_token_logps", "margin"} <= row.keys()
        assert {"chosen_trained", "rejected_trained", "weight"} <= row.keys()
        assert len(row["ref_chosen_token_logps"]) == count(row["chosen_trained"])
    # What comes after the last trained token is not computed.
    lengths = [
        len(expected[n]["prompt_ids"]) + sum(expected[n][f"{side}_trained"][-1] for side in schema.PAIR_SIDES)
        for n in numbers
    ]
    assert pairs.lengths(numbers).tolist() == lengths
    assert pairs.ids(numbers) == [expected[number]["pair_id"] for number in numbers]
    assert len(PairSet(written[0], None, "train")) + len(PairSet(written[0], None, "eval")) == PARTS * ROWS


def test_few_parts_are_at_hand_on_a_set_of_many_windows(written: tuple, tmp_path: Path) -> None:
    """Two epochs of a set of 6 windows: never more than this window, the next one and one that ends are cached."""
    pairs = PairSet(*written, "train", NodeCache(str(tmp_path)))
    order, seen, most = Order(pairs.counts, 0, 16, 66), [], 0
    for step in range(1, 2 * len(pairs) // 16):
        pairs.keep(order.parts_at(step))
        seen += pairs.ids(order.batch_at(step))
        most = max(most, len(list(tmp_path.glob("*.arrow"))))
        assert len(pairs._open) <= 12
    assert set(seen) == set(pairs.ids(np.arange(len(pairs))))
    assert 4 <= most <= 13
    pairs.close()
    assert not list(tmp_path.iterdir())


def make(cache: NodeCache, path: Path, made: Path) -> None:
    def table() -> pa.Table:
        with made.open("a") as lines:
            lines.write("made\n")
        return pa.table({"column": list(range(1000))})

    assert len(cache.table(path, table)) == 1000


def test_a_part_is_read_once_a_node(tmp_path: Path) -> None:
    processes, cache, made = get_context("fork"), NodeCache(str(tmp_path / "cache")), tmp_path / "made"
    source = tmp_path / "source"
    source.write_text("one")
    path = cache.path("part", [source])
    workers = [processes.Process(target=make, args=(cache, path, made)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert made.read_text() == "made\n"
    source.write_text("other content")
    assert cache.path("part", [source]) != path


def test_a_damaged_part_is_named_when_it_is_reached(written: tuple, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for part in written[0].parts:
        (folder / part).write_bytes((written[0].folder / part).read_bytes())
    pairs = PairSet(PreferencePairs(folder), written[1], "train", NodeCache(str(tmp_path / "cache")))
    content = bytearray((folder / written[0].parts[3]).read_bytes())
    content[200] ^= 1
    (folder / written[0].parts[3]).write_bytes(content)
    pairs.keep([2, 3])
    with pytest.raises(ContractError, match=r"part-00003\.parquet cannot be read as Parquet.*make it again"):
        pairs.ids(np.arange(len(pairs)))


def mixed(pairs: PreferencePairs, folder: Path, sources: list[str]) -> PreferencePairs:
    """The same pairs from these sources in turn, with margins of -1, 0, 1 and none, and a tenth in two named sets."""
    for part in pairs.parts:
        table = pairs.read(part)
        rows = table["source_row"].to_pylist()
        columns = {
            "source": pa.array([sources[row % len(sources)] for row in rows]),
            "margin": pa.array([(-1.0, 0.0, 1.0, None)[row // 10 % 4] for row in rows], pa.float64()),
            "split": pa.array(["eval" if row % 10 < 4 else "eval/b" if row % 20 == 4 else "train" for row in rows]),
        }
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, values)
        schema.write_part(table, folder / part)
    return PreferencePairs(folder)


def test_named_sets_are_splits_of_their_own(written: tuple, tmp_path: Path) -> None:
    pairs = mixed(written[0], tmp_path / "mixed", ["s", "t", "u"])
    counts = count_pairs(pairs, None)
    assert {split: int(each.sum()) for split, each in counts.items()} == {"train": 264, "eval": 192, "eval/b": 24}
    named = PairSet(pairs, None, "eval/b", NodeCache(str(tmp_path / "cache")), counts)
    every = [row for part in pairs.parts for row in pairs.read(part).to_pylist()]
    expected = [row for row in every if row["split"] == "eval/b"]
    assert named.ids(np.arange(len(named))) == [row["pair_id"] for row in expected]
    backwards = np.arange(len(named))[::-1]
    assert named.sources(backwards).tolist() == [row["source"] for row in reversed(expected)]


def test_files_of_a_source_that_has_a_name_are_one_source(written: tuple, tmp_path: Path) -> None:
    files = ["judged/part-00000.parquet", "judged/part-00001.parquet", "a/b.jsonl"]
    pairs = mixed(written[0], tmp_path / "mixed", files)
    facts = {"sources": {"judged": {}, "a.jsonl": {}}, "report": {"sources": {file: {"train": 1} for file in files}}}
    Manifest("shard", "0" * 64, {}, [], facts, {}).write(pairs.folder)
    held_out = PairSet(pairs, None, "eval", NodeCache(str(tmp_path / "cache")))
    assert set(held_out.sources(np.arange(len(held_out)))) == {"judged", "a/b.jsonl"}
    assert pairs.num_sources == 2


def test_pairs_without_a_margin_are_set_aside_where_it_is_asked_for(written: tuple, tmp_path: Path) -> None:
    pairs = mixed(written[0], tmp_path / "mixed", ["s"])
    cache = NodeCache(str(tmp_path / "cache"))
    every = PairSet(pairs, written[1], "train", cache)
    usable = PairSet(pairs, written[1], "train", cache, positive_margin=True)
    rows = every.read(np.arange(len(every)))
    wanted = [row["pair_id"] for row in rows if row["margin"] is not None and row["margin"] > 0]
    assert 0 < len(wanted) == len(usable) < len(every)
    assert usable.ids(np.arange(len(usable))) == wanted
    assert {row["margin"] for row in usable.read(np.arange(len(usable)))} == {1.0}
    assert count_pairs(pairs, written[1], positive_margin=True)["train"].tolist() == usable.counts.tolist()


def held_out(pairs: PreferencePairs, cache: Path) -> HeldOut:
    counts = count_pairs(pairs, None)
    sets = {split: PairSet(pairs, None, split, NodeCache(str(cache)), counts) for split in counts if split != "train"}
    return HeldOut(sets)


def test_held_out_pairs_are_told_by_source_and_by_set(written: tuple, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    looked: dict[int, tuple[Logps, torch.Tensor]] = {}

    def look(pairs: PairSet) -> tuple[Logps, torch.Tensor]:
        columns = torch.from_numpy(chance.normal(size=(len(PairLogps._fields) + 1, len(pairs))))
        looked[len(pairs)] = PairLogps(*columns[:-1]), columns[-1]
        return looked[len(pairs)]

    pairs, loss = mixed(written[0], tmp_path / "mixed", ["s", "t"]), Sigmoid()
    found = held_out(pairs, tmp_path / "cache").metrics(look, loss)
    (whole, losses), (named, of_named) = looked[192], looked[24]
    names = sorted(report(whole, losses, loss))
    assert sorted(found) == sorted(f"eval/{of}{name}" for of in ("", "s/", "t/", "b/") for name in names)
    assert found["eval/loss"] == pytest.approx(losses.mean().item())
    assert found["eval/b/loss"] == pytest.approx(of_named.mean().item())
    assert found["eval/b/logps/chosen"] == pytest.approx(named.chosen.mean().item())
    rows = [row for part in pairs.parts for row in pairs.read(part).to_pylist() if row["split"] == "eval"]
    for source in ("s", "t"):
        own = torch.tensor([row["source"] == source for row in rows])
        assert found[f"eval/{source}/loss"] == pytest.approx(losses[own].mean().item())
        assert found[f"eval/{source}/logps/rejected"] == pytest.approx(whole.rejected[own].mean().item())
    alone = held_out(mixed(written[0], tmp_path / "alone", ["s"]), tmp_path / "cache").metrics(look, loss)
    assert not any("/s/" in name for name in alone)  # one source is all there is
    many = held_out(mixed(written[0], tmp_path / "many", [f"f{n}" for n in range(100)]), tmp_path / "cache")
    assert not any("/f" in name for name in many.metrics(look, loss))


def test_a_source_and_a_held_out_set_of_one_name_are_refused(written: tuple, tmp_path: Path) -> None:
    pairs = mixed(written[0], tmp_path / "mixed", ["a", "b"])
    with pytest.raises(ContractError, match=r"one name, 'eval/b', .* Rename one: shard\.sources or shard\.eval"):
        held_out(pairs, tmp_path / "cache")
