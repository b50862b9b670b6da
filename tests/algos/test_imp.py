"""Infinite mixture prototypes against Algorithm 1, cluster by cluster, and against ProtoNet."""

from __future__ import annotations

import math

import pytest
import torch
from problems import TinyNet, random_episodes
from scipy.stats import multivariate_normal

from fsl_cli.algos.common.prototypes import class_means
from fsl_cli.algos.imp import IMP, class_log_likelihoods, cluster_threshold, infer_clusters
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.episodes import Episodes

EXACT = {"rtol": 1e-9, "atol": 1e-11}
LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0, 0, 1, 2, 2])


def points(tasks: int = 6, seed: int = 0) -> torch.Tensor:
    """Classes of two modes, whose distance differs from episode to episode."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(tasks, 3, 2, 4, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 4, tasks).view(
        -1, 1, 1, 1
    )
    modes = torch.arange(len(LABELS)) // 6
    noise = 0.3 * torch.randn(tasks, len(LABELS), 4, generator=generator, dtype=torch.float64)
    return centres[:, LABELS, modes] + noise


def threshold_of(means: torch.Tensor, sigma: float, alpha: float) -> float:
    """Equation 6, number by number."""
    count, d = means.shape
    rho = 0.0
    for j in range(d):
        middle = sum(means[:, j].tolist()) / count
        rho += sum((value - middle) ** 2 for value in means[:, j].tolist()) / (count - 1) / d
    return -2 * sigma * math.log(alpha / (1 + rho / sigma) ** (d / 2))


def algorithm_1(h: torch.Tensor, labels: torch.Tensor, sigma: float, alpha: float) -> tuple[torch.Tensor, list[int]]:
    """One episode: the assignment of each image to each prototype ``[S, M]``, and the labels of the prototypes."""
    centres = [h[labels == n].mean(0) for n in range(3)]
    names = [0, 1, 2]
    threshold = threshold_of(torch.stack(centres), sigma, alpha)
    for x, y in zip(h, labels.tolist(), strict=True):
        distances = [float(((x - centre) ** 2).sum()) for centre, name in zip(centres, names, strict=True) if name == y]
        if min(distances) > threshold:
            centres.append(x)
            names.append(y)
    z = torch.zeros(len(h), len(centres), dtype=torch.float64)
    for i, y in enumerate(labels.tolist()):
        for c, name in enumerate(names):
            if name == y:
                z[i, c] = multivariate_normal.pdf(h[i], centres[c], sigma)
    z = z / z.sum(1, keepdim=True)
    kept = [c for c in range(len(names)) if z[:, c].sum() > 1e-3]
    return z[:, kept] / z[:, kept].sum(0), [names[c] for c in kept]


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 0.9])
@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_clusters_are_those_of_algorithm_1(sigma, alpha):
    h, query = points(), points(seed=1)
    found = infer_clusters(h, LABELS.expand(6, -1), 3, torch.tensor(sigma).double(), alpha)
    logits = class_log_likelihoods(query, found, 3, torch.tensor(sigma).double())
    counts = set()
    for task in range(6):
        shares, names = algorithm_1(h[task], LABELS, sigma, alpha)
        prototypes = list(shares.T @ h[task])
        counts.add(len(names))
        exists = found.exists[task]
        assert found.labels[task][exists].tolist() == names
        torch.testing.assert_close(found.prototypes[task][exists], torch.stack(prototypes), rtol=1e-6, atol=1e-9)
        for q, x in enumerate(query[task]):
            for n in range(3):
                mine = [p for p, name in zip(prototypes, names, strict=True) if name == n]
                densities = [multivariate_normal.logpdf(x, p, sigma) for p in mine]
                constant = multivariate_normal.logpdf(x, x, sigma)
                assert logits[task, q, n].item() == pytest.approx(max(densities) - constant, rel=1e-6, abs=1e-6)
    assert len(counts) > 1  # from one cluster per class to many


def test_the_threshold_is_equation_6():
    means = points()[:, :3]
    for sigma, alpha in ((0.3, 0.1), (2.0, 0.9)):
        mine = cluster_threshold(means, torch.tensor(sigma).double(), alpha)
        assert mine.tolist() == pytest.approx([threshold_of(each, sigma, alpha) for each in means], rel=1e-6)


def test_more_concentration_more_clusters_and_a_tiny_one_leaves_the_class_means():
    counts = []
    for alpha in (1e-30, 1e-3, 0.5, 1e9):
        found = infer_clusters(points(), LABELS.expand(6, -1), 3, torch.tensor(0.3).double(), alpha)
        counts.append(int(found.exists.sum()))
    assert counts == sorted(counts)
    assert counts[0] == 6 * 3
    assert 6 * len(LABELS) <= counts[-1] <= 6 * (3 + len(LABELS))  # a class mean may have no image near it
    means = class_means(points(), LABELS.expand(6, -1), 3)
    found = infer_clusters(points(), LABELS.expand(6, -1), 3, torch.tensor(0.3).double(), 1e-30)
    torch.testing.assert_close(found.prototypes, means, **EXACT)


def test_a_class_is_not_where_none_of_its_images_is():
    """Class 0 has images at -6 and 6 only, class 1 at 1.5. A query at 0.5 is near the mean of class 0, but near none of it."""
    h = torch.tensor([-6.0, 6, 1.5, 1.5], dtype=torch.float64)[None, :, None] * torch.eye(4, dtype=torch.float64)[0]
    sigma = torch.tensor(0.5).double()
    found = infer_clusters(h, torch.tensor([[0, 0, 1, 1]]), 2, sigma, 0.1)
    assert found.labels[found.exists].tolist() == [1, 0, 0]
    logits = class_log_likelihoods(0.5 * torch.eye(4).double()[:1][None], found, 2, sigma)
    torch.testing.assert_close(logits, torch.tensor([[[-(5.5**2), -1.0]]]).double(), **EXACT)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_prototypes_are_finite_where_nobody_is_near_the_class_mean(scale):
    h = scale * torch.tensor([[[-9.0, 0], [9, 0], [0, -9], [0, 9]]])
    found = infer_clusters(h, torch.tensor([[0, 0, 1, 1]]), 2, torch.tensor(1e-3), 0.9)
    assert found.exists.sum() == 4
    assert found.prototypes.isfinite().all()
    logits = class_log_likelihoods(h, found, 2, torch.tensor(1e-3))
    assert logits.argmax(-1).tolist() == [[0, 0, 1, 1]]


def both(shots: int, sigma: float) -> tuple[IMP, ProtoNet, Episodes]:
    torch.manual_seed(0)
    imp = IMP(TinyNet(), sigma=sigma, alpha=1e-30).double()
    proto = ProtoNet(TinyNet(), scale=1 / (2 * sigma)).double()
    proto.backbone.load_state_dict(imp.backbone.state_dict())
    return imp, proto, random_episodes(shots=shots)


@pytest.mark.parametrize("shots", [1, 3])
def test_with_one_cluster_per_class_it_is_protonet_whose_scale_is_the_inverse_of_twice_sigma(shots):
    imp, proto, episodes = both(shots, sigma=0.2)
    torch.testing.assert_close(imp.predict(episodes), proto.predict(episodes), rtol=1e-6, atol=1e-7)
    step, other = imp.loss(episodes), proto.loss(episodes)
    assert step.metrics["clusters"].item() == 1
    step.loss.backward()
    other.loss.backward()
    for mine, theirs in zip(imp.backbone.parameters(), proto.backbone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_sigma_is_learned_with_the_gradient_of_the_query_loss_alone():
    """With the assignments held, as a finite difference: nothing flows through the threshold or z."""
    torch.manual_seed(0)
    imp, episodes = IMP(TinyNet(), sigma=0.01, alpha=0.9).double(), random_episodes(shots=3)
    step = imp.loss(episodes)
    assert step.metrics["clusters"] > 1
    step.loss.backward()
    support, query = (each.detach() for each in imp.embed_episodes(episodes))
    sigma = imp.log_sigma.detach().exp()
    mixture = infer_clusters(support, episodes.support.y, 3, sigma, 0.9)

    def loss(log_sigma: float) -> float:
        logits = class_log_likelihoods(query, mixture, 3, torch.tensor(math.exp(log_sigma), dtype=torch.float64))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten()).item()

    middle = math.log(sigma.item())
    assert imp.log_sigma.grad.item() == pytest.approx((loss(middle + 1e-6) - loss(middle - 1e-6)) / 2e-6, rel=1e-4)


def test_the_gradient_of_the_prototypes_is_a_mean_by_held_assignments():
    h = points().requires_grad_()
    labels, sigma = LABELS.expand(6, -1), torch.tensor(0.3).double()
    found = infer_clusters(h, labels, 3, sigma, 0.5)
    (gradient,) = torch.autograd.grad(found.prototypes[found.exists].square().sum(), h)
    counts = set()
    for task, x in enumerate(h.detach()):
        shares, names = algorithm_1(x, LABELS, 0.3, 0.5)
        counts.add(len(names))
        torch.testing.assert_close(gradient[task], 2 * shares @ (shares.T @ x), rtol=1e-6, atol=1e-9)
    assert max(counts) > 6  # with several clusters in a class the assignments are not all 0 or 1
