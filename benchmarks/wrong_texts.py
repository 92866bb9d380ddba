"""How often is a prompt's text doubted, when it is right and when it is that of another recording?

    python benchmarks/wrong_texts.py --model english-small --data speech/teacher --split test_unseen --num-samples 40

The other text is the one most like it in length. See `pipelines.speech.fit`; the counts go to standard output.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import tyro

from resgen.cli.main import guard
from resgen.data.sound.sources import open_speech
from resgen.errors import DataError
from resgen.experiments.speech.judge import prepared
from resgen.pipelines.speech.fit import DOUBTFUL, better_orders
from resgen.pipelines.speech.pipeline import SpeechPipeline


def main(model: str, data: str, split: str, num_samples: int = 40) -> None:
    """Count doubts about right and wrong texts.

    Args:
        model: folder of a speech pipeline, or a bundled name.
        data: recordings with texts.
        split: of the data.
        num_samples: recordings, spread evenly over the split.
    """
    pipe, source = SpeechPipeline.from_pretrained(model), open_speech(data, split)
    indices = torch.linspace(0, len(source) - 1, min(num_samples, len(source))).long().tolist()
    texts = {index: pipe.reader.whole(source.texts[index]) for index in indices}
    if len({one.text for one in texts.values()}) < 2:
        raise DataError(f"'{data}' split '{split}' has one text only; there is no other to give")
    doubts: dict[str, list[bool]] = {"right": [], "wrong": []}
    spent: list[float] = []
    for index, right in texts.items():
        samples = prepared(pipe, source, index)
        others = [other for other in texts.values() if other.text != right.text]
        wrong = min(others, key=lambda other: abs(len(other.content) - len(right.content)))
        for name, text in (("right", right), ("wrong", wrong)):
            if len(text.content) + 2 <= len(samples) // pipe.mel.hop_size:
                begin = time.process_time()
                better, _ = better_orders(pipe.text_model, samples, text, pipe.mel)
                spent.append(time.process_time() - begin)
                doubts[name].append(better >= DOUBTFUL)
    for name, ones in doubts.items():
        print(f"{name} text: {sum(ones)} of {len(ones)} are doubted")
    print(f"a look takes {statistics.median(spent):.3f} s of the processor")


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
