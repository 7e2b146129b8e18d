"""A reward service as OpenRLHF's --reward.remote_url asks it, with the standard library.

python configs/rewards/openrlhf_server.py &
lpo-ray train configs/quickstart.yaml task.verifier=http://127.0.0.1:5000/get_reward \
    'verifier.http={batched: true, reward: rewards, request: {query: prompt+response, prompts: prompt, labels: answer}}'
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Rewards responses that name the target."""

    def do_POST(self):
        """One group."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        targets = [str(json.loads(label)["target"]) for label in asked["labels"]]
        starts = [len(prompt) for prompt in asked["prompts"]]
        texts = [query[start:] for query, start in zip(asked["query"], starts, strict=True)]
        rewards = [float(target in text) for text, target in zip(texts, targets, strict=True)]
        body = json.dumps({"rewards": rewards, "scores": rewards, "extra_logs": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 5000), Handler).serve_forever()
