"""Data as others lay it out: splits and labels by other names, other suffixes; nothing is left out without a word."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from resgen.cli.main import main
from resgen.data import available_splits, open_images
from resgen.data.codes.cache import open_codes
from resgen.data.pictures.sources import readable
from resgen.data.pictures.store import PictureStore
from resgen.data.sound.decode import encode_sound, read_sound, write_sound
from resgen.data.sound.held_out import open_speech_splits
from resgen.data.sound.sources import open_speech
from resgen.errors import DataError
from resgen.training.image.runs import open_splits
from speech_parts import RATE, save_parts, voice
from tars import png, write_tar

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in Image.registered_extensions():
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("text")
    return root


def table(path: Path, **columns: list[object]) -> Path:
    count = len(next(iter(columns.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"image": [png(0)] * count, **columns}), path)
    return path


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/cat/1.png", "train/dog/1.png", "test/cat/2.png", "__MACOSX/train/cat/._1.png"], ("train", "test")),
        (["Train/cat/1.png", "Train/dog/1.png", "Test/cat/2.png"], ("train", "test")),
        (["training/cat/1.png", "training/dog/1.png", "testing/cat/2.png", "notes/a.xml"], ("train", "test")),
        (["train/cat/1.png", "train/dog/1.png", "dev/cat/2.png", "more/3.png"], ("train", "dev")),
        (["train/cat/1.png", "train/dog/1.png", "more/3.png"], ("train",)),
        (["TRAIN/cat/1.jfif", "TRAIN/dog/1.TIF", "VALID/cat/2.gif"], ("train", "valid")),
    ],
)
def test_split_folders_however_they_are_spelt(tmp_path: Path, names: list[str], splits: tuple[str, ...]) -> None:
    root = make(tmp_path / "d", *names)
    assert available_splits(root) == splits
    assert open_images(root).class_names == ("cat", "dog") and len(open_images(root)) == 2
    assert len(open_images(root, split=splits[-1])) == (1 if len(splits) > 1 else 2)


def test_classes_that_are_called_like_splits(tmp_path: Path) -> None:
    vehicles = make(tmp_path / "vehicles", "train/1.png", "car/1.png", "bus/1.png")
    assert available_splits(vehicles) == ("train",) and open_images(vehicles).class_names == ("bus", "car", "train")
    with pytest.raises(DataError, match="'train', 'training', two of one split"):
        open_images(make(tmp_path / "twice", "train/a/1.png", "training/a/2.png"))
    for wrapped in ("set/train/cat/1.png", "set/test/cat/1.png"):
        make(tmp_path / "wrapped", wrapped)
    with pytest.raises(DataError, match="holds the splits within 'set'; give '.*wrapped/set'"):
        open_images(tmp_path / "wrapped")


def test_pictures_of_every_known_suffix_are_read(tmp_path: Path) -> None:
    suffixes = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "TIF")
    source = open_images(
        make(tmp_path / "d", *(f"{suffix}{place}/1.{suffix}" for place, suffix in enumerate(suffixes)))
    )
    assert len(source) == len(source.class_names) == len(suffixes) and source[0][0].shape == (4, 4, 3)
    Image.new("F", (4, 4)).save(tmp_path / "d" / "png0" / "2.tif")
    with pytest.raises(DataError, match="2.tif' holds floating-point numbers"):
        open_images(tmp_path / "d")[open_images(tmp_path / "d").class_names.index("png0") + 1]


def test_pictures_of_another_size_are_not_named_one_by_one(tmp_path: Path) -> None:
    source = open_images(make(tmp_path / "d", *(f"cat/{i:02}.png" for i in range(30))))
    with pytest.raises(DataError) as caught:
        PictureStore(source, size=32, channels=3).batch(torch.arange(30))
    line = str(caught.value)
    assert line.startswith("30 of 30 images of 'd' do not fit; the first: ") and line.count(".png") == 1
    assert "but 32x32 is expected; convert them, or have it done (resize=True" in line
    assert line.endswith("a tokenizer for their size is trained with --set tokenizer.image_size=N")


@pytest.mark.parametrize("max_bytes", [1 << 20, 0])
def test_all_bad_pictures_are_named_at_once(tmp_path: Path, max_bytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "d", *(f"{name}/{i:02}.png" for name in ("cat", "dog") for i in range(30)))
    bad = [root / "cat" / f"{i:02}.png" for i in range(5, 28)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:40])
    source = open_images(root)
    with pytest.raises(DataError) as caught:
        PictureStore(source, size=4, channels=3, max_bytes=max_bytes).batch(torch.arange(60))
    line = str(caught.value)
    assert line.startswith("23 of 60 images of 'd' cannot be read: ") and "and 3 more; remove them, or leave" in line
    assert all(str(path) in line for path in bad[:20]) and str(bad[20]) not in line and "\n" not in line
    capsys.readouterr()
    kept = readable(source, size=4, channels=3, skip=True)
    assert len(kept) == 37 and kept.labels.tolist() == [0] * 7 + [1] * 30
    assert capsys.readouterr().err.startswith("left out: 23 of 60 images of 'd' cannot be read")
    PictureStore(kept, size=4, channels=3, max_bytes=max_bytes).batch(torch.arange(37))
    with pytest.raises(DataError, match="37 of 60 images of .* do not fit; the first: .*; 23 more cannot be read: "):
        readable(source, size=5, channels=3, skip=True)


def test_trainings_and_caches_without_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "d", *(f"{name}/{i:02}.png" for name in ("cat", "dog") for i in range(30)))
    (root / "cat" / "03.png").write_bytes(b"no image")
    settings = ["tokenizer.image_size=4", "tokenizer.channels=3", "tokenizer_training.num_steps=1", "tokenizer.width=8"]
    train = ["train", "tokenizer", "--recipe", "digits", "--data", root, "--out", tmp_path / "t", "--set", *settings]
    model = tmp_path / "t" / "model"
    encode = ["encode", "--tokenizer", model, "--data", root, "--out", tmp_path / "codes"]
    for command in (train, encode):
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "03.png' is not an image" in error and "--skip-unreadable" in error
        assert main([*map(str, command), "--skip-unreadable"]) == 0
        assert "left out: 1 of 57 images of 'd' cannot be read" in capsys.readouterr().err
    assert len(open_codes(tmp_path / "codes" / "train")) == 56


def test_trainings_and_caches_without_recordings_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_parts(tmp_path / "voice")
    for number in range(6):
        write_sound(voice(0.5 + 0.1 * number), RATE, tmp_path / "d" / f"{number}.wav")
    (tmp_path / "d" / "2.wav").write_bytes(b"no sound")
    (tmp_path / "d" / "metadata.csv").write_text("\n".join(f"{number}.wav|abc ab" for number in range(6)))
    mel = ["fft_size=256", "window_size=200", "hop_size=50", "num_bands=12", "max_hz=4000", f"sample_rate_hz={RATE}"]
    mels = [f"{part}.mel.{pair}" for part in ("tokenizer", "vocoder") for pair in mel]
    narrow = ["vocoder.width=8", "vocoder.num_layers=1", "vocoder_loss.discriminator_width=2"]
    short = ["vocoder_training.num_steps=1", "vocoder_training.warmup_steps=0", "vocoder_training.batch_size=2"]
    recipe = ["--recipe", "spoken_digits", "--data", tmp_path / "d", "--set", *mels]
    train = ["train", "vocoder", "--out", tmp_path / "run", *recipe, *narrow, *short]
    encode = ["encode", "--tokenizer", model, "--text", model, "--out", tmp_path / "codes", *recipe]
    for command in (train, encode):
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "2.wav'" in error and "--skip-unreadable" in error
        assert main([*map(str, command), "--skip-unreadable"]) == 0
        assert "left out: 1 of 5 recordings of 'd' split 'train' cannot be read" in capsys.readouterr().err
    assert len(open_codes(tmp_path / "codes" / "train")) == 4


def test_one_line_says_what_was_opened_and_what_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(
        tmp_path / "d", "train/cat/1.png", "train/dog/1.png", "train/bird/1.heic", "train/bird/2.heic", "more/3.png"
    )
    make(root, "train/cat/notes.txt", "test/bird/1.png")
    open_images(root)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith(
        "data 'd/train': 2 images, 3 classes (bird, cat, dog); no images of 'bird'; left out: "
    )
    assert "2 .heic (no image)" in line and "1 .txt (no image)" in line and "folder 'more' beside the splits" in line
    open_images(make(tmp_path / "e", "cat/1.png", "bird/1.heic"))
    assert "folder 'bird' without images" in capsys.readouterr().err
    open_images(table(tmp_path / "train.parquet", label=[0, 1], caption=["a", "b"]))
    assert capsys.readouterr().err == "data 'train.parquet': 2 images, 2 classes (0, 1); left out: column caption\n"


@pytest.mark.parametrize(
    "column",
    ["label", "labels", "fine_label", "Label", "category", "CATEGORY", "target", "coarse_label", "class", "class_id"],
)
def test_label_columns_of_other_names(tmp_path: Path, column: str) -> None:
    assert open_images(table(tmp_path / "a.parquet", **{column: [0, 1, 2]})).class_names == ("0", "1", "2")


def test_what_may_be_the_label_is_asked_for(tmp_path: Path) -> None:
    several = table(tmp_path / "a.parquet", category=[0, 1], target=[1, 0])
    with pytest.raises(DataError, match="category and target, which may all be the class; name the right one 'label'"):
        open_images(several)
    assert open_images(table(tmp_path / "b.parquet", category=["x", "y"], category_id=[0, 1])).class_names == ("x", "y")
    assert open_images(table(tmp_path / "c.parquet", fine_label=[2, 1], coarse_label=[0, 0])).labels.tolist() == [2, 1]
    features = {
        "info": {"features": {name: {"names": ["a", "b"], "_type": "ClassLabel"} for name in ("style", "mood")}}
    }
    for names, expected in ((["style"], ("a", "b")), (["style", "mood"], "style and mood")):
        content = pyarrow.table({"image": [png(0)] * 2, **{name: [0, 1] for name in names}})
        content = content.replace_schema_metadata({"huggingface": json.dumps(features)})
        parquet.write_table(content, tmp_path / "d.parquet")
        if isinstance(expected, str):
            with pytest.raises(DataError, match=expected):
                open_images(tmp_path / "d.parquet")
        else:
            assert open_images(tmp_path / "d.parquet").class_names == expected


def test_labels_that_are_names_are_common_to_all_files(tmp_path: Path) -> None:
    table(tmp_path / "train-0.parquet", label=["dog", "cat"])
    table(tmp_path / "train-1.parquet", label=pyarrow.array(["eel", "dog"]).dictionary_encode())
    table(tmp_path / "test.parquet", label=["ant", "dog"])
    train, test = open_images(tmp_path), open_images(tmp_path, split="test")
    assert train.class_names == test.class_names == ("ant", "cat", "dog", "eel")
    assert train.labels.tolist() == [2, 1, 3, 2] and test.labels.tolist() == [0, 2]
    assert open_images(table(tmp_path / "b" / "a.parquet", label=[True, False])).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train/0000.parquet", "test/0000.parquet", "readme/a.txt"], ("train", "test")),
        (
            [
                "train.clean.100-00000-of-00002.parquet",
                "train.other.500-00001-of-00002.parquet",
                "test.clean-0.parquet",
            ],
            ("train", "test.clean"),
        ),
        (["mnist_train.parquet", "mnist_test.parquet"], ("train", "test")),
        (["toy-train-0.parquet", "toy-train-1.parquet", "toy-Testing.parquet"], ("train", "test")),
        (["data/Train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"], ("train", "validation")),
    ],
)
def test_parquet_files_by_split(tmp_path: Path, files: list[str], splits: tuple[str, ...]) -> None:
    for name in files:
        if name.endswith(".parquet"):
            table(tmp_path / name, label=[0, 1])
    assert available_splits(tmp_path) == splits
    assert len(open_images(tmp_path)) == 2 * sum("train" in name.lower() for name in files)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["test/cat/1.png", "test/dog/1.png", "val/cat/1.png", "val/dog/1.png"], "test, val"),
        (["validation/cat/1.png", "validation/dog/1.png", "test/cat/1.png"], "test, validation"),
    ],
)
def test_pictures_without_a_split_to_train_on(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=f"has the splits {said}; training needs 'train'"):
        open_splits(make(tmp_path, *names))


def test_pictures_are_held_out_as_recordings_are(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("validation.clean", 1), ("test.other", 2)):
        table(tmp_path / f"{name}-0.parquet", label=[0] * count)
    train, held_out = open_splits(tmp_path)
    assert len(train) == 3 and len(held_out) == 2
    assert sum(map(len, open_splits(table(tmp_path / "one" / "pictures.parquet", label=[0] * 40).parent))) == 40


def test_classes_of_tar_samples_in_their_path_or_category(tmp_path: Path) -> None:
    in_path = {f"{split}{name}/{i}.png": png(i) for split in ("", "./x/") for name in ("cat", "dog") for i in range(2)}
    source = open_images(write_tar(tmp_path / "a.tar", in_path))
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 0, 1, 1] * 2
    noted = {
        f"{i}.{suffix}": png(i) if suffix == "png" else json.dumps({"Category": "ab"[i]})
        for i in (0, 1)
        for suffix in ("png", "json")
    }
    assert open_images(write_tar(tmp_path / "b.tar", noted)).class_names == ("a", "b")
    for folder in ("all/", "train/"):
        assert open_images(write_tar(tmp_path / "c.tar", {f"{folder}{i}.png": png(i) for i in (0, 1)})).class_names == (
            "picture",
        )
    for folder in ("Train", "testing"):
        (tmp_path / "d" / folder).mkdir(parents=True)
        write_tar(tmp_path / "d" / folder / "0.tar", {"1.png": png(0)})
    assert available_splits(tmp_path / "d") == ("train", "test")


SOUND = encode_sound(torch.sin(torch.arange(2000) / 5), 8000)


def recordings(root: Path, *lines: str, folder: str = "") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "metadata.csv").write_text("\n".join(lines))
    for line in lines:
        (root / folder / f"{line.split('|')[0].removesuffix('.wav')}.wav").write_bytes(SOUND)
    return root


@pytest.mark.parametrize("speakers", [1, 3, 40])
def test_recordings_without_a_held_out_split(tmp_path: Path, speakers: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As the tutorial says: one folder, one table."""
    recordings(tmp_path / "d", *(f"{i:03}.wav|text {i}|s{i % speakers:02}" for i in range(80)))
    train, held_out = open_speech_splits(tmp_path / "d")
    assert (len(train), len(held_out)) == (76, 4) and not set(train.ids) & set(held_out.ids)
    assert train.split != held_out.split and held_out.read(3, 8000).shape == (2000,)
    assert set(train.speakers).isdisjoint(held_out.speakers) == (speakers == 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"data 'd' split 'train': 80 utterances, {speakers} speaker") and len(lines) == 2
    assert "4 utterances (2 speakers) are held out" in lines[1] or "every 20th utterance" in lines[1]


