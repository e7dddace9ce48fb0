"""Runs `slm-edge serve` as a process of its own, for real clients over real sockets.

with serving(pack, "--parallel", "4") as server:
    server.post("/v1/chat/completions", {...})
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

# As Qwen2.5's template writes tools, calls and results, shortened
QWEN = """{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' else '' }}
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant
{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/small"}, "unit": {"enum": ["a", "b"]}},
    "required": ["n", "unit"],
    "additionalProperties": False,
    "$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    def events(self):
        """The documents of server-sent events; "[DONE]" as it is."""
        rows = [row for row in self.body.decode().split("\n\n") if row and not row.startswith(":")]
        datas = [row.split("data: ", 1)[1] for row in rows]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]


@dataclass
class Served:
    process: subprocess.Popen
    said: dict
    key: str | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def port(self):
        return int(self.said["addresses"][0].rpartition(":")[2])

    @property
    def url(self):
        return self.said["addresses"][0]

    def request(self, method, path, body=None, headers=None, timeout_s=60):
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        sent = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent["content-type"] = "application/json"
        try:
            # A server that refuses a body need not read it.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, path, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body, **more):
        return self.request("POST", path, body, **more)

    def chat(self, text="Hello", model="base", **fields):
        more = {"max_tokens": 8, **fields}
        return self.post(
            "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}], **more}
        )

    def raw(self, data, timeout_s=5):
        """What comes back for bytes, up to the end of the connection or for so long."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as one:
            with contextlib.suppress(OSError):
                one.sendall(data)
            found = b""
            with contextlib.suppress(OSError):
                while part := one.recv(65536):
                    found += part
            return found

    def end(self, timeout_s=30):
        """SIGTERM; the exit code and all of stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, err


@contextlib.contextmanager
def serving(pack, *options, key=None, env=None):
    """A server on a port of its own, ended with SIGTERM behind the block."""
    words = ["serve", str(pack), "--port", "0", "--json", "--threads", "1", *map(str, options)]
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_edge.edge", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        cwd=Path(pack).parent,
    )
    try:
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"no server: exit {process.wait(30)}\n{text}\n{process.stderr.read()}")
            text += line
        yield Served(process, json.loads(text), key)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
