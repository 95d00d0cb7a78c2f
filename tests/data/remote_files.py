"""A web server that serves ranges of a folder's files, counts what it is asked for, and can be told to fail
in many ways.
"""

import re
import socket
import struct
import threading
from collections import Counter, deque
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves `folder`; `asked` counts requests by (method, file name), `faults` is what goes wrong with the
    next GETs, in turn:

    a status such as 503; 'stall' (no answer) and 'stall in body' (half of it), until the server ends; 'reset'
    (the connection is torn down); 'cut' (half of the body that was announced, then the end); 'short' (half of
    the range that was asked for, as if that were all).
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.faults, self.ranges, self.bytes_sent = (
            folder,
            Counter(),
            deque(),
            True,
            0,
        )
        self.ending = threading.Event()
        self.counting = threading.Lock()

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
        with self.server.counting:
            self.server.asked["GET", path.name] += 1
        fault = self.server.faults.popleft() if self.server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault == "stall":
            self.server.ending.wait()
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file() or not wanted or not self.server.ranges:
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        half = first + (last - first) // 2
        last = half if fault == "short" else last
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        sent = half if fault in ("cut", "stall in body") else last
        with self.server.counting:  # before they are sent: whoever has them may ask for the number at once
            self.server.bytes_sent += sent - first + 1
        self.wfile.write(data[first : sent + 1])
        if fault == "stall in body":
            self.wfile.flush()
            self.server.ending.wait()

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
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
