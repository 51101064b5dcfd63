"""MODEL.EMBEDDING: in checkpoints, in fine-tuning, in exported networks, and on cached outputs of the backbone."""

from dataclasses import replace

import pytest
import torch

from lib.builders.cache_key import weights_fingerprint
from lib.builders.device import build_micro_batches
from lib.builders.features import _Cache
from lib.builders.model import finetuned_model, model_of, new_model, with_classifier
from lib.builders.optim import build_optimizer
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError
from lib.export.module import ExportedModel, Preprocessing
from lib.inference.engine import HeadEngine
from lib.model import FEATURE_PREFIXES
from lib.runtime.device import pick_device
from lib.trainer.checkpointing.state import Checkpoint
from lib.trainer.forward import TrainingForward
from tests.builders.test_sizes import config
from tests.builders.test_tuning import saved, trained

DEVICE, WIDTH, NAMES = pick_device('cpu', 'float32'), 6, ['a', 'b', 'c']
OPTIONS = {'MODEL__BACKBONE': 'res32_cifar', 'MODEL__CLASSIFIER': 'cosine', 'INPUT__SIZE': 32}


def settings(width: int = WIDTH, **changes):
    return config(**OPTIONS, MODEL__EMBEDDING=width, **changes)


@pytest.fixture
def model():
    """A model whose embedding has the statistics of some images."""
    found = new_model(settings(), 3, DEVICE)
    found.train()(images(8))
    return trained(found)


def images(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_features_are_the_normalized_projection(model):
    outputs, (linear, norm) = model.backbone(images()), (model.embedding.linear, model.embedding.norm)
    expected = (outputs @ linear.weight.T - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    expected = expected * norm.weight + norm.bias
    torch.testing.assert_close(model.features(images()), expected)
    torch.testing.assert_close(model(images()), model.classifier(expected))
    assert model.num_features == model.classifier.weight.shape[1] == WIDTH
    exported = ExportedModel(model, Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3, bgr=False, inside=False))
    torch.testing.assert_close(exported(images())[1], expected)


@torch.no_grad()
def test_a_checkpoint_holds_the_embedding(model):
    checkpoint = saved(model)
    loaded = model_of(checkpoint, settings(), DEVICE).eval()
    assert torch.equal(loaded(images()), model(images()))
    assert torch.equal(with_classifier(loaded, checkpoint, settings(), DEVICE).eval()(images()), model(images()))
    with pytest.raises(
        UserError, match=r'best_model.pth was trained with MODEL.EMBEDDING 6, but .* is 0: set --MODEL_'
    ):
        model_of(checkpoint, settings(0), DEVICE)
    plain = Checkpoint({name: value for name, value in checkpoint.state_dict.items() if 'embedding' not in name})
    with pytest.raises(UserError, match=r'was trained with MODEL.EMBEDDING 0, but MODEL.EMBEDDING is 6'):
        model_of(plain, settings(), DEVICE)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@torch.no_grad()
def test_a_model_that_is_not_trained_may_share_the_memory_of_its_checkpoint(model, dtype):
    """Weights of another dtype are copied, so that the model stays a float32 one."""
    checkpoint = saved(model)
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in checkpoint.state_dict.items()
    }
    checkpoint = replace(checkpoint, state_dict=state)
    copied, sharing = (
        model_of(checkpoint, settings(), DEVICE, shares_memory=shares_memory).eval() for shares_memory in (False, True)
    )
    assert torch.equal(sharing(images()), copied(images()))
    stored = state['classifier.weight'].data_ptr()
    assert (sharing.classifier.weight.data_ptr() == stored) == (dtype == torch.float32)
    assert copied.classifier.weight.data_ptr() != stored
    assert {parameter.dtype for parameter in sharing.parameters()} == {torch.float32}


def test_fine_tuning_transfers_an_embedding_of_the_same_width(model):
    same, _ = finetuned_model(saved(model), settings(), DEVICE, NAMES)
    other, _ = finetuned_model(saved(model), settings(WIDTH + 1), DEVICE, NAMES)
    none, _ = finetuned_model(saved(model), settings(0), DEVICE, NAMES)
    with torch.no_grad():
        assert torch.equal(same.eval().features(images()), model.features(images()))
    assert (other.num_features, none.num_features, none.embedding) == (WIDTH + 1, 64, None)
    assert torch.equal(other.backbone.conv1.weight, model.backbone.conv1.weight)


def test_a_frozen_backbone_trains_embedding_and_classifier():
    cfg = settings(MODEL__FREEZE_BACKBONE=True, MODEL__TUNE='head')
    model = new_model(cfg, 3, DEVICE).train()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {'embedding.linear.weight', 'embedding.norm.weight', 'embedding.norm.bias', 'classifier.weight'}
    assert (model.embedding.norm.training, model.backbone.training) == (True, False)
    assert not any(name.startswith(('embedding.', 'classifier.')) for name in model.constant_names())
    assert sum(len(group['params']) for group in build_optimizer(cfg, model).param_groups) == len(names)


def test_training_on_cached_features_is_that_on_images(tmp_path):
    """The cached features are the outputs of the backbone, whatever the embedding."""
    cfg = settings(MODEL__FREEZE_BACKBONE=True, MODEL__TUNE='head', TRAIN__FEATURES='cached', LOG_ROOT=str(tmp_path))
    model = new_model(cfg, 3, DEVICE).train()
    cache = _Cache(cfg, model, DEVICE, SINGLE_PROCESS)
    assert cache._key == _Cache(settings(0), new_model(settings(0), 3, DEVICE), DEVICE, SINGLE_PROCESS)._key
    engine = cache.engine(model, 2)
    with engine.inference():
        found = engine.features(images())
    outputs = found.clone()  # outside of inference mode
    assert (engine.num_features, outputs.shape) == (64, (2, 64))
    assert not model.backbone.training
    forward, cached = TrainingForward(model), TrainingForward(model, takes_features=True)
    torch.testing.assert_close(cached(outputs).logits, forward(images()).logits)
    head = HeadEngine(model)
    with torch.no_grad():
        torch.testing.assert_close(head.logits(head.features(outputs)), model(images()))
    build_micro_batches(cfg, 8, cached, None, DEVICE, SINGLE_PROCESS)


def test_features_of_another_embedding_have_another_fingerprint(model):
    before = weights_fingerprint(model.state_dict(), FEATURE_PREFIXES)
    with torch.no_grad():
        model.classifier.weight.add_(1)
        assert weights_fingerprint(model.state_dict(), FEATURE_PREFIXES) == before
        model.embedding.linear.weight.add_(1)
        assert weights_fingerprint(model.state_dict(), FEATURE_PREFIXES) != before
