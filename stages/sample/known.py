"""Completions that the same models have already drawn for other sets of prompts: taken over instead of drawn again."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from stages.artifacts import Manifest
from stages.errors import ContractError
from stages.names import part_name
from stages.pool.alike import alike
from stages.samples import COMPLETIONS, Completions

_log = logging.getLogger("raydpo")


@dataclass(frozen=True)
class KnownCompletions:
    artifacts: Sequence[tuple[Completions, Manifest]] = ()

    def find(self, number: int, num_parts: int, model: int, prompts: pa.Table) -> pa.Table:
        """COMPLETIONS, in any order, of those of `prompts`, part `number` of them, that are known without error.

        A damaged file is passed over, and its prompts are asked again.
        """
        found = COMPLETIONS.empty_table()
        for artifact, manifest in self.artifacts:
            others = manifest.facts["num_parts"]
            for other in alike(number, num_parts, others):
                try:
                    table = artifact.read(part_name(other + model * others))
                except ContractError as error:
                    _log.warning("not taken over: %s", error)
                    continue
                wanted = pc.and_(pc.is_in(table["prompt_id"], prompts["prompt_id"]), pc.is_null(table["error"]))
                new = pc.invert(pc.is_in(table["prompt_id"], found["prompt_id"]))
                found = pa.concat_tables([found, table.filter(pc.and_(wanted, new))])
        return found
