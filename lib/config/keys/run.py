"""Top-level keys, TRAIN, TEST, TAU_NORM and RUN: the run, the three scripts and this machine."""

from lib.config.key import Key, Section

_WITH_FEATURES = ('TRAIN.FEATURES', ('cached',))


class TopKeys(Section, title='run'):
    NAME = Key('', 'Name of the run; its folder is LOG_ROOT/NAME. Empty: the folder name of DATASET.ROOT.')
    LOG_ROOT = Key('./log', 'Folder that contains the run folders.', is_path=True)
    SEED = Key(0, 'Random seed of the run.', low=0, high=2**63 - 1)
    RESUME_MODEL = Key(
        '',
        "Checkpoint to resume, fine-tune or evaluate: a path, or 'last' for the newest one of the run. Empty: train a "
        'new model.',
        is_path=True,
    )
    RESUME_MODE = Key(
        'auto',
        'Use of a path in RESUME_MODEL for training. continue: resume the same run. finetune: start a new run from its '
        'weights. auto: continue if training set and recipe are the same and epochs are left, else finetune.',
        choices=('auto', 'continue', 'finetune'),
    )
    OVERWRITE = Key(
        False,
        'Start again in a folder that contains earlier results; the old folder is renamed, never deleted. '
        'tools/export.py replaces its file.',
    )


class TrainKeys(Section, title='epochs, batches, checkpoints'):
    BATCH_SIZE = Key(512, 'Images per step over all devices.', low=1)
    DEVICE_BATCH_SIZE = Key(
        0,
        'Images per forward pass on each device; gradients are accumulated until the batch is complete. 0: the whole '
        'batch. -1: as many as fit (GPUs only).',
        low=-1,
    )
    MAX_EPOCH = Key(
        120,
        'Epochs to train. 0: evaluate and save the model without training. auto: depends on the number of training '
        'images.',
        low=0,
        auto=-1,
    )
    HEAD_EPOCHS = Key(
        0,
        'Number of initial epochs that train only embedding and classifier, as MODEL.TUNE head does; later epochs '
        'train the backbone, too.',
        low=0,
        used_by=('MODEL.TUNE', ('full', 'norm', 'bias', 'ssf', 'lora', 'adaptformer')),
    )
    SELECT_BY = Key(
        'mean_class_error',
        'Validation metric that selects best_model.pth.',
        choices=('mean_class_error', 'top1', 'loss'),
    )
    SELECT_RULE = Key(
        'one_standard_error',
        'Epoch saved as best_model.pth. best: the best one, the latest in case of a tie. one_standard_error: the '
        'latest one that is not worse than the best one by more than one standard error on the same images, corrected '
        'for the lead that the best of many epochs has by chance.',
        choices=('one_standard_error', 'best'),
    )
    VALID_EVERY_EPOCHS = Key(1, 'Epochs between validations; the last epoch is always validated.', low=1)
    LOG_EVERY_STEPS = Key(50, 'Steps between log lines of the training loss.', low=1)
    EMA_DECAY = Key(
        0.0,
        'Decay of the exponential moving average (EMA) of the weights, which is then used for validation and '
        'prediction. 0: no EMA.',
        low=0.0,
        high=0.999999,
        used_by=('OPTIMIZER.TYPE', ('sgd', 'adam', 'adamw')),
    )
    CHECKPOINT_MINUTES = Key(
        10.0,
        'Minutes between saves of last.pth within an epoch. 0: save it at the end of epochs only.',
        low=0.0,
    )
    FEATURES = Key(
        'images',
        'Input of the head when the backbone is frozen. images: the backbone runs in every step. cached: it runs once '
        'over each image, and the head trains on the stored features.',
        choices=('images', 'cached'),
    )
    FEATURE_VIEWS = Key(
        1,
        'Random crops per training image whose features are stored; epoch e (from 0) uses view e mod FEATURE_VIEWS.',
        low=1,
        high=10_000,
        used_by=_WITH_FEATURES,
    )
    FEATURE_DTYPE = Key(
        'float16',
        'Number format of stored features; float16 takes half the space.',
        choices=('float16', 'float32'),
        used_by=_WITH_FEATURES,
    )
    FEATURE_CACHE = Key(
        '',
        'Folder of stored features, which all runs with the same backbone, images and preprocessing share. Empty: '
        'LOG_ROOT/features.',
        is_path=True,
        used_by=_WITH_FEATURES,
    )
    TRACK_SAMPLES = Key(
        False,
        'Record the area under the margin and the forgetting events of every training image, for tools/clean.py, in '
        'RUN_FOLDER/samples. Needs the logits of all classes and images that are not mixed.',
    )
    SAVE_EVERY_EPOCHS = Key(10, 'Epochs between checkpoints named epoch_N.pth.', low=1)
    KEEP_EPOCHS = Key(3, 'Number of epoch_N.pth to keep; older ones are deleted.', low=0)
    SAVE_WEIGHTS = Key(
        'tuned',
        'Weights in checkpoints. tuned: with MODEL.TUNE norm, bias, ssf, lora and adaptformer only those that change, '
        'since the others are those of MODEL.PRETRAINED. all: all weights.',
        choices=('tuned', 'all'),
    )