def test_pictures_without_a_held_out_split_say_what_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sum(map(len, open_splits(table(tmp_path / "pictures.parquet", label=[0] * 40)))) == 40
    assert capsys.readouterr().err.splitlines()[1] == (
        "data 'pictures.parquet' has no held-out split: 2 images (every 20th) are held out"
    )


def test_tables_of_two_fields_and_of_ljspeech(tmp_path: Path) -> None:
    two = open_speech(recordings(tmp_path / "two", "a.wav|one", "b.wav|two"))
    assert two.texts == ("one", "two") and set(two.speakers) == {"speaker"}
    lines = ("LJ1|Dr. A|Doctor A", "LJ2|2|two", "LJ3|No|No")
    lj = open_speech(recordings(tmp_path / "lj", *lines, folder="wavs"))
    assert lj.texts == ("Doctor A", "two", "No") and set(lj.speakers) == {"speaker"} and lj.ids[0] == "wavs/LJ1.wav"
    with pytest.raises(
        DataError, match="a different speaker on every line, such as 'a b'; the third field is the speaker"
    ):
        open_speech(recordings(tmp_path / "bad", "a.wav|a b|a b", "b.wav|c d|c d", "c.wav|e f|e f"))


@pytest.mark.parametrize(
    ("columns", "speakers"),
    [
        ({"sentence": ["a", "b"], "client_id": ["x", "y"]}, ("x", "y")),
        ({"transcription": ["a", "b"], "speaker": ["x", "y"]}, ("x", "y")),
        ({"text": ["a", "b"], "speaker_id": [7, 0]}, ("7", "0")),
        ({"text": ["a", "b"], "speaker_id": "categorical"}, ("x", "y")),
    ],
)
def test_speech_columns_of_other_names_and_types(tmp_path: Path, columns: dict, speakers: tuple[str, ...]) -> None:
    if columns.get("speaker_id") == "categorical":
        columns = columns | {"speaker_id": pyarrow.array(["x", "y"]).dictionary_encode()}
    for file in ("train/0000.parquet", "test/0000.parquet"):
        (tmp_path / file).parent.mkdir()
        parquet.write_table(pyarrow.table({"audio": [SOUND] * 2, "age": [1, 2], **columns}), tmp_path / file)
    train, held_out = open_speech_splits(tmp_path)
    assert train.texts == ("a", "b") and train.speakers == speakers and held_out.split == "test"
    assert train.left_out == ("column age",)


