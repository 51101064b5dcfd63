"""The model and how it is trained: MODEL, MIX, OPTIMIZER, SCHEDULE."""

from lib.config.key import Key

_WITH_MOMENTUM = ('OPTIMIZER.TYPE', ('sgd',))


def _of_mix(*names: str) -> tuple[str, tuple[str, ...]]:
    return ('MIX.TYPE', names)


MODEL: dict[str, Key] = {
    'BACKBONE': Key(
        'resnest50',
        'Any name that timm knows, or res50, res101, res152, resnest50/101/200/269, res32_cifar.',
    ),
    'PRETRAINED': Key('', "Backbone weights: a local file, or 'timm' to let timm download them. Empty: random."),
    'CLASSIFIER': Key(
        'FC',
        'Linear (FC), cosine similarity (FCNorm), or linear with a scale a class (lws).',
        choices=('FC', 'FCNorm', 'linear', 'cosine', 'lws'),
    ),
    'CLASSIFIER_INIT': Key(
        'checkpoint',
        'Classifier at the start of fine-tuning: of the checkpoint, random, or the mean features of each class.',
        choices=('checkpoint', 'random', 'class_means'),
    ),
    'FREEZE_CLASSIFIER': Key(False, 'Train the scales alone.', used_by=('MODEL.CLASSIFIER', ('lws',))),
    'COSINE_SCALE': Key(
        16.0,
        'Factor on cosine logits.',
        low=1e-3,
        neutral=1.0,
        used_by=('MODEL.CLASSIFIER', ('FCNorm', 'cosine')),
    ),
    'FREEZE_BACKBONE': Key(False, 'Train the classifier only; BatchNorm statistics stay too.'),
    'SYNC_BATCHNORM': Key(False, 'Normalise over the images of all GPUs (under torchrun), not of each.'),
    'CLASSIFIER_SHARDED': Key(False, 'Split the classes over the ranks of torchrun: each holds its share of rows.'),
    'SHIFT_BATCHNORM': Key(False, 'Let BatchNorm statistics of a frozen backbone follow the training images.'),
}

MIX: dict[str, Key] = {
    'TYPE': Key(
        '',
        'Mix pairs of training images. Empty: no.',
        choices=('', 'mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo', 'bbn'),
    ),
    'ALPHA': Key(
        1.0,
        'Shares are drawn from Beta(ALPHA, ALPHA).',
        low=1e-3,
        used_by=_of_mix('mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo'),
    ),
    'PROBABILITY': Key(
        1.0,
        'Chance that an image is mixed.',
        low=0.0,
        high=1.0,
        used_by=_of_mix('mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo'),
    ),
    'STAGES': Key(
        (0.0, 1.0, 2.0),
        'Where: 0 the image, 1 after the first stage of the backbone, ...; drawn anew for each step.',
        low=0.0,
        used_by=_of_mix('manifold_mixup'),
    ),
    'KAPPA': Key(3.0, 'Ratio of counts from which the rarer label takes all.', low=1.0, used_by=_of_mix('remix')),
    'TAU': Key(0.5, 'Share up to which it does.', low=0.0, high=1.0, used_by=_of_mix('remix')),
    'OFF_EPOCHS': Key(
        0,
        'Last epochs without mixing.',
        low=0,
        used_by=_of_mix('mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo'),
    ),
}

OPTIMIZER: dict[str, Key] = {
    'TYPE': Key('sgd', 'Optimiser.', choices=('sgd', 'adam', 'adamw')),
    'LR': Key(0.1, 'Learning rate (one_cycle: its peak).', low=0.0),
    'MOMENTUM': Key(0.9, 'Momentum.', low=0.0, high=0.9999, used_by=_WITH_MOMENTUM),
    'NESTEROV': Key(False, 'Nesterov momentum.', used_by=_WITH_MOMENTUM),
    'BETAS': Key(
        (0.9, 0.999),
        'Averaging factors.',
        low=0.0,
        high=0.999999,
        used_by=('OPTIMIZER.TYPE', ('adam', 'adamw')),
    ),
    'WEIGHT_DECAY': Key(1e-4, 'Weight decay.', low=0.0),
    'MAX_NORM': Key(0.0, "Largest norm of a row of the classifier's weight, kept after each step. 0: any.", low=0.0),
    'CLIP_NORM': Key(0.0, 'Largest norm of all gradients together; above it they are scaled down. 0: any.', low=0.0),
    'LAYER_DECAY': Key(
        1.0,
        'Factor on the learning rate for each block of the backbone further from the classifier (fine-tuning).',
        low=1e-3,
        high=1.0,
    ),
    'DECAY_NORM_AND_BIAS': Key(True, 'Decay biases and the parameters of normalisation layers, too.'),
}

SCHEDULE: dict[str, Key] = {
    'TYPE': Key('multistep', 'Learning rate over the run.', choices=('multistep', 'cosine', 'one_cycle')),
    'WARMUP_EPOCHS': Key(0.0, 'Linear rise at the start, epochs.', low=0.0),
    'MILESTONE_EPOCHS': Key(
        (10.0, 20.0, 30.0),
        'Epochs at which the rate falls.',
        low=0.0,
        used_by=('SCHEDULE.TYPE', ('multistep',)),
    ),
    'DECAY_FACTORS': Key(
        (0.1,),
        'Factor at each milestone, or one for all.',
        low=0.0,
        used_by=('SCHEDULE.TYPE', ('multistep',)),
    ),
    'FINAL_LR': Key(0.0, 'Learning rate at the end.', low=0.0, used_by=('SCHEDULE.TYPE', ('cosine',))),
    'DIV_FACTOR': Key(25.0, 'Peak over first rate.', low=1.0, used_by=('SCHEDULE.TYPE', ('one_cycle',))),
    'FINAL_DIV_FACTOR': Key(1e4, 'First over last rate.', low=1.0, used_by=('SCHEDULE.TYPE', ('one_cycle',))),
}
