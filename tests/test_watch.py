"""`raydpo watch`: a real server on a real socket, before a run, while it goes on, and after it."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT, Project, make_project
from page import Page
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.report import runs_of
from pipeline.view import live
from pipeline.view.live import Live, server
from stages.artifacts import PolicyCheckpoint

Get = Callable[..., tuple[int, str]]


@contextmanager
def served(project: Project, *set_: str) -> Iterator[Get]:
    made = server(Live(runs_of([project.recipe], project.cluster, list(set_))), "127.0.0.1", 0)
    thread = Thread(target=made.serve_forever)
    thread.start()

    def get(path: str = "/", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", made.server_address[1], timeout=30)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    try:
        yield get
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def test_it_follows_a_run_from_before_it_to_its_end(
    tmp_path: Path, tiny_model: Path, trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    monkeypatch.setattr(live, "_SHARE", 0)
    project = make_project(tmp_path, tiny_model)
    metrics = PolicyCheckpoint(trained.plan()["train"].folder).metrics
    step = project.plan()["train"]
    with served(project) as get:
        status, text = get()
        assert status == 200
        assert "train: miss, never made" in Page(text).text
        before = get("/version")[1]
        assert f'data-live="{before}"' in text
        assert get("/version")[1] == before  # nothing has changed

        step.folder.mkdir(parents=True)
        log = step.folder / "metrics.jsonl"
        seen = []
        for line in metrics[:4]:
            with log.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            version = get("/version")[1]
            assert version != before
            before = version
            shown = Page(get()[1])
            assert f"not finished; step {line['step']} so far" in shown.text
            seen = shown.tables[f"train-{step.fingerprint[:8]}-steps"].column("step")
        assert seen == ["0", "1", "2", "3"]

        for name in ("shard", "score", "train"):  # by another process
            (made,) = (trained.folder / "runs" / name).glob(trained.plan()[name].folder.name)
            shutil.copytree(made, project.plan()[name].folder, dirs_exist_ok=True)
        assert get("/version")[1] != before
        shown = Page(get()[1])
        assert "not finished" not in shown.text
        assert shown.tables["glance"].column("state") == ["hit"] * 3


def test_a_page_that_was_just_drawn_is_not_drawn_again(trained: Project) -> None:
    """However often it is asked for: watching costs a tenth of a core at most."""
    other = "train.loss.beta=0.7"
    (run,) = runs_of([trained.recipe], trained.cluster, [other])
    draft = run.store.draft("train", run.steps[-1].fingerprint)
    with served(trained, other) as get:
        text, version = get()[1], get("/version")[1]
        draft.mkdir()
        try:
            assert get("/version")[1] == version
            assert get()[1] == text
        finally:
            draft.rmdir()


def test_it_answers_its_own_machine_alone(trained: Project) -> None:
    with served(trained) as get:
        for name in ("127.0.0.1:1", "localhost:8899", "localhost", "[::1]:8899"):
            assert get("/version", Host=name)[0] == 200
        for name in ("evil.example", "evil.example:8899", "127.0.0.1.evil.example"):
            assert get("/version", Host=name)[0] == 403
        assert get("/../etc/passwd")[0] == 404
        assert get("/metrics.jsonl")[0] == 404
        assert "connect-src 'self'" in get()[1]


def test_a_port_that_is_taken_is_said(trained: Project) -> None:
    taken = server(Live([]), "127.0.0.1", 0)
    port = taken.server_address[1]
    arguments = ["watch", trained.recipe, "--cluster", trained.cluster, "--port", port]
    done = CliRunner().invoke(app, [*map(str, arguments)])
    taken.server_close()
    assert done.exit_code == 2
    assert f"nothing can be served at 127.0.0.1:{port}: Address already in use" in done.output
    assert "--port 0 takes a free one" in done.output


def test_ctrl_c_ends_it(trained: Project) -> None:
    command = [sys.executable, "-m", "pipeline", "watch", trained.recipe, "--cluster", trained.cluster, "--port", "0"]
    watch = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    assert watch.stdout is not None
    said = watch.stdout.readline()
    port = re.search(r"http://127\.0\.0\.1:(\d+)/  Ctrl-C ends it", said)
    assert port, said
    connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=30)
    connection.request("GET", "/")
    assert b"<h1>recipe</h1>" in connection.getresponse().read()
    connection.close()
    began = time.monotonic()
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=10)
    assert (watch.returncode, out, err) == (0, "ended\n", "")
    assert time.monotonic() - began < 5
