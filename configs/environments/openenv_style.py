"""An environment behind a server, as OpenEnv's are: what it is sent and what it says, as text.

python configs/environments/openenv_style.py &
lpo-ray train configs/countdown_turns.yaml task.environment=configs/environments/openenv_style.py:Echo
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lpo_ray.agents.environments.openenv import OpenEnv


class Echo(OpenEnv):
    """ws://HOST:8000/ws is the url of a server that OpenEnv itself runs."""

    url = "http://127.0.0.1:8017"

    def action(self, text):
        return {"message": text}

    def said(self, observation):
        return f"={observation['length']}\n"


class Server(BaseHTTPRequestHandler):
    """A server to try it with: two turns, the shorter the better."""

    turns: dict[str, int] = {}

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        episode, length = asked["episode_id"], len(asked.get("action", {}).get("message", ""))
        self.turns[episode] = self.turns.get(episode, 0) + 1 if self.path == "/step" else 0
        answer = {"observation": {"length": length}, "reward": float(length < 10), "done": self.turns[episode] == 2}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8017), Server).serve_forever()
