"""Every family of timm at another image size than its own, from a file: the features are those that timm computes.

The oracle is timm itself, with the same file and the same size. Where timm cannot use the weights at that size, the
error is one line.
"""

from pathlib import Path

import pytest
import timm
import torch

from lib.backbone.create import create_backbone
from lib.backbone.pretrained import load_pretrained
from lib.errors import UserError

# The smallest backbone of each module of timm (that of deepseek_vit is too large for a test) and some of other types,
# with an image size that is not that of its published weights.
EQUAL = {
    'beit_base_patch16_224': 192, 'test_byobnet': 96, 'coat_tiny': 192, 'convmixer_768_32': 96, 'test_convnext': 96,
    'cpubone_nano': 96, 'csatv2': 96, 'cs3darknet_focus_s': 96, 'cspnext_tiny': 96, 'davit_tiny': 96,
    'deit_tiny_patch16_224': 192, 'densenet121': 96, 'dla46x_c': 96, 'dpn48b': 96, 'edgenext_xx_small': 96,
    'test_efficientnet': 96, 'efficientvim_m1': 96, 'efficientvit_b0': 96, 'efficientvit_m0': 192,
    'vit_tiny_patch16_dinov3_qkvb': 192, 'fasternet_t0': 96, 'fastvit_t8': 96, 'focalnet_tiny_srf': 96,
    'gemma4_vit_167m': 96, 'ghostnet_050': 96, 'hardcorenas_b': 96, 'hgnetv2_b0': 96, 'sam2_hiera_tiny': 256,
    'hrnet_w18_small': 96, 'iformer_t': 96, 'inception_next_atto': 96, 'inception_resnet_v2': 96, 'inception_v3': 96,
    'inception_v4': 96, 'lcnetv2_small': 96, 'lowformer_b0': 96, 'test_mambaout': 96, 'test_coatnet': 128,
    'poolformerv2_s12': 96, 'lcnet_035': 96, 'mobilenetv5_base': 96, 'mobilevit_xxs': 96, 'mvitv2_tiny': 192,
    'naflexvit_base_patch16_parfac_gap': 96, 'nasnetalarge': 96, 'nextvit_small': 96, 'test_nfnet': 96,
    'pnasnet5large': 96, 'pvt_v2_b0': 96, 'qwen3_vit_88m': 96, 'rdnet_tiny': 96, 'regnetx_002': 96,
    'repghostnet_050': 96, 'repvit_m1': 96, 'res2next50': 96, 'resnest14d': 96, 'test_resnet': 96, 'resnetv2_18': 96,
    'rexnet_100': 96, 'selecsls42': 96, 'legacy_seresnet18': 96, 'sequencer2d_s': 192, 'shvit_s1': 96,
    'skresnet18': 96, 'starnet_s050': 96, 'swiftformer_xs': 192, 'swin_tiny_patch4_window7_224': 192,
    'swinv2_tiny_window8_256': 192, 'swinv2_cr_tiny_224': 192, 'tiny_vit_5m_224': 96, 'tnt_s_legacy_patch16_224': 192,
    'tresnet_m': 96, 'twins_svt_small': 192, 'vgg11': 96, 'vit_tiny_patch16_224': 192, 'vit_tiny_r_s16_p8_224': 192,
    'vit_relpos_small_patch16_224': 192, 'vitamin_small_224': 192, 'ese_vovnet19b_dw': 96, 'legacy_xception': 96,
    'xception41': 96, 'xcit_nano_12_p16_224': 96, 'vit_small_patch14_dinov2': 224, 'vit_base_patch16_clip_224': 192,
    'eva02_tiny_patch14_224': 196, 'flexivit_small': 192, 'vit_small_patch16_rope_ape_224': 192,
    'maxvit_tiny_tf_224': 192,
}  # fmt: skip
# Backbones of one size: timm does not resample their weights.
ONE_SIZE = {
    'halonet_h1': 192, 'cait_xxs24_224': 192, 'convit_tiny': 192, 'crossvit_tiny_240': 192, 'efficientformer_l1': 192,
    'efficientformerv2_s0': 192, 'gcvit_xxtiny': 192, 'hiera_tiny_224': 192, 'levit_128s': 192, 'gmlp_ti16_224': 192,
    'nest_tiny': 192, 'pit_ti_224': 192, 'visformer_tiny': 192, 'samvit_base_patch16_224': 192, 'volo_d1_224': 192,
    'botnet26t_256': 192, 'mixer_s16_224': 192, 'resmlp_12_224': 192,
}  # fmt: skip


def write_weights(path: Path, name: str) -> dict:
    """Write random weights for the backbone's own size, and return timm's description of it.

    Noise is added, because timm starts some positions and scales as zeros.
    """
    torch.manual_seed(0)
    model = timm.create_model(name)
    state = model.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value += (0.1 * torch.rand_like(value)) if key.endswith('running_var') else 0.02 * torch.randn_like(value)
    torch.save({'epoch': 1, 'state_dict': state}, path)
    return model.pretrained_cfg


def features_of_timm(name: str, size: int, path: Path, images: torch.Tensor, description: dict) -> torch.Tensor:
    options = {'img_size': size} if description['fixed_input_size'] else {}
    backbone = timm.create_model(
        name, pretrained=True, num_classes=0, pretrained_cfg_overlay={'file': str(path)}, **options
    )
    return backbone.eval()(images)


def features(name: str, size: int, path: Path, images: torch.Tensor) -> torch.Tensor:
    backbone = create_backbone(name, image_size=size)
    load_pretrained(backbone, path, name, size)
    return backbone.eval()(images)


@torch.no_grad()
def check_equal(name: str, size: int, path: Path) -> None:
    description = write_weights(path, name)
    assert size != description['input_size'][1]
    images = torch.rand(1, 3, size, size)
    expected = features_of_timm(name, size, path, images, description)
    assert expected.isfinite().all()
    # This project computes split attention (ResNeSt) in another order.
    torch.testing.assert_close(features(name, size, path, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['test_vit', 'test_coatnet'])
def test_features_at_another_size_are_those_of_timm(tmp_path, name):
    """Absolute positions and tables of relative positions."""
    check_equal(name, 128, tmp_path / 'w.pth')


@pytest.mark.slow
@pytest.mark.parametrize('name', EQUAL)
def test_every_family_has_the_features_of_timm(tmp_path, name):
    check_equal(name, EQUAL[name], tmp_path / 'w.pth')


@pytest.mark.slow
@pytest.mark.parametrize('name', ONE_SIZE)
@torch.no_grad()
def test_backbones_of_one_size_are_one_error_line(tmp_path, name):
    path, size = tmp_path / 'w.pth', ONE_SIZE[name]
    description = write_weights(path, name)
    images = torch.rand(1, 3, size, size)
    with pytest.raises((RuntimeError, AssertionError)):
        features_of_timm(name, size, path, images, description)
    with pytest.raises(UserError, match=rf"MODEL\.BACKBONE '?{name}") as caught:
        features(name, size, path, images)
    assert f'{size} px' in str(caught.value)
    assert '\n' not in str(caught.value)
