"""Encoded speech as batches with prompts, and generated speech as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from resgen.checkpoints.speech import VoiceConfig, load_speech_pipeline
from resgen.data.codes.cache import CachePlan, CodeCache
from resgen.data.codes.encoding import write_codes
from resgen.data.sound.decode import read_sound
from resgen.data.text import token_ids
from resgen.errors import ConfigError
from resgen.ops.alignment import expand
from resgen.ops.random import generator
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.sound import SoundCodec
from resgen.training.speech import product
from resgen.training.speech.product import COLUMNS, EncodedUtterance, PromptConfig, SpeechExamples, SpeechProduct
from resgen.types import SequenceCondition
from speech_parts import (
    ALPHABET,
    DEPTH,
    MEL,
    RATE,
    SIZE,
    STRIDE,
    UNIT,
    WIDTH,
    make_generator,
    make_text_model,
    make_tokenizer,
    make_vocoder,
)

TEXTS = ("a", "ab", "cab", "abc", "abcabc", "ca")
SPEAKERS = ("x", "x", "x", "y", "y", "z")
LENGTHS = (9, 12, 15, 20, 30, 10)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CodeCache:
    stream = torch.Generator().manual_seed(0)
    parts = []
    for text, length in zip(TEXTS, LENGTHS, strict=True):
        tokens = token_ids(text.encode())
        durations = torch.randint(1, 4, tokens.shape, generator=stream)
        durations[-1] += length * STRIDE - durations.sum()
        codes = torch.randint(SIZE, (length, DEPTH), generator=stream)
        parts.append(EncodedUtterance(codes, tokens, durations))
    folder = tmp_path_factory.mktemp("codes")
    spec = make_tokenizer(max_positions=40).spec
    plan = CachePlan(spec=spec, num_samples=len(parts), columns=COLUMNS, made_from={}, ragged=True, shard_samples=4)
    columns = {"texts": TEXTS, "speakers": SPEAKERS}
    columns |= {name: [getattr(part, name) for part in parts] for name in ("tokens", "durations")}
    return write_codes(folder, plan, [part.codes for part in parts], columns)


def make_examples(cache: CodeCache, **prompts) -> SpeechExamples:
    config = PromptConfig(**prompts)
    return SpeechExamples(cache, make_text_model(), config, positions_per_second=RATE / UNIT, stride=STRIDE)


def draw(
    examples: SpeechExamples, indices: list[int], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, SequenceCondition]:
    samples, targets = examples.draw(torch.tensor(indices), generator("test", seed))
    codes, class_ids, sequence = examples.batch(samples)
    assert sequence is not None and torch.equal(targets, sequence.targets)
    return codes, class_ids, sequence


def own_features(cache: CodeCache, index: int) -> torch.Tensor:
    part = EncodedUtterance(**cache.sample(index))
    hidden = make_text_model()(part.tokens[None], torch.ones(1, len(part.tokens), dtype=torch.bool))
    return expand(hidden, part.durations[None], STRIDE * len(part.codes))[0]


@pytest.mark.parametrize(("texts_at_once", "kept_bytes"), [(16, 1 << 30), (3, 1 << 30), (3, 0)])
def test_a_batch_of_own_beginnings(
    cache: CodeCache, monkeypatch: pytest.MonkeyPatch, texts_at_once: int, kept_bytes: int
) -> None:
    monkeypatch.setattr(product, "TEXT_BATCH", texts_at_once)
    monkeypatch.setattr(product, "KEPT_BYTES", kept_bytes)
    examples = make_examples(cache, other_share=0.0)
    assert len(examples) == 6 and examples.lengths.tolist() == list(LENGTHS)
    indices = [4, 0, 2, 0]
    codes, class_ids, sequence = draw(examples, indices)
    assert codes.shape == (4, 30, DEPTH) and class_ids.tolist() == [0] * 4
    assert sequence.features is not None and sequence.features.shape == (4, 30 * STRIDE, WIDTH)
    assert sequence.lengths == [LENGTHS[index] for index in indices]
    for row, index in enumerate(indices):
        length = LENGTHS[index]
        assert torch.equal(codes[row, :length], cache.sample(index)["codes"]) and not codes[row, length:].any()
        features = sequence.features[row]
        torch.testing.assert_close(features[: length * STRIDE], own_features(cache, index), atol=1e-5, rtol=1e-4)
        assert not features[length * STRIDE :].any(), "padding is zero"
        assert sequence.valid[row].tolist() == [at < length for at in range(30)]


def test_a_text_is_read_once_and_the_same_whoever_asks_first(cache: CodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "TEXT_BATCH", 2)
    one, other = make_examples(cache, other_share=0.0), make_examples(cache, other_share=0.0)
    reads: list[int] = []
    one.text_model.register_forward_hook(lambda _, inputs, __: reads.append(len(inputs[0])))
    features = {index: draw(one, [index])[2].features for index in (5, 0, 3, 1, 4, 2)}
    assert reads == [2, 2, 2]
    for index in range(6):
        with torch.autocast("cpu", torch.bfloat16):  # as losses ask
            same = draw(other, [index, 5 - index])[2].features
        assert torch.equal(features[index], same[:1, : features[index].shape[1]])
        draw(one, [index])
    assert reads == [2, 2, 2]


def test_texts_that_are_too_many_to_keep_are_read_in_every_step(
    cache: CodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "KEPT_BYTES", 0)
    examples = make_examples(cache, other_share=0.0)
    reads: list[int] = []
    examples.text_model.register_forward_hook(lambda _, inputs, __: reads.append(len(inputs[0])))
    for _ in range(2):
        draw(examples, [0, 4, 0])
    assert reads == [2, 2]


def test_own_prompts_are_beginnings_up_to_their_share(cache: CodeCache) -> None:
    examples = make_examples(cache, other_share=0.0, max_share=0.5, max_seconds=0.4)
    _, _, sequence = draw(examples, [4] * 200 + [0] * 200)
    counts = sequence.prompt.sum(1)
    assert torch.equal(sequence.prompt, torch.arange(30) < counts[:, None]), "a beginning, without gaps"
    assert counts[:200].unique().tolist() == list(range(9)), "0.4 s are 8 positions"
    assert counts[200:].unique().tolist() == list(range(5)), "half of 9"
    _, _, sequence = draw(make_examples(cache, other_share=0.0, max_share=0.0), [4, 0])
    assert not sequence.prompt.any()


def test_a_prompt_leaves_something_to_predict(cache: CodeCache) -> None:
    _, _, sequence = draw(make_examples(cache, other_share=0.0, max_share=1.0), [0] * 200)
    assert sequence.prompt.sum(1).unique().tolist() == list(range(9)) and sequence.targets.any(1).all()


def test_other_prompts_are_of_the_same_speaker(cache: CodeCache) -> None:
    examples = make_examples(cache, other_share=1.0, max_seconds=0.5)
    indices = [0, 1, 2, 3, 4] * 20
    codes, _, sequence = draw(examples, indices)
    assert sequence.features is not None
    seen: dict[int, set[int]] = {index: set() for index in range(5)}
    for row, index in enumerate(indices):
        length, count = LENGTHS[index], int(sequence.prompt[row].sum())
        assert sequence.lengths[row] == count + length
        assert torch.equal(codes[row, count : count + length], cache.sample(index)["codes"])
        others = [k for k in range(6) if SPEAKERS[k] == SPEAKERS[index] and k != index]
        matches = [k for k in others if torch.equal(codes[row, :count], cache.sample(k)["codes"][:count])]
        assert len(matches) == 1 and count == min(10, LENGTHS[matches[0]], 40 - length)
        own = own_features(cache, matches[0])[: count * STRIDE]
        torch.testing.assert_close(sequence.features[row, : count * STRIDE], own, atol=1e-5, rtol=1e-4)
        seen[index].add(matches[0])
    assert seen == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {4}, 4: {3}}, "all of them are used"


def test_a_speaker_of_one_utterance_begins_with_its_own(cache: CodeCache) -> None:
    _, _, sequence = draw(make_examples(cache, other_share=1.0), [5] * 50)
    assert set(sequence.lengths) == {10} and sequence.prompt.sum(1).max() == 3


def test_sequences_never_outgrow_the_model(cache: CodeCache) -> None:
    _, _, sequence = draw(make_examples(cache, other_share=1.0, max_seconds=3.0), [4] * 20)
    assert set(sequence.lengths) == {40}


def test_the_share_of_other_prompts(cache: CodeCache) -> None:
    _, _, sequence = draw(make_examples(cache, other_share=0.3, max_seconds=0.2), [0] * 1000)
    share = sum(length > LENGTHS[0] for length in sequence.lengths) / 1000
    assert share == pytest.approx(0.3, abs=0.06)


def test_prompts_come_from_the_generator(cache: CodeCache) -> None:
    examples = make_examples(cache)
    torch.manual_seed(1)
    codes, _, sequence = draw(examples, list(range(6)) * 4)
    torch.manual_seed(2)
    again, _, same = draw(examples, list(range(6)) * 4)
    assert torch.equal(codes, again) and torch.equal(sequence.prompt, same.prompt)
    _, _, other = draw(examples, list(range(6)) * 4, seed=1)
    assert sequence.prompt.shape != other.prompt.shape or not torch.equal(sequence.prompt, other.prompt)


def test_codes_for_statistics_have_no_padding(cache: CodeCache) -> None:
    codes = make_examples(cache).codes(torch.tensor([2, 0]))
    expected = torch.cat([cache.sample(2)["codes"], cache.sample(0)["codes"]])
    assert torch.equal(codes, expected[None])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_seconds": 0.0}, "max_seconds=0.0"),
        ({"max_seconds": float("nan")}, "max_seconds=nan"),
        ({"max_share": 1.1}, "max_share=1.1"),
        ({"other_share": -0.1}, "other_share=-0.1"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PromptConfig(**changes)


def make_product(cache: CodeCache, vocoder: bool = True) -> tuple[SpeechProduct, SpeechExamples]:
    examples = make_examples(cache, other_share=1.0, max_seconds=0.5)
    codec = SoundCodec(make_tokenizer(max_positions=40), make_vocoder() if vocoder else None)
    return SpeechProduct(codec, make_text_model(), ALPHABET, examples, MEL, VoiceConfig()), examples


def test_samples_are_a_picture_and_sounds(cache: CodeCache, tmp_path: Path) -> None:
    product, examples = make_product(cache)
    product.to(torch.device("cpu"))
    model = make_generator(product.codec.tokenizer)
    product.sample(tmp_path / "step.png", model, SamplingConfig(num_steps=2))
    assert {path.name for path in tmp_path.iterdir()} == {"step.png", *(f"step_{k}.wav" for k in range(1, 5))}
    with Image.open(tmp_path / "step.png") as picture:
        picture.verify()
    _, _, sequence = examples.batch(examples.draw(torch.tensor([0, 1, 3, 5]), generator("sample prompts"))[0])
    assert sequence is not None
    for row, length in enumerate(sequence.lengths):
        assert len(read_sound(tmp_path / f"step_{row + 1}.wav", RATE)) == length * UNIT
    before = (tmp_path / "step_1.wav").read_bytes()
    product.sample(tmp_path / "step.png", model, SamplingConfig(num_steps=2))
    assert (tmp_path / "step_1.wav").read_bytes() == before, "the same sounds at every step of a training"


def test_the_export_is_a_pipeline(cache: CodeCache, tmp_path: Path) -> None:
    for vocoder in (True, False):
        product, _ = make_product(cache, vocoder)
        model = make_generator(product.codec.tokenizer)
        sampling = SamplingConfig(num_steps=3)
        product.export(tmp_path / "model", model, sampling, {"generator": {"steps": 1}})
        parts = load_speech_pipeline(tmp_path / "model")
        assert parts.sampling == sampling and parts.alphabet == ALPHABET and (parts.vocoder is not None) == vocoder
        assert parts.folder.extra["history"] == {"generator": {"steps": 1}}
        assert torch.equal(parts.generator.codebooks, model.codebooks)