class LogKeys(Section, title='experiment trackers'):
    TRACKERS = Key[tuple[str, ...]](
        ('tensorboard',),
        'Trackers that record the run besides metrics.jsonl. mlflow and wandb need requirements-tracking.txt, and '
        'environment variables such as MLFLOW_TRACKING_URI and WANDB_API_KEY. Empty: none.',
        choices=('tensorboard', 'mlflow', 'wandb'),
    )


class TestKeys(Section, title='evaluation and prediction'):
    BATCH_SIZE = Key(
        0,
        'Images per step in validation and prediction. 0: TRAIN.BATCH_SIZE, but at most 64 on CPUs.',
        low=0,
    )
    IMAGES = Key(
        '',
        "Images that test.py predicts: a photo, a folder, a list of paths (.txt), or '-' for a list on standard input. "
        'Empty: the test split.',
        is_path=True,
    )
    PART = Key(
        '',
        'Predict one of N parts of the images, for independent machines: 3/64 is the third of 64 parts. merge/64 '
        'merges the 64 parts into the files of the whole prediction. Empty: predict all images.',
    )
    COLUMNS = Key[tuple[str, ...]](
        ('id', 'predicted', 'name', 'probability'),
        'Columns of the predictions: some of id, predicted (the category_id; -1: unreadable), name (of that class) and '
        'probability.',
    )
    CONTACT_SHEET = Key(True, 'Also write a page with photos, names and probabilities, of at most REPORT.MAX_MB.')
    FLIP = Key(
        False,
        'Test-time augmentation: also predict the mirrored image. (FLIP, CROPS, SCALES, AVERAGE and ENSEMBLE change '
        'test.py only, not the validation in main.py or tau_norm.py.)',
    )
    CROPS = Key(
        'center',
        'Crops for test-time augmentation. center: the center alone. five: the center and the four corners. ten: these '
        'five and their mirror images. whole: the whole image, padded to a square.',
        choices=('center', 'five', 'ten', 'whole'),
    )
    SCALES = Key[tuple[float, ...]](
        (1.0,),
        'Image sizes for test-time augmentation, as multiples of INPUT.TEST_SIZE; predictions are averaged.',
        low=0.1,
        high=10.0,
    )
    AVERAGE = Key(
        'logits', 'Average logits or probabilities over views and models.', choices=('logits', 'probabilities')
    )
    ENSEMBLE = Key[tuple[str, ...]](
        (),
        'Further checkpoints to average with RESUME_MODEL: paths separated by commas. Empty: a single model.',
        is_path=True,
        entry=str,
    )
    ENSEMBLE_WEIGHTS = Key(
        'equal',
        "Weights of the models: 'equal'; 'valid' to minimize the negative log-likelihood of the validation split; or "
        'numbers separated by commas.',
    )
    TOP_K = Key(
        0,
        'Also write the K most probable classes per image, with names and probabilities. 0: off.',
        low=0,
    )
    EMBEDDINGS = Key(False, 'Also write the features of each image (float32, averaged over the views).')
    EMBEDDINGS_FORMAT = Key(
        'npy', 'File format of EMBEDDINGS: a NumPy array, or Parquet with ids.', choices=('npy', 'parquet')
    )
    PRODUCTS = Key(
        '',
        "Also predict one class per product, averaged over its images: 'folder' if each product is a folder, or a CSV "
        'file with columns id,product. Empty: off.',
        is_path=True,
    )
    ABSTAIN_ERROR = Key(
        0.0,
        'Also write predictions with abstention: the target error of the accepted predictions. The threshold on the '
        'probability is chosen on the validation split. 0: off.',
        low=0.0,
        high=0.999,
    )
    REJECT_UNKNOWN = Key(
        0.0,
        'Also reject photos of unknown products: the target false-acceptance rate, which is the fraction of photos of '
        'unknown products that are accepted as known ones. 0: off.',
        low=0.0,
        high=0.9,
    )
    UNKNOWN_ROOT = Key(
        '',
        'Photos of products that the model does not know, for choosing the threshold of REJECT_UNKNOWN: a folder with '
        'one sub-folder per product, or an annotation file. Empty: each class of the validation split is left out in '
        'turn, which gives too low a threshold if the backbone was trained on these classes.',
        is_path=True,
    )
    UNKNOWN_SCORE = Key(
        'prototype',
        'Score of REJECT_UNKNOWN. prototype: similarity to the nearest class mean of whitened training features; '
        'max_logit, energy: scores of the logits, which need UNKNOWN_ROOT, but no training images.',
        choices=('prototype', 'max_logit', 'energy'),
    )


