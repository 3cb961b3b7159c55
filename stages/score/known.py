"""Log-probs that the same reference has already given for other sets of pairs: taken over instead of computed again."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages import schema
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.errors import ContractError
from stages.names import number_of, part_name
from stages.pool.alike import alike

_log = logging.getLogger("raydpo")
LOOKED_AT = 256  # parts


@dataclass(frozen=True)
class KnownLogprobs:
    artifacts: Sequence[ReferenceLogprobs] = ()

    def find(self, part: str, parts: int, pairs: pa.Table) -> pa.Table:
        """Rows of log-probs, in any order, for those of `pairs`, in `part` of so many, that are known without error.

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

    def count_new(self, pairs: PreferencePairs) -> tuple[int, int]:
        """How many pairs are not known, of how many that were looked at; reads ids alone.

        Of more than `LOOKED_AT` parts no more are looked at, spread over all: a pair's part follows from its id, so
        they are like the others, and a plan takes no longer for a billion pairs.
        """
        parts, new, rows = pairs.parts, 0, 0
        for part in parts[:: math.ceil(len(parts) / LOOKED_AT) or 1]:
            ids = pairs.pair_ids(part)
            rows += len(ids)
            for known in self._of_whole_parts(part, len(parts), ReferenceLogprobs.scored_ids):
                ids = ids.filter(pc.invert(pc.is_in(ids, known)))
                if not len(ids):
                    break
            new += len(ids)
        return new, rows

    @cached_property
    def _parts(self) -> list[int]:
        """How many each artifact has; counted once, because each part of the pairs asks."""
        return [len(artifact.parts) for artifact in self.artifacts]

    def _of_whole_parts(self, part: str, parts: int, read: Callable[[ReferenceLogprobs, str], Any]) -> Iterator[Any]:
        """What `read` gives of each part that may hold pairs of `part`, one of so many."""
        for artifact, others in zip(self.artifacts, self._parts, strict=True):
            for candidate in alike(number_of(part), parts, others):
                try:
                    yield read(artifact, part_name(candidate))
                except ContractError as error:
                    _log.warning("not taken over: %s", error)
