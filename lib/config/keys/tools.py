"""POSTHOC, SEARCH, INDEX, ENROLL, EXPORT, SERVE, REPORT, CLEAN and PLAN: one section per tool."""

from lib.config.key import Key, Section


class PosthocKeys(Section, title='re-balancing and calibration (tools/posthoc.py)'):
    METHODS = Key[tuple[str, ...]](
        ('all',),
        "Methods to compare: 'all', or some of tau_norm, logit_adjustment, lws, ncm, cosine, prior_shift, temperature, "
        'group_temperature, separated by commas.',
    )
    FIT_SPLIT = Key(
        'valid',
        'Split to fit on. valid: cross-fitted in folds of the validation split; train: a sample of the training '
        'images.',
        choices=('valid', 'train'),
    )
    FOLDS = Key(5, 'Folds of the validation split.', low=2, used_by=('POSTHOC.FIT_SPLIT', ('valid',)))
    HOLDOUT = Key(20, 'Maximum number of training images per class for fitting and for prototypes.', low=1)
    SAVE = Key('', 'Method whose classifier is saved as TAU_NORM.LOG_ROOT/NAME/best_model.pth. Empty: none.')


class SearchKeys(Section, title='nearest neighbors (tools/search.py)'):
    K = Key(10, 'Number k of nearest neighbors for the vote and for CSV.', low=1)
    GALLERY = Key(
        'train',
        'Images to search: the training split, or the validation split without the query itself.',
        choices=('train', 'valid'),
    )
    METRIC = Key('cosine', 'Similarity of features.', choices=('cosine', 'euclidean'))
    VOTE = Key(
        'majority',
        'Votes per neighbor: one (majority), or exp(similarity / TEMPERATURE).',
        choices=('majority', 'similarity'),
    )
    TEMPERATURE = Key(
        0.07,
        'Temperature of the vote by similarity; lower values favor the nearest neighbors.',
        low=1e-4,
        used_by=('SEARCH.VOTE', ('similarity',)),
    )
    WHITEN = Key(
        False,
        'Whiten the features, fitted to the training images and their classes: directions in which photos of one '
        'class differ count less.',
        used_by=('SEARCH.METRIC', ('cosine',)),
    )
    RERANK = Key(
        '',
        'Improve the results after the search. query_expansion: search again with the mean of a query and its nearest '
        'images (alpha QE); reciprocal: rank images higher that share k-reciprocal neighbors with the query.',
        choices=('', 'query_expansion', 'reciprocal'),
        used_by=('SEARCH.METRIC', ('cosine',)),
    )
    CSV = Key('', 'File for the k nearest gallery images of each test image. Empty: none.', is_path=True)
    INDEX = Key(
        '',
        'Catalog of tools/index.py that is searched instead of GALLERY; CSV then lists the k nearest products. Empty: '
        'none.',
        is_path=True,
    )
    EFFORT = Key(
        384,
        'Candidates per query in approximate search; more candidates find more true neighbors, but take longer.',
        low=1,
    )


class IndexKeys(Section, title='catalogs for product search (tools/index.py)'):
    FOLDER = Key('', 'Folder of the catalog. Empty: catalog in the folder of the model.', is_path=True)
    ADD = Key(
        '',
        'Photos to add: a folder with one sub-folder per product, an annotation file, or decisions.json. Empty: the '
        'training images if the catalog is empty, else none.',
        is_path=True,
    )
    REMOVE = Key[tuple[str, ...]](
        (),
        'Names of products to remove, separated by commas, or a .txt file with a name per line. They are removed '
        'before ADD adds photos.',
        entry=str,
        is_path=True,
    )
    KIND = Key(
        'auto',
        'Index of a catalog with more than 20,000 photos. exact: none, compare all photos; ivfpq: inverted lists of '
        'product-quantized codes; hnsw: a graph; auto: ivfpq.',
        choices=('auto', 'exact', 'hnsw', 'ivfpq'),
    )
    CODES = Key(
        'float16',
        'Stored form of a feature: 2 bytes, 1 byte or 1 bit (binary) per dimension.',
        choices=('float16', 'int8', 'binary'),
    )
    DIMENSIONS = Key(
        0,
        'Maximum number of dimensions after whitening, as by SEARCH.WHITEN; the catalog stores it. 0: no whitening.',
        low=0,
    )


