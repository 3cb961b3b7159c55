"""What is in infra/ for clusters, by the tools and schemas of those who read it.

KubeRay's and Kueue's schemas come with their operators and with no package: RAYDPO_CRDS names a folder that has them.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from pipeline.recipe.load import load

INFRA = ROOT / "infra"
KUSTOMIZATIONS = sorted(path.parent for path in (INFRA / "kuberay").rglob("kustomization.yaml"))
KUBERNETES = "1.37"
SCRIPTS = [ROOT / ".ci" / "run", *sorted((INFRA / "launch").glob("*.sbatch"))]
STAGES = ("sample", "judge", "shard", "score", "train", "evaluate")


def tool(name: str, *arguments: str | Path) -> str:
    """What it prints; it comes with requirements/dev.txt. Fails with that where it finds fault."""
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def resources(folder: Path) -> list[dict[str, Any]]:
    """Of a kustomization, as `kubectl apply -k` sends them."""
    return list(yaml.safe_load_all(tool("kubectl", "kustomize", folder)))


def ray_job(folder: Path) -> dict[str, Any]:
    (job,) = [each for each in resources(folder) if each["kind"] == "RayJob"]
    return job["spec"]


def groups(folder: Path) -> list[dict[str, Any]]:
    """The head's and the workers'."""
    cluster = ray_job(folder)["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def name_of(path: Path) -> str:
    return path.relative_to(INFRA if INFRA in path.parents else ROOT).as_posix()


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_pass_shellcheck(path: Path) -> None:
    tool("shellcheck", path)


@pytest.mark.parametrize("path", sorted(INFRA.glob("docker/*.Dockerfile")), ids=name_of)
def test_images_pass_their_linter_and_run_as_nobody_special(path: Path) -> None:
    tool("hadolint", "--failure-threshold", "style", path)
    users = re.findall(r"^USER (.*)$", path.read_text(), flags=re.MULTILINE)
    assert users[-1:] == ["10001"]  # a number: Kubernetes cannot tell of a name whether it is root's
    for copied in re.findall(r"^COPY (infra/\S+)", path.read_text(), flags=re.MULTILINE):
        assert (ROOT / copied).exists()


def pins(path: Path) -> dict[str, str]:
    """Normalised name -> version."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    found = [re.split(r"(?:\[.*\])?==", line) for line in lines if line]
    assert all(len(each) == 2 for each in found), "each line of a lock is NAME==VERSION"
    return {re.sub(r"[-_.]+", "-", name).lower(): pinned for name, pinned in found}


@pytest.mark.parametrize("name", ["cpu.txt", "dev.txt"])
def test_a_lock_is_what_is_installed(name: str) -> None:
    locked = pins(INFRA / "requirements" / name)
    assert {name: version(name) for name in locked} == locked


def test_nodes_with_gpus_have_the_versions_of_the_cpu_lock() -> None:
    cpu, gpu = pins(INFRA / "requirements/cpu.txt"), pins(INFRA / "requirements/gpu.txt")
    assert gpu == {name: cpu[name] for name in gpu}


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=name_of)
def test_pods_are_as_kubernetes_wants_them(folder: Path) -> None:
    for group in groups(folder):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)
        pod = group["template"]["spec"]
        volumes = {each["name"] for each in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert {each["name"] for each in container["volumeMounts"]} == volumes
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert "value" not in [key for each in container["env"] if "TOKEN" in each["name"] for key in each]


def structural(schema: Any) -> Any:
    """A CRD's schema as Kubernetes applies it to what people write: fields that it does not know are refused."""
    if isinstance(schema, list):
        return [structural(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: structural(each) for key, each in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    return made


@cache
def published() -> dict[tuple[str, str], Any]:
    """(apiVersion, kind) -> schema, of the folder RAYDPO_CRDS."""
    found = {}
    for path in Path(os.environ["RAYDPO_CRDS"]).rglob("*.yaml"):
        for crd in yaml.load_all(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                for each in crd["spec"]["versions"]:
                    name = f"{crd['spec']['group']}/{each['name']}", crd["spec"]["names"]["kind"]
                    schema = structural(each["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = {"type": "object"}
                    found[name] = schema
    return found


@pytest.mark.skipif("RAYDPO_CRDS" not in os.environ, reason="RAYDPO_CRDS names no folder of KubeRay's and Kueue's CRDs")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=name_of)
def test_resources_pass_the_published_schemas(folder: Path) -> None:
    for each in resources(folder):
        jsonschema.validate(each, published()[each["apiVersion"], each["kind"]])


def jobs() -> Iterator[tuple[Path, dict[str, Any], list[str]]]:
    """(folder, its RayJob, the words of its entrypoint with the job's environment filled in)."""
    for folder in KUSTOMIZATIONS:
        spec = ray_job(folder)
        environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
        words = spec["entrypoint"].replace('"', "").split()
        yield folder, spec, [environment.get(word.removeprefix("$"), word) for word in words]


def test_ray_jobs_start_what_there_is() -> None:
    """A recipe and a cluster file that load; each stage once by itself; the Ray of the lock; GPUs enough for it."""
    alone = []
    for folder, spec, words in jobs():
        assert words[:4] == ["python3", "-m", "pipeline", "run"]
        recipe, cluster = load(ROOT / words[4], ROOT / words[6], [])
        assert spec["rayClusterSpec"]["rayVersion"] == pins(INFRA / "requirements/cpu.txt")["ray"]
        alone += words[8:]
        gpus = sum(
            group["maxReplicas"]
            * int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
            for group in groups(folder)[1:]
        )
        stages = words[8:] or [name for name in STAGES if getattr(recipe, name)]
        for stage in stages:
            asked = getattr(cluster, stage)
            if stage != "shard":
                each, number = (
                    (asked.gpus_per_worker, asked.most_workers)
                    if stage == "train"
                    else (asked.gpus_per_actor, asked.actors)
                )
                assert each * number * (2 if stage == "evaluate" else 1) <= gpus, f"{name_of(folder)}: {stage}"
    assert sorted(alone) == sorted(STAGES)


def test_a_queue_holds_the_whole_job() -> None:
    """Kueue admits what fits its quota as a whole, and never what does not."""
    folder = INFRA / "kuberay/kueue"
    by_kind = {each["kind"]: each for each in resources(folder)}
    queue = by_kind["LocalQueue"]
    assert by_kind["RayJob"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert queue["spec"]["clusterQueue"] == by_kind["ClusterQueue"]["metadata"]["name"]
    (group,) = by_kind["ClusterQueue"]["spec"]["resourceGroups"]
    quota = {each["name"]: each["nominalQuota"] for each in group["flavors"][0]["resources"]}
    asked: dict[str, int] = {}
    for each in groups(folder):
        for name, amount in each["template"]["spec"]["containers"][0]["resources"]["requests"].items():
            asked[name] = asked.get(name, 0) + each.get("replicas", 1) * int(amount.removesuffix("Gi"))
    assert all(amount <= int(quota[name].removesuffix("Gi")) for name, amount in asked.items())


def test_the_launchers_file_passes_rays_schema() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((INFRA / "launch/aws.yaml").read_text()), schema)


def test_the_tables_of_scale_are_what_its_script_prints() -> None:
    printed = subprocess.run([sys.executable, INFRA / "scale.py"], capture_output=True, text=True, check=True).stdout
    tables = printed.split("\n\n")
    assert len(tables) == 3
    document = (INFRA / "SCALE.md").read_text()
    for table in tables:
        assert table.strip() in document, "python infra/scale.py prints another table: put it there"
