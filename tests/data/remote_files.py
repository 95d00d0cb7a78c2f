"""A web server that serves ranges of a folder's files, counts what it is asked for, and can be told to fail or to stay away from ranges."""

import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves `folder`; `asked` counts requests by (method, file name), `failures` is how many of the next GETs answer 503."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.failures, self.ranges, self.bytes_sent = folder, Counter(), 0, True, 0

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    """Answers ranges as object storage does."""

    def __init__(self, request, address, server) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        """Sends a file, or the range that is asked for."""
        path = Path(self.translate_path(self.path))
        self.server.asked["GET", path.name] += 1
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file() or not wanted or not self.server.ranges:
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        self.server.bytes_sent += last - first + 1

    def log_message(self, *_) -> None:
        """Stays silent."""


@contextmanager
def serving(folder: Path):
    """Serves a folder while the context lasts."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
