"""tools/index.py: build and change the catalog that tools/search.py and the service search; SEARCH.INDEX."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.builders.cache_key import feature_version
from lib.builders.data import open_named_images, open_test_split, open_training_data
from lib.builders.split import DatasetSplit
from lib.catalog.catalog import Catalog, create_catalog, open_catalog
from lib.catalog.manifest import MANIFEST, has_catalog
from lib.commands.enroll_images import given_names
from lib.commands.enrolled_model import known_name_hint
from lib.commands.loaded_model import LoadedModel, split_features
from lib.dataset.features import Features
from lib.errors import UserError, shown
from lib.inference.whitening import fit_whitening
from lib.runtime.csv_file import write_csv
from lib.runtime.log import LOGGER, duration_text
from lib.runtime.text import count_of, nfc_list, size_text

CATALOG = 'catalog'  # folder beside the model
RECALL_AT = (1, 5, 10)
SAMPLE, NEIGHBORS = 256, 10  # queries whose neighbors are compared with those of exact search
_QUERIES_AT_ONCE = 1024


class _Products(NamedTuple):
    """Photos with their features, the names of the products that their labels number, and the rows that count."""

    split: DatasetSplit
    features: Features
    names: list[str]
    rows: np.ndarray


def index(trained: LoadedModel) -> Iterator[str]:
    """Remove products from the catalog and add photos, or build it from the training images; yield lines to print.

    Ranks share the images; the main rank changes the catalog, and the others yield nothing.

    Raises:
        UserError: nothing to add; a catalog of another model, or with other settings.
    """
    options, group, started = trained.cfg.INDEX, trained.group, time.perf_counter()
    folder = catalog_folder(trained)
    removed = given_names(options.REMOVE, 'INDEX.REMOVE')
    catalog = _checked_catalog(trained, folder, removed) if group.is_main else None
    is_new, is_empty = group.broadcast_object((catalog is None, catalog is None or not catalog.num_images))
    is_built = options.ADD == '' and not removed and is_empty
    if is_new and trained.model.num_features < options.DIMENSIONS:
        raise UserError(
            f'INDEX.DIMENSIONS is {options.DIMENSIONS}, but the model has {trained.model.num_features} features'
        )
    train = _training(trained) if is_built or (is_new and options.DIMENSIONS) else None
    if is_new and group.is_main:
        catalog = _created(trained, folder, train)
    if removed and catalog is not None:
        products = set(nfc_list(removed)).intersection(catalog.products())
        yield f'removed {count_of(catalog.remove(removed), "photo")} of {count_of(len(products), "product")}'
    if options.ADD or is_built:
        added = train if is_built and train is not None else _added(trained)
        if catalog is not None:
            yield add_photos(catalog, *added)
    if catalog is None:
        return
    catalog.merge()
    yield from described(catalog)
    if options.ADD or is_built or removed:
        yield f'took {duration_text(time.perf_counter() - started)}'


def catalog_folder(trained: LoadedModel) -> Path:
    """Return INDEX.FOLDER, or the folder of the catalog beside the model."""
    return Path(trained.cfg.INDEX.FOLDER or trained.folder / CATALOG)


def version_of(trained: LoadedModel) -> str:
    """Return the version of the model's features."""
    return feature_version(trained.cfg, trained.features_fingerprint)


def add_photos(
    catalog: Catalog, split: DatasetSplit, features: Features, names: list[str], rows: np.ndarray | None = None
) -> str:
    """Add the labeled photos of a split that could be decoded, and return a line about them.

    Args:
        names: names of the products, which the labels number.
        rows: ascending; None: all.

    Raises:
        UserError: no photo could be decoded.
    """
    given = np.arange(len(features)) if rows is None else rows
    rows = given[features.readable[given] & (features.labels[given] >= 0)]
    if not len(rows):
        raise UserError(f'{split.source}: no labeled photo can be decoded{split.heic_hint}')
    products = pa.array(names, pa.large_string()).take(pa.array(features.labels[rows]))
    images = split.names.take(pa.array(rows)).cast(pa.large_string())
    values = features.values if len(rows) == len(features) else features.values[rows]
    replaced = catalog.add(values, products, images)
    left_out = len(given) - len(rows)
    return (
        f'added {count_of(len(rows), "photo")} of {count_of(len(products.unique()), "product")}'
        + f', {replaced} of them replaced' * (replaced > 0)
        + f'; {left_out} left out' * (left_out > 0)
    )


