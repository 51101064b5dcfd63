"""What is minimised: LOSS."""

from lib.config.key import Key

_LOSSES = (
    'cross_entropy',
    'focal',
    'sigmoid_focal',
    'balanced_softmax',
    'logit_adjustment',
    'vector_scaling',
    'class_dependent_temperatures',
    'ldam',
    'softmax_equalization',
    'label_aware_smoothing',
    'influence_balanced',
    'seesaw',
    'generalized_cross_entropy',
    'symmetric_cross_entropy',
    'arcface',
    'cosface',
)

_REWEIGHTED = ('LOSS.CLASS_WEIGHTS', ('effective_number', 'inverse_frequency'))
_CONTRAST = ('LOSS.AUXILIARY', ('balanced_contrastive',))
_DISTILL = ('LOSS.AUXILIARY', ('distillation',))


def _of_loss(*names: str) -> tuple[str, tuple[str, ...]]:
    return ('LOSS.TYPE', names)


LOSS: dict[str, Key] = {
    'TYPE': Key('cross_entropy', 'Training loss.', choices=_LOSSES),
    'LABEL_SMOOTHING': Key(
        0.0,
        'Share of the label spread over all classes.',
        low=0.0,
        high=0.999,
        used_by=_of_loss('cross_entropy'),
    ),
    'GAMMA': Key(
        -1.0,
        "Exponent: of 1 - p (focal), of a class's share of the largest (the other two). -1: 2, or 0.1.",
        low=-1.0,
        used_by=_of_loss('focal', 'sigmoid_focal', 'class_dependent_temperatures', 'vector_scaling'),
    ),
    'TAU': Key(1.0, 'Factor on ln prior.', low=0.0, used_by=_of_loss('logit_adjustment', 'vector_scaling')),
    'MARGIN': Key(
        -1.0,
        'Margin: of the rarest class (ldam), in radians (arcface), of the cosine (cosface). -1: 0.5, 0.5, 0.35.',
        low=-1.0,
        used_by=_of_loss('ldam', 'arcface', 'cosface'),
    ),
    'SMOOTHING_HEAD': Key(
        0.4, 'Smoothing of the largest class.', low=0.0, high=0.999, used_by=_of_loss('label_aware_smoothing')
    ),
    'SMOOTHING_TAIL': Key(
        0.1, 'Smoothing of the smallest class.', low=0.0, high=0.999, used_by=_of_loss('label_aware_smoothing')
    ),
    'SMOOTHING_SHAPE': Key(
        'concave',
        'How smoothing rises with the number of images.',
        choices=('concave', 'linear', 'convex'),
        used_by=_of_loss('label_aware_smoothing'),
    ),
    'TAIL_SHARE': Key(
        0.005,
        'Classes with a smaller share of the images are spared.',
        low=0.0,
        high=1.0,
        used_by=_of_loss('softmax_equalization'),
    ),
    'SPARE_PROBABILITY': Key(
        0.95,
        'Chance that an image spares them.',
        low=0.0,
        high=1.0,
        used_by=_of_loss('softmax_equalization'),
    ),
    'MITIGATION': Key(0.8, 'Exponent of the count ratio.', low=0.0, used_by=_of_loss('seesaw')),
    'COMPENSATION': Key(2.0, 'Exponent of the score ratio.', low=0.0, used_by=_of_loss('seesaw')),
    'Q': Key(
        0.7,
        'From cross entropy (towards 0) to mean absolute error (1).',
        low=0.0,
        high=1.0,
        used_by=_of_loss('generalized_cross_entropy'),
    ),
    'FORWARD_WEIGHT': Key(0.1, 'Weight of cross entropy.', low=0.0, used_by=_of_loss('symmetric_cross_entropy')),
    'REVERSE_WEIGHT': Key(
        1.0, 'Weight of the reverse cross entropy.', low=0.0, used_by=_of_loss('symmetric_cross_entropy')
    ),
    'INFLUENCE': Key(
        'constant',
        "Whether the influence is a weight (constant, the paper) or takes a gradient too (as its authors' code).",
        choices=('constant', 'differentiated'),
        used_by=_of_loss('influence_balanced'),
    ),
    'CHUNK_IMAGES': Key(
        0,
        'Classify so many images at a time and keep no logits: memory for millions of classes. 0: the whole batch.',
        low=0,
    ),
    'SAMPLED_CLASSES': Key(
        1.0,
        'Share of the classes that a step compares with: those of its images, and others at random (Partial FC).',
        low=1e-4,
        high=1.0,
    ),
    'CLASS_WEIGHTS': Key(
        '',
        'Weigh rare classes up, with any loss: by effective number, or by count to the -EXPONENT. Empty: no.',
        choices=('', 'effective_number', 'inverse_frequency'),
    ),
    'BETA': Key(
        0.9999,
        'Overlap of images: 0 is no weights, towards 1 inverse frequency.',
        low=0.0,
        high=0.999999,
        used_by=('LOSS.CLASS_WEIGHTS', ('effective_number',)),
    ),
    'EXPONENT': Key(
        1.0,
        '1 is cost-sensitive, 0.5 its square root.',
        low=0.0,
        used_by=('LOSS.CLASS_WEIGHTS', ('inverse_frequency',)),
    ),
    'REWEIGHT_EPOCH': Key(
        0,
        'First epoch (from 0) with the weights (DRW), and with influences. -1: after four fifths of the run, as '
        '160 of 200.',
        low=-1,
        used_by=('LOSS.CLASS_WEIGHTS', ('effective_number', 'inverse_frequency', 'influence_balanced')),
        or_by=('LOSS.TYPE',),
    ),
    'REDUCTION': Key(
        'weighted_mean',
        'Divide by the sum of the weights, or by the number of images (weights then average to 1 over classes).',
        choices=('weighted_mean', 'mean'),
        used_by=_REWEIGHTED,
    ),
    'AUXILIARY': Key(
        '',
        'A second loss beside it. Empty: none.',
        choices=('', 'balanced_contrastive', 'distillation'),
    ),
    'AUXILIARY_WEIGHT': Key(
        0.5,
        'Its weight; distillation: its share, the rest is the first loss.',
        low=0.0,
        used_by=('LOSS.AUXILIARY', ('balanced_contrastive', 'distillation')),
    ),
    'CONTRAST_TEMPERATURE': Key(0.1, 'Temperature of similarities.', low=1e-3, used_by=_CONTRAST),
    'CONTRAST_WIDTH': Key(128, 'Width of what is compared.', low=2, used_by=_CONTRAST),
    'TEACHER': Key('', 'Checkpoint of the teacher, trained on the same classes.', used_by=_DISTILL),
    'TEACHER_TEMPERATURE': Key(3.0, 'Temperature of both softmaxes.', low=1e-3, used_by=_DISTILL),
    'TEACHER_POWER': Key(
        0.5, "Power on the teacher's distribution: below 1 flattens it.", low=0.0, high=1.0, used_by=_DISTILL
    ),
}
