"""Images are read where they are: rotations are not copied, devices without room get batches, embeddings have a limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import TinyNet, striped_classes

from fsl_cli import evaluation
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes import sampler as sampler_module
from fsl_cli.evaluation import evaluate

TASK = Task(4, 2, 3)


def test_rotated_classes_and_samplers_on_the_cpu_share_the_images():
    source = striped_classes()
    rotated = source.with_rotations()
    sampler = EpisodeSampler(rotated, "train", TASK, 0)
    assert rotated.images is source.images
    assert sampler._images.data_ptr() == source.images.data_ptr()
    drawn, rows = sampler.batch(0, 3), torch.from_numpy(sampler.indices(0, 3).images[:, :, :2].reshape(3, -1))
    upright, quarters = rows % len(source.images), rows // len(source.images)
    assert len(quarters.unique()) == 4
    for episode in range(3):
        for x, row, quarter in zip(drawn.support.x[episode], upright[episode], quarters[episode].tolist(), strict=True):
            assert torch.equal(x, torch.rot90(source.images[row], quarter, (-2, -1)).float() / 255)


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize(("room", "kept_on"), [(2 * 24 * 12 * 144, "meta"), (2 * 24 * 12 * 144 - 1, "cpu")])
def test_images_are_copied_to_a_device_if_they_fit_into_half_of_its_free_memory(monkeypatch, rotations, room, kept_on):
    monkeypatch.setattr(sampler_module, "free_memory", lambda device: room)
    source = striped_classes()  # 24 classes of 12 images of 144 pixels
    sampler = EpisodeSampler(source.with_rotations() if rotations else source, "train", TASK, 0, torch.device("meta"))
    assert sampler._images.device.type == kept_on
    assert sampler.batch(0, 2).support.x.device.type == "meta"
    assert sampler.batch(0, 2).support.x.shape == (2, 8, 1, 12, 12)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_too_many_embeddings_are_not_kept(monkeypatch, limit):
    monkeypatch.setattr(evaluation, "_MOST_EMBEDDED", limit)
    torch.manual_seed(0)
    algorithm, sampler = ProtoNet(TinyNet(), batch_norm="inductive"), EpisodeSampler(striped_classes(), "test", TASK, 0)
    expected = evaluate(algorithm, sampler, 20, Hardware(torch.device("cpu"), "fp32", 4))
    tables: list[int] = []
    embedded = evaluation._embedded
    monkeypatch.setattr(evaluation, "_embedded", lambda *each: (tables.append(1), embedded(*each))[1])
    scores = evaluate(algorithm, sampler, 20, Hardware(torch.device("cpu"), "fp32", 4))
    np.testing.assert_allclose(scores["loss"], expected["loss"], rtol=1e-5)
    assert len(tables) == (limit > 0)
