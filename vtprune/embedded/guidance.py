"""Help for the decoder in the second stage of the training: words in the visual tokens, and where to look."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.embedded.architecture import VOCABULARY
from vtprune.embedded.drawing import COLORS
from vtprune.embedded.train_tower import NAMES


def align_projector(
    projector: nn.Module, words: Tensor, features: Tensor, targets: Tensor, *, steps: int = 400, batch: int = 16
) -> float:
    """Teaches the projector to make of each visual token the sum of the words for what is there; returns the error.

    Then a question's word and the visual tokens it is about look alike from the start, which makes the
    look-up easier to find. words: (vocabulary, D) the decoder's embeddings, left as they are. features, targets: see
    ``train_answers.Pool``.
    """
    words = words.detach()
    places = [("top", "left"), ("top", "right"), ("bottom", "left"), ("bottom", "right")]
    nothing = words[VOCABULARY["."]][None]
    names = torch.cat([nothing, words[[VOCABULARY[name] for name in NAMES]]])
    colors = torch.cat([torch.zeros_like(nothing), words[[VOCABULARY[color] for color in COLORS]]])
    quarters = torch.stack([torch.zeros_like(nothing[0])] + [sum(words[VOCABULARY[w]] for w in p) for p in places])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=3e-3)
    rng = np.random.Generator(np.random.PCG64(steps))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        chosen = rng.integers(0, len(features), batch)
        name, color, quarter, _ = targets[chosen].unbind(1)
        clear = (name >= 0) & (color >= 0) & (quarter >= 0)
        wanted = names[name[clear]] + colors[color[clear]] + quarters[quarter[clear]]
        made = projector(features[chosen].float())[clear]
        loss = (made - wanted).square().mean() / words.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def look_closer(targets: Tensor, n: int) -> Tensor:
    """(B, n) rows of the visual tokens, ascending: those on objects and, if there is room, random others.

    targets: (B, 4, N), see ``train_answers.Pool``.
    """
    first = (targets[:, 0] > 0) + torch.rand(targets[:, 0].shape)
    return first.topk(n, dim=1).indices.sort(dim=1).values


def look_there(attention: Tensor, about: Tensor, targets: Tensor) -> Tensor:
    """How little attention goes to the object that is asked about: mean of -log of the share it gets.

    attention: (B, H, T, N) from the text to the visual tokens. about: see ``train_answers.Batch``. targets: (B, 4, N),
    see ``train_answers.Pool``.
    """
    classes = torch.full((len(VOCABULARY), 2), -1)  # a name is looked up in targets' row 0, a colour in row 1
    for row, words in enumerate((NAMES, COLORS)):
        classes[[VOCABULARY[word] for word in words], row] = torch.arange(1, len(words) + 1)
    sample, token = (about >= 0).nonzero(as_tuple=True)
    there = (targets[sample, :2] == classes[about[sample, token]][..., None]).any(1)
    share = (attention[sample, :, token].float().mean(1) * there).sum(-1)
    return -(share[there.any(-1)] + 1e-4).log().mean()


def unsaid(visual: Tensor, words: Tensor, targets: Tensor) -> Tensor:
    """How little the visual tokens on objects still resemble the right words: cross-entropies of their dot products.

    Without it the projector forgets, early on, what no question has needed yet. visual: (B, N, D). words: (vocabulary,
    D), not trained by this. targets: (B, 4, N), see ``train_answers.Pool``.
    """
    clear = (targets[:, :3] > 0).all(1)
    name, color, quarter = (row[clear] - 1 for row in targets[:, :3].unbind(1))
    choices = (
        (NAMES, name),
        (tuple(COLORS), color),
        (("top", "bottom"), quarter // 2),
        (("left", "right"), quarter % 2),
    )
    seen, words = visual[clear].float(), words.detach()
    return sum(F.cross_entropy(seen @ words[[VOCABULARY[w] for w in group]].T, right) for group, right in choices)
