"""A stand-in for the server: its addresses, small answers that depend on the request alone, and faults on demand."""

from __future__ import annotations

import base64
import email
import email.policy
import io
import json
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

import resgen

PAGE = Path(resgen.__file__).parent / "serving" / "page"
KEY = "open sesame"
CSP = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}
_LIMITS = {"max_steps": 64, "max_samples": 32, "max_text": 200, "max_upload_bytes": 300_000}


def image_model(name: str, classes: list[str], size: int = 28, channels: int = 1) -> dict[str, Any]:
    """A model of images with 4 x 4 positions of 8 levels, as `/v1/models` describes one."""
    return {
        "name": name,
        "modality": "image",
        "description": f"Small images of {size}x{size} pixels.",
        "classes": classes,
        "image": {"height": size, "width": size, "channels": channels},
        "sample_rate_hz": None,
        "positions": 16,
        "levels": 8,
        "measured": ["intended class recognised: 98.1 %", "tokenizer: 25.3 dB"],
        "defaults": {"num_steps": 6, "guidance_scale": 2.0},
        "limits": _LIMITS,
    }


SPEECH_MODEL = {
    "name": "digits",
    "modality": "speech",
    "description": "Ten spoken digits.",
    "classes": [],
    "image": None,
    "sample_rate_hz": 8000,
    "voices": ["default", "ann"],
    "sentences": ["three seven one", "nine zero. two four."],
    "positions": None,
    "levels": 16,
    "measured": ["word errors: 2.9 %"],
    "defaults": {"num_steps": 12, "guidance_scale": 1.0},
    "limits": _LIMITS,
}
MODELS = [
    image_model("clothes", ["T-shirt/top", "Bag", "Ankle boot"]),
    image_model("animals", [f"animal {k}" for k in range(30)], size=32, channels=3),
    SPEECH_MODEL,
]


