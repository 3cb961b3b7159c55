"""A bucket on an S3 server of this machine, and the environment of who uses it."""

import boto3
import pytest
from s3fs import S3FileSystem

BUCKET = "preferences"


def make_bucket(monkeypatch: pytest.MonkeyPatch, port: int, secret: str, **more: str) -> dict[str, str]:
    """The environment, which is this process's from now on."""
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": secret, **more}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # each server has a port of its own, and fsspec remembers the first
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return environment
