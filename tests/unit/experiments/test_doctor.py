"""Synthetic logs, healthy and spoiled in one way each: the healthy one must pass where the spoiled one is found out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_reference_curves import reference_from_runs, save_reference

from resgen.errors import ConfigError, DataError
from resgen.experiments.doctor import Finding, diagnose, verdict
from resgen.experiments.reference_curves import (
    Curve,
    Run,
    find_reference,
    load_reference,
    read_run,
)

STEPS = range(50, 2001, 50)
TRAINING = {
    "num_steps": 2000, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 100, "decay_fraction": 0.2,
    "clip_norm": 1.0, "seed": 0,
}  # fmt: skip


def fall(step: int, start: float, end: float) -> float:
    return end + (start - end) * math.exp(-step / 400)


def generator_lines(shift: float = 0.0) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in STEPS:
        rate = 1e-3 * min(1.0, (2000 - step) / 400)
        wobble = 0.01 * math.sin(step)
        lines.append({
            "kind": "train", "step": step, "loss": fall(step, 5.5, 4.5) + wobble + shift, "grad_norm": 0.5 + wobble,
            "learning_rate": rate, "seconds": step / 10, "samples_per_second": 320.0 + wobble,
        })  # fmt: skip
        if step % 200 == 0:
            value = fall(step, 5.4, 4.4) + shift
            levels = {f"nll_visible/{k}": value + 0.1 * k for k in range(4)}
            lines.append({"kind": "validation", "step": step, "val_loss": value, **levels})
    lines.append({**lines[-1], "kind": "final"})
    return lines


def tokenizer_lines() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in STEPS:
        mse = fall(step, 0.4, 0.01)
        lines.append({"kind": "train", "step": step, "loss": mse, "mse": mse, "grad_norm": 0.5, "learning_rate": 1e-5})
        if step % 200 == 0:
            levels = {}
            for k in range(1, 5):
                levels |= {f"usage/{k}": 1.0, f"perplexity/{k}": 55.0 + k, f"psnr_db/{k}": 18.0 + k}
            lines.append({"kind": "validation", "step": step, "val_loss": mse, **levels})
    lines.append({**lines[-1], "kind": "final"})
    return lines


def write_run(
    path: Path,
    lines: list[dict[str, Any]],
    *,
    stage: str = "generator",
    kind: str = "direct",
    head: str | None = "tokens",
    **training: Any,
) -> Run:
    path.mkdir(parents=True)
    config: dict[str, Any] = {"stage": stage, "recipe": "digits", "data": {"sha256": "ab" * 32}}
    config["training"] = TRAINING | training
    if stage == "tokenizer":
        config["tokenizer"] = {"quantizer": {"kind": "probabilistic", "codebook_size": 64}}
    else:
        config |= {"kind": kind, "generator": {"width": 64} | ({"head": head} if head else {})}
        (path / "codes" / "train").mkdir(parents=True)
        (path / "codes" / "train" / "meta.json").write_text(json.dumps({"spec": {"codebook_size": 256}}))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "model").mkdir()
    (path / "model" / "config.json").write_text("{}")
    return read_run(path)


def level_of(findings: list[Finding], word: str) -> str:
    """The gravest level among the findings about something."""
    return next((f.level for f in findings if word in f.what), "none")


def after(lines: list[dict[str, Any]], step: int, **changes: Any) -> list[dict[str, Any]]:
    """The lines with metrics changed after a step: by value, or by a function of the step."""
    return [
        line | {k: v(line["step"]) if callable(v) else v for k, v in changes.items() if k in line}
        if line["step"] > step else line
        for line in lines
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_a_healthy_run_has_nothing_but_ok(tmp_path, stage):
    lines = tokenizer_lines() if stage == "tokenizer" else generator_lines()
    findings = diagnose(write_run(tmp_path / "run", lines, stage=stage))
    assert {f.level for f in findings} == {"ok"}, [f.sentence() for f in findings if f.level != "ok"]
    assert verdict(findings) == "verdict: healthy"


GENERATOR_ILLS = [
    ("loss", "problem", lambda lines: after(lines, 1500, loss=None)),
    ("loss", "problem", lambda lines: after(lines, 0, loss=lambda s: 5.5 + 0.01 * math.sin(s))),
    ("loss against its best", "problem", lambda lines: after(lines, 1500, loss=lambda s: 4.5 + (s - 1500) / 300)),
    ("loss against its best", "notice", lambda lines: after(lines, 1500, loss=lambda s: 4.5 + (s - 1500) / 1400)),
    ("grad_norm", "notice", lambda lines: after(lines, 1900, grad_norm=20.0)),
    ("grad_norm", "problem", lambda lines: after(lines, 1700, grad_norm=20.0)),
    ("grad_norm", "notice", lambda lines: after(lines, 0, grad_norm=3.0)),
    ("learning rate", "problem", lambda lines: after(lines, 0, learning_rate=1e-3)),
    ("learning rate", "notice", lambda lines: after(lines, 0, learning_rate=5e-4)),
    ("overfitting", "problem", lambda lines: after(lines, 1000, val_loss=lambda s: 4.5 + (s - 1000) / 1000)),
    ("val_loss", "problem", lambda lines: after(lines, 0, val_loss=5.9)),
    ("val_loss", "notice", lambda lines: after(lines, 0, val_loss=5.5)),
    ("nll_visible", "notice", lambda lines: after(lines, 0, **{"nll_visible/0": 5.2})),
    ("likelihood by level", "notice", lambda lines: after(lines, 1900, **{"nll_visible/2": 6.2})),
    ("speed", "notice", lambda lines: after(lines, 1400, samples_per_second=100.0)),
    ("end of training", "notice", lambda lines: lines[:-1]),
]


@pytest.mark.parametrize(("what", "level", "spoil"), GENERATOR_ILLS)
def test_each_ill_of_a_generator_is_found(tmp_path, what, level, spoil):
    findings = diagnose(write_run(tmp_path / "run", spoil(generator_lines())))
    assert level_of(findings, what) == level, [f.sentence() for f in findings]
    assert findings[0].level == level and findings[0].advice  # gravest first


TOKENIZER_ILLS = [
    ("level 4 (the last)", "problem", {"usage/4": 1 / 64, "perplexity/4": 1.0}),
    ("level 2", "problem", {"perplexity/2": 2.5}),
    ("level 2", "notice", {"perplexity/2": 12.0}),
    ("PSNR", "notice", {"psnr_db/3": 19.0}),
    ("PSNR", "problem", {"psnr_db/4": 15.0}),
    ("mse against its best", "problem", {"mse": 0.04}),
]


@pytest.mark.parametrize(("what", "level", "changes"), TOKENIZER_ILLS)
def test_each_ill_of_a_tokenizer_is_found(tmp_path, what, level, changes):
    findings = diagnose(write_run(tmp_path / "run", after(tokenizer_lines(), 1800, **changes), stage="tokenizer"))
    assert level_of(findings, what) == level, [f.sentence() for f in findings]


UNTRAINED = [
    ("tokenizer", lambda lines: [x for x in lines if x["step"] <= 200], {"warmup_steps": 100}),
    ("tokenizer", lambda lines: after(lines, 0, **{f"psnr_db/{k}": 15.0 + 0.1 * (k % 2) for k in range(1, 5)}), {}),
    ("tokenizer", lambda lines: after(lines, 0, **{f"psnr_db/{k}": 15.0 for k in range(1, 5)}), {}),
    ("generator", lambda lines: [x for x in lines if x["step"] <= 200], {"warmup_steps": 100}),
    ("generator", lambda lines: after(lines, 0, val_loss=math.log(256)), {}),
    ("generator", lambda lines: after(lines, 0, val_loss=math.log(256))[:10], {}),
]


@pytest.mark.parametrize(("stage", "cut", "training"), UNTRAINED)
def test_a_run_that_learned_next_to_nothing_is_not_called_healthy(tmp_path, stage, cut, training):
    lines = cut(tokenizer_lines() if stage == "tokenizer" else generator_lines())
    findings = diagnose(write_run(tmp_path / "run", lines, stage=stage, **training))
    assert verdict(findings).startswith("verdict: not trained yet"), [f.sentence() for f in findings]
    assert not any(f.level == "ok" and "every level adds" in f.normal and "15.0 15.0" in f.value for f in findings)


def test_a_level_that_adds_nothing_is_named(tmp_path):
    findings = diagnose(
        write_run(tmp_path / "run", after(tokenizer_lines(), 0, **{"psnr_db/3": 20.0}), stage="tokenizer")
    )
    assert "level 3 adds nothing" in next(f.advice for f in findings if "PSNR" in f.what)


def test_likelihood_at_log_v_is_normal_at_the_start(tmp_path):
    lines = [
        line | {"val_loss": 5.54} if "val_loss" in line else line for line in generator_lines() if line["step"] < 500
    ]
    findings = diagnose(write_run(tmp_path / "run", lines))
    assert [f.level for f in findings if f.what == "val_loss" and "log 256" in f.normal] == ["ok"]


@pytest.mark.parametrize("kind", ["resgen", "ar_resgen"])
@pytest.mark.parametrize("shift", [-9.0, 3.0])
def test_densities_have_no_log_v_and_may_be_negative(tmp_path, kind, shift):
    run = write_run(tmp_path / "run", generator_lines(shift=shift), kind=kind, head="mixture")
    findings = diagnose(run)
    assert run.is_density and {f.level for f in findings} == {"ok"}
    assert not any("log 256" in f.normal for f in findings)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("residual", "residual"), ("ar_resgen", "residual"), ("direct", "tokens"), ("maskgit", None)],
)
def test_likelihoods_of_codes_are_measured_by_the_uniform_guess(tmp_path, kind, head):
    for shift, level in ((0.0, "ok"), (3.0, "problem")):
        run = write_run(tmp_path / level, generator_lines(shift=shift), kind=kind, head=head)
        findings = [f for f in diagnose(run) if f.what == "val_loss" and "log 256" in f.normal]
        assert not run.is_density and [f.level for f in findings] == [level]


def test_maskgit_should_use_what_is_known(tmp_path):
    for late, level in ((4.0, "ok"), (5.0, "notice")):
        lines = [
            line | {"nll_progress/0.05": 4.6, "nll_progress/0.95": late} if "val_loss" in line else line
            for line in generator_lines()
        ]
        findings = diagnose(write_run(tmp_path / level, lines, kind="maskgit", head=None))
        assert level_of(findings, "nll_progress") == level


def test_an_unfinished_run_is_told_how_to_go_on(tmp_path):
    run = write_run(tmp_path / "run", generator_lines()[:8])
    sentence = next(f.sentence() for f in diagnose(run) if f.what == "end of training")
    assert "--resume" in sentence and "no checkpoint yet" in sentence


def test_a_run_shorter_than_its_warmup(tmp_path):
    findings = diagnose(write_run(tmp_path / "run", generator_lines(), warmup_steps=5000))
    assert level_of(findings, "learning rate") == "notice" and level_of(findings, "loss") == "notice"


def test_damaged_lines_are_counted(tmp_path):
    run = write_run(tmp_path / "run", generator_lines())
    log = run.path / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"kind": "train", "st')
    assert read_run(run.path).damaged == 1
    assert level_of(diagnose(read_run(run.path)), "damaged") == "notice"
    hostile = ["[1]", "7", '{"kind": 3, "step": 1}', '{"kind": "train"}', '{"kind": "train", "step": -1}', "[" * 100000]
    hostile += ['{"kind": "train", "step": 1, "loss": "x"}', '{"kind": "train", "step": 1, "loss": true}', "\0\ufffd"]
    hostile += ['{"kind": "train", "step": 1, "loss": 1' + "0" * 400 + "}"]
    log.write_text(whole + "\n".join(hostile))
    assert read_run(run.path).damaged == len(hostile)
    assert level_of(diagnose(read_run(run.path)), "damaged") == "problem"


def test_unreadable_runs_are_refused_in_one_line(tmp_path):
    run = write_run(tmp_path / "run", generator_lines())
    log, config = run.path / "metrics.jsonl", run.path / "config.yaml"
    good = config.read_text()
    for file, text, words in (
        (config, "a: [", "config.yaml' is damaged"),
        (config, "", "config.yaml' is empty"),
        (log, "", "metrics.jsonl' is empty"),
        (log, "nonsense\n", "no readable line (1 damaged)"),
    ):
        config.write_text(good)
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        with pytest.raises(DataError) as caught:
            read_run(run.path)
        assert words in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="its training run is not included"):
        read_run("avatars64")
    log.unlink()
    with pytest.raises(DataError, match=r"run' is too young to be judged: it has no metrics\.jsonl yet.*look again"):
        read_run(run.path)
    config.unlink()
    with pytest.raises(
        DataError, match=r"run' is no run: it has no metrics\.jsonl; give the folder of a run"
    ) as caught:
        read_run(run.path)
    assert caught.value.__cause__ is None, "another file of that folder is no remedy"


def test_config_of_wrong_types_does_not_stop_the_checks(tmp_path):
    run = write_run(tmp_path / "run", generator_lines(), warmup_steps="many", clip_norm=None)
    (run.path / "config.yaml").write_text("training: 3\ndata: []\ntokenizer: x\n")
    assert diagnose(read_run(run.path))


@pytest.fixture
def reference(tmp_path):
    runs = [write_run(tmp_path / f"seed{i}", generator_lines(shift), seed=i) for i, shift in enumerate((0, 0.05, 0.1))]
    return reference_from_runs(runs, "test")


def test_reference_holds_the_band_of_the_seeds_and_survives_its_file(tmp_path, reference):
    low, high, mean = reference.curves["val_loss"].at(1000)
    assert low == pytest.approx(fall(1000, 5.4, 4.4)) and high == pytest.approx(low + 0.1) and low < mean < high
    assert "learning_rate" not in reference.curves and "grad_norm" not in reference.curves
    save_reference(reference, tmp_path / "curves.json")
    assert load_reference(tmp_path / "curves.json") == reference


def test_reference_is_thinned_and_refuses_mixed_runs(tmp_path, reference):
    run = write_run(tmp_path / "a", generator_lines())
    steps = reference_from_runs([run], "x", max_points=10).curves["loss"].steps
    assert len(steps) <= 10 and (steps[0], steps[-1]) == (50, 2000)
    other = write_run(tmp_path / "b", generator_lines(), batch_size=64)
    with pytest.raises(ConfigError, match="batch_size 64"):
        reference_from_runs([run, other], "x")
    with pytest.raises(ConfigError, match="at least one run"):
        reference_from_runs([], "x")


@pytest.mark.parametrize(
    ("shift", "level", "words"),
    [(0.05, "ok", "normal"), (0.6, "notice", "above"), (3.0, "problem", "above"), (-0.9, "notice", "below")],
)
def test_place_in_the_band(tmp_path, reference, shift, level, words):
    findings = diagnose(write_run(tmp_path / "run", generator_lines(shift)), reference)
    finding = next(f for f in findings if f.what == "val_loss" and "reference" in f.normal)
    assert finding.level == level and words in finding.sentence() and "at step 2,000" in finding.value


def test_other_settings_soften_and_other_batches_compare_samples(tmp_path, reference):
    run = write_run(tmp_path / "run", generator_lines(3.0), batch_size=16)
    findings = [f for f in diagnose(run, reference) if f.what == "val_loss" and "reference" in f.normal]
    assert [f.level for f in findings] == ["notice", "notice"]
    assert "32,000 samples, as many as the reference at step 1,000" in " ".join(f.value for f in findings)
    assert reference.differences(run) == ["batch_size 16 (reference 32)"]


def test_the_nearest_reference_is_found(tmp_path, reference):
    folder = tmp_path / "curves"
    folder.mkdir()
    run = write_run(tmp_path / "run", generator_lines())
    for name, changes in (("a", {"recipe": "cifar10"}), ("b", {"kind": "maskgit"}), ("e", {"head": "mixture"})):
        save_reference(replace(reference, name=name, **changes), folder / f"{name}.json")
    assert find_reference(run, folder) is None  # likelihoods of other codes say nothing
    for name, changes in (("c", {"batch_size": 8}), ("d", {})):
        save_reference(replace(reference, name=name, **changes), folder / f"{name}.json")
    assert find_reference(run, folder).name == "d"


def test_a_tokenizer_may_have_the_reference_of_another_recipe(tmp_path):
    run = write_run(tmp_path / "run", tokenizer_lines(), stage="tokenizer")
    other = replace(reference_from_runs([run], "other"), recipe="cifar10")
    save_reference(other, tmp_path / "other.json")
    assert find_reference(run, tmp_path) == other
    compared = [f.what for f in diagnose(run, other) if f.normal.startswith(("reference", "last: reference"))]
    assert compared == ["usage/1 to usage/4"]


def test_a_given_reference_without_a_common_metric_is_one_whole_sentence(tmp_path, reference):
    run = write_run(tmp_path / "run", generator_lines())
    findings = diagnose(run, replace(reference, recipe="cifar10"))
    sentence = next(f.sentence() for f in findings if f.what == "reference")
    assert sentence.endswith("(normal: a reference of the same recipe and kind)")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(format="x"),
        lambda d: d.update(more=1),
        lambda d: d.pop("recipe"),
        lambda d: d.update(curves=[]),
        lambda d: d["curves"]["loss"].update(low=[1.0]),
        lambda d: d["curves"]["loss"].update(steps=list(reversed(d["curves"]["loss"]["steps"]))),
        lambda d: d["curves"]["loss"]["high"].__setitem__(0, math.nan),
        lambda d: d["curves"]["loss"].update(x=1),
        lambda d: d.update(batch_size=0),
    ],
)
def test_damaged_references_are_refused(tmp_path, reference, spoil):
    path = tmp_path / "curves.json"
    save_reference(reference, path)
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="curves.json"):
        load_reference(path)


def test_a_curve_ends_where_it_ends():
    curve = Curve(steps=(10, 20), low=(1.0, 2.0), high=(3.0, 4.0), mean=(2.0, 3.0))
    assert curve.at(15) == (1.5, 3.5, 2.5) and curve.at(5) is None and curve.at(21) is None
