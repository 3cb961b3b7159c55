"""What large sets and models cost, on paper: prints the tables of infra/SCALE.md.

Usage: python infra/scale.py [--pairs 10e6,1e9] [--models 8,70] [--devices 64] [--rows 10000]

Measured constants are of tests/benchmarks/README.md and of `make bench-driver`, on CPUs. What a GPU does was never
measured here: its speed is an assumption, and stands among the options.
"""

import argparse
import math
from dataclasses import dataclass

# Measured.
SHARD_CORE_SECONDS = 2 * 0.342e-3 / 356  # a token: 0.342 ms a pair of 356 tokens on 2 cores, from reading to the report
PAIRS_BYTES = 1.52  # a token of a pair, prompt once: Parquet's, of 1,500 pairs of HH
LOGPS_BYTES = 4.0  # a token of a completion: float32, which does not compress
MANIFEST_BYTES = 161  # a file
# Of the driver: tests.benchmarks.driver at 100,000 parts, microseconds; `given` between 100 and 1,000.
PART_MICROSECONDS = {"commit": 524, "plan": 64, "known": 106, "rejects": 164, "followed": 19, "given": 14_400}
DRIVER_BYTES, DRIVER_BYTES_A_PART = 0.45e9, 5.4e3  # from 100 parts to 100,000
STAGE_OF_LOOP = 0.93  # the score stage's speed over that of its engine alone
# Assumed.
PEAK = 989e12  # FLOP/s of a device, dense bf16: an H100's
LIST, PUT = 1000, 50e6  # keys that a request lists; bytes that one puts


