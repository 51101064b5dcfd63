"""Checks of auxiliary losses, embeddings, stored features, sharded backbones, catalogs, centers, a record of images."""

from typing import Any

from lib.config.keys.loss import METRIC
from lib.errors import UserError, shown

COMPARING = ('balanced_contrastive', *METRIC)  # auxiliary losses of the images of a batch among each other

# Keys that change the images or the backbone within the run, and their values that do not.
_NEEDS_IMAGES: dict[str, object] = {
    'MIX.TYPE': '',
    'MODEL.SHIFT_BATCHNORM': False,
    'INPUT.SIZE_SCHEDULE': '',
}


def check_cached_features(values: dict[str, Any]) -> None:
    """Raise UserError if stored features cannot stand for the images of every step."""
    if values['TRAIN.FEATURES'] != 'cached':
        return
    if not values['MODEL.FREEZE_BACKBONE']:
        raise UserError('TRAIN.FEATURES cached needs a frozen backbone: --MODEL_TUNE head, or --TRAIN_FEATURES images')
    for name, off in _NEEDS_IMAGES.items():
        if values[name]:
            raise UserError(
                f'{name} {values[name]} needs the images of every step, but TRAIN.FEATURES is cached: '
                f'--{name.replace(".", "_")} {shown(off)}, or --TRAIN_FEATURES images'
            )
    if values['LOSS.AUXILIARY'] not in ('', *METRIC):
        raise UserError(
            f'LOSS.AUXILIARY {values["LOSS.AUXILIARY"]} needs the images of every step, but TRAIN.FEATURES is cached: '
            "--LOSS_AUXILIARY '', or --TRAIN_FEATURES images"
        )
    views = values['TRAIN.FEATURE_VIEWS']
    augmented = values['INPUT.AUGMENT'] or any(values['INPUT.COLOR_JITTER']) or values['INPUT.ERASE_PROBABILITY']
    is_random = values['INPUT.TRAIN_TRANSFORM'] != 'center_crop' or augmented
    if views > 1 and not is_random:
        raise UserError(
            f'TRAIN.FEATURE_VIEWS is {views}, but nothing is random, so all views are equal: --TRAIN_FEATURE_VIEWS 1, '
            'or --INPUT_TRAIN_TRANSFORM random_resized_crop'
        )


# Keys of steps over batches, and their values without effect.
_NEEDS_BATCHES: dict[str, object] = {
    'LOSS.CHUNK_IMAGES': 0,
    'LOSS.SAMPLED_CLASSES': 1.0,
    'MODEL.CLASSIFIER_SHARDED': False,
    'SAMPLER.IMAGES_PER_CLASS': 0,
    'TRAIN.DEVICE_BATCH_SIZE': 0,
}
_MAX_STRENGTHS = 40  # the square root of 10 to this power is 1e20


def check_lbfgs(values: dict[str, Any]) -> None:
    """Raise UserError if OPTIMIZER.TYPE lbfgs does not work with the other settings."""
    if values['OPTIMIZER.TYPE'] != 'lbfgs':
        return
    if values['TRAIN.FEATURES'] != 'cached':
        raise UserError(
            'OPTIMIZER.TYPE lbfgs reads the whole training set in every iteration, so it needs stored features: '
            '--MODEL_TUNE head --TRAIN_FEATURES cached'
        )
    if values['MODEL.CLASSIFIER'] == 'lws':
        raise UserError(
            'OPTIMIZER.TYPE lbfgs fits weight and bias of a linear classifier, or a cosine classifier, but '
            'MODEL.CLASSIFIER is lws: --MODEL_CLASSIFIER FC, or --OPTIMIZER_TYPE sgd'
        )
    for name, off in _NEEDS_BATCHES.items():
        if values[name] != off:
            raise UserError(
                f'{name} is {values[name]}, but OPTIMIZER.TYPE lbfgs uses the whole training set in every iteration, '
                f'TRAIN.BATCH_SIZE images at a time: --{name.replace(".", "_")} {off}'
            )
    if values['TRAIN.MAX_EPOCH'] > _MAX_STRENGTHS:
        raise UserError(
            f'TRAIN.MAX_EPOCH is {values["TRAIN.MAX_EPOCH"]}, but with OPTIMIZER.TYPE lbfgs the regularization of an '
            f'epoch is 3.2 times that of the one before: at most {_MAX_STRENGTHS}, such as --TRAIN_MAX_EPOCH 9'
        )