def test_tables_of_common_voice_are_to_be_written_as_ours(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("client_id\tpath\tsentence\nx\ta.mp3\tAbc.\n")
    write_sound(voice(0.5), RATE, tmp_path / "clips" / "a.mp3.wav")
    with pytest.raises(
        DataError, match="write the lines of train.tsv as 'clips/PATH.SENTENCE.CLIENT_ID' into metadata"
    ):
        open_speech(tmp_path)
    (tmp_path / "metadata.csv").write_text("clips/a.mp3.wav|Abc.|x")
    assert open_speech(tmp_path).speakers == ("x",)


def test_librispeech_splits(tmp_path: Path) -> None:
    for split in (
        "train.clean.100-00000-of-00014",
        "train.other.500-00000-of-00002",
        "validation.clean-00000-of-00001",
    ):
        content = {"audio": [SOUND], "text": ["a"], "speaker_id": [split]}
        parquet.write_table(pyarrow.table(content), tmp_path / f"{split}.parquet")
    train, held_out = open_speech_splits(tmp_path)
    assert len(train) == 2 and held_out.split == "validation.clean"


def test_sounds_of_other_codecs_and_scales(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    content = io.BytesIO()
    soundfile.write(content, torch.sin(torch.arange(3200) / 5).numpy() / 2, 8000, format="WAV", subtype="GSM610")
    assert len(read_sound(content.getvalue(), 8000)) == 3200
    sixteen = io.BytesIO()
    soundfile.write(sixteen, 20000 * torch.sin(torch.arange(800.0)).numpy(), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(
        DataError, match=r"a.wav holds values up to 2e\+04, but those of a sound lie in \[-1, 1\]; scale"
    ):
        read_sound(sixteen.getvalue(), 8000, where="a.wav")
    columns = {"audio": [[0.5, 1.0]], "text": ["a"], "speaker_id": ["x"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'audio' must hold bytes or {bytes, path}, not list"):
        open_speech(tmp_path)