def described(catalog: Catalog) -> Iterator[str]:
    """Yield lines about a catalog."""
    manifest, size = catalog.manifest, catalog.num_bytes
    yield (
        f'{catalog.folder}: {count_of(catalog.num_images, "photo")} of '
        f'{count_of(len(catalog.product_column()), "product")}, {size_text(size)}'
    )
    yield (
        f'  {manifest.codes} codes of {manifest.width} dimensions, '
        f'{count_of(len(manifest.segments), "segment")}: '
        + (', '.join(f'{one.num_left:,} {one.kind or "exact"}' for one in manifest.segments) or 'none')
    )


def open_products(source: str, trained: LoadedModel) -> tuple[DatasetSplit, list[str]]:
    """Open the photos of INDEX.ADD; return them with the names of their products. Raises: UserError."""
    if not Path(source).exists():
        raise UserError(f'INDEX.ADD {source}: no such folder or file')
    split, classes = open_named_images(source, nested=trained.cfg.DATASET.NESTED_CLASSES)
    return split, classes.names


def _training(trained: LoadedModel) -> _Products:
    with trained.group.main_first():
        data = open_training_data(trained.cfg).in_class_order(trained.class_names)
    return _Products(data.train, split_features(trained, data.train, 'train'), trained.class_names, data.index().rows)


def _added(trained: LoadedModel) -> _Products:
    with trained.group.main_first():
        split, names = open_products(trained.cfg.INDEX.ADD, trained)
    features = split_features(trained, split, 'added', same_classes=False)
    return _Products(split, features, names, np.arange(len(features)))


def _checked_catalog(trained: LoadedModel, folder: Path, removed: list[str]) -> Catalog | None:
    """Return the catalog in a folder, after a comparison with the options; None if it has yet to be created."""
    if has_catalog(folder):
        catalog = open_catalog(folder, version_of(trained))
        _check_settings(trained, catalog)
        _warn_about_unknown(catalog, removed)
        return catalog
    if removed:
        raise UserError(f'INDEX.REMOVE: {folder} contains no {MANIFEST}, so there is nothing to remove')
    return None


def _created(trained: LoadedModel, folder: Path, train: _Products | None) -> Catalog:
    """Return a new catalog; `train`: the training images, to which INDEX.DIMENSIONS fits a whitening."""
    options, whitening = trained.cfg.INDEX, None
    if options.DIMENSIONS and train is not None:
        labels = np.full(len(train.features), -1)
        labels[train.rows] = np.where(train.features.readable, train.features.labels, -1)[train.rows]
        whitening = fit_whitening(train.features.values, labels, dimensions=options.DIMENSIONS)
    return create_catalog(
        folder,
        version_of(trained),
        trained.model.num_features,
        kind=options.KIND,
        codes=options.CODES,
        whitening=whitening,
    )


def _check_settings(trained: LoadedModel, catalog: Catalog) -> None:
    """Raise UserError if options that are fixed once a catalog is built differ from the default and from it."""
    options, manifest = trained.cfg.INDEX, catalog.manifest
    # A whitening may have fewer axes than were asked for.
    dimensions = options.DIMENSIONS if manifest.whitening and manifest.width <= options.DIMENSIONS else manifest.width
    for name, default, found in (
        ('KIND', 'auto', manifest.kind), ('CODES', 'float16', manifest.codes), ('DIMENSIONS', 0, dimensions),
    ):  # fmt: skip
        if options[name] not in (default, found):
            raise UserError(
                f'INDEX.{name} is {options[name]}, but {catalog.folder} was built with {found}; leave the option out, '
                'or build another catalog: --INDEX_FOLDER FOLDER'
            )


def _warn_about_unknown(catalog: Catalog, names: list[str]) -> None:
    known = set(catalog.products()) if names else set()
    unknown = [name for name in dict.fromkeys(nfc_list(names)) if name not in known]
    if unknown:
        hint, number = known_name_hint(unknown[0], sorted(known)), len(unknown) - 1
        others = f', nor {number:,} other{"s" * (number > 1)} of INDEX.REMOVE' * (number > 0)
        LOGGER.warning('%s: has no product %s%s%s', catalog.folder, shown(unknown[0]), hint, others)


