"""Build a recognizer from the MODEL section: new, from a checkpoint, or fine-tuned on other classes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from lib.backbone.create import changes_with_size, create_backbone, measure_width, num_features_of
from lib.backbone.pooling import is_pooling, set_pooling, with_pooling_of
from lib.backbone.pretrained import Fit, examples, fit_weights
from lib.builders.base_weights import check_adapters, complete_state, identify_base, load_base, with_adapters_of
from lib.builders.loader import train_sizes
from lib.classifier.base import Classifier, transfer_rows
from lib.classifier.cosine import CosineClassifier, Projector
from lib.classifier.linear import LearnableWeightScaling, LinearClassifier, without_scale
from lib.config.defaults import Config
from lib.config.keys.method import ModelKeys
from lib.distributed.fully_sharded import whole_tensor
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.model import Embedding, NoRandomWeights, Recognizer
from lib.runtime.device import Device
from lib.runtime.log import LOGGER
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.checkpointing.state import Checkpoint

# MODEL in the config, num_features, num_classes, classes of this shard (None: all) -> the classifier.
CLASSIFIERS: dict[str, Callable[[ModelKeys, int, int, range | None], Classifier]] = {
    'linear': lambda model, num_features, num_classes, classes: LinearClassifier(
        num_features, num_classes, classes=classes
    ),
    'cosine': lambda model, num_features, num_classes, classes: CosineClassifier(
        num_features, num_classes, model.COSINE_SCALE, num_centers=model.CENTERS, classes=classes
    ),
    'lws': lambda model, num_features, num_classes, classes: LearnableWeightScaling(
        num_features, num_classes, scale_only=model.FREEZE_CLASSIFIER, classes=classes
    ),
}
CLASSIFIERS['FC'], CLASSIFIERS['FCNorm'] = CLASSIFIERS['linear'], CLASSIFIERS['cosine']


def new_model(
    cfg: Config,
    num_classes: int,
    device: Device,
    *,
    pretrained: bool = True,
    classes: range | None = None,
    image_size: int | None = None,
) -> Recognizer:
    """Return a recognizer on the device, with random weights (by SEED) or those of MODEL.PRETRAINED.

    Args:
        pretrained: False if the weights are loaded from a checkpoint later.
        classes: the classes whose rows the classifier holds, initialized like those of the whole classifier; None: all.
        image_size: side of the images that it gets; None: INPUT.SIZE, and in training those of INPUT.SIZE_SCHEDULE.
    """
    torch.manual_seed(torch_seed(cfg.SEED, Purpose.INIT))
    name, size = cfg.MODEL.BACKBONE, image_size or cfg.INPUT.SIZE
    key = 'INPUT.SIZE' if size == cfg.INPUT.SIZE else 'INPUT.TEST_SIZE'
    backbone = create_backbone(name, image_size=size, allow_download=cfg.MODEL.PRETRAINED == 'timm', key=key)
    fit = load_base(backbone, cfg) if pretrained and cfg.MODEL.PRETRAINED else None
    if cfg.MODEL.POOL:
        set_pooling(backbone, cfg.MODEL.POOL, name=name)
        setattr(backbone, 'num_features', measure_width(backbone, name, size, key))  # noqa: B010 (mypy: modules only)
    if image_size is None:
        if cfg.INPUT.TEST_SIZE and not changes_with_size(name):
            measure_width(backbone, name, cfg.INPUT.TEST_SIZE, 'INPUT.TEST_SIZE')
        for size in sorted(set(train_sizes(cfg).values()) - {cfg.INPUT.SIZE}):
            measure_width(backbone, name, size, 'INPUT.SIZE_SCHEDULE')
    num_features, width = num_features_of(backbone), cfg.MODEL.EMBEDDING
    embedding = Embedding(num_features, width) if width else None
    num_features = width or num_features
    classifier = CLASSIFIERS[cfg.MODEL.CLASSIFIER](cfg.MODEL, num_features, num_classes, classes)
    is_contrastive = cfg.LOSS.AUXILIARY == 'balanced_contrastive'
    model = Recognizer(
        backbone,
        classifier,
        embedding=embedding,
        projector=Projector(num_features, cfg.LOSS.CONTRAST_WIDTH) if is_contrastive else None,
        train_dtype=device.train_dtype,
        eval_dtype=device.eval_dtype,
    )
    if cfg.MODEL.FREEZE_BACKBONE:
        model.freeze_backbone(shift_batchnorm=cfg.MODEL.SHIFT_BATCHNORM)
    if cfg.MODEL.FREEZE_STAGES and cfg.MODEL.TUNE == 'full':
        model.freeze_stages(cfg.MODEL.FREEZE_STAGES, name=name)
    if cfg.MODEL.SYNC_BATCHNORM and device.main.type == 'cuda':
        from timm.layers import convert_sync_batchnorm  # imported here: see lib/backbone/create.py

        model.backbone = convert_sync_batchnorm(model.backbone)
        model.embedding = convert_sync_batchnorm(embedding) if embedding is not None else None
    if cfg.MODEL.TUNE not in ('full', 'head'):
        _tune(model, cfg, fit)
    return model.to(device.main).to(memory_format=device.memory_format)


def _tune(model: Recognizer, cfg: Config, fit: Fit | None) -> None:
    options, seed = cfg.MODEL, torch_seed(cfg.SEED, Purpose.INIT)
    model.tune_backbone(
        options.TUNE, rank=options.TUNE_RANK, scale=options.TUNE_SCALE, seed=seed, name=options.BACKBONE
    )
    if fit is not None and cfg.TRAIN.SAVE_WEIGHTS == 'tuned':
        model.base = identify_base(model, cfg, fit)


def class_shard(cfg: Config, num_classes: int, group: ProcessGroup) -> range | None:
    """Return the classes whose classifier rows this rank holds in training; None: all."""
    if not cfg.MODEL.CLASSIFIER_SHARDED or group.world_size == 1:
        return None
    if num_classes < group.world_size:
        raise UserError(
            f'MODEL.CLASSIFIER_SHARDED True needs at least one class per rank, but there are {num_classes} classes for '
            f'{group.world_size} ranks: set --MODEL_CLASSIFIER_SHARDED False'
        )
    rows = group.shard(num_classes)
    return range(rows.start, rows.stop)


def model_of(
    checkpoint: Checkpoint,
    cfg: Config,
    device: Device,
    *,
    classes: range | None = None,
    image_size: int | None = None,
    shares_memory: bool = False,
) -> Recognizer:
    """Return the recognizer of a checkpoint, with the classifier rows of `classes` (None: all).

    Its backbone is resampled to images of `image_size` (None: INPUT.SIZE). With `shares_memory`, for a model that is
    not trained, its classifier on a CPU is in the memory of the checkpoint: with 50,030 classes, a copy takes a second.

    Raises:
        UserError: its weights do not fit the MODEL section.
    """
    with NoRandomWeights():
        model = new_model(cfg, checkpoint.num_classes, device, pretrained=False, classes=classes, image_size=image_size)
    checkpoint = checkpoint.with_rows(classes)
    _load_state(model, complete_state(checkpoint, cfg), checkpoint.path, cfg, image_size, shares_memory=shares_memory)
    model.base = checkpoint.base if cfg.TRAIN.SAVE_WEIGHTS == 'tuned' else None
    return model


def with_classifier(model: Recognizer, checkpoint: Checkpoint, cfg: Config, device: Device) -> Recognizer:
    """Return a recognizer with the backbone of `model`, which both share, and the classifier of a checkpoint."""
    classifier = CLASSIFIERS[cfg.MODEL.CLASSIFIER](cfg.MODEL, model.num_features, checkpoint.num_classes, None)
    classifier.load_state_dict(_with_prefix(checkpoint.state_dict, 'classifier.'))
    return Recognizer(
        model.backbone, classifier.to(device.main), embedding=model.embedding,
        train_dtype=model.train_dtype, eval_dtype=model.eval_dtype,
    )  # fmt: skip


def model_at_test_size(cfg: Config, device: Device) -> Callable[[Recognizer], Recognizer] | None:
    """Return a function from a recognizer of INPUT.SIZE to one of INPUT.TEST_SIZE with its current weights.

    The classifier is shared. None: the backbone takes images of both sizes.

    Raises:
        UserError: the backbone does not take images of INPUT.TEST_SIZE.
    """
    size = cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE
    if size == cfg.INPUT.SIZE or not changes_with_size(cfg.MODEL.BACKBONE):
        return None
    with NoRandomWeights():
        backbone = new_model(cfg, 1, device, pretrained=False, image_size=size).backbone

    def resampled(model: Recognizer) -> Recognizer:
        weights = {name: whole_tensor(value) for name, value in model.backbone.state_dict().items()}
        _load_backbone(backbone, weights, None, cfg, size)
        return Recognizer(
            backbone, model.classifier, embedding=model.embedding, projector=model.projector,
            train_dtype=model.train_dtype, eval_dtype=model.eval_dtype,
        )  # fmt: skip

    return resampled


def finetuned_model(
    checkpoint: Checkpoint,
    cfg: Config,
    device: Device,
    names: Sequence[str],
    *,
    classes: range | None = None,
) -> tuple[Recognizer, list[str]]:
    """Return a recognizer for the classes `names` with the weights of a checkpoint, and the names of new classes.

    Classifier rows are matched by class name, or by index if the checkpoint has no names. With MODEL.CLASSIFIER_INIT
    random the classifier is that of a new model (by SEED). It holds the rows of `classes` (None: all).
    """
    checkpoint = checkpoint.with_rows()
    numbered = [names[row] if row < len(names) else '' for row in range(checkpoint.num_classes)]
    trained_names = (checkpoint.training_set.class_names if checkpoint.training_set else []) or numbered
    model = new_model(cfg, len(names), device, pretrained=False, classes=classes)
    shard_names = names if classes is None else names[classes.start : classes.stop]
    new_state, trained_state = model.state_dict(), complete_state(checkpoint, cfg)
    backbone = with_adapters_of(model.backbone, _with_prefix(trained_state, 'backbone.'), checkpoint.path, cfg)
    backbone = with_pooling_of(model.backbone, backbone)
    _load_backbone(model.backbone, backbone, checkpoint.path, cfg, cfg.INPUT.SIZE)
    new_classifier, trained = _with_prefix(new_state, 'classifier.'), _with_prefix(trained_state, 'classifier.')
    if 'scale' not in new_classifier:
        trained = without_scale(trained)
    transferred, _ = transfer_rows(
        {key: value.cpu() for key, value in new_classifier.items()}, trained, shard_names, trained_names
    )
    classifier = new_classifier if cfg.MODEL.CLASSIFIER_INIT == 'random' else transferred
    model.classifier.load_state_dict(classifier)
    for name in ('embedding', 'projector'):
        module: nn.Module | None = getattr(model, name)
        trained = _with_prefix(trained_state, f'{name}.')
        if module is not None and _shapes(module.state_dict()) == _shapes(trained):
            module.load_state_dict(trained)
    old_names = set(trained_names)
    return model, [name for name in names if name not in old_names]


def _with_prefix(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def class_names(checkpoint: Checkpoint) -> list[str]:
    """Return the class names of a checkpoint; class indices as text if it has none."""
    names = checkpoint.training_set.class_names if checkpoint.training_set else []
    return names or [str(label) for label in range(checkpoint.num_classes)]


def _load_state(
    model: Recognizer,
    state: dict[str, torch.Tensor],
    path: Path | None,
    cfg: Config,
    image_size: int | None = None,
    *,
    shares_memory: bool = False,
) -> None:
    """Load the weights of a checkpoint, with those of the backbone resampled to the image size."""
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    if 'classifier.bias' in expected and 'classifier.bias' not in state:
        raise UserError(
            f'{path}: its classifier has no bias, so it is a cosine classifier, but MODEL.CLASSIFIER is '
            f'{cfg.MODEL.CLASSIFIER}: set --MODEL_CLASSIFIER FCNorm'
        )
    centers = state.get('classifier.centers')
    num_centers = 1 if centers is None else centers.shape[1] + 1
    if num_centers != model.classifier.num_centers:
        raise UserError(
            f'{path}: its classifier has {num_centers} centers per class, but MODEL.CENTERS is {cfg.MODEL.CENTERS} and '
            f'MODEL.CLASSIFIER {cfg.MODEL.CLASSIFIER}: set --MODEL_CENTERS {num_centers}'
        )
    width = len(state.get('embedding.linear.weight', ()))
    if width != cfg.MODEL.EMBEDDING:
        raise UserError(
            f'{path} was trained with MODEL.EMBEDDING {width}, but MODEL.EMBEDDING is {cfg.MODEL.EMBEDDING}: set '
            f'--MODEL_EMBEDDING {width}, or start another run from it with --RESUME_MODE finetune'
        )
    backbone = _with_prefix(state, 'backbone.')
    check_adapters(model.backbone, backbone, path, cfg)
    _load_backbone(model.backbone, backbone, path, cfg, image_size or cfg.INPUT.SIZE)
    rest = {key: value for key, value in state.items() if not key.startswith('backbone.')}
    missing, unknown = sorted(expected.keys() - rest.keys()), sorted(rest.keys() - expected.keys())
    shapes = [key for key in expected.keys() & rest.keys() if expected[key].shape != rest[key].shape]
    if missing or unknown or shapes:
        example = (missing + unknown + sorted(shapes))[0]
        raise UserError(
            f'{path} does not fit MODEL.BACKBONE {cfg.MODEL.BACKBONE} with MODEL.CLASSIFIER '
            f'{cfg.MODEL.CLASSIFIER}: {len(missing)} parameters are missing, {len(unknown)} unknown, {len(shapes)} of '
            f'another shape, for example {example}: set both keys as in its training'
        )
    kinds = {key: (value.dtype, value.device) for key, value in expected.items()}
    is_alike = all(kind == (rest[key].dtype, rest[key].device) for key, kind in kinds.items())
    model.load_state_dict(rest, strict=False, assign=shares_memory and is_alike)


def _load_backbone(
    backbone: nn.Module, state: dict[str, torch.Tensor], path: Path | None, cfg: Config, image_size: int
) -> None:
    """Load the backbone of a checkpoint (None: of this run), resampled to the image size."""
    fit = fit_weights(backbone, state)
    if any(map(is_pooling, state)) != (cfg.MODEL.POOL == 'gem'):
        hint = "''" if cfg.MODEL.POOL == 'gem' else 'gem'
        raise UserError(
            f'{path} was trained with another pooling than MODEL.POOL {cfg.MODEL.POOL or "(none)"}: set --MODEL_POOL '
            f'{hint}'
        )
    if not fit.is_exact:
        raise fit.misfit(str(path), cfg.MODEL.BACKBONE, image_size)
    if fit.resampled and path is not None:
        LOGGER.info('%s: resampled to %d px: %s', path.name, image_size, examples(fit.resampled))
    backbone.load_state_dict(fit.weights, strict=False)
