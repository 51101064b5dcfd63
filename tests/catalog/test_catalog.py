"""Catalogs against a dictionary of vectors that is searched by comparing all: adding, replacing, removing."""

import secrets
import threading

import numpy as np
import pytest

import lib.catalog.catalog as module
from lib.catalog.catalog import create_catalog, open_catalog
from lib.errors import UserError
from lib.inference.whitening import fit_whitening

WIDTH = 16


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class Oracle:
    """(product, image) -> unit vector, and the products of a query by their most similar image."""

    def __init__(self):
        self.vectors = {}

    def add(self, features, products, images):
        for vector, product, image in zip(unit(features), products, images, strict=True):
            self.vectors[product, image] = vector

    def remove(self, products):
        for key in [key for key in self.vectors if key[0] in products]:
            del self.vectors[key]

    def search(self, query, k):
        """Return (product, image, cosine) of the best image of each of the k best products."""
        found, names = [], set()
        pairs = sorted(((float(unit(query) @ vector), *key) for key, vector in self.vectors.items()), reverse=True)
        for value, product, image in pairs:
            if product not in names:
                names.add(product)
                found.append((product, image, value))
        return found[:k]


def drawn(random, count, num_products, start=0):
    """Return features, products and images of photos; photos of a product are similar."""
    labels = random.integers(0, num_products, count)
    centers = np.random.default_rng(9).standard_normal((num_products, WIDTH))
    features = (centers[labels] + 0.5 * random.standard_normal((count, WIDTH))).astype(np.float32)
    return features, [f'product {label}' for label in labels], [f'{start + row}.jpg' for row in range(count)]


def check_same(catalog, oracle, random, k=5, tolerance=2e-3, **options):
    queries = random.standard_normal((3, WIDTH)).astype(np.float32)
    matches = catalog.search(queries, k, **options)
    assert matches.values.shape == (3, k)
    for row, query in enumerate(queries):
        expected = oracle.search(query, k)
        found = [name for name in matches.products[row] if name]
        assert len(found) == len(set(found)) == len(expected)
        for rank, (_, _, value) in enumerate(expected):
            assert matches.values[row, rank] == pytest.approx(value, abs=tolerance)
            true = oracle.vectors[matches.products[row, rank], matches.images[row, rank]] @ unit(query)
            assert matches.values[row, rank] == pytest.approx(true, abs=tolerance)
        assert (matches.values[row, len(expected) :] == -np.inf).all()
    assert catalog.num_images == len(oracle.vectors)
    assert catalog.products() == sorted({product for product, _ in oracle.vectors})


@pytest.mark.parametrize('index_rows', [10_000, 12])
def test_random_changes_equal_a_dictionary(tmp_path, monkeypatch, index_rows):
    """With tiny graphs, too, so that segments with and without an index, removed rows and merging all occur."""
    if index_rows < 100:
        pytest.importorskip('faiss')
    monkeypatch.setattr(module, 'INDEX_ROWS', index_rows)
    monkeypatch.setattr(module, 'MAX_INDEXES', 2)
    seed = secrets.randbits(32)
    print('seed', seed)
    random = np.random.default_rng(seed)
    catalog, oracle = create_catalog(tmp_path / 'catalog', 'v', WIDTH, kind='hnsw', codes='float16'), Oracle()
    for step in range(12):
        action = random.integers(0, 4)
        if action < 2:
            photos = drawn(random, int(random.integers(1, 30)), 10, start=int(random.integers(0, 40)))
            photos = tuple(zip(*{key[1:]: key for key in zip(*photos, strict=True)}.values(), strict=True))
            features, products, images = np.array(photos[0]), photos[1], photos[2]
            before = len(oracle.vectors)
            oracle.add(features, products, images)
            assert catalog.add(features, products, images) == before + len(products) - len(oracle.vectors)
        elif action == 2:
            names = {f'product {number}' for number in random.integers(0, 12, 2)}
            before = len(oracle.vectors)
            oracle.remove(names)
            assert catalog.remove(names) == before - len(oracle.vectors)
        else:
            catalog.merge()
            assert sum(one.index is not None for one in catalog.manifest.segments) <= 2
        if step % 4 == 3:
            catalog = open_catalog(tmp_path / 'catalog', 'v')
        if step % 2:
            check_same(catalog, oracle, random, effort=200)
    for product in catalog.products():
        assert catalog.images_of(product) == sorted(image for name, image in oracle.vectors if name == product)
    used = {file.name for file in catalog.manifest.files}
    assert {path.name for path in (tmp_path / 'catalog').iterdir()} == used | {'catalog.json'}


