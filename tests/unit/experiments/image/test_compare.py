"""A comparison of kinds on images, of which one is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from image_parts import save_model
from resgen.checkpoints.artefacts import load_tokenizer
from resgen.experiments.image import compare, judge
from resgen.modalities import load_recipe
from resgen.training.encoding import open_encoded
from tars import png


def test_damaged_pictures_are_left_out_of_codes_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 5), ("test", 3)):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(png(number))
        (tmp_path / "data" / split / "a" / "0.png").write_bytes(b"no image")
    tokenizer, _ = load_tokenizer(save_model(tmp_path / "model"))
    _, recipe = load_recipe("digits", None, ["data.resize=true", "data.skip_unreadable=true"])
    comparison = compare.Comparison(tokenizer=str(tmp_path / "model"), data=str(tmp_path / "data"), extractor="x")
    references = []
    monkeypatch.setattr(judge, "load_extractor", lambda name, device: name)
    monkeypatch.setattr(judge, "reference_features", lambda reference, *_, **__: references.append(reference))
    study = compare.Study(tmp_path / "out", replace(recipe, tokenizer=tokenizer.config), comparison, resume=False)
    compare._Plan(study, tokenizer).encode(tokenizer)
    train, held_out = open_encoded(tmp_path / "out" / "codes" / str(tokenizer.spec.depth))
    assert [len(train) // train.plan.versions, len(held_out)] == [9, 5]
    assert [len(reference) for reference in references] == [9]
