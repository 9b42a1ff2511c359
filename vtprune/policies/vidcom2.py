"""VidCom2: frames unlike the rest of a video may keep more tokens, and each frame keeps its most distinctive ones.

Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
EMNLP 2025, arXiv:2505.14454.
Differs from the authors' code: the count is exact, ``keep_ratio`` of a video's tokens rounded down, but one for each
frame at least (there shares are clamped and rounded and the sum drifts: ``compat="drift"``; the port in the serving
engine vLLM makes it exact but may empty a frame: ``compat="vllm"``); scores are float32 (there in the model's dtype:
``compat="model-dtype"``); several videos and batches work, each video by itself; ties go to the lowest index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.assign import Sums, kept
from vtprune.blocks.share import Share, split_rows
from vtprune.blocks.video_frames import frame_means, frame_sizes, rows_of, uneven_frames, video_counts
from vtprune.policies.base import register
from vtprune.policies.video_base import NO_VIDEO, VideoPolicy
from vtprune.tokens import VisualTokens

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01
CHANNELS = 0.5
"""Share of the channels that are looked at, those that vary least."""


@register("vidcom2")
@dataclass
class VidCom2(VideoPolicy):
    """Keeps, of every frame, the tokens least like the mean of the video and the mean of the frame.

    compat: "drift" leaves the counts of frames as they come out rounded; "vllm" drops the surplus wherever it is
            worst, also the last token of a frame; "model-dtype" computes scores in the dtype of the tokens.
    """

    positions: ClassVar[str] = "compact"
    known_compat: ClassVar[tuple[str, ...]] = ("drift", "vllm", "model-dtype")

    def count(self, n: int) -> int:
        """How many of the ``n`` tokens of a video to keep: rounded down, at least 1, at most n."""
        # the decimals that were written, not the binary number next to them
        wanted = self.n_keep if self.n_keep is not None else int(n * Decimal(str(float(self.keep_ratio))))
        return min(n, max(1, wanted))

    def most(self, sizes: Sequence[int], k: int) -> int:
        return min(sum(sizes), max(k, len(sizes)))

    def allot(self, tokens: VisualTokens) -> tuple[list[Share], str]:
        """How many tokens each frame keeps, for another policy to choose; images are left whole."""
        videos, notes = uneven_frames(tokens, self.images or "apart")
        found = []
        for video, k in zip(videos, video_counts(videos, self.count, self.budget), strict=True):
            if k < len(rows_of(video)):
                [sums] = self.prune(tokens, video, k)
                # tokens of a frame ascend, but for the order in which a family lists its places
                found += split_rows([frame[frame >= 0] for frame in video.sort(1).values], sums.place)
        return found, "; ".join(notes) if videos else NO_VIDEO.format(type(self).__name__)

    def prune(self, tokens: VisualTokens, video: Tensor, k: int) -> Sequence[Sums]:
        x, there = tokens.hidden[video.clamp(min=0).flatten()], video >= 0
        x = x if "model-dtype" in self._quirks else x.float()
        of_video, of_frame = redundancy(x.unflatten(0, video.shape), there)
        ratio = self.share(video, k)
        counts = frame_counts(frame_shares(of_video, ratio, there), frame_sizes(video))
        worth = -(of_video + of_frame).masked_fill(~there, torch.inf).flatten()
        # 1: what a frame keeps by its own count; 2: its best token
        rank = torch.empty_like(video)
        order = worth.view(video.shape).sort(dim=1, descending=True, stable=True).indices
        rank.scatter_(1, order, torch.arange(video.shape[1], device=video.device).expand(video.shape))
        standing = ((rank < counts[:, None]) & there).int()
        if "drift" in self._quirks:
            return [kept(video[standing > 0])]
        if "vllm" not in self._quirks:
            standing += (rank == 0) & there
        # places without a token stand behind all others, and at least one token of every frame is kept
        standing -= (~there).int()
        best = worth.sort(descending=True, stable=True).indices
        best = best[standing.flatten()[best].sort(descending=True, stable=True).indices]
        return [kept(video.flatten()[best[: max(k, len(video))]])]


@torch.no_grad()
def redundancy(x: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(T, N) each, higher is more alike: how close each token is to the mean of the video, and of its frame.

    x: (T, N, C). there: (T, N) bool, False for rows that are no token; None: all are. Rows are scaled to length 1 over
    the half of the channels that varies least, and closeness to a mean is the sum of five Gaussians of the distance to
    it, which makes it a number in (0, 5].
    """
    there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if there is None else there
    whole = bool(there.all())
    variance = (x.flatten(0, 1) if whole else x[there]).var(0, correction=0)
    channels = variance.sort(stable=True).indices[: int(x.shape[-1] * CHANNELS)]
    unit = F.normalize(x[..., channels], dim=-1)
    of_video = unit.mean((0, 1)) if whole else unit[there].mean(0)
    return _closeness(unit, of_video), _closeness(unit, frame_means(unit, there)[:, None])


def _closeness(unit: Tensor, centre: Tensor) -> Tensor:
    square = (unit - centre).square().sum(-1)
    return sum((-square / (2 * width)).exp() for width in WIDTHS)


def frame_shares(of_video: Tensor, keep_ratio: float, there: Tensor | None = None) -> Tensor:
    """(T,) in [0, 1]: the share of its tokens that each frame keeps. of_video, there: (T, N) as of ``redundancy``."""
    there = torch.ones_like(of_video, dtype=torch.bool) if there is None else there
    unlike = (-frame_means(of_video[..., None], there)[:, 0]).double() / TEMPERATURE
    weight = unlike.softmax(0)
    return (keep_ratio * (1 + weight - weight.mean())).clamp(max=1)


def frame_counts(shares: Tensor, n: int | Tensor) -> Tensor:
    """(T,) int64: how many of its n tokens, () or (T,), each frame keeps, half rounds to even, at least 1."""
    return (shares * n).round().long().clamp(min=1)