@pytest.mark.parametrize(('codes', 'tolerance'), [('float16', 1e-3), ('int8', 0.02), ('binary', 0.5)])
def test_codes_approximate_the_vectors(tmp_path, codes, tolerance):
    random, oracle = np.random.default_rng(3), Oracle()
    catalog = create_catalog(tmp_path, 'v', WIDTH, codes=codes)
    photos = drawn(random, 200, 20)
    catalog.add(*photos)
    oracle.add(*photos)
    queries = random.standard_normal((9, WIDTH)).astype(np.float32)
    matches = catalog.search(queries, 3, by='image')
    for row, query in enumerate(queries):
        for rank in range(3):
            true = oracle.vectors[matches.products[row, rank], matches.images[row, rank]] @ unit(query)
            assert matches.values[row, rank] == pytest.approx(true, abs=tolerance)


@pytest.mark.long
@pytest.mark.parametrize(
    ('kind', 'codes'), [('hnsw', 'int8'), ('hnsw', 'float16'), ('ivfpq', 'int8'), ('ivfpq', 'binary')]
)
def test_indexes_find_the_neighbors_of_exact_search(tmp_path, monkeypatch, kind, codes):
    pytest.importorskip('faiss')
    monkeypatch.setattr(module, 'INDEX_ROWS', 1000)
    random = np.random.default_rng(4)
    catalog = create_catalog(tmp_path, 'v', WIDTH, kind=kind, codes=codes)
    features, products, images = drawn(random, 3000, 300)
    catalog.add(features, products, images)
    catalog.remove([f'product {number}' for number in range(0, 300, 3)])
    assert [one.kind for one in catalog.manifest.segments] == [kind]
    queries = features[:200] + 0.1 * random.standard_normal((200, WIDTH)).astype(np.float32)
    found = catalog.search(queries, 10, by='image', effort=256)
    exact = catalog.search(queries, 10, by='image', exact=True)
    assert not {f'product {number}' for number in range(0, 300, 3)} & {*found.products.ravel(), *exact.products.ravel()}
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.images, exact.images, strict=True)])
    assert recall > (0.98 if kind == 'hnsw' else 0.9)
    np.testing.assert_allclose(found.values[:, 0], exact.values[:, 0], atol=0.05)


def indexed(folder, monkeypatch, kind, rng, num_rows):
    """Return a catalog of 300 products that is searched by an index, and its features (num_rows, WIDTH)."""
    pytest.importorskip('faiss')
    monkeypatch.setattr(module, 'INDEX_ROWS', 1000)
    catalog = create_catalog(folder, 'v', WIDTH, kind=kind)
    features, products, images = drawn(rng, num_rows, 300)
    catalog.add(features, products, images)
    return catalog, features


@pytest.mark.long
@pytest.mark.parametrize('kind', ['hnsw', 'ivfpq'])
def test_an_index_of_which_most_rows_are_removed_finds_the_others(tmp_path, monkeypatch, kind):
    catalog, features = indexed(tmp_path, monkeypatch, kind, np.random.default_rng(11), 3000)
    catalog.remove([f'product {number}' for number in range(290)])
    found, exact = (catalog.search(features[:50], 10, effort=64, exact=exact) for exact in (False, True))
    assert (found.products == exact.products).all()
    for k in (1, 20):
        found, exact = (
            catalog.search(features[:50], k, by='image', effort=64, exact=exact).values for exact in (False, True)
        )
        np.testing.assert_allclose(found, exact, atol=1e-3)


@pytest.mark.parametrize('kind', ['hnsw', 'ivfpq'])
def test_more_results_than_effort_are_those_of_exact_search(tmp_path, monkeypatch, kind):
    catalog, features = indexed(tmp_path, monkeypatch, kind, np.random.default_rng(12), 1500)
    found, exact = (catalog.search(features[:9], 500, by='image', effort=8, exact=exact) for exact in (False, True))
    recall = np.mean([len({*a} & {*b}) / 500 for a, b in zip(found.images, exact.images, strict=True)])
    assert recall > 0.98


def test_whitening_is_applied_to_photos_and_queries(tmp_path):
    random = np.random.default_rng(5)
    whitening = fit_whitening(random.standard_normal((99, WIDTH)).astype(np.float32) + 1, dimensions=8)
    catalog = create_catalog(tmp_path, 'v', WIDTH, codes='float16', whitening=whitening)
    features, products, images = drawn(random, 50, 10)
    catalog.add(features, products, images)
    queries = random.standard_normal((4, WIDTH)).astype(np.float32)
    matches = open_catalog(tmp_path).search(queries, 1, by='image')
    projected, of_queries = (unit((unit(x) - whitening.mean) @ whitening.projection.T) for x in (features, queries))
    similarities = of_queries @ projected.T
    assert [*matches.images[:, 0]] == [images[row] for row in similarities.argmax(axis=1)]
    np.testing.assert_allclose(matches.values[:, 0], similarities.max(axis=1), atol=1e-3)


