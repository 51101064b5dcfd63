"""DATASET, INPUT and SAMPLER: images, sizes, sampling; DOCTOR, PSEUDO and PACK: tools that read or write data sets."""

from lib.config.key import Key, Section

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
PAIRED = ('cmo', 'bbn')  # MIX.TYPE whose odd slots are filled by a second sampler, SAMPLER.PAIR_TYPE


class DatasetKeys(Section, title='images and labels'):
    NAME = Key(
        'annotations',
        'Source of the images. annotations: annotation files or class folders under ROOT. demo: generated images. '
        'cifar10_lt, cifar100_lt: long-tailed CIFAR.',
        choices=('annotations', 'demo', 'cifar10_lt', 'cifar100_lt'),
    )
    ROOT = Key(
        '',
        'Folder that relative image paths start from. Without annotation files, its sub-folders are the classes.',
        is_path=True,
    )
    SOURCE = Key('', 'Where to get the data; shown in the error message when files are missing.')
    TRAIN_JSON = Key(
        '',
        'Training annotations. Empty: converted_train.json in ROOT; if there is none, the class folders of ROOT.',
        is_path=True,
    )
    VALID_JSON = Key('', 'Validation annotations. Empty: converted_val.json in ROOT.', is_path=True)
    TEST_JSON = Key(
        '',
        'Annotations of the test images, with or without labels. Empty: converted_test.json in TEST_ROOT; if there is '
        'none, all images in TEST_ROOT.',
        is_path=True,
    )
    TEST_ROOT = Key(
        '',
        'Folder that paths of TEST_JSON start from. Empty: ROOT, or ROOT/test for a data set of class folders.',
        is_path=True,
    )
    VALID_FRACTION = Key(
        0.1,
        'Fraction of each class used for validation when class folders are split, without VALID_JSON.',
        low=0.0,
        high=0.9,
    )
    NESTED_CLASSES = Key(
        False,
        'For class folders inside folders (brand/product): True: each folder that directly contains images is a class, '
        'named by its path; False: each outermost folder is one, with all images in it.',
    )
    CACHE = Key(
        '',
        'ram: cache decoded images in shared memory, resized to the smallest short side that INPUT.SIZE and '
        'INPUT.TEST_SIZE allow. Empty: no cache.',
        choices=('', 'ram'),
    )
    QUARANTINE = Key(
        '', 'JSON list of training images to exclude, as written by tools/doctor.py. Empty: none.', is_path=True
    )
    CORRECTIONS = Key(
        '',
        'JSON of decisions about training images (relabel, drop, weight), from clean.html or tools/clean.py. Empty: '
        'none.',
        is_path=True,
    )
    VALID_CORRECTIONS = Key('', 'The same for validation images. Empty: none.', is_path=True)
    SHARDS = Key(
        '',
        'Folder written by tools/pack.py, which replaces the annotation and image paths. Empty: read image files.',
        is_path=True,
    )
    HEAD_CAP = Key(0, 'Maximum number of training images per class; SEED selects them. 0: no limit.', low=0)
    COLOR_SPACE = Key(
        'RGB',
        "Channel order of the backbone's input. BGR is for checkpoints of the original 2020 entry.",
        choices=('RGB', 'BGR'),
    )
    ON_BAD_IMAGE = Key(
        'skip',
        'For a training image that cannot be decoded: skip replaces it by another one of its class, raise stops the '
        'run.',
        choices=('skip', 'raise'),
    )
    MAX_BAD_FRACTION = Key(
        0.1,
        'Fraction of training images that may be undecodable; the run stops above it (and above 10 images).',
        low=0.0,
        high=1.0,
    )
    IMBALANCE_TYPE = Key(
        'exp',
        'Class sizes of CIFAR-LT: exp decreases exponentially, step has a large and a small half.',
        choices=('exp', 'step'),
        used_by=_CIFAR,
    )
    IMBALANCE_RATIO = Key(
        100.0, 'Imbalance ratio of CIFAR-LT: size of the largest class over that of the smallest.', low=1.0,
        used_by=_CIFAR,
    )  # fmt: skip
    IMBALANCE_IMAGES = Key(
        'published',
        'Images of CIFAR-LT: the published subset, equal for every SEED, or a subset drawn by SEED.',
        choices=('published', 'by_seed'),
        used_by=_CIFAR,
    )