def search_index(trained: LoadedModel) -> Iterator[str]:
    """Yield lines for tools/search.py with SEARCH.INDEX: recall on the validation split, by product, and of the index.

    Then the K nearest products of each test image are written to SEARCH.CSV, if there is one.

    Raises:
        UserError: no such catalog, or one of another model; no labeled valid split.
    """
    options = trained.cfg.SEARCH
    catalog = open_catalog(Path(options.INDEX), version_of(trained), verify=trained.group.is_main)
    if not catalog.num_images:
        raise UserError(f'SEARCH.INDEX {options.INDEX} has no photos: python tools/index.py adds some')
    yield from described(catalog)
    valid = None
    with suppress(UserError):  # a catalog needs no validation split
        trained.check_classes(trained.valid)
        valid = trained.valid
    if valid is not None and len(valid):
        yield from _recall_lines(trained, catalog, valid, split_features(trained, valid, 'valid'))
    if options.CSV:
        test = open_test_split(trained.cfg, trained.class_names)
        write_nearest_products(trained, catalog, test, Path(options.CSV))
        yield f'wrote {options.CSV}'


def _recall_lines(trained: LoadedModel, catalog: Catalog, valid: DatasetSplit, features: Features) -> Iterator[str]:
    """Yield recall@k: how many images have their product among the k nearest; then the recall of the index itself."""
    effort, group = trained.cfg.SEARCH.EFFORT, trained.group
    class_names = pa.array(nfc_list(trained.class_names), pa.large_string())
    known = pc.is_in(class_names, value_set=catalog.product_column()).to_numpy(zero_copy_only=False)
    labeled = features.readable & (features.labels >= 0)
    rows = np.flatnonzero(labeled & known[features.labels.clip(min=0)])

    def hits(start: int) -> np.ndarray:
        some = rows[start : start + _QUERIES_AT_ONCE]
        matches = catalog.search(features.values[some], max(RECALL_AT), effort=effort)
        names = class_names.take(pa.array(features.labels[some])).to_numpy(zero_copy_only=False)
        return (matches.products == names[:, None]).sum(axis=0)

    if len(rows):
        found = np.sum([*group.map(hits, range(0, len(rows), _QUERIES_AT_ONCE))], axis=0)
        shares = found.cumsum() / len(rows)
        recalls = ', '.join(f'recall@{k} {shares[k - 1]:.1%}' for k in RECALL_AT)
        yield f'{count_of(len(rows), "image")} of {valid.source}: {recalls}'
    if (missing := int(labeled.sum()) - len(rows)) > 0:
        yield f'  {count_of(missing, "image")} left out: the catalog lacks their products'
    if not group.is_main:
        return
    sample = np.flatnonzero(features.readable)
    sample = sample[:: max(1, len(sample) // SAMPLE)][:SAMPLE]
    if len(sample):
        queries = features.values[sample]
        found_images, exact = (
            catalog.search(queries, NEIGHBORS, by='image', effort=effort, exact=is_exact).images
            for is_exact in (False, True)
        )
        number = min(NEIGHBORS, catalog.num_images)
        share = np.mean(
            [len({*one} & {*other} - {''}) / number for one, other in zip(found_images, exact, strict=True)]
        )
        yield f'of the {number} nearest photos by exact search, {share:.1%} are found ({len(sample)} queries)'


def write_nearest_products(trained: LoadedModel, catalog: Catalog, test: DatasetSplit, path: Path) -> None:
    """Write the K nearest products of each test image that can be decoded, with the most similar photo of each.

    The main rank writes what all of them find.
    """
    options, features = trained.cfg.SEARCH, split_features(trained, test, 'test')
    rows = np.flatnonzero(features.readable)
    blocks = [rows[start : start + _QUERIES_AT_ONCE] for start in range(0, len(rows), _QUERIES_AT_ONCE)]
    found_of = trained.group.map(
        lambda some: catalog.search(features.values[some], options.K, effort=options.EFFORT), blocks
    )
    if not trained.group.is_main:
        for _ in found_of:
            pass
        return

    def lines() -> Iterator[tuple]:
        for some, matches in zip(blocks, found_of, strict=True):
            for row, *found in zip(some.tolist(), *matches, strict=True):
                image = test.names[row].as_py()
                for rank, (product, photo, value) in enumerate(zip(*found, strict=True), start=1):
                    if product:
                        yield image, rank, product, photo, f'{value:.6f}'

    write_csv(path, ('id', 'rank', 'product', 'photo', 'cosine'), lines())
