"""Which frames belong to which text token: monotonic alignment search, expansion and priors (Glow-TTS, App. A.1)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import ConfigError, DataError

LEAST_SCORE = -1e30
BLOCK_FRAMES = 32
LONGEST_FRAMES = 64
"""Of a token whose duration is scored, where the tokens of a text fill its frames with half as many each."""


def monotonic_alignment(
    scores: Float[Tensor, "B N T"], text_lengths: Int[Tensor, " B"], frame_lengths: Int[Tensor, " B"]
) -> Int[Tensor, "B N"]:
    """Durations of the best alignment that skips no token and never goes back (Glow-TTS, arXiv:2005.11129, Alg. 1).

    Among all paths that begin at the first token and the first frame, end at the last token and the last frame, and
    from one frame to the next stay or move on by one token, the one with the largest sum of scores. Where two are
    equally good, the one that moved on earlier wins. The dynamic programme runs over frames on the CPU, each step for
    all samples and tokens at once; then the path is followed back for all samples at once. Sums are float64 for float64
    scores and else float32.

    Args:
        scores: log-likelihood of frame t under token n, up to a constant per frame. -inf forbids a pair, as far as
            there are paths without it.
        text_lengths: tokens of each sample, 1..N; what is beyond is ignored.
        frame_lengths: frames of each sample, 1..T, at least as many as tokens.

    Returns:
        Frames per token, int64, on the device of `scores`; at least 1 for each token and 0 beyond the text; they sum to
        `frame_lengths`.

    Raises:
        ConfigError: a length out of range.
        DataError: a sample with more tokens than frames, or scores with NaN or +inf.
    """
    batch, num_tokens, num_frames = scores.shape
    if not batch:
        return torch.zeros((0, num_tokens), dtype=torch.long, device=scores.device)
    texts = text_lengths.cpu().numpy().astype(np.int64)
    frames = frame_lengths.cpu().numpy().astype(np.int64)
    _check_lengths(texts, frames, num_tokens, num_frames)
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    values = scores.detach().to("cpu", dtype).numpy()
    moved, best = _moves(values)
    inside = np.arange(num_frames)[:, None] < frames
    moved[~inside] = False
    first = np.arange(batch) * (num_tokens + 1) + 1
    path = np.empty((num_frames, batch), dtype=np.int64)
    here = path[-1]
    here[:] = first + texts - 1
    for flag, before in zip(moved.view(np.int8).reshape(num_frames, -1)[:0:-1], path[-2::-1], strict=True):
        np.subtract(here, flag.take(here), out=before)
        here = before
    if not best < np.inf or not np.array_equal(path[0], first):
        # NaN and infinity stay in the sums, and no path of -inf leads to the first token. In padding nothing matters.
        real = torch.from_numpy(inside.T[:, None] & (np.arange(num_tokens)[:, None] < texts[:, None, None]))
        known = torch.where(real.to(scores.device), scores, 0.0)
        if not bool(known.max() < torch.inf):
            raise DataError("the scores of the alignment hold NaN or infinity; the model that made them has diverged")
        return monotonic_alignment(known.clamp(min=LEAST_SCORE), text_lengths, frame_lengths)
    durations = np.bincount(path[inside], minlength=batch * (num_tokens + 1)).reshape(batch, -1)[:, 1:]
    return torch.from_numpy(durations).to(scores.device)


def _moves(scores: np.ndarray) -> tuple[np.ndarray, float]:
    """For scores [B, N, T] whether the best path to each token and frame comes from the token before, [T, B, N + 1],
    and the largest sum at the end.

    Every sample's tokens follow an entry of -inf, "no token": all samples lie in one flat row per frame, and no step
    from an entry to the next one leads from one sample to another. Frames are brought into this order a few at a time,
    so that they stay in the cache.
    """
    batch, num_tokens, num_frames = scores.shape
    row = num_tokens + 1
    block = np.full((BLOCK_FRAMES, batch, row), -np.inf, dtype=scores.dtype)
    best = np.full(batch * row, -np.inf, dtype=scores.dtype)
    best[1::row] = scores[:, 0, 0]
    stay, move, reach = best[1:], best[:-1], np.empty_like(best[1:])
    moved = np.zeros((num_frames, batch * row), dtype=np.bool_)
    for begin in range(1, num_frames, BLOCK_FRAMES):
        part = scores[:, :, begin : begin + BLOCK_FRAMES]
        np.copyto(block[: part.shape[2], :, 1:], part.transpose(2, 0, 1))
        # The last block may be shorter than its arrays.
        for score, flag in zip(block.reshape(BLOCK_FRAMES, -1)[:, 1:], moved[begin:, 1:], strict=False):
            np.greater(move, stay, out=flag)
            np.maximum(move, stay, out=reach)
            np.add(reach, score, out=stay)
    return moved.reshape(num_frames, batch, row), float(best.max())


def timed_alignment(
    scores: Float[Tensor, "B N T"],
    text_lengths: Int[Tensor, " B"],
    frame_lengths: Int[Tensor, " B"],
    log_durations: Float[Tensor, "B N"],
    weight: float,
) -> Int[Tensor, "B N"]:
    """Durations of the best alignment where durations count, too: of all divisions of the frames among the tokens, the
    one with the largest sum of scores less `weight / 2 (log d - log_durations)^2` for each token's frames d.

    Without that term a frame more or less of a token costs what the frame costs, and a quarter of the tokens of speech
    end with a single frame. Deviation: the paper's alignment is `monotonic_alignment`. The dynamic programme of a
    hidden semi-Markov model runs over tokens on the CPU, each step for all samples, ends and durations at once; no
    token is longer than `LONGEST_FRAMES`, or than twice what is even. Where two are equally good, late tokens are long.

    Args:
        scores: finite log-likelihood of frame t under token n, up to a constant per frame.
        text_lengths: tokens of each sample, 1..N; what is beyond is ignored.
        frame_lengths: frames of each sample, 1..T, at least as many as tokens.
        log_durations: natural logarithm of the frames that each token is expected to take.
        weight: 1 / variance of log d, at least 0.

    Returns:
        Frames per token, as of `monotonic_alignment`.

    Raises:
        ConfigError: a length out of range.
        DataError: a sample with more tokens than frames, or numbers that are not finite.
    """
    texts, frames = text_lengths.cpu(), frame_lengths.cpu()
    _check_lengths(texts.numpy(), frames.numpy(), scores.shape[1], scores.shape[2])
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    values, expected = (tensor.detach().to("cpu", dtype) for tensor in (scores, log_durations))
    real = torch.arange(scores.shape[1]) < texts[:, None]
    inside = real[:, :, None] & (torch.arange(scores.shape[2]) < frames[:, None, None])
    values, expected = values.where(inside, 0.0), expected.where(real, 0.0)
    if not bool(values.isfinite().all() and expected.isfinite().all()):
        raise DataError("the scores of the alignment hold NaN or infinity; the model that made them has diverged")
    most = (2 * -(-frames // texts)).clamp(min=LONGEST_FRAMES)  # of each sample
    longest = min(scores.shape[2], int(most.max()) if len(most) else LONGEST_FRAMES)
    spans = torch.arange(longest, 0, -1)
    cost = weight / 2 * (spans.to(dtype).log() - expected[..., None]).square()  # [B, N, D]
    cost = cost.masked_fill((spans > most[:, None])[:, None], torch.inf)
    sums = F.pad((values - values.amax(1, keepdim=True)).cumsum(2), (1, 0))  # [B, N, T + 1]
    best = torch.full_like(sums[:, 0], -torch.inf)
    best[:, :1] = 0.0
    starts = []
    for total, costs in zip(sums.unbind(1), cost.unbind(1), strict=True):
        starts.append(best - total)  # of each frame, as the token's first
        windows = F.pad(starts[-1][:, :-1], (longest, 0), value=-torch.inf).unfold(1, longest, 1)  # [B, T + 1, D]
        best = (windows - costs[:, None]).amax(2) + total
    durations, ends = torch.zeros(scores.shape[:2], dtype=torch.int64), frames.clone()
    for token in reversed(range(scores.shape[1])):
        first = ends[:, None] - spans
        value = starts[token].gather(1, first.clamp(min=0)) - cost[:, token]
        chosen = spans[value.where(first >= 0, -torch.inf).argmax(1)]
        durations[:, token] = chosen.where(real[:, token], 0)
        ends -= durations[:, token]
    return durations.to(scores.device)


def expand(hidden: Float[Tensor, "B N E"], durations: Int[Tensor, "B N"], num_frames: int) -> Float[Tensor, "B T E"]:
    """Repeat every token's vector for its duration; zeros follow the last one, and what is beyond `num_frames` is cut.

    Args:
        hidden: one vector per token.
        durations: frames per token, 0 or more.
        num_frames: T.

    Raises:
        ConfigError: `num_frames` is below 1.
    """
    if num_frames < 1:
        raise ConfigError(f"num_frames={num_frames} must be at least 1")
    ends = durations.cumsum(dim=1)
    frames = torch.arange(num_frames, device=ends.device).expand(len(ends), -1).contiguous()
    token = torch.searchsorted(ends, frames, right=True)
    inside = frames < ends[:, -1:]
    index = token.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[2])
    return hidden.gather(1, index) * inside[..., None]


def fitted_durations(exact: Float[Tensor, " N"], total: int) -> Int[Tensor, " N"]:
    """Whole frames per token, at least 1 each and `total` in all; what is beyond 1 is in proportion to what is beyond 1
    in `exact`, and ends of tokens are rounded, not durations.

    Args:
        exact: frames per token, above 0.
        total: frames of all tokens.

    Raises:
        ConfigError: fewer frames than tokens.
    """
    if total < len(exact):
        raise ConfigError(f"total={total} must be at least {len(exact)}, a frame for each token")
    beyond = (exact.double() - 1).clamp(min=0)
    share = (beyond if beyond.any() else exact.double()).cumsum(0)
    ends = (share / share[-1] * (total - len(exact))).round().long()
    return ends.diff(prepend=torch.zeros_like(ends[:1])) + 1


def alignment_prior(
    text_lengths: Int[Tensor, " B"],
    frame_lengths: Int[Tensor, " B"],
    num_tokens: int,
    num_frames: int,
    *,
    strength: float = 1.0,
) -> Float[Tensor, "B N T"]:
    """Log-probability of each token at each frame if speech flowed evenly (RAD-TTS, beta-binomial prior).

    At frame t = 1..T the token is BetaBinomial(N - 1, strength t, strength (T + 1 - t)): near the diagonal, and the
    nearer the closer to an end. It is added to the scores of `monotonic_alignment` while the model knows nothing yet.

    Args:
        text_lengths: tokens of each sample.
        frame_lengths: frames of each sample.
        num_tokens: N of the result.
        num_frames: T of the result.
        strength: larger is nearer to the diagonal; above 0.

    Returns:
        float64; 0 beyond the text and the frames.

    Raises:
        ConfigError: `strength` is not above 0, or a length is out of range.
    """
    if not strength > 0:
        raise ConfigError(f"strength={strength} must be above 0")
    for name, lengths, most in (("text", text_lengths, num_tokens), ("frame", frame_lengths, num_frames)):
        _check_range(f"{name}_lengths", lengths.cpu().numpy(), most)
    device = text_lengths.device
    last = (text_lengths.double() - 1)[:, None, None]
    total = frame_lengths.double()[:, None, None]
    token = torch.arange(num_tokens, dtype=torch.float64, device=device)[None, :, None]
    frame = torch.arange(1, num_frames + 1, dtype=torch.float64, device=device)[None, None, :]
    inside = (token <= last) & (frame <= total)
    token = torch.minimum(token, last)
    frame = torch.minimum(frame, total)
    alpha, beta = strength * frame, strength * (total + 1 - frame)
    choose = torch.lgamma(last + 1) - torch.lgamma(token + 1) - torch.lgamma(last - token + 1)
    value = choose + _log_beta(token + alpha, last - token + beta) - _log_beta(alpha, beta)
    return torch.where(inside, value, 0.0)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _check_lengths(texts: np.ndarray, frames: np.ndarray, num_tokens: int, num_frames: int) -> None:
    _check_range("text_lengths", texts, num_tokens)
    _check_range("frame_lengths", frames, num_frames)
    short = np.flatnonzero(texts > frames)
    if len(short):
        index = int(short[0])
        raise DataError(
            f"sample {index} has {texts[index]} text tokens but only {frames[index]} frames, and each token needs one; "
            "leave out recordings that are shorter than their text"
        )


def _check_range(name: str, lengths: np.ndarray, most: int) -> None:
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= most:
        raise ConfigError(f"{name} span {lengths.min()}..{lengths.max()}; allowed: 1..{most}")