class EnrollKeys(Section, title='new classes without training (tools/enroll.py)'):
    IMAGES = Key(
        '',
        'Images of new classes, and further images of known ones: a folder with one sub-folder per class, an '
        'annotation file, or decisions.json.',
        is_path=True,
    )
    PER_CLASS = Key(
        0,
        'Maximum number of images to enroll per class; SEED selects them, and metrics are computed on the others. '
        '0: enroll all.',
        low=0,
    )
    RETIRE = Key[tuple[str, ...]](
        (),
        'Names of classes to remove, separated by commas, or a .txt file with a name per line.',
        entry=str,
        is_path=True,
    )
    PROPOSE = Key(
        '',
        'Photos of products that the model does not know, which are clustered into proposals for new classes on a page '
        'for review; the model does not change. A folder, an annotation file, or the photos of TEST.IMAGES that '
        'predictions_SOURCE.open_set.csv rejects.',
        is_path=True,
    )
    INDEX = Key(
        '',
        'Catalog of tools/index.py that gets the enrolled images, too, and loses the retired classes. Empty: none.',
        is_path=True,
    )
    OUT = Key('', 'Folder to write the extended model to. Empty: LOG_ROOT/NAME_enrolled.', is_path=True)
    MAX_LOSS = Key(
        0.02,
        'Maximum loss of mean per-class accuracy of the old classes on the validation split, as a fraction.',
        low=0.0,
        high=1.0,
    )


class ExportKeys(Section, title='export to other formats (tools/export.py)'):
    FORMAT = Key(
        'onnx',
        'File format. openvino: an .xml file and a .bin file with the weights.',
        choices=('onnx', 'openvino', 'torch_export', 'safetensors'),
    )
    OUT = Key('', 'File to write. Empty: named after the checkpoint, in its folder.', is_path=True)
    PRECISION = Key(
        'float32',
        'int8: convolutions and matrix products of onnx and openvino in 8 bits, calibrated on training images; the '
        'loss of accuracy is measured on the validation split and written into the file.',
        choices=('float32', 'int8'),
    )
    MAX_LOSS = Key(
        0.01,
        'Maximum increase of the mean class error on the validation split by int8, as a fraction. Above it, the layers '
        'that contribute most stay in float32.',
        low=0.0,
        high=1.0,
        used_by=('EXPORT.PRECISION', ('int8',)),
    )
    PREPROCESSING = Key(
        'inside',
        'Normalization of the pixels. inside: part of the exported model, whose input is uint8 RGB of shape (batch, '
        'height, width, 3); outside: left to the caller, input float32 (batch, 3, height, width).',
        choices=('inside', 'outside'),
    )


