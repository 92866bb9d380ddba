"""Load on a server: throughput with one client and with many, every image checked against its seed, memory, and a
shutdown in the middle of it all.

The server is started here. Images are drawn beforehand as `resgen generate image` draws them; an answer is right only
if its file is that one, byte for byte. One client and many take turns, so that other work on the machine falls on both.

    python benchmarks/server_load.py --model fashion-mnist-small --requests 1000 --clients 32 --steps 8
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist-small")
    parser.add_argument("--requests", type=int, default=1000, help="of the many clients, over all rounds")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4, help="turns of one client and of many")
    parser.add_argument("--alone", type=int, default=12, help="requests of the one client in each round")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--distinct", type=int, default=100, help="different images, known beforehand")
    parser.add_argument("--before-signal-s", type=float, default=0.5, help="from the last requests to SIGTERM")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    expected = known(options)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "import sys; from resgen.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    command += ["serve", "--model", options.model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            address = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+", line)))
            report = asyncio.run(measure(address, server, expected, options))
        finally:
            server.kill()
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def known(options: argparse.Namespace) -> list[str]:
    """SHA-256 of the file of each seed's image, drawn without a server."""
    from resgen import ImagePipeline

    pipe = ImagePipeline.from_pretrained(options.model)
    hashes = []
    for seed in range(options.distinct):
        buffer = io.BytesIO()
        pipe([class_of(seed, pipe.num_classes)], seed=seed, num_steps=options.steps).images[0].save(buffer, "PNG")
        hashes.append(hashlib.sha256(buffer.getvalue()).hexdigest())
    return hashes


def class_of(seed: int, num_classes: int = 10) -> int:
    return seed % num_classes


class Load:
    """Requests of some clients, and what came back."""

    def __init__(self, client: httpx.AsyncClient, expected: list[str], options: argparse.Namespace) -> None:
        self.client, self.expected, self.options = client, expected, options
        self.right, self.wrong, self.statuses = 0, 0, dict[int, int]()
        self.latencies: list[float] = []

    async def one(self, number: int) -> None:
        seed = number % len(self.expected)
        body = {"class_ids": [class_of(seed)], "seed": seed, "num_steps": self.options.steps}
        began = time.perf_counter()
        answer = await self.client.post("/v1/images", json=body)
        self.latencies.append(time.perf_counter() - began)
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        if answer.status_code == 200:
            digest = hashlib.sha256(base64.b64decode(answer.json()["images"][0]["png"])).hexdigest()
            self.right += digest == self.expected[seed]
            self.wrong += digest != self.expected[seed]

    async def run(self, numbers: range, clients: int) -> float:
        """Requests per second of `clients` that each ask again as soon as they have their answer."""
        left = iter(numbers)

        async def ask() -> None:
            for number in left:
                await self.one(number)

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return len(numbers) / (time.perf_counter() - began)


async def measure(
    address: str, server: subprocess.Popen[str], expected: list[str], options: argparse.Namespace
) -> dict[str, object]:
    draining = asyncio.create_task(asyncio.to_thread(drain, server))
    limits = httpx.Limits(max_connections=2 * options.clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        alone, many = Load(client, expected, options), Load(client, expected, options)
        await Load(client, expected, options).run(range(2 * options.clients), options.clients)  # warm
        rates: list[tuple[float, float]] = []
        memory = []
        part = options.requests // options.rounds
        for turn in range(options.rounds):
            one = await alone.run(range(turn * options.alone, (turn + 1) * options.alone), 1)
            several = await many.run(range(turn * part, (turn + 1) * part), options.clients)
            rates.append((one, several))
            memory.append(resident_mb(server.pid))
        metrics = (await client.get("/metrics")).text
        ending = Load(client, expected, options)
        exit_code = await shut_down(ending, server, options)
    await draining
    latencies = sorted(many.latencies)
    batches, samples = (number(metrics, f"resgen_batch_size_{what}") for what in ("count", "sum"))
    ratios = sorted(several / one for one, several in rates)
    return {
        "requests": len(many.latencies),
        "clients": options.clients,
        "num_steps": options.steps,
        "right": many.right + alone.right,
        "wrong": many.wrong + alone.wrong,
        "statuses": many.statuses,
        "rounds_requests_per_second": [[round(rate, 2) for rate in pair] for pair in rates],
        "ratio_median": round(ratios[len(ratios) // 2], 2),
        "ratio_least": round(ratios[0], 2),
        "latency_s": {"p50": quantile(latencies, 0.5), "p95": quantile(latencies, 0.95), "most": latencies[-1]},
        "latency_alone_s": quantile(sorted(alone.latencies), 0.5),
        "mean_batch": round(samples / batches, 1),
        "resident_mb_by_round": memory,
        "shutdown": {"exit_code": exit_code, "answers": ending.statuses, "right": ending.right, "wrong": ending.wrong},
    }


async def shut_down(load: Load, server: subprocess.Popen[str], options: argparse.Namespace) -> int:
    """SIGTERM while all clients wait for their answers: those are to come, and the process is to end by itself."""
    waiting = [asyncio.create_task(load.one(number)) for number in range(options.clients)]
    await asyncio.sleep(options.before_signal_s)
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*waiting)
    return await asyncio.to_thread(server.wait, 60)


def drain(server: subprocess.Popen[str]) -> None:
    """Read the server's log, so that its pipe never fills."""
    assert server.stderr is not None
    for _ in server.stderr:
        pass


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def number(metrics: str, name: str) -> float:
    match = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    assert match is not None
    return float(match[1])


def quantile(values: list[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(share * len(values)))], 3)


if __name__ == "__main__":
    main()
