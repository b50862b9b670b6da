"""Episodes whose classes have different numbers of examples: the same in a padded batch as one at a time without padding."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import striped_classes
from small_training import CPU, train_settings
from test_every_algorithm import NAMES, made

from fsl_cli.algos.common.algorithm import Algorithm, portions
from fsl_cli.episodes import Episodes, EpisodeSampler, Examples, Task
from fsl_cli.episodes.uneven_sampler import UnevenSampler
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate
from fsl_cli.settings.sizes import Range
from fsl_cli.training import Training

EXACT = {"rtol": 1e-8, "atol": 1e-9}
ALONE = {"metaoptnet", "mann", "ntm", "dnc", "snail", "reptile"}  # they get them one at a time
VARIANTS = [
    *((name, "", True) for name in NAMES),
    ("reptile", "inner_batch=null", True),
    ("nearest", "compare=image", True),
    ("matchingnet", "fce=true", True),
    ("protonet", "batch_norm=transductive", True),
    ("maml", "batch_norm=inductive", True),
    *((name, "", False) for name in ("maml", "anil", "imaml", "proto_maml", "meta_lstm")),  # all tasks at once
]
TASK = Task.drawn(3, Range(1, 4), 2, shots_per="class", query_dirichlet=2.0)
SAMPLER = UnevenSampler(EpisodeSampler(striped_classes(classes=12, images=10), "train", TASK.smallest, 0), TASK, "train", 0)


def with_noise(examples: Examples) -> Examples:
    """The examples with large noise and wrong labels in their padding rows."""
    x, y, padding = examples.x.clone(), examples.y.clone(), ~examples.real
    assert padding.any()
    generator = torch.Generator().manual_seed(1)
    x[padding] = 100 * torch.randn(x[padding].shape, generator=generator, dtype=x.dtype)
    y[padding] = torch.randint(3, y[padding].shape, generator=generator)
    return Examples(x, y, examples.mask)


def padded(count: int = 3) -> Episodes:
    """Episodes in float64 of unequal classes, with padding in the support; then in the queries as well."""
    batch = SAMPLER.batch(0, count).to(dtype=torch.float64)
    query = batch.query.padded(batch.query.y.shape[1] + 2)
    return Episodes(with_noise(batch.support), with_noise(query), batch.problem, batch.seeds, batch.classes)


def alone(count: int = 3) -> list[Episodes]:
    return [SAMPLER.batch(number, 1).to(dtype=torch.float64) for number in range(count)]


def algorithm_of(name: str, option: str = "", engine: str = "auto", *, batch_norm: bool = True) -> Algorithm:
    algorithm, _ = made(name, 0, *option.split(), engine=engine, batch_norm=batch_norm)
    return algorithm.double()


def test_the_episodes_are_uneven_within_and_between_each_other():
    shots = [each.support.y[0].bincount(minlength=3).tolist() for each in alone()]
    assert all(len(set(each)) > 1 for each in shots)
    assert len({sum(each) for each in shots}) > 1
    assert all(len(set(each.query.y[0].bincount(minlength=3).tolist())) > 1 for each in alone())


@pytest.mark.parametrize(("name", "option", "batch_norm"), VARIANTS)
def test_every_algorithm_takes_them_with_padding_as_without(name, option, batch_norm):
    one = algorithm_of(name, option, batch_norm=batch_norm)
    other = copy.deepcopy(one)
    assert one.masks is (name not in ALONE and "fce" not in option) or option == "inner_batch=null"
    singles, batch = alone(), list(portions(other, padded(), 3))
    assert len(batch) == (1 if other.masks else 3)
    losses = torch.stack([one.loss(each).loss for each in singles])
    in_batch = torch.stack([other.loss(each).loss for each in batch])
    torch.testing.assert_close(in_batch.mean(), losses.mean(), **EXACT)
    if losses.requires_grad:
        losses.mean().backward()
        in_batch.mean().backward()
        for (key, each), same in zip(one.named_parameters(), other.parameters(), strict=True):
            if each.grad is not None:
                torch.testing.assert_close(same.grad, each.grad, msg=key, **EXACT)
    for state, same in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(same, state, **EXACT)
    expected = [one.predict(each)[0] for each in singles]
    found = [logits[real] for each in batch for logits, real in zip(other.predict(each), each.query.real, strict=True)]
    assert all(each.shape == (6, 3) for each in expected)
    for logits, same in zip(expected, found, strict=True):
        torch.testing.assert_close(same, logits, **EXACT)
    for key, values in ((key, values) for each in singles for key, values in one.score(each).items()):
        assert values.isfinite().all(), key
    scores = [other.score(each) for each in batch]
    for key, of_first in one.score(singles[0]).items():
        torch.testing.assert_close(scores[0][key][:1], of_first, **EXACT)


class Refusing(Algorithm):
    """A method that has not been written for uneven classes."""

    transductive = False

    def loss(self, episodes):
        raise AssertionError

    def predict(self, episodes):
        raise AssertionError


def test_training_and_evaluation_refuse_for_a_method_that_is_not_made_for_them():
    algorithm = Refusing()
    algorithm.weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(algorithm.parameters(), 0.1)
    with pytest.raises(FslError, match="Refusing cannot be given episodes of uneven shots"):
        Training(algorithm, optimizer, SAMPLER, train_settings(meta_batch=3), CPU).step()
    with pytest.raises(FslError, match="Refusing cannot be given episodes of uneven shots"):
        evaluate(algorithm, SAMPLER, 3, CPU)


@pytest.mark.parametrize("engine", ["fast", "vmap"])
def test_batch_normalisation_of_all_tasks_at_once_refuses(engine):
    with pytest.raises(FslError, match="must be run one after the other"):
        algorithm_of("maml", engine=engine).loss(padded())


@pytest.mark.parametrize("engine", ["fast", "vmap", "loop", "learn2learn"])
def test_engines_agree_on_uneven_shots(engine):
    reference, algorithm = (algorithm_of("maml", engine=each, batch_norm=False) for each in ("loop", engine))
    losses = []
    for each in (reference, algorithm):
        torch.nn.init.normal_(each.net.head.weight, generator=torch.Generator().manual_seed(0))
        losses.append(each.loss(padded()).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], **EXACT)
    for one, other in zip(reference.parameters(), algorithm.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, **EXACT)