class ServeKeys(Section, title='HTTP service (tools/serve.py)'):
    HOST = Key(
        '127.0.0.1', 'Address to listen on. 127.0.0.1: this machine only; 0.0.0.0: all its IPv4 addresses; ::: all.'
    )
    PORT = Key(8000, 'TCP port to listen on. 0: any free port, which is logged.', low=0, high=65_535)
    TOKEN_FILE = Key(
        '',
        'File with a secret that requests must contain (Authorization: Bearer SECRET). Empty: everyone who can reach '
        'HOST may use the service.',
        is_path=True,
    )
    BATCH_SIZE = Key(32, 'Maximum number of images that are computed together.', low=1)
    BATCH_MS = Key(
        5.0,
        'Maximum time that a decoded image waits for others that are being decoded, if the network is idle.',
        low=0.0,
        high=1000.0,
        unit='milliseconds',
    )
    QUEUE = Key(256, 'Maximum number of waiting images; further requests get status 429 and the time to wait.', low=1)
    MAX_MB = Key(20.0, 'Maximum size of a request (1 MB = 10^6 bytes).', low=0.001, high=10_000.0, unit='MB')
    SECONDS = Key(
        30.0,
        'Time limit of a request, from its first byte to its answer, and of finishing requests when the service stops.',
        low=0.1,
        high=3600.0,
        unit='seconds',
    )
    NEIGHBORS = Key(0, 'Number of nearest training photos that the page shows with an answer.', low=0, high=20)
    FEEDBACK = Key(
        '',
        'Folder for photos that users of the page confirm or correct, with decisions.json. Empty: no feedback.',
        is_path=True,
    )
    INDEX = Key('', 'Catalog of tools/index.py that /search and /catalog use. Empty: none.', is_path=True)


class ReportKeys(Section, title='report.html'):
    MAX_MB = Key(
        5.0,
        'Maximum size of report.html (1 MB = 10^6 bytes); the last thumbnails are left out to stay below it.',
        low=0.0,
        unit='MB',
    )
    JSON = Key(False, 'Also write the metrics of report.html to report.json.')


class CleanKeys(Section, title='label cleaning (tools/clean.py)'):
    HEAD = Key(
        'auto',
        'Classifier that judges each image without having been fitted to it. linear: linear discriminant analysis, '
        'cross-fitted in FOLDS; cosine: class means without the image; auto: linear if its classifiers take at most 2 '
        'GB.',
        choices=('auto', 'linear', 'cosine'),
    )
    FOLDS = Key(5, 'Folds of the training split.', low=2, used_by=('CLEAN.HEAD', ('auto', 'linear')))
    MODELS = Key[tuple[str, ...]](
        (),
        'Further checkpoints, separated by commas: their features are concatenated with those of the pretrained '
        'weights or of RESUME_MODEL.',
        is_path=True,
        entry=str,
    )
    CANDIDATES = Key(10, 'Most probable classes per image that are compared with its label.', low=2)
    ROUNDS = Key(
        1,
        'Maximum number of rounds: each later one weights the images by the probability that their label is right, '
        'until no judgment changes.',
        low=1,
    )
    APPLY = Key(
        '',
        'Write decisions.json without a review: drop mislabeled images, relabel them to the proposed class, or weight '
        'all images by the probability that their label is right. Empty: the review page exports it.',
        choices=('', 'drop', 'relabel', 'weight'),
    )
    PAGE_MB = Key(
        20.0,
        'Maximum size of each review page (1 MB = 10^6 bytes); further images are on clean_2.html, ...',
        low=1.0,
        unit='MB',
    )


class PlanKeys(Section, title='memory and time estimates (tools/plan.py)'):
    NUM_CLASSES = Key(0, 'Number of classes to plan for. 0: that of the training annotations.', low=0)
    DEVICES = Key(1, 'Number of devices over all machines.', low=1)
    DEVICE_GB = Key(
        0.0,
        'Memory per device (1 GB = 10^9 bytes). 0: that of the devices in this machine.',
        low=0.0,
        high=1e9,
        unit='GB',
    )
    IMAGES = Key(0, 'Training images per epoch, to estimate the time per epoch. 0: no such estimate.', low=0)
    TFLOPS = Key(
        0.0,
        'Peak speed per device in the precision of training, 10^12 floating-point operations per second. 0: no time '
        'estimates.',
        low=0.0,
        high=1e9,
        unit='TFLOP/s',
    )
    UTILIZATION = Key(0.3, 'Assumed fraction of the peak speed reached in training.', low=1e-3, high=1.0)
    LINK_GB_S = Key(
        0.0,
        'Bandwidth per device of the slowest link. 0: no estimates of transfer times.',
        low=0.0,
        high=1e9,
        unit='GB/s',
    )
