"""A hub on this machine: so much of its protocol as a commit of a model takes, files of weights by LFS."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """`files`: what lies in a repository, by "org/name/path"."""

    def __init__(self, token: str):
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        blobs: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Authorization") != f"Bearer {token}":
                    return self.reply(401, {"error": "Invalid username or password."})
                path = self.path.partition("?")[0]
                if path == "/api/repos/create":
                    hub.made.append(asked := json.loads(body))
                    name = f"{asked['organization']}/{asked['name']}"
                    return self.reply(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
                if path == "/api/validate-yaml":
                    return self.reply(200, {"errors": [], "warnings": []})
                if path.endswith("/preupload/main"):
                    modes = [
                        {
                            "path": name,
                            "uploadMode": "lfs" if name.endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for name in (each["path"] for each in json.loads(body)["files"])
                    ]
                    return self.reply(200, {"files": modes})
                if path.endswith("/info/lfs/objects/batch"):
                    wanted = json.loads(body)["objects"]
                    for each in wanted:
                        each["actions"] = {"upload": {"href": f"{hub.url}/blobs/{each['oid']}"}}
                    return self.reply(200, {"transfer": "basic", "objects": wanted})
                assert path.endswith("/commit/main"), path
                repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
                for line in body.splitlines():
                    told = json.loads(line)
                    value = told["value"]
                    if told["key"] == "file":
                        hub.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])
                    elif told["key"] == "lfsFile":
                        hub.files[f"{repo}/{value['path']}"] = blobs[value["oid"]]
                return self.reply(200, {"commitUrl": f"{hub.url}/{repo}/commit/0", "commitOid": "0" * 40})

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                blobs[hashlib.sha256(content).hexdigest()] = content
                self.reply(200, {})

            def reply(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, daemon=True).start()