@dataclass(frozen=True)
class Case:
    pairs: float
    parameters: float
    prompt: int
    completion: int
    rows: int
    task_rows: int
    devices: int
    gpus_a_node: int
    share_of_peak: float

    @property
    def parts(self) -> int:
        return math.ceil(self.pairs / self.rows)

    @property
    def tasks(self) -> int:
        """Of the first pass of shard: each leaves a fragment."""
        return math.ceil(self.pairs / self.task_rows)

    @property
    def batches(self) -> int:
        """In all fragments: one a cell, as in stages/shard/parts/fragment.py."""
        return self.tasks * min(self.parts, max(16, self.parts // 32))

    @property
    def stored_tokens(self) -> float:
        """The prompt once."""
        return self.pairs * (self.prompt + 2 * self.completion)

    @property
    def computed_tokens(self) -> float:
        """As an engine reads them: the prompt once a side."""
        return self.pairs * 2 * (self.prompt + self.completion)

    @property
    def flops(self) -> dict[str, float]:
        """2 a parameter and token forward, twice that backward; layers that are computed again once more forward.

        Training shares the prompt of a pair.
        """
        return {"score": 2 * self.parameters * self.computed_tokens, "train": 8 * self.parameters * self.stored_tokens}

    def device_seconds(self, stage: str) -> float:
        speed = PEAK * self.share_of_peak * (STAGE_OF_LOOP if stage == "score" else 1)
        return self.flops[stage] / speed

    @property
    def nodes(self) -> int:
        return math.ceil(self.devices / self.gpus_a_node)

    @property
    def bytes(self) -> dict[str, float]:
        return {
            "pairs": PAIRS_BYTES * self.stored_tokens,
            "logprobs": LOGPS_BYTES * self.pairs * 2 * self.completion,
            "manifests": 2 * MANIFEST_BYTES * self.parts,
            "checkpoint": 12 * self.parameters,  # weights and both moments, float32
            "policy": 2 * self.parameters,
        }

    @property
    def requests(self) -> dict[str, float]:
        """Of object storage: artifacts are sent whole, read part by part, and listed by each plan."""
        stored, parts = self.bytes, self.parts
        put = sum(max(parts, stored[name] / PUT) for name in ("pairs", "logprobs")) + stored["policy"] / PUT + 3
        read = parts + 2 * parts * (1 + self.nodes)  # by scorers; by trainers to count, and by each node to train
        return {"PUT": put, "GET": read, "LIST": 2 * math.ceil(parts / LIST)}

    @property
    def driver_seconds(self) -> dict[str, float]:
        return {name: each * self.parts / 1e6 for name, each in PART_MICROSECONDS.items()}

    @property
    def driver_bytes(self) -> float:
        return DRIVER_BYTES + DRIVER_BYTES_A_PART * self.parts

    @property
    def parts_a_second(self) -> float:
        """That scorers finish."""
        return self.parts / (self.device_seconds("score") / self.devices)


def tables(cases: list[Case]) -> str:
    columns = [f"{_number(case.pairs)} pairs, {_number(case.parameters)}" for case in cases]
    work = {
        "tokens stored": [_number(case.stored_tokens) for case in cases],
        "tokens scored": [_number(case.computed_tokens) for case in cases],
        "shard, core-hours": [_number(case.stored_tokens * SHARD_CORE_SECONDS / 3600) for case in cases],
        "score, device-hours": [_number(case.device_seconds("score") / 3600) for case in cases],
        "train, device-hours an epoch": [_number(case.device_seconds("train") / 3600) for case in cases],
        "days of score": [_days(case, "score") for case in cases],
        "days of an epoch": [_days(case, "train") for case in cases],
    }
    stored = {
        "PreferencePairs": [_bytes(case.bytes["pairs"]) for case in cases],
        "ReferenceLogprobs": [_bytes(case.bytes["logprobs"]) for case in cases],
        "both manifests": [_bytes(case.bytes["manifests"]) for case in cases],
        "a checkpoint": [_bytes(case.bytes["checkpoint"]) for case in cases],
        "the policy": [_bytes(case.bytes["policy"]) for case in cases],
        "parts of each artifact": [_number(case.parts) for case in cases],
        "tasks of shard's first pass": [_number(case.tasks) for case in cases],
        "batches in their fragments": [_number(case.batches) for case in cases],
        **{f"{kind} requests": [_number(case.requests[kind]) for case in cases] for kind in ("PUT", "GET", "LIST")},
    }
    driver = {
        "memory": [_bytes(case.driver_bytes) for case in cases],
        "a plan, s": [_number(case.driver_seconds["plan"]) for case in cases],
        "a plan that counts known pairs, s": [_number(case.driver_seconds["known"]) for case in cases],
        "a commit, s": [_number(case.driver_seconds["commit"]) for case in cases],
        "the end of score, s": [_number(case.driver_seconds["rejects"]) for case in cases],
        "parts scored a second, by all devices": [_number(case.parts_a_second) for case in cases],
        "of which the driver could do": [
            _number(1e6 / (PART_MICROSECONDS["given"] + PART_MICROSECONDS["followed"] or 1)) for _ in cases
        ],
    }
    return "\n".join(
        _table(what, columns, rows) for what, rows in (("work", work), ("storage", stored), ("driver", driver))
    )


def _table(what: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [[what, *columns], ["---"] * (1 + len(columns)), *([name, *values] for name, values in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- ", "|---").replace("---| ", "---|")


def _days(case: Case, stage: str) -> str:
    return _number(case.device_seconds(stage) / case.devices / 86400)


def _number(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if name == 'k' else size):.3g}{name}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _bytes(value: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value / 1e3:.3g} kB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="10e6,1e9", help="of the sets")
    parser.add_argument("--models", default="8,70", help="parameters, in billions")
    parser.add_argument("--prompt", type=int, default=200, help="tokens")
    parser.add_argument("--completion", type=int, default=300, help="tokens of each")
    parser.add_argument("--rows", type=int, default=10_000, help="of a part")
    parser.add_argument("--task-rows", type=int, default=4_000, help="cluster.shard.rows_per_task")
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--gpus-a-node", type=int, default=8)
    parser.add_argument(
        "--share-of-peak", type=float, default=0.4, help="what a device reaches of 989 TFLOP/s: assumed"
    )
    chosen = parser.parse_args()
    shape = chosen.prompt, chosen.completion, chosen.rows, chosen.task_rows
    nodes = chosen.devices, chosen.gpus_a_node, chosen.share_of_peak
    sizes = [
        (float(pairs), float(model) * 1e9) for pairs in chosen.pairs.split(",") for model in chosen.models.split(",")
    ]
    print(tables([Case(*size, *shape, *nodes) for size in sizes]), end="")


if __name__ == "__main__":
    main()
