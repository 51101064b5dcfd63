"""Images, what the backbone sees of them, and how often: DATASET, INPUT, SAMPLER."""

from lib.config.key import Key

_CIFAR = ('DATASET.NAME', ('cifar10_lt', 'cifar100_lt'))
_RAND_AUGMENT = ('INPUT.AUGMENT', ('rand_augment',))
_RANDOM_CROP = ('INPUT.TRAIN_TRANSFORM', ('random_resized_crop',))
_SAMPLERS = (
    'instance_balance',
    'class_balance',
    'reverse',
    'square_root',
    'progressive',
    'effective_number',
    'repeat_factor',
)
PAIRED = ('cmo', 'bbn')  # mixers whose odd slots are filled by a sampler of their own

DATASET: dict[str, Key] = {
    'NAME': Key(
        'annotations',
        'Where images come from: JSON or class folders under ROOT, the drawn demo set, long-tailed CIFAR.',
        choices=('annotations', 'demo', 'cifar10_lt', 'cifar100_lt'),
    ),
    'ROOT': Key('', 'Folder that relative paths are under; without any JSON, a folder of class folders.'),
    'SOURCE': Key('', 'Where the data can be had: shown when it is missing.'),
    'TRAIN_JSON': Key('', 'Training annotations. Empty: ROOT/converted_train.json, else the class folders of ROOT.'),
    'VALID_JSON': Key('', 'Validation annotations. Empty: ROOT/converted_val.json.'),
    'TEST_JSON': Key(
        '', 'Test images, with or without labels. Empty: converted_test.json in TEST_ROOT, else all images there.'
    ),
    'TEST_ROOT': Key(
        '',
        'Folder of test images; relative paths of TEST_JSON are under it. Empty: ROOT (without JSON: ROOT/test).',
    ),
    'VALID_FRACTION': Key(
        0.1, 'Share of each class kept for validation when class folders are split.', low=0.0, high=0.9
    ),
    'CACHE': Key(
        '',
        'Keep decoded images in shared memory, their short side reduced to what INPUT.SIZE needs. Empty: no.',
        choices=('', 'ram'),
    ),
    'QUARANTINE': Key(
        '', 'JSON of training images that take no part, as tools/doctor.py writes it. Empty: all take part.'
    ),
    'SHARDS': Key(
        '',
        'Folder that tools/pack.py wrote: train, valid and test come from there, names too; the others are not '
        'looked at.',
    ),
    'HEAD_CAP': Key(0, 'Keep at most this many training images a class, chosen by SEED. 0: all.', low=0),
    'COLOR_SPACE': Key('RGB', 'Channel order the backbone sees (BGR: the original entry).', choices=('RGB', 'BGR')),
    'ON_BAD_IMAGE': Key(
        'skip',
        'An undecodable training image: another of its class takes its place, or the run stops.',
        choices=('skip', 'raise'),
    ),
    'MAX_BAD_FRACTION': Key(
        0.1,
        'Share of undecodable training images above which the run stops (10 images always pass).',
        low=0.0,
        high=1.0,
    ),
    'IMBALANCE_TYPE': Key('exp', 'How class sizes of CIFAR-LT fall.', choices=('exp', 'step'), used_by=_CIFAR),
    'IMBALANCE_RATIO': Key(100.0, 'Largest over smallest class of CIFAR-LT.', low=1.0, used_by=_CIFAR),
    'IMBALANCE_IMAGES': Key(
        'published',
        'Which images of CIFAR-LT stay: those of the literature, the same for every SEED, or drawn by SEED.',
        choices=('published', 'by_seed'),
        used_by=_CIFAR,
    ),
}

