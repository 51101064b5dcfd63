"""MIX -> a mixer with its options, and batches of pairs from the loader."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from lib.backbone.create import create_backbone
from lib.builders.loader import build_train_loader
from lib.builders.mixing import MIXERS, build_mixed_stages, build_mixer, check_pairs
from lib.builders.preprocessing import resolve_preprocessing
from lib.builders.split import DatasetSplit
from lib.config.keys.data import PAIRED
from lib.config.load import load_config
from lib.dataset.images import ArrayImages
from lib.dataset.index import ClassIndex
from lib.errors import UserError
from lib.runtime.device import pick_device
from lib.trainer.mixing.base import MixDraws, unmixed

CPU = torch.device('cpu')
COUNTS = np.array([12, 6, 3, 1])


def cfg_of(**options):
    options = {'SEED': 5, 'TRAIN_MAX_EPOCH': 10, 'SAMPLER_SWITCH_TYPE': '', 'SAMPLER_SWITCH_EPOCH': 0, **options}
    argv = [word for name, value in options.items() for word in (f'--{name}', str(value))]
    loaded = load_config(argv, program='main.py', description='', find_checkpoint_config=lambda *_: None)
    return resolve_preprocessing(loaded.cfg)


def mixer_of(**options):
    return build_mixer(cfg_of(**options), COUNTS, CPU)


def test_no_mixing():
    assert mixer_of(MIX_TYPE='') is unmixed
    images, labels = torch.zeros(3, 3, 4, 4), torch.tensor([1, 0, 2])
    mixed = unmixed(images, labels, epoch=0, first_slot=0)
    assert mixed.images is images
    assert mixed.targets.labels is labels
    assert (mixed.targets.lam, mixed.stage, mixed.lam) == (None, 0, None)


@pytest.mark.parametrize('name', [name for name in MIXERS if name != 'bbn'])
def test_common_options(name):
    mixer = mixer_of(MIX_TYPE=name, MIX_ALPHA=0.3, MIX_PROBABILITY=0.6, MIX_OFF_EPOCHS=2)
    assert mixer.draws == MixDraws(5, 0.3, 0.6, end_epoch=8)
    assert type(mixer).__name__.lower() == name.replace('_', '').lower()


def test_options_of_single_mixers():
    remix = mixer_of(MIX_TYPE='remix', MIX_KAPPA=4, MIX_TAU=0.2)
    assert (remix.kappa, remix.tau, remix.class_counts.tolist()) == (4.0, 0.2, COUNTS.tolist())
    assert mixer_of(MIX_TYPE='manifold_mixup', MIX_STAGES='0,3,1').stages == (0, 3, 1)
    assert mixer_of(MIX_TYPE='bbn').max_epoch == 10


@pytest.mark.parametrize('name', MIXERS)
def test_an_odd_batch_size(name):
    """Pairs of slots must not be split between batches; mixers with paired slots accept odd sizes."""
    if name in PAIRED:
        mixer_of(MIX_TYPE=name, TRAIN_BATCH_SIZE=31)
        return
    with pytest.raises(UserError, match=rf'MIX.TYPE {name} mixes pairs, but TRAIN.BATCH_SIZE 31 is odd'):
        mixer_of(MIX_TYPE=name, TRAIN_BATCH_SIZE=31)


@pytest.mark.parametrize('stages', ['0,1.5', '()'])
def test_stages_are_whole_numbers(stages):
    with pytest.raises(UserError, match=r'MIX.STAGES is \(.*whole numbers'):
        mixer_of(MIX_TYPE='manifold_mixup', MIX_STAGES=stages)


def stages_of(batch_size=32, num_replicas=1, **options):
    backbone = create_backbone('res32_cifar', image_size=32)
    cfg = cfg_of(TRAIN_BATCH_SIZE=batch_size, **options)
    check_pairs(cfg, batch_size, num_replicas)
    return build_mixed_stages(cfg, backbone)


def test_stages_of_the_backbone():
    assert stages_of(MIX_TYPE='mixup') is None
    assert stages_of(MIX_TYPE='manifold_mixup', MIX_STAGES='0') is None
    assert stages_of(MIX_TYPE='manifold_mixup', MIX_STAGES='0,1,3').num_stages == 3
    with pytest.raises(UserError, match=r'MIX.STAGES: stage 4 is neither'):
        stages_of(MIX_TYPE='manifold_mixup', MIX_STAGES='0,1,4')


@pytest.mark.parametrize(
    ('batch_size', 'num_replicas', 'advice'), [(32, 4, ''), (30, 1, ''), (6, 4, ''), (36, 8, '48'), (12, 4, '16')]
)
def test_pairs_stay_on_one_gpu(batch_size, num_replicas, advice):
    options = {'batch_size': batch_size, 'num_replicas': num_replicas, 'MIX_TYPE': 'manifold_mixup'}
    if not advice:
        assert stages_of(**options) is not None
        return
    with pytest.raises(UserError, match=f'try --TRAIN_BATCH_SIZE {advice}'):
        stages_of(**options)
    stages_of(**{**options, 'batch_size': int(advice)})


def loader_of(cfg):
    """Return the loader of images whose pixels are 10 times their row."""
    labels = np.repeat(np.arange(4), COUNTS).astype(np.int32)
    pixels = np.broadcast_to((10 * np.arange(22, dtype=np.uint8))[:, None, None, None], (22, 8, 8, 3)).copy()
    names = pa.array([str(row) for row in range(22)])
    split = DatasetSplit(ArrayImages(pixels), labels, 4, names, 'painted')
    return build_train_loader(cfg, split, ClassIndex(labels, 4), pick_device('cpu'))


SMALL = {'INPUT_SIZE': 8, 'RUN_NUM_WORKERS': 0, 'INPUT_MEAN': '0,0,0', 'INPUT_STD': '1,1,1', 'DATASET_HEAD_CAP': 0}


@pytest.mark.parametrize(
    'options', [{'MIX_TYPE': 'cmo'}, {'MIX_TYPE': 'bbn'}, {'LOSS_AUXILIARY': 'balanced_contrastive'}]
)
@pytest.mark.parametrize(('batch_size', 'steps', 'images'), [(5, 4, 5), (8, 2, 8), (100, 1, 22)])
def test_batches_of_pairs_are_twice_as_large(options, batch_size, steps, images):
    plain = loader_of(cfg_of(TRAIN_BATCH_SIZE=batch_size, **SMALL))
    double = loader_of(cfg_of(TRAIN_BATCH_SIZE=batch_size, **SMALL, **options))
    assert plain.steps_per_epoch == double.steps_per_epoch == steps
    assert (plain.batch_size, double.batch_size) == (images, 2 * images)
    for one, two in zip(plain.batches(3), double.batches(3), strict=True):
        assert torch.equal(one.rows, two.rows[::2])
        assert torch.equal(one.labels, two.labels[::2])
        # The image in each slot is that of its row.
        assert (255 * two.images[:, 0, 0, 0] / 10).round().long().tolist() == two.rows.tolist()


def test_cmo_with_the_loader():
    cfg = cfg_of(TRAIN_BATCH_SIZE=8, MIX_TYPE='cmo', SAMPLER_PAIR_TYPE='reverse', **SMALL)
    loader, mixer = loader_of(cfg), build_mixer(cfg, COUNTS, CPU)
    tail = []
    for step, batch in enumerate(loader.batches(0)):
        mixed = mixer(batch.images, batch.labels, epoch=0, first_slot=step * loader.batch_size)
        assert mixed.images.shape == (8, 3, 8, 8)
        found = (255 * mixed.images[:, 0] / 10).round().long().flatten(1)  # (8, pixels) rows
        background, foreground = batch.rows[::2, None], batch.rows[1::2, None]
        assert ((found == background) | (found == foreground)).all()
        apart = (background != foreground).squeeze(1)
        share = (found == background).float().mean(dim=1)
        torch.testing.assert_close(mixed.targets.lam[apart, 0], share[apart])
        tail += mixed.targets.labels[:, 1].tolist()
    assert np.mean(np.array(tail) >= 2) > 0.5, 'rare classes fill the boxes'
