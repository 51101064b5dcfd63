"""The run, its scripts and tools, and this machine: everything else."""

from lib.config.key import Key

TOP: dict[str, Key] = {
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
}

TRAIN: dict[str, Key] = {
    'BATCH_SIZE': Key(512, 'Images a step, over all devices together.', low=1),
    'DEVICE_BATCH_SIZE': Key(
        0,
        'Images that a device takes at once; the gradients of the others of its share are added up. 0: all of them. '
        '-1: as many as fit (GPUs).',
        low=-1,
    ),
    'MAX_EPOCH': Key(120, 'Epochs to train. 0: the model is evaluated and saved as it is.', low=0),
    'SELECT_BY': Key(
        'mean_class_error',
        'Which valid figure makes best_model.pth.',
        choices=('mean_class_error', 'top1', 'loss'),
    ),
    'VALID_EVERY_EPOCHS': Key(1, 'Epochs between two validations; the last epoch always has one.', low=1),
    'LOG_EVERY_STEPS': Key(50, 'Steps between two looks at the loss.', low=1),
    'EMA_DECAY': Key(
        0.0,
        'Also keep an exponential moving average of the weights, which is validated and used to predict: what stays '
        'of it each step. 0: none.',
        low=0.0,
        high=0.999999,
    ),
    'CHECKPOINT_MINUTES': Key(
        10.0, 'Minutes between two last.pth within an epoch. 0: at the end of epochs only.', low=0.0
    ),
    'SAVE_EVERY_EPOCHS': Key(10, 'Epochs between two epoch_N.pth.', low=1),
    'KEEP_EPOCHS': Key(3, 'How many epoch_N.pth are kept.', low=0),
}

TEST: dict[str, Key] = {
    'BATCH_SIZE': Key(0, 'Images a step in validation and test. 0: TRAIN.BATCH_SIZE, but at most 64 on CPUs.', low=0),
    'IMAGES': Key('', "What test.py predicts instead of the test split: a photo, a folder, or '-': a list on stdin."),
    'FLIP': Key(
        False,
        'Also look at each image mirrored (this and what follows: test.py alone, neither the validation of training '
        'nor tau_norm.py).',
    ),
    'CROPS': Key(
        'center',
        'What is seen of each image: the centre; with the four corners; those mirrored too; the whole image, padded.',
        choices=('center', 'five', 'ten', 'whole'),
    ),
    'SCALES': Key((1.0,), 'Sides at which all that is seen, in TEST_SIZE; the views are averaged.', low=0.1, high=10.0),
    'AVERAGE': Key('logits', 'What of views and models is averaged.', choices=('logits', 'probabilities')),
    'ENSEMBLE': Key('', 'More checkpoints that predict together with RESUME_MODEL: paths, separated by commas.'),
    'ENSEMBLE_WEIGHTS': Key(
        'equal',
        "Weights of the models: 'equal'; 'valid': those that make the labels of the valid split most probable; or "
        'numbers, separated by commas.',
    ),
    'TOP_K': Key(0, 'Also write the K best classes of each image, with probabilities and names. 0: no.', low=0),
    'EMBEDDINGS': Key(False, 'Also write the features of each image, float32: the mean over the views.'),
    'EMBEDDINGS_FORMAT': Key('npy', 'As a NumPy array, or as Parquet with ids.', choices=('npy', 'parquet')),
    'PRODUCTS': Key(
        '',
        "Also vote the photos of a product to one row: 'folder' (those in one folder), or a CSV of id,product.",
    ),
    'ABSTAIN_ERROR': Key(
        0.0,
        'Also write predictions that are given up where they are not sure: error wanted among the others, by a '
        'threshold that is chosen on the valid split. 0: no.',
        low=0.0,
        high=0.999,
    ),
}

TAU_NORM: dict[str, Key] = {
    'LOG_ROOT': Key('./log_tau', 'Folder of the re-balanced models; the run is TAU_NORM.LOG_ROOT/NAME.'),
    'SELECT_BY': Key('mean_class_error', 'Which valid figure chooses tau.', choices=('mean_class_error', 'top1')),
    'MAX_TAU': Key(2.0, 'Largest tau considered.', low=1e-3, high=100.0),
}

REPORT: dict[str, Key] = {
    'MAX_MB': Key(
        5.0, 'Largest report.html, MB (10^6 bytes): beyond, pictures are left out, the last ones first.', low=0.0
    ),
    'JSON': Key(False, 'Write the figures of report.html into report.json too.'),
}