INPUT: dict[str, Key] = {
    'SIZE': Key(112, 'Side of training images, pixels.', low=8),
    'SIZE_SCHEDULE': Key(
        (),
        'Sides of training images over the run: epoch (from 0), pixels, epoch, pixels, ... SIZE before the first.',
        low=0,
    ),
    'TEST_SIZE': Key(0, 'Side of validation and test images, pixels. 0: SIZE.', low=0),
    'CROP_RATIO': Key(
        0.875, 'Validation and test: short side is resized to TEST_SIZE / CROP_RATIO.', low=0.1, high=1.0
    ),
    'TRAIN_TRANSFORM': Key(
        'random_resized_crop',
        'Training crop: random area and ratio; padding and shift (CIFAR); or as in validation.',
        choices=('random_resized_crop', 'pad_crop', 'center_crop'),
    ),
    'SCALE': Key(
        (0.08, 1.0),
        'Area of the random crop, share of the image.',
        low=1e-4,
        high=1.0,
        used_by=_RANDOM_CROP,
    ),
    'RATIO': Key((0.75, 4 / 3), 'Width over height of the random crop.', low=0.01, high=100.0, used_by=_RANDOM_CROP),
    'PADDING': Key(4, 'Padding before the shift, pixels.', low=0, used_by=('INPUT.TRAIN_TRANSFORM', ('pad_crop',))),
    'AUGMENT': Key(
        '',
        'What is done to training crops beyond that, by torchvision. Empty: nothing.',
        choices=('', 'auto_augment', 'auto_augment_cifar', 'rand_augment', 'trivial_augment'),
    ),
    'RAND_AUGMENT_OPS': Key(2, 'Operations an image.', low=1, high=14, used_by=_RAND_AUGMENT),
    'RAND_AUGMENT_MAGNITUDE': Key(9, 'Strength of the operations.', low=0, high=30, used_by=_RAND_AUGMENT),
    'COLOR_JITTER': Key(
        (0.0, 0.0, 0.0, 0.0), 'Jitter of brightness, contrast, saturation, hue (at most 0.5).', low=0.0, high=1.0
    ),
    'ERASE_PROBABILITY': Key(0.0, 'Chance that a rectangle of a training crop is erased.', low=0.0, high=1.0),
    'FLIP_PROBABILITY': Key(0.5, 'Chance of a horizontal flip in training.', low=0.0, high=1.0),
    'MEAN': Key((0.485, 0.456, 0.406), 'Mean of each channel, images from 0 to 1.'),
    'STD': Key((0.229, 0.224, 0.225), 'Standard deviation of each channel, images from 0 to 1.', low=1e-6),
}

SAMPLER: dict[str, Key] = {
    'TYPE': Key('instance_balance', 'How often a class is drawn in an epoch.', choices=_SAMPLERS),
    'SWITCH_TYPE': Key('', 'Sampler from epoch SWITCH_EPOCH on. Empty: no switch.', choices=('', *_SAMPLERS)),
    'SWITCH_EPOCH': Key(
        0, 'First epoch (from 0) with SWITCH_TYPE. -1: after four fifths of the run, as 160 of 200.', low=-1
    ),
    'PAIR_TYPE': Key(
        'reverse',
        'Sampler of the second image of each pair; a step reads two images for each of TRAIN.BATCH_SIZE.',
        choices=_SAMPLERS,
        used_by=('MIX.TYPE', PAIRED),
    ),
    'BETA': Key(
        0.9999,
        'Overlap of images: 0 is instance balance, towards 1 it becomes class balance.',
        low=0.0,
        high=0.999999,
        used_by=('SAMPLER.TYPE', ('effective_number',)),
        or_by=('SAMPLER.SWITCH_TYPE', 'SAMPLER.PAIR_TYPE'),
    ),
    'REPEAT_THRESHOLD': Key(
        0.001,
        'Share of all images below which a class is repeated, by the root of threshold over share.',
        low=0.0,
        high=1.0,
        used_by=('SAMPLER.TYPE', ('repeat_factor',)),
        or_by=('SAMPLER.SWITCH_TYPE', 'SAMPLER.PAIR_TYPE'),
    ),
    'IMAGES_PER_CLASS': Key(
        0,
        'Fill each batch with so many images of each of its classes; divides TRAIN.BATCH_SIZE. 0: no.',
        low=0,
        used_by=('SAMPLER.TYPE', ('class_balance',)),
        or_by=('SAMPLER.SWITCH_TYPE',),
    ),
}
