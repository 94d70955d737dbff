"""A stand-in on this machine for the hub that public weights come from."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Serves files under the addresses of huggingface.co while entered.

    Attributes:
        files: the content of each repository's model.safetensors; of OWNER/NAME/FILE for other files.
        address: what HF_ENDPOINT has to be.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}

    def __enter__(self):
        files = self.files

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.wfile.write(self.answer())

            def answer(self):
                name = self.path[1:].replace("/resolve/main/", "/")
                data = files.get(name.removesuffix("/model.safetensors"))
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.send_header("ETag", hashlib.sha256(data or b"").hexdigest())
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                return data or b""

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