POSTHOC: dict[str, Key] = {
    'METHODS': Key(
        'all',
        "What tools/posthoc.py tries: 'all', or some of tau_norm, logit_adjustment, lws, ncm, cosine, prior_shift, "
        'temperature, group_temperature, separated by commas.',
    ),
    'FIT_SPLIT': Key(
        'valid',
        'What they are fitted on: valid in folds, each measured by what was fitted on the others; or a part of the '
        'training images.',
        choices=('valid', 'train'),
    ),
    'FOLDS': Key(5, 'Folds of the valid split.', low=2, used_by=('POSTHOC.FIT_SPLIT', ('valid',))),
    'HOLDOUT': Key(20, 'Training images a class, at most, for fitting and for prototypes.', low=1),
    'SAVE': Key('', 'Method whose classifier is written as TAU_NORM.LOG_ROOT/NAME/best_model.pth. Empty: none.'),
}

EXPORT: dict[str, Key] = {
    'FORMAT': Key('onnx', 'What tools/export.py writes.', choices=('onnx', 'torch_export', 'safetensors')),
    'OUT': Key('', 'File to write. Empty: beside the checkpoint, named after it.'),
    'PREPROCESSING': Key(
        'inside',
        'Normalisation: inside the file, which then takes uint8 RGB (batch, height, width, 3); or left to its user, '
        'float32 (batch, 3, height, width).',
        choices=('inside', 'outside'),
    ),
}

DOCTOR: dict[str, Key] = {
    'OUT': Key('', 'Folder of what tools/doctor.py writes. Empty: LOG_ROOT/NAME_doctor.'),
    'MIN_SIDE': Key(32, 'Images with a shorter side than this are suspicious, pixels.', low=1),
    'NEAR_DISTANCE': Key(
        5, 'Bits (of 64) in which hashes of near duplicates may differ. 0: equal hashes only.', low=0, high=8
    ),
    'FEW': Key(5, 'Classes with fewer images than this are listed.', low=1),
}

PACK: dict[str, Key] = {
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
}

PLAN: dict[str, Key] = {
    'NUM_CLASSES': Key(0, 'Classes that tools/plan.py plans for. 0: those of the training annotations.', low=0),
    'DEVICES': Key(1, 'Devices that share a step, over all machines.', low=1),
    'DEVICE_GB': Key(0.0, "Memory of each of them, GB (10^9 bytes). 0: this machine's.", low=0.0),
    'IMAGES': Key(0, 'Training images of an epoch, for its time. 0: no matter.', low=0),
    'TFLOPS': Key(
        0.0, 'Peak of a device in the precision of training, 10^12 operations a second. 0: no times.', low=0.0
    ),
    'UTILIZATION': Key(0.3, 'Share of that peak which training reaches: an assumption.', low=1e-3, high=1.0),
    'LINK_GB_S': Key(0.0, 'What a device sends over the slowest link, GB a second. 0: no times.', low=0.0),
}

SEARCH: dict[str, Key] = {
    'K': Key(10, 'Neighbours that vote, and that CSV lists.', low=1),
    'GALLERY': Key(
        'train',
        'What is searched: training images, or the validation images, each without itself.',
        choices=('train', 'valid'),
    ),
    'METRIC': Key('cosine', 'How near features are.', choices=('cosine', 'euclidean')),
    'VOTE': Key(
        'majority',
        'Each neighbour has one vote, or exp(similarity / TEMPERATURE) votes.',
        choices=('majority', 'similarity'),
    ),
    'TEMPERATURE': Key(0.07, 'Below 1, the nearest are louder.', low=1e-4, used_by=('SEARCH.VOTE', ('similarity',))),
    'CSV': Key('', 'File for the K nearest images of the gallery of every test image. Empty: none.'),
}

ENROLL: dict[str, Key] = {
    'IMAGES': Key('', 'Photos of new classes: a folder with a sub-folder a class, or an annotation JSON.'),
    'PER_CLASS': Key(
        0, 'Use at most so many of each new class, chosen by SEED; the others measure. 0: all, none measures.', low=0
    ),
    'OUT': Key('', 'Folder of the model with the new classes. Empty: LOG_ROOT/NAME_enrolled.'),
    'MAX_LOSS': Key(
        0.02, 'Accuracy that old classes may lose on the validation split, mean over classes.', low=0.0, high=1.0
    ),
}

RUN: dict[str, Key] = {
    'DEVICE': Key('auto', "'auto', 'cpu', 'mps', 'cuda' (all visible GPUs) or 'cuda:N' (one)."),
    'NUM_WORKERS': Key(
        -1,
        'Processes that read images. -1: one a core, at most 8; threads for small valid and test splits. 0: none.',
        low=-1,
    ),
    'PRECISION': Key(
        'auto',
        'auto: training in bfloat16 where the hardware is faster in it, in float16 on older GPUs, else in '
        'float32; evaluation in float32.',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    ),
    'COMPILE': Key(False, 'Compile the model (torch.compile); where that fails, a note says so and it runs as it is.'),
}
