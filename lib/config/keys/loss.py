"""LOSS: the training loss, class weights and auxiliary losses."""

from lib.config.key import Key, Section

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
# Losses of pairs and triplets, by pytorch-metric-learning.
METRIC = ('triplet', 'multi_similarity', 'supervised_contrastive')
_CONTRAST = ('LOSS.AUXILIARY', ('balanced_contrastive',))
_DISTILL = ('LOSS.AUXILIARY', ('distillation',))


def _of_loss(*names: str) -> tuple[str, tuple[str, ...]]:
    return ('LOSS.TYPE', names)


class LossKeys(Section, title='training loss'):
    TYPE = Key('cross_entropy', 'Training loss.', choices=_LOSSES)
    LABEL_SMOOTHING = Key(
        0.0,
        'Label smoothing eps: the fraction of the label spread evenly over all classes.',
        low=0.0,
        high=0.999,
        used_by=_of_loss('cross_entropy'),
    )
    GAMMA = Key(
        -1.0,
        'gamma: exponent of 1 - p (focal losses) or of n_c / n_max (class-dependent temperatures, vector scaling). '
        '-1: 2 for focal losses, 0.1 for the others.',
        low=-1.0,
        used_by=_of_loss('focal', 'sigmoid_focal', 'class_dependent_temperatures', 'vector_scaling'),
    )
    TAU = Key(
        1.0, 'tau: factor on the log prior ln(n_c / N).', low=0.0,
        used_by=_of_loss('logit_adjustment', 'vector_scaling'),
    )  # fmt: skip
    MARGIN = Key(
        -1.0,
        'Margin m: of the rarest class (ldam), of the angle in radians (arcface), of the cosine (cosface). -1: 0.5 for '
        'ldam and arcface, 0.35 for cosface.',
        low=-1.0,
        used_by=_of_loss('ldam', 'arcface', 'cosface'),
    )
    MARGIN_HEAD = Key(
        -1.0,
        'Margin of the largest class: margins rise as n_c^-1/4 from it to MARGIN, that of the smallest class. -1: '
        'MARGIN for all classes.',
        low=-1.0,
        used_by=_of_loss('arcface'),
    )
    SMOOTHING_HEAD = Key(
        0.4, 'eps_1: label smoothing of the largest class.', low=0.0, high=0.999,
        used_by=_of_loss('label_aware_smoothing'),
    )  # fmt: skip
    SMOOTHING_TAIL = Key(
        0.1, 'eps_K: label smoothing of the smallest class.', low=0.0, high=0.999,
        used_by=_of_loss('label_aware_smoothing'),
    )  # fmt: skip
    SMOOTHING_SHAPE = Key(
        'concave',
        'Shape of the increase of the smoothing from the smallest to the largest class.',
        choices=('concave', 'linear', 'convex'),
        used_by=_of_loss('label_aware_smoothing'),
    )
    TAIL_SHARE = Key(
        0.005,
        'SEQL lambda: class frequency n_c / N below which the negative gradients of a class are suppressed.',
        low=0.0,
        high=1.0,
        used_by=_of_loss('softmax_equalization'),
    )
    SPARE_PROBABILITY = Key(
        0.95,
        'SEQL gamma: probability that an image suppresses the negative gradients of tail classes.',
        low=0.0,
        high=1.0,
        used_by=_of_loss('softmax_equalization'),
    )
    MITIGATION = Key(0.8, 'Seesaw p: exponent of the mitigation factor n_j / n_y.', low=0.0, used_by=_of_loss('seesaw'))
    COMPENSATION = Key(
        2.0, 'Seesaw q: exponent of the compensation factor sigma_j / sigma_y.', low=0.0, used_by=_of_loss('seesaw')
    )
    Q = Key(
        0.7,
        'q of (1 - p^q) / q: 0 is cross entropy, 1 the mean absolute error.',
        low=0.0,
        high=1.0,
        used_by=_of_loss('generalized_cross_entropy'),
    )
    FORWARD_WEIGHT = Key(
        0.1, 'SCE alpha: weight of the cross entropy.', low=0.0, used_by=_of_loss('symmetric_cross_entropy')
    )
    REVERSE_WEIGHT = Key(
        1.0, 'SCE beta: weight of the reverse cross entropy.', low=0.0, used_by=_of_loss('symmetric_cross_entropy')
    )
    INFLUENCE = Key(
        'constant',
        'constant: the influence is a weight without gradient, as in the paper; differentiated: the gradient includes '
        "it, as in the authors' code.",
        choices=('constant', 'differentiated'),
        used_by=_of_loss('influence_balanced'),
    )
    CHUNK_IMAGES = Key(
        0,
        'Compute classifier and loss for this many images at a time, so that the logits of the batch are never stored '
        '(for millions of classes). 0: the whole batch at once.',
        low=0,
    )
    SAMPLED_CLASSES = Key(
        1.0,
        'Fraction of the classes in the softmax of a step: those of its images and random others (Partial FC).',
        low=1e-4,
        high=1.0,
    )
    CLASS_WEIGHTS = Key(
        '',
        'Class weights for any loss: by effective number (1 - beta) / (1 - beta^n_c), or n_c^-EXPONENT. Empty: none.',
        choices=('', 'effective_number', 'inverse_frequency'),
    )
    BETA = Key(
        0.9999,
        'beta of the effective number: 0 gives equal weights, values near 1 approach inverse frequency.',
        low=0.0,
        high=0.999999,
        used_by=('LOSS.CLASS_WEIGHTS', ('effective_number',)),
    )
    EXPONENT = Key(
        1.0,
        'Exponent of the inverse frequency: 1 is cost-sensitive learning, 0.5 its square root.',
        low=0.0,
        used_by=('LOSS.CLASS_WEIGHTS', ('inverse_frequency',)),
    )
    REWEIGHT_EPOCH = Key(
        0,
        'First epoch (from 0) with class weights or influence weights (deferred re-weighting, DRW). -1: after 80 % of '
        'the epochs, as 160 of 200.',
        low=-1,
        used_by=('LOSS.CLASS_WEIGHTS', ('effective_number', 'inverse_frequency', 'influence_balanced')),
        or_by=('LOSS.TYPE',),
    )
    REDUCTION = Key(
        'weighted_mean',
        'Divide the weighted sum of the losses by the sum of the weights (weighted_mean) or by the number of images '
        '(mean); the weights average to 1 over the classes.',
        choices=('weighted_mean', 'mean'),
        used_by=_REWEIGHTED,
    )
    AUXILIARY = Key(
        '',
        'Auxiliary loss, added to LOSS.TYPE. triplet, multi_similarity and supervised_contrastive compare the features '
        'of the images of a batch with each other, and need requirements-search.txt. Empty: none.',
        choices=('', 'balanced_contrastive', 'distillation', *METRIC),
    )
    AUXILIARY_WEIGHT = Key(
        0.5,
        'Weight w of the auxiliary loss. With distillation, LOSS.TYPE has the weight 1 - w.',
        low=0.0,
        used_by=('LOSS.AUXILIARY', ('balanced_contrastive', 'distillation', *METRIC)),
    )
    CONTRAST_TEMPERATURE = Key(
        0.1,
        'Temperature of the similarities: tau of BCL and of supervised contrastive learning.',
        low=1e-3,
        used_by=('LOSS.AUXILIARY', ('balanced_contrastive', 'supervised_contrastive')),
    )
    CONTRAST_WIDTH = Key(128, 'Dimensions of the contrastive embedding.', low=2, used_by=_CONTRAST)
    TEACHER = Key('', 'Checkpoint of the teacher, trained on the same classes.', used_by=_DISTILL, is_path=True)
    TEACHER_TEMPERATURE = Key(3.0, 'Temperature T of the softmax of student and teacher.', low=1e-3, used_by=_DISTILL)
    TEACHER_POWER = Key(
        0.5,
        "Exponent of the teacher's probabilities before they are renormalized; below 1 it flattens them.",
        low=0.0,
        high=1.0,
        used_by=_DISTILL,
    )
