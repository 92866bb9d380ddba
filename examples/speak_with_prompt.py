"""Speak: a text in the model's own voice, and after a prompt of a few seconds.

Shows `SpeechPipeline`, named voices, prompts with their text, and several texts in one call. The bundled model
speaks English; its voices are recordings of a synthesizer. Use voices of people who agreed.

    python examples/speak_with_prompt.py --out out/speak
"""

from __future__ import annotations

import argparse
from pathlib import Path

from resgen import SpeechPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the sounds")
    parser.add_argument("--model", default="english-small", help="a bundled name or a folder")
    parser.add_argument("--texts", nargs="+", default=["few positions", "many levels"], help="what to say")
    parser.add_argument("--prompt", type=Path, help="a recording of one to three seconds")
    parser.add_argument("--prompt-text", help="what is said in it")
    parser.add_argument("--steps", type=int, default=12, help="network evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = SpeechPipeline.from_pretrained(args.model)
    if args.prompt is None:
        voice = {"voice": next(iter(pipe.voices))}
        print(f"voice: {voice['voice']} of {', '.join(pipe.voices)}")
    else:
        voice = {"prompt": args.prompt, "prompt_text": args.prompt_text}
    for name, options in (("own", {}), ("prompted", voice)):
        outputs = pipe(args.texts, num_steps=args.steps, seed=0, **options)
        for text, output in zip(args.texts, outputs, strict=True):
            path = args.out / f"{name}-{text.replace(' ', '-')}.wav"
            output.save(path)
            print(f"{path.name}: {output.duration_s:.1f} s, codes {tuple(output.codes.shape)}")


if __name__ == "__main__":
    main()
