"""A small server that speaks OpenAI's API, as a process of its own (`Server`). What the question says is what it does.

It answers with the last question's words, a chunk each. `slow` waits between words, `fall` closes the connection after two, `hang` keeps it
open and says no more, `mute` says nothing at all, `busy` is refused twice with 429 first, `moved` is sent elsewhere, `refuse` is refused, `empty` is a stream of nothing, `fault` an error inside the server, `recall` tells the body
of the last question before it, and `stopped` how many readers went away.
"""

import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-of-the-upstream"
seen: dict = {"body": None, "gone": 0, "busy": 0}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.allowed():
            self.reply(200, {"object": "list", "data": [{"id": "words", "max_model_len": 4096}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        if self.path == "/v1/embeddings":
            self.reply(200, {"data": [{"embedding": [3.0, 4.0]}], "usage": {"prompt_tokens": 2}})
            return
        said = body["messages"][-1]["content"]
        if "refuse" in said:
            self.reply(400, {"error": {"message": "max_tokens is too large", "type": "invalid_request_error"}})
            return
        if "mute" in said:
            seen["body"] = body
            time.sleep(3600)
        if "moved" in said:
            self.reply(307, {}, {"Location": "/elsewhere"})
            return
        if "fault" in said:
            self.reply(500, {"error": {"message": "it failed inside"}})
            return
        if "busy" in said and seen["busy"] < 2:
            seen["busy"] += 1
            self.reply(429, {"error": {"message": "come back"}}, {"Retry-After": "0.1"})
            return
        text = {"recall": json.dumps(seen["body"]), "stopped": str(seen["gone"])}.get(said, said)
        seen["body"] = body
        try:
            self.stream(text, body)
        except OSError:
            seen["gone"] += 1

    def allowed(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self.reply(401, {"error": {"message": "wrong key"}})
            return False
        return True

    def reply(self, status, body, headers=()):
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, text, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if "empty" in text:
            return
        words = [f"{word} " for word in text.split(" ")][: body["max_tokens"]]
        for number, word in enumerate(words):
            if "slow" in text:
                time.sleep(0.1)
            if "fall" in text and number == 2:
                return
            if "hang" in text and number == 2:
                time.sleep(3600)
            logprobs = {
                "content": [
                    {"token": word, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": [{"token": "x", "logprob": -2, "bytes": [120]}]}
                ]
            }
            self.event(
                {"choices": [{"index": 0, "delta": {"content": word}, "logprobs": logprobs if body.get("logprobs") else None, "finish_reason": None}]}
            )
        reason = "length" if len(words) < len(text.split(" ")) else "stop"
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": 3}}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data):
        self.wfile.write(b": a sign of life\n\ndata: " + json.dumps(data).encode() + b"\n\n")


class Server:
    """The process, on one port, started and killed as often as a test likes."""

    def __init__(self) -> None:
        from tests.ports import free_port  # not in the process that serves, which is this file alone

        self.port = free_port()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, str(self.port)])
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise TimeoutError("the server does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
