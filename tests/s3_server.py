"""A server that speaks as much of S3's protocol as s3fs needs for small objects, with one empty bucket. s3fs
finds it by the environment, in processes that are started meanwhile too.

moto is more complete; but no version of it can be installed beside s3fs without trying dozens of others.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
ABSENT = "<Error><Code>NoSuch{0}</Code><Message>The specified {1} does not exist</Message></Error>"


class Handler(BaseHTTPRequestHandler):
    """Answers from the server's `buckets`, name -> key -> bytes."""

    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        """Ends quietly when a client has gone, as killed ranks do."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Lists a bucket, or sends an object or the range that is asked for."""
        objects, key, query = self._find()
        if objects is None:
            self._absent("Bucket")
        elif not key:
            self._send(200, self._listing(objects, query.get("prefix", ""), query.get("delimiter", "")))
        elif key not in objects:
            self._absent("Key")
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self._send(206, objects[key][int(wanted[1]) : int(wanted[2]) + 1], of=objects[key])
        else:
            self._send(200, objects[key], of=objects[key])

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """Makes a bucket, or stores an object."""
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        objects, key, _ = self._find()
        if not key:
            self.server.buckets[self.path.strip("/").split("?")[0]] = {}
        elif objects is None:
            self._absent("Bucket")
            return
        else:
            objects[key] = data
            self.server.written[urlsplit(self.path).path] = time.time()
        self._send(200, b"", of=data)

    def do_POST(self) -> None:
        """Deletes the objects of a list; asks for nothing else."""
        listed = self.rfile.read(int(self.headers["Content-Length"])).decode()
        objects, _, query = self._find()
        assert objects is not None and "delete" in query, self.path
        for key in re.findall("<Key>(.*?)</Key>", listed):
            objects.pop(key, None)
        self._send(200, b"<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        """Deletes an object."""
        objects, key, _ = self._find()
        if objects is not None:
            objects.pop(key, None)
        self._send(204, b"")

    def log_message(self, *_: object) -> None:
        """Stays silent."""

    def _find(self) -> tuple[dict[str, bytes] | None, str, dict[str, str]]:
        """Returns the objects of the bucket that is asked for, the key and the query."""
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return self.server.buckets.get(bucket), key, query

    def _listing(self, objects: dict[str, bytes], prefix: str, delimiter: str) -> bytes:
        """Returns the keys that begin with `prefix`; with a delimiter behind it only what they share."""
        files, folders = [], set()
        for key in sorted(key for key in objects if key.startswith(prefix)):
            inside, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(prefix + inside + found)
            else:
                files.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size>"
                    f"<ETag>{_tag(objects[key])}</ETag></Contents>"
                )
        common = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders]
        answer = [
            "<ListBucketResult><IsTruncated>false</IsTruncated>",
            *files,
            *common,
            "</ListBucketResult>",
        ]
        return "".join(answer).encode()

    def _absent(self, what: str) -> None:
        self._send(404, ABSENT.format(what, what.lower()).encode())

    def _send(self, status: int, body: bytes, of: bytes | None = None) -> None:
        """Sends an answer, `of` an object with its tag."""
        self.send_response(status)
        if of is not None:
            self.send_header("ETag", _tag(of))
            written = self.server.written.get(urlsplit(self.path).path, 0.0)
            self.send_header("Last-Modified", formatdate(written, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def s3_bucket() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Yields the URL of an empty bucket, and all buckets of the server as name -> key -> bytes."""
    from s3fs import S3FileSystem

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.buckets, server.written = True, {BUCKET: {}}, {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
    }
    try:
        with mock.patch.dict(os.environ, found):
            S3FileSystem.clear_instance_cache()  # of another server
            yield f"s3://{BUCKET}", server.buckets
    finally:
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
        thread.join()
