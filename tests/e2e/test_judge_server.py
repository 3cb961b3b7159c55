"""A judge behind vLLM's own OpenAI-compatible server."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from stages.judge.config import JudgeResources, LlmJudge
from stages.judge.endpoint import Endpoint
from stages.judge.judges import Answer, Question


def test_vllm_is_asked_and_a_model_that_says_nothing_sensible_labels_nothing(tiny_model: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model)]
    command += ["--served-model-name", "judge", "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager", "--gpu-memory-utilization", "0.3", "--api-key", "abc"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1", "JUDGE_KEY": "abc"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 180
        while not _answers(port):
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.2)
        heard: dict[Question, Answer] = {}
        questions: list[Question] = [(json.dumps("Well?"), f"answer {number}") for number in range(4)]
        os.environ["JUDGE_KEY"] = "abc"
        for key, fault in (("JUDGE_KEY", "garbage: no [[number]]"), (None, "status 401")):
            config = LlmJudge(
                name="llm", endpoint=f"http://127.0.0.1:{port}/v1", model="judge", mode="rubric", key_env=key,
                question="{prompt} {completion}", answer_tokens=8,
            )  # fmt: skip
            Endpoint(config, JudgeResources()).ask(questions, heard.__setitem__)
            assert len(heard) == 4
            assert all(answer.value is None for answer in heard.values())
            assert all(answer.fault is not None and answer.fault.startswith(fault) for answer in heard.values())
    finally:
        os.environ.pop("JUDGE_KEY", None)
        server.terminate()
        server.wait(60)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False
