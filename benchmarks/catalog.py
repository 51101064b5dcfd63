"""How good and how fast is approximate search in a catalog of a million products, compared with exact search?

Features of real photos (a .npy file, as test.py --TEST_EMBEDDINGS True writes) are whitened to 256 dimensions. Each
product is a random point between two photos plus noise, each query a product plus half of that noise. Recall@10 counts
how many of the 10 products that exact search in float32 finds are found. Both sides search the same queries.
"""

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa

from benchmarks.harness import alternate, finish, new_parser
from lib.catalog.catalog import Catalog, create_catalog, open_catalog
from lib.commands.cli import cli_main
from lib.config.options import local_path
from lib.inference.neighbors import nearest
from lib.inference.whitening import fit_whitening

NOISE = 0.5  # length, compared with that of a whitened feature
K, MORE, ROUNDS, EXACT_QUERIES = 10, 10_000, 3, 100


def products_between(photos: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return (number, width) float32 unit vectors of products."""
    products = np.empty((number, photos.shape[1]), np.float32)
    for start in range(0, number, 50_000):
        size = min(50_000, number - start)
        first, second = (photos[rng.integers(0, len(photos), size)] for _ in range(2))
        weight = rng.uniform(0.5, 1.0, (size, 1)).astype(np.float32)
        products[start : start + size] = noisy(weight * first + (1 - weight) * second, NOISE, rng)
    return products


def noisy(vectors: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return unit vectors with noise of this length added."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors + noise / vectors.shape[1] ** 0.5 * rng.standard_normal(vectors.shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(start: int, number: int) -> pa.Array:
    """Return 13 digits per product."""
    return pa.array([f'{4_000_000_000_000 + index}' for index in range(start, start + number)], pa.large_string())


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measured(args: argparse.Namespace, number: int, folder: Path) -> dict[str, float]:
    """Return the results with so many products."""
    rng = np.random.default_rng(args.seed)
    features = np.load(args.features, mmap_mode='r')
    photos = fit_whitening(features, dimensions=min(args.width, features.shape[1]))(features)
    products, more = products_between(photos, number, rng), products_between(photos, MORE, rng)
    queries = noisy(products[rng.integers(0, number, args.queries)], NOISE / 2, rng)
    catalog = create_catalog(folder, 'benchmark', photos.shape[1], kind=args.kind, codes=args.codes)
    build = seconds(lambda: catalog.add(products, names(0, number), names(0, number)))
    exact = nearest(queries, products, K).rows
    results = {'build_seconds': build, 'bytes_per_product': catalog.num_bytes / number}
    for effort in (args.effort // 2, args.effort, 2 * args.effort):
        found = catalog.search(queries, K, by='image', effort=effort).images
        rows = np.where(found == '', -1, found).astype(np.int64) - 4_000_000_000_000
        recall = np.mean([len({*one} & {*other}) / K for one, other in zip(rows.tolist(), exact.tolist(), strict=True)])
        results['recall_at_10' + ('' if effort == args.effort else f'_effort_{effort}')] = float(recall)
    results |= speeds(catalog, products, queries, args.effort)
    opened = [seconds(lambda: open_catalog(folder, verify=False)) for _ in range(9)]
    results['open_ms'] = 1e3 * statistics.median(opened)
    results['verify_ms'] = 1e3 * seconds(lambda: open_catalog(folder))
    results['add_seconds'] = seconds(lambda: catalog.add(more, names(number, MORE), names(number, MORE)))
    results['remove_seconds'] = seconds(lambda: catalog.remove(names(0, 10).to_pylist()))
    print(f'{number:,} products: ' + ', '.join(f'{name} {value:.4g}' for name, value in results.items()), flush=True)
    return results


def speeds(catalog: Catalog, products: np.ndarray, queries: np.ndarray, effort: int) -> dict[str, float]:
    """Return queries per second of both sides, together and one by one."""

    def ours() -> int:
        catalog.search(queries, K, by='image', effort=effort)
        return len(queries)

    def theirs() -> int:
        nearest(queries[:EXACT_QUERIES], products, K)
        return EXACT_QUERIES

    def one_by_one() -> int:
        for row in range(EXACT_QUERIES):
            catalog.search(queries[row : row + 1], K, effort=effort)
        return EXACT_QUERIES

    rates = alternate({'ours': ours, 'exact': theirs, 'one': one_by_one}, ROUNDS)
    return {
        'queries_per_second': rates['ours'],
        'queries_speedup': rates['ours'] / rates['exact'],
        'single_query_ms': 1e3 / rates['one'],
    }


def main() -> None:
    parser = new_parser('Approximate search in a catalog, compared with exact search.')
    parser.add_argument('--features', metavar='FILE', type=local_path, required=True, help='features of photos, .npy')
    for name, default in (('number', 1_000_000), ('width', 256), ('queries', 1000), ('effort', 384), ('seed', 0)):
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'default: {default}')
    parser.add_argument('--kind', choices=('auto', 'hnsw', 'ivfpq'), default='auto')
    parser.add_argument('--codes', choices=('float16', 'int8', 'binary'), default='float16')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir='.') as folder:
        small = measured(args, args.number // 10, Path(folder, 'small'))
        shutil.rmtree(Path(folder, 'small'))
        results = measured(args, args.number, Path(folder, 'catalog'))
    # The time of a query and of adding a product to a graph grow with the logarithm of its size.
    results['ten_times_gigabytes'] = results['bytes_per_product'] * 10 * args.number / 1e9
    for name, scale in (('queries_per_second', 1.0), ('build_seconds', args.number)):
        per_item = [1 / one[name] if scale == 1 else one[name] / count for one, count in
                    ((small, args.number / 10), (results, args.number))]  # fmt: skip
        larger = max(2 * per_item[1] - per_item[0], per_item[1])
        results[f'ten_times_{name}'] = 1 / larger if scale == 1 else larger * 10 * args.number
    assert all(map(math.isfinite, results.values()))
    finish(results, args.json)


if __name__ == '__main__':
    cli_main(main)