def picture(*key: object, size: int = 28) -> str:
    """A PNG of noise that depends on `key` alone, in base64."""
    noise = np.random.default_rng(list(json.dumps(key).encode())).integers(0, 256, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def sound(seconds: float = 0.4, rate_hz: int = 8000) -> bytes:
    """A WAV file of a falling tone."""
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    samples = (9000 * np.sin(2 * np.pi * (500 - 300 * time_s) * time_s)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


class FakeServer(ThreadingHTTPServer):
    """`fault` is what the next requests meet: None or {"status", "error", "retry_after"}; "break" ends a stream early,
    "stream" sends an error event. A test that looks while something is made sets `hold_at`: that many steps are sent,
    the rest (and every plain answer) waits for `released`. `samples_held` holds the samples of a model until
    `samples_released`. `key` is wanted if it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.released, self.samples_released = threading.Event(), threading.Event()
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.models = MODELS
        self.fault: dict[str, Any] | str | None = None
        self.samples_fault: dict[str, Any] | None = None
        self.samples_held = False
        self.samples_released.set()
        self.samples_released = threading.Event()
        self.key: str | None = None
        self.hold_at: int | None = None
        self.released.set()  # what an earlier test left waiting ends
        self.released = threading.Event()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.broken_off = threading.Event()

    def wait(self, step: int = 1) -> None:
        """Wait for `released`, if this step (from 1; the only one of a plain answer) is beyond `hold_at`."""
        if self.hold_at is not None and step > self.hold_at:
            self.released.wait()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.broken_off.set()  # the page closed the connection


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.path == "/v1/models":
            if not self._refused():
                self._json({"models": self.server.models})
            return
        if path in _GOT:
            if self.server.samples_held:
                self.server.samples_released.wait()
            if not self._refused(self.server.samples_fault):
                self._json(_GOT[path](parse_qs(urlsplit(self.path).query)["model"][0], self.server.models))
            return
        file = PAGE / ("index.html" if path == "/" else Path(path).name)
        if not file.is_file():
            return self._json({"error": f"no file {file.name}"}, 404)
        self._start(200, _TYPES[file.suffix], {"Content-Security-Policy": CSP})
        self.wfile.write(file.read_bytes())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fields = self._fields(body)
        if self._refused():
            return
        self.server.seen.append((self.path, fields))
        if self.path == "/v1/images/stream":
            return self._stream(fields)
        if self.path == "/v1/speech/stream":
            return self._speak(fields)
        if self.path == "/v1/speech/edit/stream":
            return self._change(fields)
        self.server.wait()
        self._json(_ANSWERS[self.path](fields, self.server.models))

    def _refused(self, fault: dict[str, Any] | None = None) -> bool:
        """Answer with the fault or a demand for a key, if that is what the server is to do."""
        if self.server.key and self.headers["X-API-Key"] != self.server.key:
            self._json({"error": "an API key is wanted: send it as X-API-Key"}, 401)
            return True
        fault = fault or self.server.fault
        if not isinstance(fault, dict):
            return False
        headers = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
        self._json({"error": fault["error"]}, fault["status"], headers)
        return True

    def _fields(self, body: bytes) -> dict[str, Any]:
        """JSON, or the parts of a form: files as bytes, the others as text."""
        kind = self.headers["Content-Type"]
        if kind == "application/json":
            return json.loads(body)
        message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body, policy=email.policy.HTTP)
        parts = {}
        for part in message.iter_parts():
            data = part.get_payload(decode=True)
            parts[part.get_param("name", header="content-disposition")] = data if part.get_filename() else data.decode()
        return parts

    def _stream(self, fields: dict[str, Any]) -> None:
        self._start(200, "application/x-ndjson", {})
        result = images(fields, self.server.models)
        count, steps = len(result["images"]), fields["num_steps"]
        for step in range(1, steps + 1):
            self.server.wait(step)
            known = [[min(8, 8 * step // steps + (k + p) % 2) for p in range(16)] for k in range(count)]
            pictures = [picture("step", step, k, fields["seed"]) for k in range(count)]
            self._line({"event": "step", "step": step, "num_steps": steps, "images": pictures, "visible": known})
            if self.server.fault == "break" and step == 2:
                return
            if self.server.fault == "stream" and step == 2:
                return self._line({"event": "error", "error": "out of memory: ask for fewer images"})
        self._line({"event": "done", **result})

    def _speak(self, fields: dict[str, Any]) -> None:
        """Every sentence: its steps, then its samples; all together 0.4 s."""
        self._start(200, "application/x-ndjson", {})
        texts = [text.strip() for text in fields["text"].split(".") if text.strip()]
        steps, pcm = int(fields["num_steps"]), sound()[44:]
        size = len(pcm) // len(texts) // 2 * 2
        if fields.get("check_prompt") == "true" and fields["prompt_text"] == "something else":
            self._line({"event": "warning", "warnings": ["the prompt may say something else than its text"]})
        for k, text in enumerate(texts):
            for step in range(1, steps + 1):
                self.server.wait(k * steps + step)
                about = {"event": "step", "sentence": k, "sentences": len(texts), "step": step, "num_steps": steps}
                visible = [16 * step // steps] * 5
                self._line({**about, "visible": visible, "spectrogram": picture("heard", text, step, size=64)})
                if self.server.fault == "break" and step == 2:
                    return
            part = pcm[k * size :] if k == len(texts) - 1 else pcm[k * size : (k + 1) * size]
            whole = {"event": "sound", "sentence": k, "text": text, "duration_s": len(part) / 16000}
            picture_of = picture("spectrogram", text, size=64)
            self._line({**whole, "pcm": base64.b64encode(part).decode(), "spectrogram": picture_of})
        about = {"model": fields["model"], "seed": int(fields["seed"]), "sample_rate_hz": 8000, "seconds": 0.1}
        self._line({"event": "done", **about})

    def _change(self, fields: dict[str, Any]) -> None:
        """Words in 0.4 s of 10 positions; the second one, or with it one that is left out, becomes another, from 0.16
        to 0.24 s, then to 0.32 s."""
        self._start(200, "application/x-ndjson", {})
        said, steps = fields["input_text"].split(), int(fields["num_steps"])
        text = fields["text"].replace("2", "two")
        end = 2 + len(said) - len(text.split())
        words = [{"text": word, "begin_s": 0.16 * k, "end_s": 0.16 * k + 0.08} for k, word in enumerate(said)]
        about = {"event": "plan", "text": text, "replaced": " ".join(said[1:end]), "words": words, "begin_s": 0.16}
        about |= {"replaced_words": [1, end], "new_words": [1, 2], "new_positions": [4, 8]}
        about |= {"end_s": 0.24, "new_end_s": 0.32, "duration_s": 0.4}
        if fields.get("check_input") == "true" and said[-1] == "else":
            self._line({"event": "warning", "warnings": ["the recording may say something else than its text"]})
        self._line({**about, "spectrogram": picture("before", size=64)})
        for step in range(1, steps + 1):
            self.server.wait(step)
            visible = [16 if k < 4 or k > 7 else 16 * step // steps for k in range(10)]
            done = {"event": "step", "step": step, "num_steps": steps, "visible": visible}
            self._line({**done, "spectrogram": picture("after", step, size=64)})
            if self.server.fault == "break" and step == 2:
                return
        pcm = base64.b64encode(sound(0.5)[44:]).decode()
        whole = {"event": "sound", "text": text, "duration_s": 0.5, "pcm": pcm}
        self._line({**whole, "spectrogram": picture("after", size=64)})
        last = {"model": fields["model"], "seed": int(fields["seed"]), "sample_rate_hz": 8000, "seconds": 0.1}
        self._line({"event": "done", **last})

    def _line(self, event: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def _json(self, document: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._start(status, "application/json", headers or {})
        self.wfile.write(json.dumps(document).encode())

    def _start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def images(fields: dict[str, Any], models: list[dict[str, Any]] = MODELS) -> dict[str, Any]:
    """What `/v1/images` answers: `num_samples` images of each class, class after class."""
    (model,) = [model for model in models if model["name"] == fields["model"]]
    size = model["image"]["width"]
    made = [
        {"class_id": c, "class_name": _name(c, model), "png": picture("final", c, k, fields["seed"], size=size)}
        for c in fields.get("class_ids", [0])
        for k in range(fields["num_samples"])
    ]
    return {**_settings(fields), "images": made, "seconds": 0.2}


def _name(class_id: Any, model: dict[str, Any]) -> str:
    """Of several axes what is said of each, with the axis where others have the name, too."""
    if not isinstance(class_id, dict):
        return (model["classes"] or [""])[class_id]
    names = [name for axis in model["axes"] for name in axis["classes"]]
    return ", ".join(name if names.count(name) == 1 else f"{axis}={name}" for axis, name in class_id.items())


def samples(name: str, models: list[dict[str, Any]] = MODELS) -> dict[str, Any]:
    """What `/v1/images/samples` answers: an image of each class, of twelve at most, as if of seed 0."""
    (model,) = [model for model in models if model["name"] == name]
    classes = list(range(min(12, len(model["classes"]) or 1)))
    settings = {"model": name, "num_steps": 6, "guidance_scale": 2.0, "seed": 0, "num_samples": 1}
    return images({**settings, "class_ids": classes}, models)


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": fields["model"],
        "seed": int(fields["seed"]),
        "num_steps": int(fields["num_steps"]),
        "guidance_scale": float(fields["guidance_scale"]),
    }


def _edit(fields: dict[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {name: int(fields[name]) for name in ("num_samples", "seed")}
    asked = fields["class_id"]
    said = dict(pair.split("=") for pair in asked.split(", ")) if "=" in asked else int(asked)
    return images({**fields, **numbers, "class_ids": [said]}, models)


def _levels(fields: dict[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    return {"levels": [{"depth": d, "png": picture("level", d), "psnr_db": 10.0 + 2 * d} for d in range(1, 9)]}


def spoken_samples(name: str, models: list[dict[str, Any]]) -> dict[str, Any]:
    """What `/v1/speech/samples` answers: a sentence in each of two voices."""
    (model,) = [model for model in models if model["name"] == name]
    made = {"sample_rate_hz": 8000, "duration_s": 0.4, "wav": base64.b64encode(sound()).decode(), "seconds": 0.1}
    return {
        "samples": [
            {**made, "model": name, "seed": 0, "text": text, "voice": voice, "spectrogram": picture(text, size=64)}
            for text, voice in zip(model["sentences"], model["voices"], strict=True)
        ]
    }


def voices(name: str, models: list[dict[str, Any]]) -> dict[str, Any]:
    """What `/v1/voices` answers; its sound is a WAV file, which browsers play under any name."""
    return {"voices": [{"name": "ann", "text": "five", "flac": base64.b64encode(sound()).decode()}]}


_ANSWERS = {
    "/v1/images": images,
    "/v1/images/edit": _edit,
    "/v1/images/levels": _levels,
}
_GOT = {"/v1/images/samples": samples, "/v1/speech/samples": spoken_samples, "/v1/voices": voices}
