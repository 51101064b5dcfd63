"""What the tools do beside the three scripts, a section each."""

from lib.config.key import Key

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

REPORT: dict[str, Key] = {
    'MAX_MB': Key(
        5.0, 'Largest report.html, MB (10^6 bytes): beyond, pictures are left out, the last ones first.', low=0.0
    ),
    'JSON': Key(False, 'Write the figures of report.html into report.json too.'),
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