class InputKeys(Section, title='image size, crops and augmentation'):
    SIZE = Key(
        0,
        'Side of the square training images. auto: that of the pretrained weights, or 112 without them; if '
        'TRAIN.MAX_EPOCH or OPTIMIZER.LR is auto, it depends on the number of training images.',
        low=8,
        unit='pixels',
        auto=0,
    )
    SIZE_SCHEDULE = Key[tuple[int, ...]](
        (),
        'Training sizes over the run: epoch (from 0), pixels, epoch, pixels, ... SIZE is used before the first epoch '
        'listed. Empty: SIZE throughout.',
        low=0,
    )
    TEST_SIZE = Key(
        0,
        'Side of the square validation and test images. 0: SIZE. auto: SIZE; if TRAIN.MAX_EPOCH or OPTIMIZER.LR is '
        'auto, it depends on the number of training images.',
        low=0,
        unit='pixels',
        auto=-1,
    )
    CROP_RATIO = Key(
        0.0,
        'Validation and test images are resized to a short side of TEST_SIZE / CROP_RATIO, then center-cropped. auto: '
        'that of the pretrained weights, or 0.875 without them.',
        low=0.1,
        high=1.0,
        auto=0.0,
    )
    INTERPOLATION = Key(
        'auto',
        'Filter for resizing images, in training and evaluation. auto: that of the pretrained weights, or bilinear '
        'without them.',
        choices=('auto', 'bilinear', 'bicubic'),
    )
    TRAIN_TRANSFORM = Key(
        'random_resized_crop',
        'Training crop. random_resized_crop: random area and aspect ratio. pad_crop: random shift after padding '
        '(CIFAR). center_crop: the crop of validation.',
        choices=('random_resized_crop', 'pad_crop', 'center_crop'),
    )
    SCALE = Key(
        (0.08, 1.0),
        'Range of the area of the random crop, as a fraction of the image.',
        low=1e-4,
        high=1.0,
        used_by=_RANDOM_CROP,
    )
    RATIO = Key(
        (0.75, 4 / 3),
        'Range of the aspect ratio (width / height) of the random crop.',
        low=0.01,
        high=100.0,
        used_by=_RANDOM_CROP,
    )
    PADDING = Key(
        4, 'Padding on each side before the random shift.', low=0, unit='pixels',
        used_by=('INPUT.TRAIN_TRANSFORM', ('pad_crop',)),
    )  # fmt: skip
    AUGMENT = Key(
        '',
        'Augmentation policy of torchvision for training crops. Empty: none.',
        choices=('', 'auto_augment', 'auto_augment_cifar', 'rand_augment', 'trivial_augment'),
    )
    RAND_AUGMENT_OPS = Key(2, 'Operations per image (N of RandAugment).', low=1, high=14, used_by=_RAND_AUGMENT)
    RAND_AUGMENT_MAGNITUDE = Key(
        9, 'Magnitude of the operations (M of RandAugment).', low=0, high=30, used_by=_RAND_AUGMENT
    )
    COLOR_JITTER = Key(
        (0.0, 0.0, 0.0, 0.0), 'Jitter of brightness, contrast, saturation, hue (at most 0.5).', low=0.0, high=1.0
    )
    ERASE_PROBABILITY = Key(0.0, 'Probability of random erasing in training.', low=0.0, high=1.0)
    FLIP_PROBABILITY = Key(0.5, 'Probability of a horizontal flip in training.', low=0.0, high=1.0)
    MEAN = Key[tuple[float, ...]](
        (),
        'Mean per channel (R, G, B) of pixel values from 0 to 1. auto: that of the pretrained weights, or '
        '0.485,0.456,0.406 (ImageNet) without them.',
        entry=float,
        auto=(),
    )
    STD = Key[tuple[float, ...]](
        (),
        'Standard deviation per channel (R, G, B) of pixel values from 0 to 1. auto: that of the pretrained weights, '
        'or 0.229,0.224,0.225 (ImageNet) without them.',
        low=1e-6,
        entry=float,
        auto=(),
    )


