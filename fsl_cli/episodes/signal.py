"""Whether the episodes of a data set have something to learn from, found before anything is trained or tested on them."""

from __future__ import annotations

import torch

from fsl_cli.episodes.sampler import Sampler
from fsl_cli.errors import FslError

_EPISODES = 4  # enough, because what is damaged is usually all of it


def check_signal(sampler: Sampler, split: str) -> None:
    """Look at the first episodes of a split.

    Raises:
        FslError: examples or targets are not finite, or all examples of an episode are the same, as blank images are.
    """
    hint = "look at the files of the data set and at what has converted them"
    for index in range(_EPISODES):
        episode = sampler.batch(index, 1)
        support, query = episode.support, episode.query
        x = torch.cat([each.x[each.real] for each in (support, query)])
        y = torch.cat([each.y[each.real] for each in (support, query)])
        if not (x.isfinite().all() and y.isfinite().all()):
            raise FslError(f"the {split} split has examples that are not finite numbers", where="dataset", hint=hint)
        if bool((x == x[:1]).all()):
            raise FslError(f"the {split} split has an episode whose examples are all the same", where="dataset", hint=hint)
