"""A server that speaks S3's protocol, with an empty bucket; s3fs and boto3 find it by the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

BUCKET = "bucket"


@contextmanager
def s3_bucket() -> Iterator[str]:
    """Yields the URL of an empty bucket. Processes that are started meanwhile reach the server too."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    found = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    try:
        with mock.patch.dict(os.environ, found):
            S3FileSystem.clear_instance_cache()  # of another server
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}"
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()


def buckets() -> list[str]:
    """Returns the names of the server's buckets."""
    import boto3

    return [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]
