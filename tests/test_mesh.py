"""Ranks that share weights, or the tokens of a row: the numbers are the same, whoever holds what."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from ranks import figures, last_step, together, train_on, weights
from test_logps import GROUPED, PAIRS, SMALL, make
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers import (
    AutoTokenizer,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from stages import schema
from stages.artifacts import Manifest, PreferencePairs, ReferenceLogprobs
from stages.errors import RecipeError
from stages.logps.exchange import Exchange
from stages.logps.model import PairLogprobs
from stages.logps.reading.loading import wrap
from stages.train.config import Lora, TrainConfig, TrainResources
from stages.train.job import Job
from stages.train.objective.named import labelled, paired, reference_free
from stages.train.objective.named.loss import Sum
from stages.train.policy.adam8bit import AdamW8bit
from stages.train.policy.layers import prepare_layers
from stages.train.policy.mesh import Mesh, check_world
from stages.train.worker import Worker

WORLD, STEPS = 4, 4
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "llama, 3 key heads of 12": LlamaConfig(
        **SMALL | {"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 48}
    ),
    "gemma2": Gemma2Config(
        **GROUPED, head_dim=16, sliding_window=6, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=6),
    "qwen3_moe": Qwen3MoeConfig(**GROUPED, **EXPERTS, num_experts=4),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=4),
    "gpt_oss": GptOssConfig(**GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=1, sliding_window=6),
    "deepseek_v3": DeepseekV3Config(
        **SMALL,
        **EXPERTS,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
        first_k_dense_replace=1,
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Four query heads on two key heads."""
    folder = tmp_path_factory.mktemp("four-heads")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def labelled_rows(folder: Path, rows: int = 12) -> tuple[PreferencePairs, ReferenceLogprobs]:
    """Labelled completions of random ids, and log-probs as of a reference."""
    chance = np.random.default_rng(0)
    given, scored = [], []
    for row in range(rows):
        prompt, *sides = (chance.integers(5, 300, chance.integers(4, 12)).tolist() for _ in range(3))
        logps = [(-chance.random(len(side))).tolist() for side in sides]
        given.append(
            {"pair_id": f"{row:032x}", "split": "train", "prompt_ids": prompt, "weight": 1.0, "label": row % 3 > 0}
            | {f"{name}_ids": side for name, side in zip(schema.LABELLED_SIDES, sides, strict=True)}
            | {f"{name}_trained": [0, len(side)] for name, side in zip(schema.LABELLED_SIDES, sides, strict=True)}
            | {"source": "-", "source_row": row}
        )
        scored.append(
            {"pair_id": f"{row:032x}", "error": None}
            | {f"ref_{name}_logps": sum(each) for name, each in zip(schema.LABELLED_SIDES, logps, strict=True)}
            | {f"ref_{name}_token_logps": each for name, each in zip(schema.LABELLED_SIDES, logps, strict=True)}
        )
    for kind, table in (
        ("pairs", pa.Table.from_pylist(given, schema.LABELLED)),
        ("logprobs", pa.Table.from_pylist(scored, schema.LABELLED_LOGPROBS)),
    ):
        schema.write_part(table, folder / kind / "part-00000.parquet")
    facts = {"pairs": rows, "train": rows, "eval": 0, "longest": 128, "tokens": 0, "labelled": True}
    Manifest("shard", "2" * 64, {}, [], facts, {}).write(folder / "pairs")
    facts = {"unscored": {"train": 0, "eval": 0}}
    Manifest("score", "3" * 64, {"inputs": {"pairs": "2" * 64}}, [], facts, {}).write(folder / "logprobs")
    return PreferencePairs(folder / "pairs"), ReferenceLogprobs(folder / "logprobs")