class SamplerKeys(Section, title='class sampling'):
    TYPE = Key('instance_balance', 'Sampling of classes within an epoch.', choices=_SAMPLERS)
    SWITCH_TYPE = Key('', 'Sampler from epoch SWITCH_EPOCH on. Empty: no switch.', choices=('', *_SAMPLERS))
    SWITCH_EPOCH = Key(0, 'First epoch (from 0) with SWITCH_TYPE. -1: after 80 % of the epochs, as 160 of 200.', low=-1)
    PAIR_TYPE = Key(
        'reverse',
        'Sampler of the second image of each pair; each step then reads 2 x TRAIN.BATCH_SIZE images.',
        choices=_SAMPLERS,
        used_by=('MIX.TYPE', PAIRED),
    )
    BETA = Key(
        0.9999,
        'beta of the effective number: 0 is instance balance, values near 1 approach class balance.',
        low=0.0,
        high=0.999999,
        used_by=('SAMPLER.TYPE', ('effective_number',)),
        or_by=('SAMPLER.SWITCH_TYPE', 'SAMPLER.PAIR_TYPE'),
    )
    REPEAT_THRESHOLD = Key(
        0.001,
        'Threshold t of the repeat factor max(1, sqrt(t / f_c)), f_c being the fraction of images in class c.',
        low=0.0,
        high=1.0,
        used_by=('SAMPLER.TYPE', ('repeat_factor',)),
        or_by=('SAMPLER.SWITCH_TYPE', 'SAMPLER.PAIR_TYPE'),
    )
    IMAGES_PER_CLASS = Key(
        0,
        'Images of each class drawn for a batch; must divide TRAIN.BATCH_SIZE. 0: classes are drawn independently.',
        low=0,
        used_by=('SAMPLER.TYPE', ('class_balance',)),
        or_by=('SAMPLER.SWITCH_TYPE',),
    )


class DoctorKeys(Section, title='data checks (tools/doctor.py)'):
    OUT = Key('', 'Folder to write results to. Empty: LOG_ROOT/NAME_doctor.', is_path=True)
    MIN_SIDE = Key(32, 'Images with a shorter side are listed as suspicious.', low=1, unit='pixels')
    NEAR_DISTANCE = Key(
        5,
        'Maximum Hamming distance of the 64-bit perceptual hashes of near duplicates. 0: equal hashes only.',
        low=0,
        high=8,
        unit='bits',
    )
    FEW = Key(5, 'Classes with fewer training images are listed.', low=1)


class PackKeys(Section, title='tar shards (tools/pack.py)'):
    OUT = Key('', 'Folder to write the splits train, valid and test to.', is_path=True)
    IMAGES = Key(
        'reencode',
        'reencode: upright JPEG files resized to SHORT_SIDE, without metadata such as GPS positions; raw: the same as '
        'pixels, about 7 times the bytes, which training reads without decoding; copy: the original files.',
        choices=('reencode', 'raw', 'copy'),
    )
    SHORT_SIDE = Key(
        0,
        'Short side after packing; smaller images are not enlarged. 0: 1.25 times the short side in validation.',
        low=0,
        unit='pixels',
        used_by=('PACK.IMAGES', ('reencode', 'raw')),
    )
    QUALITY = Key(90, 'JPEG quality.', low=1, high=100, used_by=('PACK.IMAGES', ('reencode',)))
    SHARD_IMAGES = Key(0, 'Images per tar file. 0: 256 to 10,000, depending on the size of the split.', low=0)


class PseudoKeys(Section, title='pseudo-labels (tools/pseudo_label.py)'):
    IMAGES = Key('', 'Unlabeled photos: a folder with its sub-folders, or the JSON file of a test split.', is_path=True)
    ERROR = Key(
        0.05,
        'Maximum error rate of the predictions that become labels: an upper 95 % bound, measured on the validation '
        'split.',
        low=0.0001,
        high=0.9,
    )
    PER_CLASS = Key(
        0,
        'Maximum number of pseudo-labeled images per class, the most confident first. 0: the median number of training '
        'images of the classes.',
        low=0,
    )
    OUT = Key(
        '',
        'File of training annotations and pseudo-labels. Empty: with_pseudo.json in the folder of the model.',
        is_path=True,
    )
