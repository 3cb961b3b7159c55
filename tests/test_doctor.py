"""Whether a machine will do."""

import json
import os
import re
import socket
import sysconfig
import tomllib
from pathlib import Path

from conftest import ROOT
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.doctor.machine import is_free, machine, ports
from pipeline.doctor.packages import clashes, locked, needed
from pipeline.recipe.sections import Cluster

ENOUGH = [
    re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]


def test_this_machine_will_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json", "--set", f"cluster.root={tmp_path}"])
    found = json.loads(done.stdout)
    faults = [each for each in found if each["level"] == "fault"]
    assert done.exit_code == bool(faults)
    assert all(each["remedy"] for each in found if each["level"] != "ok")
    assert {each["about"] for each in found} >= {
        "python",
        "lock",
        "names",
        "vllm",
        "GPUs",
        "shared memory",
        "disk",
        "ports",
    }
    (vllm,) = [each for each in found if each["about"] == "vllm"]
    assert vllm["level"] == "ok"
    assert "log-probs of " in vllm["told"]


def test_other_packages_of_our_names_are_found(tmp_path: Path) -> None:
    assert [each.level for each in clashes([str(ROOT), sysconfig.get_paths()["purelib"]], ROOT)] == ["ok", "ok"]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    _, after = clashes([str(ROOT), str(tmp_path)], ROOT)
    assert (after.level, after.about) == ("warning", "names")
    assert str(tmp_path / "stages") in after.told
    alone, before = clashes([str(tmp_path), str(ROOT)], ROOT)
    assert (alone.level, before.level) == ("ok", "fault")
    assert f"`import stages` finds {tmp_path / 'stages'}" in before.told
    assert "Uninstall what brought it" in before.remedy


def test_packages_beside_pyproject_and_the_lock() -> None:
    (ok,) = needed(ROOT, dict.fromkeys(ENOUGH, "9999.0"))
    assert ok.level == "ok"
    old, none = needed(ROOT, dict.fromkeys(ENOUGH, "9999.0") | {"ray": "1.2", "torch": "0"})
    assert old.told.startswith("ray is 1.2, and 2.60 is the least")
    assert none.told.startswith("torch is 0, and 2.13 is the least")
    (other,) = locked(ROOT, {"ray": "2.61.0"})
    assert other.level == "warning"
    assert "accelerate none (locked: " in other.told
    assert "pip install --no-deps -r infra/requirements/cpu.txt" in other.remedy


def test_a_machine_that_is_too_small_is_a_fault(tmp_path: Path) -> None:
    found = {each.about: each for each in machine(Cluster(root=str(tmp_path), work=str(tmp_path)))}
    assert found["cluster"].level == "ok"
    assert found["store"].level == "ok"
    cluster = Cluster.model_validate({"root": "/proc/raydpo", "train": {"workers": 999}})
    found = {each.about: each for each in machine(cluster)}
    assert found["cluster"].level == "fault"
    assert "cluster.train.workers is 999" in found["cluster"].told
    assert found["cluster"].remedy == f"Lower it: --set cluster.train.workers={os.cpu_count()}"
    assert found["store"].level == "fault"
    assert found["store"].remedy


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        (found,) = ports({port: "Ray's dashboard"})
        assert found.about == "ports"
        assert found.level == "warning"
        assert f"{port} (Ray's dashboard)" in found.told
    assert is_free(port)
