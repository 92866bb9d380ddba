"""`resgen bench quantizer|depth|sampler`: the measurements behind the README's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from resgen.cli.common import Json, report


@dataclass(frozen=True, kw_only=True)
class BenchQuantizer:
    """Encode 65,536 vectors with this library and with vector-quantize-pytorch: time, memory, agreement.

    For example:

        resgen bench quantizer --json
    """

    as_json: Json = False

    def run(self) -> None:
        from resgen.evaluation.bench import bench_quantizer

        report(bench_quantizer(), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class BenchDepth:
    """Network passes and seconds of sampling at depth 1, 4, 8 and 16, all else equal.

    For example:

        resgen bench depth --json
    """

    as_json: Json = False

    def run(self) -> None:
        from resgen.evaluation.bench import bench_depth

        report(bench_depth(), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class BenchSampler:
    """Seconds of sampling over the seconds of its bare network passes.

    For example:

        resgen bench sampler --json
    """

    as_json: Json = False

    def run(self) -> None:
        from resgen.evaluation.bench import bench_sampler

        report(bench_sampler(), as_json=self.as_json)
