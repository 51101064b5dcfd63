"""Which training and which search find photos of the same product: recall@1 and mAP@R of validation photos.

python benchmarks/search_quality.py --log FOLDER [--recipes softmax arcface sub_center] [--seeds 3] [--frozen]
    [--json FILE] [--config configs/own_photos.yaml] --DATASET_ROOT photos [--SECTION_KEY VALUE ...]

Trains each recipe with each seed as LOG/RECIPE_SEED by main.py with the other options; a run that is there already is
only measured. --frozen: trains an embedding of 256 numbers on the stored outputs of the frozen backbone, in seconds,
instead of fine-tuning. Each model is searched as it is (features), with whitening, with query expansion, with
k-reciprocal re-ranking, and with whitening and each of them; the gallery is the training split.

A row of the table is the mean over seeds, in percent; after +- is the standard deviation over seeds. `new products`:
the photos of every fourth class, for whitening that is fitted without these classes.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import finish, new_parser
from lib.builders.data import open_training_data
from lib.builders.features import cached_features
from lib.commands.cli import cli_main, read_command
from lib.commands.loaded_model import LoadedModel, load_model, split_features
from lib.config.options import local_path
from lib.errors import UserError
from lib.inference.engine import EagerEngine
from lib.inference.neighbors import Search, neighbor_blocks
from lib.inference.reranking import METHODS, reranked_search
from lib.inference.retrieval import retrieval_metrics
from lib.inference.whitening import fit_whitening

ROOT = Path(__file__).resolve().parents[1]
_SUB_CENTER = 'configs/method/sub_center_arcface.yaml'
# Method files and options beside the config.
RECIPES: Mapping[str, tuple[list[str], list[str]]] = {
    'softmax': ([], []),
    'arcface': (['configs/method/arcface.yaml'], []),
    'sub_center': ([_SUB_CENTER], []),
    'gem': ([], ['--MODEL_POOL', 'gem']),
    'sub_center_gem': ([_SUB_CENTER], ['--MODEL_POOL', 'gem']),
    'multi_similarity': ([_SUB_CENTER, 'configs/method/multi_similarity.yaml'], []),
}
_FROZEN = [
    *('--MODEL_EMBEDDING', '256', '--MODEL_TUNE', 'head', '--TRAIN_FEATURES', 'cached', '--TRAIN_MAX_EPOCH', '20'),
    *('--INPUT_TRAIN_TRANSFORM', 'center_crop', '--INPUT_FLIP_PROBABILITY', '0'),
    *('--INPUT_SIZE', '160', '--INPUT_TEST_SIZE', '0'),
]
NEW = 4  # every fourth class is new
Split = tuple[np.ndarray, np.ndarray]  # features (n, d) and labels (n,)


def train(args: argparse.Namespace, recipe: str, seed: int, options: list[str]) -> Path:
    """Train a recipe by main.py unless it is trained, and return its checkpoint."""
    name, (methods, own) = f'{recipe}_{seed}', RECIPES[recipe]
    if not (args.log / name / 'report.html').exists():
        command = [
            sys.executable,
            'main.py',
            '--config',
            args.config,
            *methods,
            *(_FROZEN if args.frozen else []),
            *own,
        ]
        command += ['--LOG_ROOT', str(args.log), '--NAME', name, '--SEED', str(seed), '--OVERWRITE', 'True', *options]
        subprocess.run(command, cwd=ROOT, check=True)
    return args.log / name / 'best_model.pth'


def features(trained: LoadedModel) -> tuple[Split, Split]:
    """Return the readable training and validation images; those of a frozen backbone need no pass over the images."""
    data = open_training_data(trained.cfg).in_class_order(trained.class_names)
    if data.valid is None:
        raise UserError('there is no labeled validation split: give --DATASET_VALID_JSON FILE')
    if trained.cfg.TRAIN.FEATURES == 'cached':
        stored = cached_features(trained.cfg, data, trained.model, trained.device, trained.group)
        found = [stored.train[0], stored.valid]
    else:
        found = [split_features(trained, data.train, 'train'), split_features(trained, data.valid, 'valid')]
    splits = []
    for one in found:
        assert one is not None
        values = np.asarray(one.values, np.float32)
        if trained.cfg.TRAIN.FEATURES == 'cached':
            with EagerEngine(trained.model).inference():
                batches = [
                    trained.model.from_backbone(x).cpu().numpy() for x, _, _ in one.batches(4096, trained.device.main)
                ]
            values = np.concatenate(batches)
        splits.append((values[one.readable], one.labels[one.readable]))
    return splits[0], splits[1]


def searched(gallery: Split, queries: Split) -> dict[str, dict[str, float]]:
    """Return retrieval metrics, averaged over images, by the way of search."""
    whitening = fit_whitening(*gallery)
    spaces = {'': (queries[0], gallery[0]), 'whitened': (whitening(queries[0]), whitening(gallery[0]))}
    results = {}
    for space, (of_queries, of_gallery) in spaces.items():
        searches: dict[str, Search] = {'': neighbor_blocks}
        searches |= {method: reranked_search(method, of_gallery) for method in METHODS}
        for method, search in searches.items():
            found = retrieval_metrics(of_queries, queries[1], of_gallery, gallery[1], search=search)
            results[' '.join(filter(None, (space, method))) or 'features'] = found.images
    is_new = queries[1] % NEW == 0
    known = gallery[1] % NEW != 0
    if is_new.any() and known.any():
        fitted = fit_whitening(gallery[0][known], gallery[1][known])
        labels = (queries[1][is_new], gallery[1])
        plain = retrieval_metrics(queries[0][is_new], labels[0], gallery[0], labels[1]).images
        better = retrieval_metrics(fitted(queries[0][is_new]), labels[0], fitted(gallery[0]), labels[1]).images
        results |= {'features, new products': plain, 'whitened, new products': better}
    return results


def main() -> None:
    parser = new_parser(__doc__.partition('\n')[0])
    parser.add_argument('--log', type=local_path, required=True, help='folder of the runs')
    parser.add_argument('--config', default='configs/own_photos.yaml', help='YAML file of the data and the recipe')
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=['softmax', 'arcface', 'sub_center'])
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='runs of each recipe')
    parser.add_argument('--frozen', action='store_true', help='train an embedding on the frozen backbone')
    args, options = parser.parse_known_args()
    figures: dict[str, float] = {}
    print(f'{"recipe":<18}{"search":<28}{"recall@1":>16}{"mAP@R":>16}')
    for recipe in args.recipes:
        rows: dict[str, list[tuple[float, float]]] = {}
        for seed in range(args.seeds):
            path = str(train(args, recipe, seed, options))
            argv = ['--RESUME_MODEL', path, '--LOG_ROOT', str(args.log), *options]
            trained = load_model(read_command(argv, program='tools/search.py', needs_model=True))
            for name, metrics in searched(*features(trained)).items():
                rows.setdefault(name, []).append((100 * metrics['recall@1'], 100 * metrics['map@r']))
        for name, values in rows.items():
            means, deviations = np.mean(values, axis=0), np.std(values, axis=0, ddof=min(1, len(values) - 1))
            cells = ''.join(f'{f"{mean:.1f} +- {off:.1f}":>16}' for mean, off in zip(means, deviations, strict=True))
            print(f'{recipe:<18}{name:<28}{cells}', flush=True)
            key = f'{recipe} {name}'.replace(',', '').replace(' ', '_')
            figures |= {f'{key}_recall_at_1': float(means[0]), f'{key}_map_at_r': float(means[1])}
    finish(figures, args.json)


if __name__ == '__main__':
    cli_main(main)
