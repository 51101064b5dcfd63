"""Every option there is: default, meaning, unit, choices. `build` holds the constructors behind the choices."""

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
_WITH_MOMENTUM = ('OPTIMIZER.TYPE', ('sgd',))

TREE: dict[str, dict[str, Key]] = {
    '': {
        'NAME': Key('', "Name of the run; its folder is LOG_ROOT/NAME. Empty: the name of DATASET.ROOT's folder."),
        'LOG_ROOT': Key('./log', 'Folder of the run folders.'),
        'SEED': Key(0, 'Seed of everything random.', low=0, high=2**63 - 1),
        'RESUME_MODEL': Key('', "Checkpoint to go on from or to use: a path, or 'last' for the run's newest."),
        'RESUME_MODE': Key(
            'auto',
            'What a path in RESUME_MODEL means: the same run goes on, or its weights start a new one.',
            choices=('auto', 'continue', 'finetune'),
        ),
        'OVERWRITE': Key(False, 'Start anew in a used run folder; the old folder is renamed aside, never deleted.'),
    },
    'DATASET': {
        'NAME': Key(
            'annotations',
            'Where images come from: JSON or class folders under ROOT, the drawn demo set, long-tailed CIFAR.',
            choices=('annotations', 'demo', 'cifar10_lt', 'cifar100_lt'),
        ),
        'ROOT': Key('', 'Folder that relative paths are under; without any JSON, a folder of class folders.'),
        'SOURCE': Key('', 'Where the data can be had: shown when it is missing.'),
        'TRAIN_JSON': Key(
            '', 'Training annotations. Empty: ROOT/converted_train.json, else the class folders of ROOT.'
        ),
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
    },
    'INPUT': {
        'SIZE': Key(112, 'Side of training images, pixels.', low=8),
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
        'RATIO': Key(
            (0.75, 4 / 3), 'Width over height of the random crop.', low=0.01, high=100.0, used_by=_RANDOM_CROP
        ),
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
    },
    'SAMPLER': {
        'TYPE': Key('instance_balance', 'How often a class is drawn in an epoch.', choices=_SAMPLERS),
        'SWITCH_TYPE': Key('', 'Sampler from epoch SWITCH_EPOCH on. Empty: no switch.', choices=('', *_SAMPLERS)),
        'SWITCH_EPOCH': Key(0, 'First epoch (from 0) with SWITCH_TYPE.', low=0),
        'BETA': Key(
            0.9999,
            'Overlap of images: 0 is instance balance, towards 1 it becomes class balance.',
            low=0.0,
            high=0.999999,
            used_by=('SAMPLER.TYPE', ('effective_number',)),
            or_by='SAMPLER.SWITCH_TYPE',
        ),
        'REPEAT_THRESHOLD': Key(
            0.001,
            'Share of all images below which a class is repeated, by the root of threshold over share.',
            low=0.0,
            high=1.0,
            used_by=('SAMPLER.TYPE', ('repeat_factor',)),
            or_by='SAMPLER.SWITCH_TYPE',
        ),
        'IMAGES_PER_CLASS': Key(
            0,
            'Fill each batch with so many images of each of its classes; divides TRAIN.BATCH_SIZE. 0: no.',
            low=0,
            used_by=('SAMPLER.TYPE', ('class_balance',)),
            or_by='SAMPLER.SWITCH_TYPE',
        ),
    },
    'MODEL': {
        'BACKBONE': Key(
            'resnest50',
            'Any name that timm knows, or res50, res101, res152, resnest50/101/200/269, res32_cifar.',
        ),
        'PRETRAINED': Key('', "Backbone weights: a local file, or 'timm' to let timm download them. Empty: random."),
        'CLASSIFIER': Key(
            'FC', 'Linear (FC), or cosine similarity (FCNorm).', choices=('FC', 'FCNorm', 'linear', 'cosine')
        ),
        'COSINE_SCALE': Key(
            16.0,
            'Factor on cosine logits.',
            low=1e-3,
            neutral=1.0,
            used_by=('MODEL.CLASSIFIER', ('FCNorm', 'cosine')),
        ),
        'FREEZE_BACKBONE': Key(False, 'Train the classifier only; BatchNorm statistics stay too.'),
    },
    'LOSS': {
        'TYPE': Key('cross_entropy', 'Training loss.', choices=('cross_entropy', 'focal', 'balanced_softmax')),
        'LABEL_SMOOTHING': Key(
            0.0,
            'Share of the label spread over all classes.',
            low=0.0,
            high=0.999,
            used_by=('LOSS.TYPE', ('cross_entropy',)),
        ),
        'GAMMA': Key(2.0, 'Exponent of focal loss.', low=0.0, used_by=('LOSS.TYPE', ('focal',))),
    },
    'OPTIMIZER': {
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
        'DECAY_NORM_AND_BIAS': Key(True, 'Decay biases and the parameters of normalisation layers, too.'),
    },
    'SCHEDULE': {
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
    },
    'TRAIN': {
        'BATCH_SIZE': Key(512, 'Images a step, over all devices together.', low=1),
        'MAX_EPOCH': Key(120, 'Epochs to train.', low=1),
        'SELECT_BY': Key(
            'mean_class_error',
            'Which valid figure makes best_model.pth.',
            choices=('mean_class_error', 'top1', 'loss'),
        ),
        'VALID_EVERY_EPOCHS': Key(1, 'Epochs between two validations; the last epoch always has one.', low=1),
        'LOG_EVERY_STEPS': Key(50, 'Steps between two looks at the loss.', low=1),
        'SAVE_EVERY_EPOCHS': Key(10, 'Epochs between two epoch_N.pth.', low=1),
        'KEEP_EPOCHS': Key(3, 'How many epoch_N.pth are kept.', low=0),
    },
    'TEST': {
        'BATCH_SIZE': Key(0, 'Images a step in validation and test. 0: TRAIN.BATCH_SIZE.', low=0),
        'TOP_K': Key(0, 'Also write the K best classes of each image, with probabilities and names. 0: no.', low=0),
        'EMBEDDINGS': Key(False, 'Also write the features of each image, as a float32 .npy file.'),
    },
    'TAU_NORM': {
        'LOG_ROOT': Key('./log_tau', 'Folder of the re-balanced models; the run is TAU_NORM.LOG_ROOT/NAME.'),
        'SELECT_BY': Key('mean_class_error', 'Which valid figure chooses tau.', choices=('mean_class_error', 'top1')),
        'MAX_TAU': Key(2.0, 'Largest tau considered.', low=1e-3, high=100.0),
    },
    'DOCTOR': {
        'OUT': Key('', 'Folder of what tools/doctor.py writes. Empty: LOG_ROOT/NAME_doctor.'),
        'MIN_SIDE': Key(32, 'Images with a shorter side than this are suspicious, pixels.', low=1),
        'NEAR_DISTANCE': Key(
            5, 'Bits (of 64) in which hashes of near duplicates may differ. 0: equal hashes only.', low=0, high=8
        ),
        'FEW': Key(5, 'Classes with fewer images than this are listed.', low=1),
    },
    'PACK': {
        'OUT': Key('', 'Folder that tools/pack.py writes train, valid and test into.'),
        'IMAGES': Key(
            'reencode',
            'Upright JPEGs of SHORT_SIDE without metadata (GPS positions), or the files as they are.',
            choices=('reencode', 'copy'),
        ),
        'SHORT_SIDE': Key(
            0,
            'Shorter side after packing, pixels; smaller images keep theirs. 0: 1.25 times what validation resizes to.',
            low=0,
            used_by=('PACK.IMAGES', ('reencode',)),
        ),
        'QUALITY': Key(90, 'JPEG quality.', low=1, high=100, used_by=('PACK.IMAGES', ('reencode',))),
        'SHARD_IMAGES': Key(0, 'Images a tar file. 0: 256 to 10,000, by the size of the set.', low=0),
    },
    'RUN': {
        'DEVICE': Key('auto', "'auto', 'cpu', 'mps', 'cuda' (all visible GPUs) or 'cuda:N' (one)."),
        'NUM_WORKERS': Key(-1, 'Processes that read images. -1: one a core, at most 8. 0: none.', low=-1),
        'PRECISION': Key(
            'auto',
            'auto: training in bfloat16 where the hardware has it, evaluation in float32.',
            choices=('auto', 'float32', 'bfloat16'),
        ),
    },
}

KEYS: dict[str, Key] = {
    f'{section}.{name}' if section else name: key for section, keys in TREE.items() for name, key in keys.items()
}