@pytest.fixture(scope="module")
def jobs(inputs: tuple, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """What one rank trains, by name."""
    folder = tmp_path_factory.mktemp("one")
    shape: dict[str, Any] = {"policy": str(model), "global_batch": 5, "max_steps": STEPS, "lr": 1e-3}
    shape |= {"starts_at_reference": False, "eval_steps": 2, "weight_decay": 0.1}
    step_losses = Sum(terms=[paired.Sigmoid(weight=0.8, wpo=True), paired.Aot(weight=0.2), reference_free.Sft()])
    rows = labelled_rows(tmp_path_factory.mktemp("labelled"))
    made = {
        "plain": (TrainConfig(**shape), inputs),
        "adapters": (TrainConfig(**shape | {"lora": Lora(rank=4, merge=True), "lr": 1e-2}), inputs),
        "nf4": (TrainConfig(**shape | {"lora": Lora(rank=4, merge=True), "lr": 1e-2, "quantize": "nf4"}), inputs),
        "step": (TrainConfig(**shape, loss=step_losses), inputs),
        "kto": (TrainConfig(**shape, loss=labelled.Kto()), rows),
        "8bit": (TrainConfig(**shape, optimizer="adamw_8bit"), inputs),
    }
    resources = TrainResources(checkpoint_steps=2, keep_checkpoints=9)
    return {name: Job(config, resources, *given, folder / name, 128) for name, (config, given) in made.items()}


def shared(job: Job, out: Path, **resources: Any) -> Job:
    """The same on four ranks, in micro-batches of two or three pairs."""
    given = {"workers": WORLD, "max_tokens_per_microbatch": 60, "checkpoint_steps": 2, **resources}
    return replace(job, out=out, resources=TrainResources(**given))


@pytest.fixture(scope="module")
def runs(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what four ranks have made of the jobs, after one rank has.

    Two of them began in another division: of four ranks, that were killed, and of one.
    """
    folder = tmp_path_factory.mktemp("four")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for job in jobs.values():
        job.out.mkdir(parents=True)
        Worker(job).run()
    dist.destroy_process_group()
    begun(jobs["8bit"].out, folder / "8bit")
    copies = shared(jobs["plain"], folder / "killed", shard_size=2)
    train_on(copies, WORLD, kill_after=3)
    assert last_step(copies.out) < STEPS
    wanted = [
        shared(jobs["plain"], folder / "killed", context_parallel=4),
        shared(jobs["plain"], folder / "copies", shard_size=2),
        shared(jobs["plain"], folder / "layers", context_parallel=2, activation_checkpointing="layer"),
        shared(
            jobs["adapters"],
            folder / "adapters",
            shard_size=2,
            context_parallel=2,
            activation_checkpointing="selective",
        ),
        shared(jobs["nf4"], folder / "nf4", shard_size=2, context_parallel=2, activation_checkpointing="layer"),
        shared(jobs["step"], folder / "step", context_parallel=2),
        shared(jobs["kto"], folder / "kto", context_parallel=2, shard_size=2),
        shared(jobs["8bit"], folder / "8bit", shard_size=2),
    ]
    together(WORLD, make_all, wanted, folder)
    return folder


def begun(run: Path, out: Path) -> None:
    """The beginning of a run, as its first checkpoint and its metrics have it."""
    shutil.copytree(run / "checkpoints" / "step-00000002", out / "checkpoints" / "step-00000002")
    shutil.copy(run / "metrics.jsonl", out)


def make_all(wanted: list[Job], folder: Path) -> None:
    """By each rank."""
    torch.set_num_threads(1)
    found = {name: differences(config) for name, config in ARCHITECTURES.items()}
    two_heads = LlamaConfig(**SMALL | {"num_attention_heads": 2})
    mamba = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    refusals = [refusal(two_heads, "some-llama"), refusal(mamba, "some-mamba")]
    if dist.get_rank() == 0:
        torch.save(found, folder / "differences.pt")
        torch.save(refusals, folder / "refusals.pt")
    shards = shards_apart()
    torch.save(shards, folder / f"shards-{dist.get_rank()}.pt")
    for job in wanted:
        job.out.mkdir(parents=True, exist_ok=True)
        Worker(job).run()


def differences(config: PreTrainedConfig) -> dict[Any, tuple[float, float]]:
    """By degree and checkpointing: the largest of a log-prob, and of a weight's gradient, over that gradient's norm."""
    found = {}
    expected, gradients = learned(sharing(config), None)
    largest = max(gradient.norm() for gradient in gradients.values())
    for degree in (2, 4):
        groups = init_device_mesh("cpu", (WORLD // degree, degree), mesh_dim_names=("pairs", "tokens"))
        for mode in ("none", "layer", "selective") if degree == 2 else ("none",):
            model = sharing(config)
            model.spread_tokens(Exchange(groups.get_group("tokens")), "shared")
            prepare_layers(model, TrainResources(activation_checkpointing=mode))
            values, parts = learned(model, groups.get_group("tokens"))
            apart = [
                (parts[name] - gradient).norm() / (gradient.norm() + 1e-3 * largest)
                for name, gradient in gradients.items()
            ]
            found[degree, mode] = (values - expected).abs().max().item(), max(apart).item()
    return found


def sharing(config: PreTrainedConfig) -> PairLogprobs:
    model = PairLogprobs(make(config))
    model.share_prompts(True)
    return model


def learned(model: PairLogprobs, group: dist.ProcessGroup | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, the sums of squared probabilities below them; and gradients, summed over the ranks."""
    values = model(model.lay_out(PAIRS), squares=True)
    (values[0] * torch.linspace(-1, 2, values.shape[1])).sum().backward()
    gradients = {
        name.replace("_checkpoint_wrapped_module.", ""): weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    if group is not None:
        for name in sorted(gradients):
            dist.all_reduce(gradients[name], group=group)
    return values.detach(), gradients


def shards_apart() -> dict[str, bool]:
    """Whether this rank's rows, codes and scales are those of the whole weight, after steps on the same gradients."""
    meshes = {
        "two": DeviceMesh("cpu", [0, 1]),
        "three, unevenly": DeviceMesh("cpu", [0, 1, 2]),
        "copies": init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard")),
    }
    found = {}
    for name, mesh in meshes.items():
        if mesh.get_coordinate() is None:
            continue
        placements = [Replicate(), Shard(0)][-mesh.ndim :]
        chance = torch.Generator().manual_seed(0)
        whole = [torch.nn.Parameter(torch.randn(shape, generator=chance)) for shape in ((5, 48), (4, 3, 32), (7,))]
        parts = [torch.nn.Parameter(distribute_tensor(each.detach().clone(), mesh, placements)) for each in whole]
        optimizers = [AdamW8bit(weights, 1e-2, (0.9, 0.999), 1e-8, 0.1) for weights in (whole, parts)]
        for _ in range(3):
            for one, part in zip(whole, parts, strict=True):
                one.grad = torch.randn(one.shape, generator=chance)
                part.grad = distribute_tensor(one.grad, mesh, placements)
            for optimizer in optimizers:
                optimizer.step()
        for number, (one, part) in enumerate(zip(whole, parts, strict=True)):
            states = [optimizer.state[weight] for optimizer, weight in zip(optimizers, (one, part), strict=True)]
            pairs = [(one, part), *((states[0][key], states[1][key]) for key in states[0] if key != "step")]
            found[f"{name}, {number}"] = all(
                torch.equal(distribute_tensor(a.detach(), mesh, placements).to_local(), b.detach().to_local())
                for a, b in pairs
            )
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks_that_share_a_row_compute_what_one_does(architecture: str, runs: Path) -> None:
    """Equal to the bit where a product does not depend on its number of rows, as on the machines we know."""
    for case, (value, gradient) in torch.load(runs / "differences.pt")[architecture].items():
        assert value < 2e-6, case
        assert gradient < 1e-5, case


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("copies", "plain"), ("killed", "plain"), ("layers", "plain"), ("adapters", "adapters"), ("step", "step"),
        ("nf4", "nf4"), ("kto", "kto"), ("8bit", "8bit"),
    ],
)  # fmt: skip
def test_the_curve_is_that_of_one_rank(name: str, of: str, runs: Path, jobs: dict[str, Job]) -> None:
    ours, theirs = runs / name, jobs[of].out
    assert figures(ours, ("step", "batch")) == figures(theirs, ("step", "batch"))
    for figure in ("loss", "grad_norm", "rewards/margins", "check/ref_drift", "eval/loss"):
        got, wanted = (np.array(figures(out, [figure]), float) for out in (ours, theirs))
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5, err_msg=figure)
    expected = weights(theirs)
    for key, weight in weights(ours).items():
        # AdamW moves each by up to lr a step, and where a gradient is nearly 0, its rounding decides by how much.
        assert (weight - expected[key]).square().mean().sqrt() < 1e-5, key


