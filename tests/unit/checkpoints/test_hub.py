"""Models by their names on the hub, with a stand-in for the hub; and the cards that go with them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resgen.checkpoints import hub
from resgen.checkpoints.card import cut_outside_links, write_card
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import resolve_model
from resgen.errors import CheckpointError
from resgen.extras import MissingExtraError
from resgen.pipelines.image.pipeline import ImagePipeline

BUNDLED = "fashion-mnist-small"


class Hub:
    """Repositories as local folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        self.calls.append((repository, revision, tuple(allow_patterns)))
        if not (self.root / repository).is_dir():
            raise OSError("404\nno such repository")
        return str(self.root / repository)

    def HfApi(self, **_: Any) -> Any:
        return SimpleNamespace(create_repo=self.create_repo, upload_folder=self.upload_folder)

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if repository.startswith("forbidden/"):
            raise PermissionError("403: not yours")
        self.calls.append(("create", repository, private))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.root / repo_id)
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    there = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "_hub", lambda: there)
    return there


@pytest.mark.parametrize("name", ["me/model", "me/model@v1.0", "a-b/c_d.e@refs/pr/3"])
def test_names_of_the_hub(name: str) -> None:
    assert hub.is_hub_name(name)


@pytest.mark.parametrize(
    "name", ["model", "/me/model", "../me", "a/b/c", "me/model@", "me /model", "./model", "tests/x"]
)
def test_other_names(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not hub.is_hub_name(name)


def test_a_model_goes_up_and_comes_back(stand_in: Hub) -> None:
    pipe = ImagePipeline.from_pretrained(BUNDLED, device="cpu", dtype="float32")
    assert pipe.push_to_hub("me/bags", private=True) == "hub/me/bags/commit/1"
    assert stand_in.calls == [("create", "me/bags", True)]
    assert sorted(file.name for file in (stand_in.root / "me/bags").iterdir()) == [
        "README.md",
        "config.json",
        "generator.safetensors",
        "tokenizer.safetensors",
    ]
    card = (stand_in.root / "me/bags/README.md").read_text()
    # Terms and data are those of the model that was opened.
    assert "license: apache-2.0\n" in card and "**Data.** Only the training file" in card and "**Limits.**" in card
    assert "pipeline_tag: unconditional-image-generation\n" in card and 'resgen.load("me/bags")' in card
    again = ImagePipeline.from_pretrained("me/bags@abc", device="cpu", dtype="float32")
    assert stand_in.calls[-1] == ("me/bags", "abc", hub.FILES)
    assert again(["Bag"], num_steps=2).codes.equal(pipe(["Bag"], num_steps=2).codes)


def test_only_what_belongs_to_a_model_goes_up(stand_in: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model(BUNDLED), folder)
    (folder / "run.py").write_text("print('code')")
    (folder / "README.md").write_text("mine")
    hub.push(folder, "me/mine")
    assert not (stand_in.root / "me/mine/run.py").exists()
    assert (stand_in.root / "me/mine/README.md").read_text() == "mine"


def test_another_licence_takes_the_place_of_the_whole_licence(stand_in: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model(BUNDLED), folder)
    head = "license: other\nlicense_name: own\nlicense_link: https://x.y\nlanguage: no\ndatasets: {a: b}"
    (folder / "README.md").write_text(f"\ufeff---\n{head}\n---\n**Data.** Drawn by Ann.\nAll of it.\n\nMore.")
    pipe = ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")
    pipe.push_to_hub("me/a")
    kept = (stand_in.root / "me/a/README.md").read_text()
    assert "license_name: own\nlicense_link: https://x.y\nlanguage: 'no'\n" in kept and "datasets" not in kept
    assert "**Data.** Drawn by Ann.\nAll of it.\n" in kept and "More." not in kept and "**Limits.**" in kept
    pipe.push_to_hub("me/b", license="mit")
    other = (stand_in.root / "me/b/README.md").read_text()
    assert "license: mit\n" in other and "license_name" not in other and "license_link" not in other


@pytest.mark.parametrize("head", ["license: 9999-99-99", "[" * 3000, "- a", "license: ''", "a: [", ""])
def test_odd_cards_say_nothing_and_stop_nothing(stand_in: Hub, tmp_path: Path, head: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model(BUNDLED), folder)
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32").push_to_hub("me/a")
    assert "resgen.load" in (stand_in.root / "me/a/README.md").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](../x.md), ![b](../x.png), [c](gone.md 'x')", "a, , [c](gone.md 'x')"),
        ('[a](../x.md "title"), [b]( /etc/passwd ), [c](file:///etc/passwd)', "a, b, c"),
        ("[![alt](../x.png)](../y.md)", ""),
        ("[a](https://x.y), [b](HTTPS://x.y), [c](//cdn/x), [d](#top)", None),
        ("[a](my%20file.txt), [b](my%20file.txt#top), ![c](my%20file.txt?raw=true)", None),
        ("```python\nmodels[0](x)\n```\n`code[i](x)`", None),
        (f"[a]({'x' * 300})", "a"),
    ],
)
def test_links_of_a_card(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "my file.txt").write_text("")
    (tmp_path / "README.md").write_text(text)
    cut_outside_links(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (text if expected is None else expected)


def test_a_card_does_not_point_out_of_its_folder(stand_in: Hub) -> None:
    hub.push(resolve_model("english-small"), "me/english")
    card = (stand_in.root / "me/english/README.md").read_text()
    assert "../" not in card and "samples are in the repository: emma" in card
    hub.push(resolve_model("avatars64"), "me/avatars")
    card = (stand_in.root / "me/avatars/README.md").read_text()
    assert "![" not in card and "license: " in card


def test_parts_that_lie_beside_the_model_go_up_with_it(stand_in: Hub) -> None:
    bundled = resolve_model("english-small")
    assert not (bundled / "tokenizer.safetensors").exists()
    hub.push(bundled, "me/english")
    whole, parts = load_folder(stand_in.root / "me" / "english"), load_folder(bundled).components
    assert {name: part.sha256 for name, part in whole.components.items()} == {n: p.sha256 for n, p in parts.items()}
    assert all(part.path.parent == whole.path for part in whole.components.values())
    assert "from" not in json.loads((whole.path / "config.json").read_text())["components"]["tokenizer"]


def test_what_cannot_be_had(stand_in: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CheckpointError, match="'me/none' is no local folder.*404 no such repository; without a network"
    ):
        resolve_model("me/none")
    (stand_in.root / "me/other").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no config.json"):
        resolve_model("me/other")
    with pytest.raises(CheckpointError, match="cannot upload to 'forbidden/x': 403: not yours"):
        hub.push(resolve_model(BUNDLED), "forbidden/x")
    for name in ("bags", "me/bags@v1"):
        with pytest.raises(CheckpointError, match="must have the form owner/model"):
            hub.push(resolve_model(BUNDLED), name)
    with pytest.raises(CheckpointError, match="not a folder"):
        hub.push(tmp_path / "none", "me/x")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"\[hub\]"):
        resolve_model("me/none")


