"""What tests share: a tiny random model with a real tokenizer, SmolLM2, and one Ray cluster for a process's session."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from chat_server import Server
from filelock import FileLock
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from pipeline.cluster.connection import connected
from pipeline.plan import Step, plan
from pipeline.recipe.load import load
from pipeline.recipe.sections import Cluster
from pipeline.runner import Done, run
from pipeline.store import Store
from stages.artifacts import PreferencePairs, ReferenceLogprobs
from stages.progress import Silent

ROOT = Path(__file__).parents[1]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
os.environ |= {
    "HF_HUB_OFFLINE": "1",  # no test may depend on a hub
    "VLLM_NO_USAGE_STATS": "1",  # each engine asks the CPU for all that it is, which takes a second
    "RAY_USAGE_STATS_ENABLED": "0",
    # torch.compile's cache does not ask for which instructions its kernels were made: of AVX-512 they give NaN to a run
    # that is told to use AVX2.
    "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/inductor-{os.environ.get('ATEN_CPU_CAPABILITY', 'native')}",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_metrics_report_interval_ms": "2000",  # or test_meters.py waits for ten seconds
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how long a run that has ended is waited for
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process of each run, that only e2e/test_survival.py needs
    # Worker processes that have imported what a stage needs are kept for the next test, not for a second.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "8",
}

# The same examples in each run: what fails is then the change's fault. HYPOTHESIS_PROFILE=default draws others.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_LONG = (
    "tests/e2e",
    "test_train_losses",
    "test_mesh",
    "test_weights",
    "test_train",
    "test_resume",
    "test_score",
    "gpu",
)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Each of pytest's processes takes a whole file when it is free; tests/e2e is one piece, the largest and first."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else nodeid.split("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that both processes end together."""
    items.sort(key=lambda item: next((n for n, name in enumerate(_LONG) if name in item.nodeid), len(_LONG)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def make_tokenizer(folder: Path, chat_template: str | None = CHATML) -> None:
    """A byte-level BPE of 256 bytes and a few words, saved as a Hugging Face tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["the weather is good and the weather is bad, user and assistant say so"] * 4,
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


def make_llama(folder: Path, **changed: Any) -> Path:
    """A random Llama of 2 layers with its tokenizer: head dimension 32, the least that vLLM takes; 256 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder)
    torch.manual_seed(0)
    config = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(config | changed))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The one real model, as `make` puts it there."""
    folder = ROOT / ".models" / "SmolLM2-135M-Instruct"
    assert folder.is_dir(), "run `make test`, or infra/demo/smollm2.py first"
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One cluster for all tests; its address, for command lines that connect to it."""
    from ray.cluster_utils import Cluster as Nodes

    # As `ray.init` starts one, but for the port of its job agent: of two clusters on a machine the second has no agent
    # where both want Ray's default. `ray.init` gives no port for the dashboard either: then one that is free is taken.
    head = {
        "num_cpus": os.cpu_count(),
        "include_dashboard": True,
        "dashboard_agent_listen_port": 0,
        "dashboard_port": None,
    }
    nodes = Nodes(initialize_head=True, head_node_args=head | {"object_store_memory": 2**30})
    with connected(Cluster(address=nodes.address), verbose=False):
        yield nodes.address
    nodes.shutdown()


def actors_of(cluster: str, kind: str) -> list[int]:
    """Processes of the actors at work on the cluster whose class is called so, or so and more."""
    from ray.util.state import list_actors

    actors = list_actors(cluster, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in actors if kind in actor.class_name]


def wait_until(true: Callable[[], bool], process: subprocess.Popen, said: Path, seconds: float = 120) -> None:
    """While `process` runs, which says in the file `said` what goes wrong."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)


@contextmanager
def slowed(processes: Sequence[int]) -> Iterator[None]:
    """They stand still for most of the time, so that work is left when what takes Ray seconds has happened."""
    done = Event()

    def slow() -> None:
        while not done.is_set():
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in processes:
                    with suppress(ProcessLookupError):  # it has ended
                        os.kill(pid, number)
                time.sleep(0.3 if number == signal.SIGSTOP else 0.03)

    with ThreadPoolExecutor(1) as pool:
        slowing = pool.submit(slow)
        try:
            yield
        finally:
            done.set()
    slowing.result()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process by itself, for ranks without Ray."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, int], tuple[int, Any]]], Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[str, int], tuple[int, Any]]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()


@dataclass(frozen=True)
class Project:
    """A recipe on a tiny model and its triples, with a root of its own; run in this process."""

    folder: Path
    recipe_file: Path | None = None

    @property
    def recipe(self) -> Path:
        return self.recipe_file or self.folder / "recipe.yaml"

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster.yaml"

    def plan(self, *overrides: str) -> dict[str, Step]:
        recipe, cluster = load(self.recipe, self.cluster, list(overrides))
        return {step.name: step for step in plan(recipe, Store.open(cluster.root, cluster.work))}

    def run(self, *overrides: str, stages: Sequence[str] = ("shard", "score", "train")) -> dict[str, Done]:
        recipe, cluster = load(self.recipe, self.cluster, list(overrides))
        store = Store.open(cluster.root, cluster.work)
        done = run(
            plan(recipe, store),
            list(stages),
            cluster,
            store,
            connect=nullcontext,
            progress=lambda _: nullcontext(Silent()),
            notify=print,
        )
        return {row.step.name: row for row in done}


def make_project(folder: Path, model: Path, num_triples: int = 40) -> Project:
    adjectives, nouns = (
        ("good", "bad", "warm", "cold", "long", "short", "wet", "dry"),
        ("day", "night", "sea", "road", "book", "cake", "house", "train"),
    )
    with (folder / "triples.jsonl").open("w") as lines:
        for i in range(num_triples):
            first, second, noun = adjectives[i % 8], adjectives[(i + 3) % 8], nouns[i // 8 % 8]
            triple = {
                "prompt": [{"role": "user", "content": f"How was the {noun}, number {i}?"}],
                "chosen": [{"role": "assistant", "content": f"The {noun} was {first}" + " and so on" * (i % 5)}],
                "rejected": [{"role": "assistant", "content": f"It was {second}, the {noun}."}],
            }
            lines.write(json.dumps(triple) + "\n")
    recipe = {
        "model": str(model),
        "shard": {"source": str(folder / "triples.jsonl"), "max_length": 128, "eval_fraction": 0.25, "num_parts": 4},
        "score": {"backend": "torch", "dtype": "float32", "accept": {"calibration_pairs": 0}},
        "train": {"global_batch": 5, "lr": 1e-3, "epochs": 2, "max_steps": 6},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"root": str(folder / "runs")}))
    return Project(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ray_cluster: str) -> Project:  # noqa: ARG001
    """A project whose three stages have run. Tests read it, and write no artifact of its own recipe.

    The first of pytest's processes makes it; each has a copy.
    """
    project, made = make_project(tmp_path_factory.mktemp("trained"), tiny_model), tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        made = made.parent
    with FileLock(made / "made.lock"):
        if not (made / "made").exists():
            project.run()
            shutil.copytree(project.folder / "runs", made / "being made")
            (made / "being made").rename(made / "made")
    shutil.copytree(made / "made", project.folder / "runs", dirs_exist_ok=True)
    return project


@pytest.fixture(scope="session")
def inputs(trained: Project) -> tuple[PreferencePairs, ReferenceLogprobs]:
    """What the finished project was trained on."""
    steps = trained.plan()
    return PreferencePairs(steps["shard"].folder), ReferenceLogprobs(steps["score"].folder)
