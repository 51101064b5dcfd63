"""Rows of a cosine classifier from class names: zero-shot predictions are those of the CLIP model itself."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.builders import classifier_init
from lib.builders.classifier_init import text_weights
from lib.classifier import cosine
from lib.classifier.cosine import CosineClassifier, text_rows
from lib.errors import UserError
from lib.model import Recognizer

NAMES = ['green_apple', 'lemon', 'oat milk']


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """A CLIP model of one layer per encoder with random weights, and their file."""
    open_clip = pytest.importorskip('open_clip', reason='requirements-text.txt is not installed')
    folder = tmp_path_factory.mktemp('clip')
    config = {
        'embed_dim': 12,
        'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 64, 'head_width': 32, 'patch_size': 16},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1},
    }
    (folder / 'tiny-clip.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model('tiny-clip').eval()
    torch.save(model.state_dict(), folder / 'weights.pt')
    return model, folder / 'weights.pt'


def zero_shot(model, images):
    """Return the cosines that CLIP computes."""
    import open_clip

    texts = [f'a photo of a {name.replace("_", " ")}.' for name in NAMES]
    tokens = open_clip.get_tokenizer('tiny-clip')(texts)
    return model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T


@pytest.mark.long
@torch.no_grad()
def test_predictions_are_those_of_clip(clip):
    model, file = clip
    images = torch.randn(20, 3, 32, 32)
    expected = zero_shot(model, images)
    # After the projection, the logits are CLIP's cosines.
    projected = CosineClassifier(12, 3, 1.0)
    projected.weight.copy_(text_rows(NAMES, 12, model='tiny-clip', weights=file))
    torch.testing.assert_close(projected(model.encode_image(images)), expected)
    # Before it, they are the cosines times a factor of each image and one of each class, the norms of P f and P^T t.
    projection, model.visual.proj = model.visual.proj, None
    features = model.encode_image(images)
    model.visual.proj = projection
    rows = text_rows(NAMES, 64, model='tiny-clip', weights=file)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    ratio = features @ rows.T / expected
    torch.testing.assert_close(ratio / ratio[:, :1], (ratio / ratio[:, :1])[:1].expand_as(ratio), rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_a_classifier_starts_from_class_names(clip):
    _, file = clip
    backbone = nn.Identity()
    backbone.num_features = 64
    model = Recognizer(backbone, CosineClassifier(64, 3, 25.0))
    cfg = SimpleNamespace(
        MODEL=SimpleNamespace(CLASSIFIER_INIT='text', TEXT_MODEL=f'tiny-clip:{file}', TEXT_PROMPT='a photo of a {}.')
    )
    data, device = SimpleNamespace(classes=SimpleNamespace(names=NAMES)), SimpleNamespace(main=torch.device('cpu'))
    classifier_init.init_classifier(cfg, model, data, None, device)
    assert torch.equal(model.classifier.weight, text_rows(NAMES, 64, model='tiny-clip', weights=file))
    with pytest.raises(UserError, match=r'needs class names: .*classes\.json'):
        classifier_init.init_classifier(cfg, model, SimpleNamespace(classes=None), None, device)


@pytest.mark.long
def test_mistakes(clip, tmp_path):
    _, file = clip
    with pytest.raises(UserError, match=r'texts of width 12, but the features of MODEL\.BACKBONE have width 768'):
        text_rows(NAMES, 768, model='tiny-clip', weights=file)
    damaged = tmp_path / 'damaged.pt'
    damaged.write_bytes(b'no weights')
    with pytest.raises(UserError, match=r'MODEL\.TEXT_MODEL tiny-clip, .*damaged\.pt'):
        text_rows(NAMES, 12, model='tiny-clip', weights=damaged)
    assert text_weights(f'tiny-clip:{file}') == ('tiny-clip', file)
    for wrong in ('ViT-B-16', 'ViT-B-16:none', 'no-model:openai', f'{file}'):
        with pytest.raises(UserError, match=r'MODEL\.TEXT_MODEL is .*such as ViT-B-16:openai'):
            text_weights(wrong)


@pytest.mark.long
def test_weights_of_a_tag_are_downloaded(clip, monkeypatch):
    asked = []
    monkeypatch.setattr(classifier_init, 'download_from_hub', lambda *names: asked.append(names))
    text_weights('ViT-B-16:openai')
    assert asked == [('timm/vit_base_patch16_clip_224.openai', classifier_init._CLIP_FILES)]


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(cosine.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install -r requirements-text\.txt'):
        text_weights('ViT-B-16:openai')


@pytest.mark.long
def test_timm_has_the_features_before_the_projection():
    """The image encoder of CLIP in timm: with num_classes=0, its last layer is not the projection."""
    import timm

    model = timm.create_model('vit_base_patch16_clip_224.openai', num_classes=0, depth=1)
    assert model.num_features == 768
    assert isinstance(model.head, nn.Identity)
    assert timm.get_pretrained_cfg('vit_base_patch16_clip_224.openai').num_classes == 512
