"""Whether the episodes of a data set have something to learn from, found before anything is trained or tested on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fsl_cli.episodes.episodes import Episodes
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.errors import FslError

_EXAMPLES = 1000  # are looked at, in 4 to 64 episodes
_BLANK = 0.01  # a share of blank images above which there is a warning


def check_signal(sampler: Sampler, split: str, warn: Callable[[str], None]) -> None:
    """Look at the first episodes of a split.

    Args:
        sampler: draws them, with images as they are: a blank image that is normalised has channels of different values.
        split: its name, for messages.
        warn: called when some of the images are blank.

    Raises:
        FslError: examples or targets are not finite, or all examples of an episode are the same, as blank images are.
    """
    hint = "look at the files of the data set and at what has converted them"
    first = _examples(sampler.batch(0, 1))
    count = min(max(_EXAMPLES // len(first[0]), 4), 64)
    blank = seen = 0
    for number in range(count):  # one at a time, because they may differ in size
        x, y = _examples(sampler.batch(number, 1))
        if not (x.isfinite().all() and y.isfinite().all()):
            raise FslError(f"the {split} split has examples that are not finite numbers", where="dataset", hint=hint)
        if bool((x == x[:1]).all()):
            raise FslError(f"the {split} split has an episode whose examples are all the same", where="dataset", hint=hint)
        if x.ndim == 4:
            lowest, highest = x.flatten(1).aminmax(dim=1)
            blank, seen = blank + int((lowest == highest).sum()), seen + len(x)
    if blank > _BLANK * seen:
        warn(f"dataset: {blank} of {seen} images of the {split} split that were looked at are blank; {hint}")


def _examples(episode: Episodes) -> tuple[Tensor, Tensor]:
    """Inputs and targets of an episode's support and queries, without masked rows."""
    parts = (episode.support, episode.query)
    return torch.cat([each.x[each.real] for each in parts]), torch.cat([each.y[each.real] for each in parts])
