"""Places of the network on loopback, for tests of remote stores: an S3 server and a plain web server of a folder."""

import contextlib
import functools
import http.server
import re
import threading


class Folder(http.server.SimpleHTTPRequestHandler):
    """Serves files with byte ranges, as every real web server does; tells what it was asked for."""

    asked: list[str]
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.asked.append(self.path)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        try:
            with open(self.translate_path(self.path), "rb") as stream:
                content = stream.read()
        except OSError:
            self.send_error(404)
            return
        whole = len(content)
        if wanted:
            first = int(wanted[1] or max(0, whole - int(wanted[2])))  # "-n" asks for the last n bytes
            last = int(wanted[2]) if wanted[1] and wanted[2] else whole - 1
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{whole}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        """Tests are quiet."""


@contextlib.contextmanager
def folder_server(folder):
    """Yields (the URL of a folder, the list of paths asked for so far)."""
    asked: list[str] = []
    handler = type("Handler", (Folder,), {"asked": asked, "protocol_version": "HTTP/1.1"})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