def check_auxiliary(values: dict[str, Any]) -> None:
    """Raise UserError if the auxiliary loss does not work with the other settings."""
    auxiliary, mix = values['LOSS.AUXILIARY'], values['MIX.TYPE']
    if auxiliary in METRIC and values['MODEL.FREEZE_BACKBONE'] and not values['MODEL.EMBEDDING']:
        raise UserError(
            f'LOSS.AUXILIARY {auxiliary} trains features, but MODEL.FREEZE_BACKBONE True (MODEL.TUNE head) leaves them '
            'as they are: --MODEL_EMBEDDING 256'
        )
    if auxiliary in COMPARING and mix:
        raise UserError(
            f"LOSS.AUXILIARY {auxiliary} compares images of one label, but MIX.TYPE {mix} mixes labels: --MIX_TYPE ''"
        )
    if auxiliary == 'balanced_contrastive' and values['MODEL.FREEZE_BACKBONE']:
        raise UserError(
            'LOSS.AUXILIARY balanced_contrastive trains the backbone, but MODEL.FREEZE_BACKBONE True freezes it: '
            "--LOSS_AUXILIARY ''"
        )
    if auxiliary == 'distillation':
        if not values['LOSS.TEACHER']:
            raise UserError('LOSS.AUXILIARY distillation needs a teacher: --LOSS_TEACHER log/NAME/best_model.pth')
        if mix == 'manifold_mixup':
            raise UserError(
                'LOSS.AUXILIARY distillation needs the same input for teacher and student, but MIX.TYPE manifold_mixup '
                "mixes the student's features: --MIX_TYPE mixup"
            )
        if values['LOSS.AUXILIARY_WEIGHT'] > 1:
            raise UserError(
                f'LOSS.AUXILIARY_WEIGHT is {values["LOSS.AUXILIARY_WEIGHT"]:g}, but must be at most 1 with '
                'LOSS.AUXILIARY distillation'
            )


# Keys whose values work with the outputs of the backbone, and values that do not.
_NEEDS_NO_EMBEDDING = {
    'MODEL.CLASSIFIER_INIT': ('text', 'class_means'),
    'OPTIMIZER.TYPE': ('lbfgs', 'sgd'),
}


def check_embedding(values: dict[str, Any]) -> None:
    """Raise UserError if an embedding does not work with the other settings."""
    for name, (given, instead) in _NEEDS_NO_EMBEDDING.items():
        if values['MODEL.EMBEDDING'] and values[name] == given:
            raise UserError(
                f'{name} {given} needs the outputs of the backbone as features, but MODEL.EMBEDDING is '
                f'{values["MODEL.EMBEDDING"]}: --MODEL_EMBEDDING 0, or --{name.replace(".", "_")} {instead}'
            )


# Keys whose values work with the one row of each class.
_NEEDS_ONE_CENTER = {
    'MODEL.CLASSIFIER_INIT': ('class_means', 'text'),
    'LOSS.AUXILIARY': ('balanced_contrastive',),
    'OPTIMIZER.TYPE': ('lbfgs',),
}


def check_centers(values: dict[str, Any]) -> None:
    """Raise UserError if a cosine classifier with several centers per class does not work with the other settings."""
    if values['MODEL.CENTERS'] == 1 or values['MODEL.CLASSIFIER'] not in ('FCNorm', 'cosine'):
        return
    for name, needing in _NEEDS_ONE_CENTER.items():
        if values[name] in needing:
            raise UserError(
                f'{name} {values[name]} needs one row per class, but MODEL.CENTERS is {values["MODEL.CENTERS"]}: '
                '--MODEL_CENTERS 1'
            )


