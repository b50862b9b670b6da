"""Relation networks (Sung, Yang, Zhang, Xiang, Torr & Hospedales 2018): the comparison is learned too.

The feature maps f(x) of a query and those of a class, the sum over its shots, are concatenated along their channels, and
the relation module g scores how well they match (eq. 1), r = g([f(class), f(x)]) in 0..1. Training minimises the squared
error of the scores (eq. 2), whose target is 1 for the query's class and 0 for the others. g is two blocks of 3x3
convolution, batch normalisation, ReLU and 2x2 max-pooling, a hidden layer with ReLU and a sigmoid (section 3.4).

The feature maps are the input of the backbone's last pooling layer; a backbone without one gives maps of a single position.
g is built for their size: a block pools only maps of at least 2x2, and its convolution of single positions is 1x1.

With ``combine=sum``, as in the paper, test with as many shots as in training: twice the shots give twice the values, which g
has never seen. ``combine=mean`` differs only by a constant factor and works with any number of shots.

The logits are log r / (1 - r), the input of the sigmoid: their order is that of the scores, without ties between scores
that are rounded to 0 or 1. If the scores were independent beliefs, the softmax of the logits would be p(y | x).

Batch normalisation: while training by the images, and in g by the pairs, of the episode. In tests ``inductive`` normalises
by the running averages of training, ``transductive`` by the images and pairs of the episode. With ``normalize_separately``
support and query images are normalised as two sets, in training and in transductive tests. The authors' code does so and never
leaves training mode, so that the published figures are transductive, with as many queries as shots: ``batch_norm=transductive
normalize_separately=true task.queries=1``, as in the experiments.

``train.clip_grad_norm`` clips the gradients of the embedding and of g separately, as that code does.

Deviations from the paper: by default tests are inductive, and the images of an episode are normalised together; the backbone is
the configured one, whose maps of Omniglot are 2x2 (``backbone.downsample=max_pool_twice`` is the paper's, with maps of 5x5);
episodes may have ``train_ways`` classes, where the paper trains with the ways of the test; weights start as in PyTorch;
schedules are shorter. The authors' code draws its 1,200 training classes at random and keeps the network that is best on the
test classes, and standardises the pixels; here the split is that of Vinyals et al. (2016), the validation split decides, and
pixels are in 0..1.

Logged: ``loss`` (mean squared error) and ``accuracy`` on the queries of the training episodes, which have ``train_ways``
ways; ``relation_same`` and ``relation_different``, the mean score of a query with its class and with the others.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (5,742 iterations): 96.19 ± 0.30 % (inductive; 95% t
interval over 1,000 test episodes). The paper, by a million episodes: 99.6 ± 0.2 %. ``scripts/leaderboard.sh --jobs 2
methods=relationnet``

    fsl train algo=relationnet dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import Step
from fsl_cli.algos.common.embedding_learner import EmbeddingLearner, EmbeddingOptions
from fsl_cli.algos.common.prototypes import class_members
from fsl_cli.backbones.batch_norm import BatchNorm, statistics_from
from fsl_cli.backbones.feature_maps import FeatureMaps
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.episodes import spread
from fsl_cli.settings.sizes import Ways
from fsl_cli.statistics.regression import mean_squared_error


class RelationNet(EmbeddingLearner):
    """Meta-learns an embedding and a module that scores a query against a class.

    Args:
        backbone: images ``[B, C, H, W]`` to features, see `FeatureMaps`.
        image_shape: ``(C, H, W)``.
        filters: output channels of the blocks of the relation module, >= 1.
        hidden: units of its hidden layer, >= 1.
        combine: how the maps of the shots of a class are combined: ``sum`` or ``mean``.
        train_ways: ways of a training episode, >= 2, a number or a range; None: as in the tested task.
        normalize_separately: in batch normalisation by the episode, normalise support and query images apart from each other.
        options: see `EmbeddingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        filters: Annotated[int, Ge(1)] = 64,
        hidden: Annotated[int, Ge(1)] = 8,
        combine: Literal["sum", "mean"] = "sum",
        train_ways: Ways | None = 20,
        normalize_separately: bool = False,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        maps = FeatureMaps(backbone, image_shape)
        super().__init__(maps, train_ways, normalize_separately=normalize_separately, **options)
        self.relation = Relation(maps.shape, filters, hidden)
        self.combine = combine

    def loss(self, episodes: Episodes) -> Step:
        """Mean squared error of the scores (eq. 2); updates the running averages of batch normalisation."""
        logits = self.query_logits(episodes, "tracked_batch")
        score, same = logits.sigmoid(), F.one_hot(episodes.query.y, episodes.ways).bool()
        real = episodes.query.real.unsqueeze(-1)
        metrics = {
            "relation_same": score[same & real].detach().mean(),
            "relation_different": score[~same & real].detach().mean(),
        }
        loss = mean_squared_error(score, same.to(score.dtype), episodes.query.mask)
        return Step(loss.mean(), logits.detach(), metrics)

    def classify(self, episodes: Episodes) -> Tensor:
        """Logits of the scores from maps ``[T, B, C, h, w]``, normalised by the running averages."""
        support = episodes.support
        with statistics_from(self, "running"):
            return self.relation(self.class_maps(support.x, support.y, episodes.ways, support.mask), episodes.query.x)

    def compare(self, episodes: Episodes, support: Tensor, query: Tensor) -> Tensor:
        """Logits of the scores, one episode after the other."""
        classes = self.class_maps(support, episodes.support.y, episodes.ways, episodes.support.mask)
        scores = []
        for of_classes, of_queries, real in zip(classes, query, episodes.query.real, strict=True):
            scores.append(spread(self.relation(of_classes[None], of_queries[real][None])[0], real))
        return torch.stack(scores)

    def clipped_together(self) -> list[list[nn.Parameter]]:
        """The embedding and the relation module, each by itself."""
        return [list(self.backbone.parameters()), list(self.relation.parameters())]

    def class_maps(self, support: Tensor, support_y: Tensor, ways: int, mask: Tensor | None = None) -> Tensor:
        """Sum or mean of the support maps ``[T, N*K, C, h, w]`` of each class: ``[T, N, C, h, w]``."""
        members = class_members(support_y, ways, mask).to(support.dtype)
        if self.combine == "mean":
            members = members / members.sum(1, keepdim=True)
        return (members.transpose(1, 2) @ support.flatten(2)).unflatten(2, support.shape[2:])


class Relation(nn.Module):
    """The relation module g without its last sigmoid.

    Args:
        shape: ``(C, h, w)`` of the maps of an image.
        filters: output channels of the blocks.
        hidden: units of the hidden layer.
    """

    def __init__(self, shape: tuple[int, ...], filters: int, hidden: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.first = _convolution(2 * channels, filters, height, width)
        between, height, width = _after_convolution(filters, height, width)
        second = _convolution(filters, filters, height, width)
        after, height, width = _after_convolution(filters, height, width)
        score = nn.Sequential(nn.Linear(filters * height * width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.rest = nn.Sequential(between, second, after, nn.Flatten(), score)

    def forward(self, classes: Tensor, query: Tensor) -> Tensor:
        """Scores ``[T, B, N]`` before the sigmoid, of classes ``[T, N, C, h, w]`` with queries ``[T, B, C, h, w]``.

        The first convolution of [class, query] is the sum of one of the class and one of the query; computed like that
        it runs once per class and query instead of once per pair.
        """
        of_class, of_query = self.first.weight.chunk(2, dim=1)
        one = F.conv2d(classes.flatten(0, 1), of_class, self.first.bias, padding=self.first.padding)
        other = F.conv2d(query.flatten(0, 1), of_query, padding=self.first.padding)
        one, other = (each.unflatten(0, x.shape[:2]) for each, x in ((one, classes), (other, query)))
        pairs = one.unsqueeze(1) + other.unsqueeze(2)
        return self.rest(pairs.flatten(0, 2)).view(pairs.shape[:3])


def _convolution(inputs: int, outputs: int, height: int, width: int) -> nn.Conv2d:
    size = 1 if height == width == 1 else 3
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def _after_convolution(filters: int, height: int, width: int) -> tuple[nn.Module, int, int]:
    """The layers of a block after its convolution, and the size of their output maps."""
    layers = [BatchNorm(filters), nn.ReLU()]
    if min(height, width) < 2:
        return nn.Sequential(*layers), height, width
    return nn.Sequential(*layers, nn.MaxPool2d(2)), height // 2, width // 2
