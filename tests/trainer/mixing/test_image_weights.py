"""Weights of images: each label counts with the weight of the image that it is from, whatever is mixed."""

import pytest
import torch

from lib.trainer.mixing.base import unmixed, with_image_weights
from tests.trainer.mixing.batches import ALL, mixer_of, painted_batch
from tests.trainer.steps import NUM_CLASSES, Setup, batch_of, step_of


@pytest.mark.parametrize('end_epoch', [None, 0])
@pytest.mark.parametrize('name', [*ALL, ''])
def test_each_label_has_the_weight_of_its_image(name, end_epoch):
    weights = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.125, 0.75])
    images, labels = painted_batch(6, 8, 8)  # the label of an image is its number
    mixer = mixer_of(name, end_epoch=end_epoch) if name else unmixed
    plain = mixer(images, labels, epoch=3, first_slot=0)
    mixed = with_image_weights(plain, weights)
    assert with_image_weights(plain, None) is plain
    expected = weights[mixed.targets.labels]
    if plain.targets.weights is not None:
        expected = expected * plain.targets.weights
    assert torch.equal(mixed.targets.weights, expected)
    assert torch.equal(mixed.targets.labels, plain.targets.labels)
    part = slice(0, 2)
    assert torch.equal(mixed.select(part).targets.weights, expected[part])


@pytest.mark.parametrize(
    ('head', 'loss', 'max_images'),
    [
        *((head, loss, size) for head in ('whole', 'chunked') for loss in ('mixed', 'ldam') for size in (0, 4)),
        ('sampled', 'ldam', 0),  # the sample depends on the micro-batches
    ],
)
def test_an_image_of_half_the_weight_twice_counts_as_once(head, loss, max_images):
    """Losses, gradients and so the updated weights are equal in float64."""
    once = Setup(batch_size=8, head=head, loss=loss)
    twice = Setup(batch_size=12, head=head, loss=loss, max_images=max_images)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6])
    weights = torch.full((12,), 1.0, dtype=torch.float64)
    weights[[0, 2, 4, 6, 8, 9, 10, 11]] = 0.5
    first, second = step_of(once), step_of(twice)
    for number in range(3):
        batch = batch_of(once, number)
        repeated = batch.select(rows)  # type: ignore[arg-type]
        of_labels = weights if repeated.targets.lam is None else weights[:, None].expand(-1, 2)
        targets = type(repeated.targets)(repeated.targets.labels, repeated.targets.lam, of_labels)
        losses = [
            first(batch, number).loss,
            second(type(repeated)(repeated.images, targets), number).loss,
        ]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    states = [step.state.model.state_dict() for step in (first, second)]
    assert states[0]['classifier.weight'].shape[0] == NUM_CLASSES
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-12)