def test_cards_tell_the_record(tmp_path: Path) -> None:
    folder = load_folder(resolve_model(BUNDLED))
    about = {"tag": ImagePipeline.tag, "usage": ImagePipeline.usage}
    text = write_card(folder, tmp_path, name="me/bags", **about).read_text()
    assert text.startswith("---\nlibrary_name: resgen\npipeline_tag: unconditional-image-generation\n")
    assert 'pipe = resgen.load("me/bags")\npipe().save("pictures.png")\n```' in text and "Ankle boot" in text
    generator = folder.extra["history"]["generator"]
    assert f"| generator | {generator['steps']} |" in text
    assert "- generator: `resgen`, mixture head, " in text
    assert json.dumps(folder.extra["sampling"], sort_keys=True) in text
    tokenizer = load_folder(resolve_model("fashion-mnist-classifier"))
    assert "python" not in write_card(tokenizer, tmp_path, name="x").read_text()


def test_class_names_are_no_part_of_a_cards_markup(tmp_path: Path) -> None:
    folder = load_folder(resolve_model(BUNDLED))
    names = ["T-shirt", "<img src=x>", "[a](http://b)", "a\n# b", "|`c`|"]
    folder = replace(folder, extra={**folder.extra, "class_names": names})
    text = write_card(folder, tmp_path, name="x").read_text()
    line = r"- 5 classes: T-shirt, \<img src=x\>, \[a\]\(http://b\), a \# b, \|\`c\`\|"
    assert line in text.splitlines()