def test_a_reader_keeps_what_it_opened_until_it_refreshes(tmp_path):
    random = np.random.default_rng(6)
    writer = create_catalog(tmp_path, 'v', WIDTH)
    features, products, images = drawn(random, 40, 5)
    writer.add(features, products, images)
    reader = open_catalog(tmp_path)
    writer.remove(['product 1'])
    writer.add(features[:1], ['new'], ['new.jpg'])
    assert 'product 1' in reader.products()
    assert 'new' not in reader.products()
    assert 'product 1' in reader.search(features, 5).products
    reader.refresh()
    assert 'product 1' not in reader.products()
    assert 'new' in reader.products()


def test_writers_in_threads_lose_nothing(tmp_path):
    create_catalog(tmp_path, 'v', WIDTH)
    random = np.random.default_rng(7)
    features = random.standard_normal((4, 5, WIDTH)).astype(np.float32)

    def add(number):
        catalog = open_catalog(tmp_path)
        for row in range(5):
            catalog.add(features[number, row : row + 1], [f'product {number}'], [f'{row}.jpg'])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    catalog = open_catalog(tmp_path)
    assert catalog.num_images == 20
    assert all(len(catalog.images_of(f'product {number}')) == 5 for number in range(4))


def test_an_empty_catalog_finds_nothing(tmp_path):
    catalog = create_catalog(tmp_path, 'v', WIDTH)
    matches = catalog.search(np.ones((2, WIDTH), np.float32), 3)
    assert (matches.products == '').all()
    assert (matches.values == -np.inf).all()
    assert catalog.remove(['x']) == 0
    assert catalog.products() == []
    catalog.add(np.ones((1, WIDTH), np.float32), ['a'], ['a.jpg'])
    assert catalog.remove(['a']) == 1
    assert catalog.products() == []
    assert not list(tmp_path.glob('part-*'))


def test_mistakes_are_errors_in_one_line(tmp_path):
    catalog = create_catalog(tmp_path / 'catalog', 'v', WIDTH)
    features = np.ones((2, WIDTH), np.float32)
    with pytest.raises(UserError, match='contains a catalog; give another folder'):
        create_catalog(tmp_path / 'catalog', 'v', WIDTH)
    with pytest.raises(UserError, match='another model or preprocessing'):
        open_catalog(tmp_path / 'catalog', 'w')
    with pytest.raises(UserError, match=r'index\.py builds a catalog'):
        open_catalog(tmp_path)
    with pytest.raises(UserError, match='two images of one name'):
        catalog.add(features, ['a', 'a'], ['x', 'x'])
    with pytest.raises(UserError, match='product name'):
        catalog.add(features, ['a', ''], ['x', 'y'])
    assert catalog.num_images == 0


@pytest.mark.parametrize('suffix', ['arrow', 'index', 'left', 'json'])
def test_damaged_files_are_errors(tmp_path, monkeypatch, suffix):
    pytest.importorskip('faiss')
    monkeypatch.setattr(module, 'INDEX_ROWS', 1000)
    catalog = create_catalog(tmp_path, 'v', WIDTH)
    catalog.add(*drawn(np.random.default_rng(8), 1500, 30))
    catalog.remove(['product 3'])
    (path,) = tmp_path.glob(f'*.{suffix}')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'build the catalog again|not valid JSON'):
        open_catalog(tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match='build the catalog again|' + path.name):
        open_catalog(tmp_path, verify=False)


def test_without_faiss_large_catalogs_are_an_error_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'INDEX_ROWS', 100)
    monkeypatch.setattr('lib.catalog.rows.find_spec', lambda name: None)
    random = np.random.default_rng(9)
    catalog = create_catalog(tmp_path / 'auto', 'v', WIDTH)
    catalog.add(*drawn(random, 60, 5))
    with pytest.raises(UserError, match=r'requirements-search\.txt'):
        catalog.add(*drawn(random, 60, 5, start=60))
    assert open_catalog(tmp_path / 'auto').num_images == catalog.num_images == 60
    exact = create_catalog(tmp_path / 'exact', 'v', WIDTH, kind='exact')
    exact.add(*drawn(random, 300, 5))
    assert exact.search(np.ones((1, WIDTH), np.float32), 1).products[0, 0]
