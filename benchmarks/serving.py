"""Load a server with many clients over loopback, with and without batching: throughput, latency, and lost answers.

    python benchmarks/serving.py runs/quickstart/vqa-pretrained --clients 64 --requests 1000

Every request has its own question and image, and its answer is compared with that of the pipeline called directly.
"""

import argparse
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.client import HTTPConnection
from typing import Any

from PIL import Image

from evle.pipelines import VQAPipeline


def requests(count: int) -> list[tuple[bytes, str]]:
    """Images of one colour and questions, no two alike."""
    result = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(buffer, "PNG")
        result.append((buffer.getvalue(), f"what colour is ball {number}?"))
    return result


class Serving:
    """`evle serve` in a process of its own, at a free port."""

    def __init__(self, model: str, *options: str):
        command = [sys.executable, "-m", "evle", "serve", f"vqa={model}", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if listening := re.search(r"listening at .* port (\d+)", line):
                self.port = int(listening[1])
                break
        else:
            raise SystemExit("".join(self.lines))
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def load(port: int, asked: list[tuple[bytes, str]], clients: int) -> tuple[list[Any], list[float], float]:
    """The answer (or status) and the seconds of each request, and the seconds of all, by `clients` threads."""
    answers: list[Any] = [None] * len(asked)
    seconds = [0.0] * len(asked)
    bodies = [
        json.dumps({"image": base64.b64encode(image).decode(), "question": question, "top_k": 3})
        for image, question in asked
    ]
    rest = iter(range(len(asked)))
    lock = threading.Lock()

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                index = next(rest, None)
            if index is None:
                connection.close()
                return
            started = time.perf_counter()
            connection.request("POST", "/v1/ask", bodies[index], {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = json.loads(response.read())
            seconds[index] = time.perf_counter() - started
            answers[index] = body["results"][0] if response.status == 200 else response.status

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, seconds, time.perf_counter() - started


def check(answers: list[Any], asked: list[tuple[bytes, str]], expected: list[Any]) -> Counter[str]:
    """How many answers are right, lost (no answer), refused (a status), swapped or wrong."""
    counts: Counter[str] = Counter()
    for answer, (_, question), right in zip(answers, asked, expected, strict=True):
        if answer is None:
            counts["lost"] += 1
        elif isinstance(answer, int):
            counts["refused"] += 1
        elif answer["question"] != question:
            counts["swapped"] += 1
        else:
            close = all(
                abs(one["score"] - other["score"]) < 1e-4
                for one, other in zip(answer["answers"], right["answers"], strict=True)
            )
            counts["right" if close else "wrong"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run or model folder of a VQA model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asked = requests(arguments.requests)
    direct = VQAPipeline(arguments.model, batch_size=1)
    expected = [direct([image], [question], top_k=3)[0] for image, question in asked]
    rates = {}
    for name, options in (("without batching", ("--batch-rows", "1", "--wait-ms", "0")), ("with batching", ())):
        serving = Serving(arguments.model, *options)
        load(serving.port, asked[: arguments.clients], arguments.clients)  # warm up
        answers, seconds, whole = load(serving.port, asked, arguments.clients)
        counts = check(answers, asked, expected)
        exit_code = serving.stop()
        rates[name] = len(asked) / whole
        p50, p95, p99 = (1000 * sorted(seconds)[int(len(seconds) * share)] for share in (0.5, 0.95, 0.99))
        print(
            f"{name}: {rates[name]:.0f} requests/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, "
            f"{dict(counts)}, exit code {exit_code}",
            flush=True,
        )
    print(f"throughput with batching / without: {rates['with batching'] / rates['without batching']:.2f}")


if __name__ == "__main__":
    main()