# Keys under which a step has no margin of each image, their values that are fine, and the reasons.
_NEEDS_MARGINS: dict[str, tuple[object, str]] = {
    'MIX.TYPE': ('', 'a mixed image has two labels'),
    'LOSS.SAMPLED_CLASSES': (1.0, 'a sample of the classes may lack the largest other logit'),
}


def check_tracking(values: dict[str, Any]) -> None:
    """Raise UserError if TRAIN.TRACK_SAMPLES could not record the margin of every image."""
    if not values['TRAIN.TRACK_SAMPLES']:
        return
    if values['OPTIMIZER.TYPE'] == 'lbfgs':
        raise UserError(
            'TRAIN.TRACK_SAMPLES True records images over the epochs, but with OPTIMIZER.TYPE lbfgs an epoch is a '
            'separate fit: --OPTIMIZER_TYPE sgd, or --TRAIN_TRACK_SAMPLES False'
        )
    for name, (neutral, reason) in _NEEDS_MARGINS.items():
        if values[name] != neutral:
            raise UserError(
                f'TRAIN.TRACK_SAMPLES True records the margin of every image, but with {name} {values[name]} {reason}: '
                f'--{name.replace(".", "_")} {shown(neutral)}, or --TRAIN_TRACK_SAMPLES False'
            )


# Keys that do not work with a sharded backbone: values of them, the reason, and a value that works.
_NEEDS_WHOLE_BACKBONE: dict[str, tuple[tuple[str, ...], str, str]] = {
    'MODEL.TUNE': (('ssf', 'lora', 'adaptformer'), 'adapts weights that are not on one rank', 'full'),
    'TRAIN.FEATURES': (('cached',), 'does not train the backbone', 'images'),
}


def check_sharded_backbone(values: dict[str, Any]) -> None:
    """Raise UserError if a backbone that is sharded over the ranks does not work with the other settings."""
    for name, (needing, reason, instead) in _NEEDS_WHOLE_BACKBONE.items():
        if values['MODEL.BACKBONE_SHARDED'] and values[name] in needing:
            raise UserError(
                f'MODEL.BACKBONE_SHARDED True splits the backbone over the ranks, but {name} {values[name]} {reason}: '
                f'--MODEL_BACKBONE_SHARDED False, or --{name.replace(".", "_")} {instead}'
            )


# Keys of search without a catalog, and their values without effect.
_NEEDS_FEATURES: dict[str, object] = {
    'SEARCH.GALLERY': 'train',
    'SEARCH.METRIC': 'cosine',
    'SEARCH.WHITEN': False,
    'SEARCH.RERANK': '',
}


def check_catalog(values: dict[str, Any]) -> None:
    """Raise UserError if a catalog cannot be built, or not be searched, in this way."""
    if (values['INDEX.KIND'], values['INDEX.CODES']) == ('hnsw', 'binary'):
        raise UserError('INDEX.KIND hnsw has no binary codes: --INDEX_KIND ivfpq, or --INDEX_CODES int8')
    for name, off in _NEEDS_FEATURES.items():
        if values['SEARCH.INDEX'] and values[name] != off:
            raise UserError(
                f'{name} is {shown(values[name])}, but SEARCH.INDEX searches a catalog as tools/index.py built it: '
                f"--{name.replace('.', '_')} {shown(off)}, or --SEARCH_INDEX ''"
            )


def check_proposals(values: dict[str, Any]) -> None:
    """Raise UserError if classes are to be proposed and changed in one command: a person has to name them first."""
    for name in ('ENROLL.IMAGES', 'ENROLL.RETIRE'):
        if values['ENROLL.PROPOSE'] and values[name]:
            raise UserError(
                f'{name} changes the model, but ENROLL.PROPOSE only proposes classes: give them in two commands'
            )