class TauNormKeys(Section, title='tau-normalization (tau_norm.py)'):
    LOG_ROOT = Key(
        './log_tau', 'Folder of the re-balanced models; they are written to TAU_NORM.LOG_ROOT/NAME.', is_path=True
    )
    SELECT_BY = Key('mean_class_error', 'Validation metric that selects tau.', choices=('mean_class_error', 'top1'))
    MAX_TAU = Key(2.0, 'Upper end of the search range [0, MAX_TAU] of tau.', low=1e-3, high=100.0)


class RunKeys(Section, title='devices, workers, precision'):
    DEVICE = Key('auto', "'auto', 'cpu', 'mps', 'cuda' (all visible GPUs) or 'cuda:N' (one GPU).")
    NUM_WORKERS = Key(
        -1,
        'Worker processes that decode images. -1: one per CPU core, at most 8 (threads for small validation and test '
        'splits). 0: decode in the main process.',
        low=-1,
    )
    DECODE_DEVICE = Key(
        'cpu',
        'Device that decodes JPEG images for training, evaluation and prediction. cuda: the GPU of each process '
        'decodes and crops common JPEG images, for machines with too few CPU cores; see docs/data.md.',
        choices=('cpu', 'cuda'),
    )
    QUOTE_FORMULAS = Key(
        False,
        "In CSV files, put ' before names that start with =, +, -, @, a tab or a line end, which a spreadsheet would "
        'evaluate.',
    )
    PRECISION = Key(
        'auto',
        'Precision of training and evaluation. auto: evaluate in float32; train on CPUs in the faster one of float32 '
        'and bfloat16, by timing steps of the model, on GPUs in bfloat16, on older GPUs in float16 or float32.',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    )
    MEMORY_FORMAT = Key(
        'auto',
        'Memory format of images and weights. auto: in training on GPUs the faster one, by timing steps of the model; '
        'otherwise, and in short runs, channels_last.',
        choices=('auto', 'channels_last', 'contiguous'),
    )
    ENGINE = Key(
        'auto',
        'Engine that computes the features of images in evaluation and prediction. auto: on CPUs the fastest installed '
        'one that reproduces torch on the first images; torch for few images, see docs/prediction.md. openvino and '
        'onnxruntime need requirements-engines.txt.',
        choices=('auto', 'torch', 'compile', 'openvino', 'onnxruntime'),
    )
    ENGINE_PRECISION = Key(
        'float32',
        'Precision of features in test.py, tau_norm.py and tools on a trained model. The loss of accuracy by bf16 and '
        'int8 is measured on the validation split and logged first. int8 needs RUN.ENGINE openvino or auto.',
        choices=('float32', 'bf16', 'int8'),
    )
    COMPILE = Key(
        False, 'Compile the model with torch.compile; if that fails, a warning is logged and it runs uncompiled.'
    )


class StorageKeys(Section, title='object storage'):
    CACHE = Key(
        '',
        'Folder for the files of s3://, gs://, abfs:// and https:// paths, which all commands of a machine may share. '
        "Empty: product-recognition in the user's cache folder.",
        is_path=True,
    )
    CACHE_GB = Key(
        50.0, 'Size limit of CACHE; above it, the least recently used images are removed.', low=0.01, unit='GB'
    )