def test_moments_in_eight_bits_are_the_same_in_any_division(runs: Path) -> None:
    for rank in range(WORLD):
        for case, same in torch.load(runs / f"shards-{rank}.pt").items():
            assert same, (rank, case)


def test_a_checkpoint_of_several_copies_is_written_once(runs: Path, jobs: dict[str, Job]) -> None:
    four, one = (
        sum(file.stat().st_size for file in (out / "checkpoints" / f"step-{STEPS:08d}").iterdir())
        for out in (runs / "copies", jobs["plain"].out)
    )
    assert four < 1.5 * one  # more files, each with a head of its own


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_divided_is_said() -> None:
    with pytest.raises(ValueError, match=r"6 workers cannot be divided by shard_size 4 .*: give a multiple of 4"):
        TrainResources(workers=6, shard_size=4)
    with pytest.raises(ValueError, match=r"3 workers .* shard_size None and context_parallel 2: give a multiple of 2"):
        TrainResources(workers={"min": 3, "max": 8}, context_parallel=2)
    elastic = TrainResources(workers={"min": 6, "max": 18}, shard_size=3, context_parallel=2)
    assert [world for world in range(6, 19) if divides(world, elastic)] == [6, 12, 18]
    with pytest.raises(RecipeError, match=r"9 workers .*must be a multiple of 6\. In an elastic run .*be left out"):
        Mesh("cpu", 9, elastic)


def divides(world: int, resources: TrainResources) -> bool:
    try:
        check_world(world, resources)
    except RecipeError:
        return False
    return True


def test_models_whose_tokens_cannot_be_shared_are_refused(runs: Path) -> None:
    """By the number of their heads, or because only their own attention knows how."""
    heads, apart = torch.load(runs / "refusals.pt")
    assert heads == (
        "cluster.train.context_parallel is 4, and does not divide the 2 attention heads of some-llama. "
        "Set it to one of 1, 2"
    )
    assert apart.startswith("cluster.train.context_parallel is 4, but some-mamba (MambaForCausalLM) computes")
    assert apart.endswith("Set it to 1")


def refusal(config: PreTrainedConfig, name: str) -> str:
    """Of four ranks that would share the rows of such a model."""
    with pytest.raises(RecipeError) as caught:
        wrap(make(config), name).spread_tokens(Exchange(dist.group.WORLD), name)
    return str(caught.value)
