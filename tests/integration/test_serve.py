"""`resgen serve` as a process: a bundled model, the images of the command line, a signal in the middle of work."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from processes import TIMEOUT_S  # noqa: E402
from resgen.cli.main import main  # noqa: E402

COMMAND = Path(__file__).with_name("command.py")
MODEL = "fashion-mnist-small"


class Server:
    """The command in a process of its own."""

    def __init__(self, *options: str) -> None:
        source = str(Path(__file__).resolve().parents[2] / "src")
        environment = {**os.environ, "PYTHONPATH": source, "RESGEN_API_KEY": "the-key-of-this-test"}
        command = [sys.executable, str(COMMAND), "serve", "--model", MODEL, "--port", "0", *options]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.address = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            assert self.log[0].startswith("loading; "), self.log
            if match := re.search(r"http://\S+", line):
                self.address = match[0]
                break
        self.reading = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.reading.start()
        headers = {"Authorization": "Bearer the-key-of-this-test"}
        self.client = httpx.Client(base_url=self.address, headers=headers, timeout=TIMEOUT_S)

    def ask(self, **body) -> httpx.Response:
        return self.client.post("/v1/images", json=body)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.reading.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server("--max-batch", "4", "--max-samples", "4", "--threads", "1")
    try:
        yield running
    finally:
        running.close()


def test_pictures_of_the_command_and_an_orderly_end(server: Server, tmp_path: Path) -> None:
    assert server.address, "".join(server.log)
    assert httpx.get(f"{server.address}/readyz", timeout=TIMEOUT_S).status_code == 200
    assert httpx.get(f"{server.address}/v1/models", timeout=TIMEOUT_S).status_code == 401
    answer = server.ask(class_ids=["Bag", 7], seed=3, num_steps=4)
    command = ["generate", "image", "--model", MODEL, "--class", "Bag", "7", "--seed", "3", "--steps", "4"]
    assert main([*command, "--out", str(tmp_path / "pictures")]) == 0
    files = {path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert {base64.b64decode(picture["png"]) for picture in answer.json()["images"]} == files
    # Eight requests, two batches of four images: at the signal some are computed and some wait.
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(server.ask, class_ids=[seed], seed=seed, num_steps=64) for seed in range(8)]
        while in_flight(server) < 8:
            assert not any(future.done() for future in asked)
        server.process.send_signal(signal.SIGTERM)
        late = refused(server)
        answers = [future.result() for future in asked]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert [answer.json()["images"][0]["class_id"] for answer in answers] == list(range(8))
    assert late in (503, None), "new work is refused, or the door is closed already"
    assert server.process.wait(TIMEOUT_S) == 0
    server.reading.join()
    assert "Traceback" not in "".join(server.log) and any("SIGTERM" in line for line in server.log)


def in_flight(server: Server) -> float:
    """Requests without an answer."""
    metrics = server.client.get("/metrics").text
    match = re.search(r"^resgen_requests_in_flight (\S+)$", metrics, re.MULTILINE)
    assert match is not None
    return float(match[1])


def refused(server: Server) -> int | None:
    """The answer to a request after the signal; None where nobody answers any more."""
    while not any("SIGTERM" in line for line in server.log):
        time.sleep(0.01)
    try:
        return server.ask(seed=1).status_code
    except httpx.TransportError:
        return None


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", MODEL, MODEL], "both be called"),
        (["--model", MODEL, "--port", "70000"], "port 70000"),
        (["--model", MODEL, "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--model", MODEL, "--host", "\udcff"], "encoding of hostname failed"),
        (["--model", MODEL, "--threads", "1025"], "--threads 1025 must lie in 1..1024"),
        (["--model", MODEL, "--max-samples", "64"], "--max-samples=64"),
        (["--model", MODEL, "--threads", "0"], "--threads 0"),
        (["--model", MODEL, "--api-key-file", "missing.txt"], "missing.txt"),
        (["--model", MODEL, "--api-key-file", "/dev/zero"], "'/dev/zero' holds more than the 10,000 characters"),
    ],
    ids=str,
)
def test_options_that_are_refused(
    options: list[str], names: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and names in lines[0]


def test_an_empty_key_is_no_open_door(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESGEN_API_KEY", " ")
    assert main(["serve", "--model", MODEL]) == 2 and "RESGEN_API_KEY is empty" in capsys.readouterr().err
    (tmp_path / "key").write_text("\n")
    assert main(["serve", "--model", MODEL, "--api-key-file", str(tmp_path / "key")]) == 2
