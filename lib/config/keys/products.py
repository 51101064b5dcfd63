"""SEARCH, INDEX and ENROLL: tools that find products and take new ones."""

from lib.config.key import Key, Section


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
        'images (alpha QE); reciprocal: rank images higher that have the same k-reciprocal neighbors as the query.',
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
        96,
        'Candidates per query in approximate search; more find more of the true neighbors, slower.',
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
        'Names of products to remove, separated by commas, or a .txt file with a name per line. What ADD adds is added '
        'afterwards.',
        entry=str,
    )
    KIND = Key(
        'auto',
        'Search among more than 20,000 photos. exact: compare all; hnsw: a graph; ivfpq: lists of short codes, for '
        'more photos than fit into the memory; auto: hnsw, for binary codes ivfpq.',
        choices=('auto', 'exact', 'hnsw', 'ivfpq'),
    )
    CODES = Key(
        'int8',
        'Stored form of a feature: 2 bytes, 1 byte or 1 bit (binary) per dimension.',
        choices=('float16', 'int8', 'binary'),
    )
    DIMENSIONS = Key(
        0,
        'Dimensions after the whitening of SEARCH.WHITEN, at most; it is stored in the catalog. 0: no whitening.',
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
