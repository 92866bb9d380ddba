"""The paper's quantizer: codes move in proportion to how near the latents are (App. A.1, after CLaM-TTS)."""

from __future__ import annotations

import torch
from torch import Tensor

from resgen.quantizers.base import Quantization, Quantizer, track_variances
from resgen.types import LOCAL, Reduce


class ProbabilisticQuantizer(Quantizer):
    """Every code of every level receives total weight 1 from each batch, so none can die."""

    @torch.no_grad()
    def update(self, result: Quantization, generator: torch.Generator, reduce: Reduce = LOCAL) -> dict[str, Tensor]:
        """Steps 2 to 5 of App. A.1, level by level, in float32; see `Quantizer.update`."""
        batch_variance = track_variances(self, result, reduce)
        for level in range(self.depth):
            h = result.residuals[level]  # h_{j-1}
            codebook = self.codebooks[level]
            with torch.autocast(device_type=h.device.type, enabled=False):
                # logq[n, v] = log softmax_v(-|h_n - e_v|^2 / (2 s2)); |h_n|^2 cancels in the softmax over v.
                distance = torch.addmm(codebook.square().sum(-1), h, codebook.T, alpha=-2)
                logq = torch.log_softmax(distance / (-2 * batch_variance[level]), dim=1)
                # w[n, v] = softmax over n (of all processes) of logq[n, v]: a weighted mean of the latents per code.
                peak = logq.amax(0) if len(h) else logq.new_full((len(codebook),), -torch.inf)
                peak = reduce.max(peak)
                weight = (logq - peak).exp_()
                sums = reduce.sum(torch.cat([weight.T @ h, weight.sum(0)[:, None]], dim=1))
            mean = sums[:, :-1] / sums[:, -1:].clamp(min=1e-30)
            codebook.lerp_(torch.where(peak.isfinite().all(), mean, codebook), 1 - self.config.momentum)
        return {"variance": batch_variance}
