"""Log-probs that the same reference has already given for other sets of pairs: taken over instead of computed again."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError
from stages.pool.alike import alike

_log = logging.getLogger("raydpo")


@dataclass(frozen=True)
class KnownLogprobs:
    artifacts: Sequence[ReferenceLogprobs] = ()

    def find(self, part: str, parts: Sequence[str], pairs: pa.Table) -> pa.Table:
        """Rows of log-probs, in any order, for those of `pairs`, which stand in `part`, that are known without error.

        A damaged file is passed over, and its pairs are scored again.
        """
        wanted = schema.logprobs_schema(pairs)
        found = wanted.empty_table()
        for table in self._of_whole_parts(part, parts, ReferenceLogprobs.read_unchecked):
            if table.schema != wanted:  # pairs, or labelled completions, where the other is wanted
                continue
            known = table.filter(pc.and_(pc.is_in(table["pair_id"], pairs["pair_id"]), pc.is_null(table["error"])))
            found = pa.concat_tables([found, known.filter(pc.invert(pc.is_in(known["pair_id"], found["pair_id"])))])
            if len(found) == len(pairs):
                break
        return found

    def count_new(self, pairs: PreferencePairs) -> int:
        """How many pairs are not known; reads ids alone."""
        parts, new = pairs.parts, 0
        for part in parts:
            ids = pairs.pair_ids(part)
            for known in self._of_whole_parts(part, parts, ReferenceLogprobs.scored_ids):
                ids = ids.filter(pc.invert(pc.is_in(ids, known)))
                if not len(ids):
                    break
            new += len(ids)
        return new

    @cached_property
    def _parts(self) -> list[list[str]]:
        """Of each artifact; listed once, because each part of the pairs asks."""
        return [artifact.parts for artifact in self.artifacts]

    def _of_whole_parts(
        self, part: str, parts: Sequence[str], read: Callable[[ReferenceLogprobs, str], Any]
    ) -> Iterator[Any]:
        """What `read` gives of each part that may hold pairs of `part`, one of `parts`."""
        for artifact, others in zip(self.artifacts, self._parts, strict=True):
            for candidate in _same_pairs(part, parts, others):
                try:
                    yield read(artifact, candidate)
                except ContractError as error:
                    _log.warning("not taken over: %s", error)


def _same_pairs(part: str, parts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of `others` that may hold pairs of `part`."""
    return [others[number] for number in alike(parts.index(part), len(parts), len(others))]
