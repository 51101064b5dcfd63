"""Accuracy of new classes from five images each, without training: by rows of the classifier, and by a catalog.

python benchmarks/enroll.py [--shots N] [--draws N] [--json FILE]

Five classes of the demo, of five families and with 6 to 100 training images, are left out. A model is trained on the
other 59 classes with configs/demo.yaml (three minutes on two cores) and re-balanced by tau_norm.py. tools/enroll.py
then adds the five classes to both models from some of their 16 validation and test images; the other images are for
evaluation. Repeated with other draws of the images. Results, means over draws: new_accuracy (held-out images of the new
classes, classified into all 64 classes, so chance is 0.016), old_accuracy_before and old_accuracy_after (test images of
the 59 classes, which are not used for any choice), old_loss (their difference), reported_loss (reported by the tool,
cross-fitted on validation images), and the same of the re-balanced model as tau_... All are means over classes.

index_... are those of the product of the nearest photo in a catalog of all training images of the 59 classes, to which
the same images of the new classes are added. known_accuracy_before and known_accuracy_after: the ten classes with the
fewest training images get four of their eight test images each; measured on the others. cluster_purity: all images of
the five classes, clustered without labels; cluster_purity_chance: of the same clusters with the images shuffled;
num_clusters, cluster_coverage: the fraction of images in clusters. The runs are in log/enroll_benchmark; the same
command resumes them.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import finish, parse_arguments
from lib.api import Model, load
from lib.catalog.catalog import Catalog, create_catalog
from lib.commands.cli import cli_main
from lib.commands.predict_output import stem_name
from lib.dataset.folder import sample_indices
from lib.demo.generate import SPLITS, generate_demo
from lib.errors import UserError
from lib.metrics.accuracy import mean_class_accuracy
from lib.posthoc.clusters import cluster_unknown, purity

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (6, 19, 32, 45, 58)
NUM_RARE, RARE_SHOTS, SHUFFLES = 10, 4, 100
DEMO, FOLDER = ROOT / 'dataset' / 'demo', ROOT / 'log' / 'enroll_benchmark'


def write_lists(folder: Path) -> None:
    """Write folder/old (train, val and test of the 59 classes), folder/new (val and test of the others), folder/rare.

    folder/rare has the test images of the old classes with the fewest training images.
    """
    names = json.loads((DEMO / 'classes.json').read_text(encoding='utf-8'))['names']
    annotations = {
        split: json.loads((DEMO / f'converted_{split}.json').read_text(encoding='utf-8'))['annotations']
        for split in SPLITS
    }
    old = [label for label in range(len(names)) if label not in LEFT_OUT]
    counts = np.bincount([entry['category_id'] for entry in annotations['train']], minlength=len(names))
    rare = sorted(old, key=lambda label: counts[label])[:NUM_RARE]
    lists = [('old', f'converted_{split}.json', old, annotations[split]) for split in SPLITS]
    lists.append(('new', 'images.json', list(LEFT_OUT), annotations['val'] + annotations['test']))
    lists.append(('rare', 'images.json', rare, annotations['test']))
    for subfolder, name, classes, entries in lists:
        new_labels = {label: number for number, label in enumerate(classes)}
        selected = [
            {'category_id': new_labels[entry['category_id']], 'fpath': str(DEMO / entry['fpath'])}
            for entry in entries
            if entry['category_id'] in new_labels
        ]
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        content = {'annotations': selected, 'num_classes': len(classes)}
        (folder / subfolder / name).write_text(json.dumps(content), encoding='utf-8')
        class_names = {'names': [names[label] for label in classes]}
        (folder / subfolder / 'classes.json').write_text(json.dumps(class_names), encoding='utf-8')


def run(script: str, *options: object) -> None:
    """Run a script of this project. Raises: UserError."""
    if subprocess.run([sys.executable, str(ROOT / script), *map(str, options)], check=False, cwd=ROOT).returncode:
        raise UserError(f'{script} failed, see its output above; run the same command to resume')


def accuracy_on_test(model: Path, folder: Path) -> float:
    """Return the mean accuracy of old classes on their test images."""
    run('test.py', '--RESUME_MODEL', model, '--DATASET_TEST_JSON', folder / 'old' / 'converted_test.json')
    metrics = json.loads(
        model.with_name(f'{stem_name(model, "converted_test")}.metrics.json').read_text(encoding='utf-8')
    )
    return 1 - metrics['mean_class_error']


def enroll(model: Path, images: Path, out: Path, *, per_class: int, seed: int) -> dict:
    """Run tools/enroll.py, and return its report."""
    run(
        'tools/enroll.py', '--RESUME_MODEL', model, '--ENROLL_IMAGES', images, '--ENROLL_PER_CLASS', per_class,
        '--ENROLL_OUT', out, '--SEED', seed, '--OVERWRITE', True,
    )  # fmt: skip
    return json.loads((out / 'enroll.json').read_text(encoding='utf-8'))


def enrolled(model: Path, prefix: str, num_shots: int, num_draws: int) -> dict[str, float]:
    """Return the results of a model, with `prefix` before their names."""
    before = accuracy_on_test(model, FOLDER)
    draws = []
    for seed in range(num_draws):
        out = FOLDER / f'{prefix}enrolled_{seed}'
        report = enroll(model, FOLDER / 'new' / 'images.json', out, per_class=num_shots, seed=seed)
        after = accuracy_on_test(out / 'best_model.pth', FOLDER)
        draws.append((report['new']['after'], after, report['old']['before'] - report['old']['after']))
    new, after, reported = (statistics.mean(values) for values in zip(*draws, strict=True))
    out = FOLDER / f'{prefix}known'
    known = [
        enroll(model, FOLDER / 'rare' / 'images.json', out, per_class=RARE_SHOTS, seed=s) for s in range(num_draws)
    ]
    return {
        f'{prefix}new_accuracy': new,
        f'{prefix}new_accuracy_worst_draw': min(values[0] for values in draws),
        f'{prefix}old_accuracy_before': before,
        f'{prefix}old_accuracy_after': after,
        f'{prefix}old_loss': before - after,
        f'{prefix}old_loss_worst_draw': before - min(values[1] for values in draws),
        f'{prefix}reported_loss': reported,
        f'{prefix}known_accuracy_before': statistics.mean(one['known']['before'] for one in known),
        f'{prefix}known_accuracy_after': statistics.mean(one['known']['after'] for one in known),
        f'{prefix}known_reported_loss': statistics.mean(one['old']['before'] - one['old']['after'] for one in known),
    }


def features_of(model: Model, file: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return features (n, d) and labels (n,) of the images of an annotation file, and the names of its classes."""
    entries = json.loads(file.read_text(encoding='utf-8'))['annotations']
    names = json.loads(file.with_name('classes.json').read_text(encoding='utf-8'))['names']
    return model.features([entry['fpath'] for entry in entries]), np.array([e['category_id'] for e in entries]), names


def accuracy_in(catalog: Catalog, features: np.ndarray, labels: np.ndarray, names: list[str]) -> float:
    """Return the mean class accuracy of the product of the nearest photo."""
    found = catalog.search(features, 1).products[:, 0]
    return mean_class_accuracy(labels, found == np.array(names, object)[labels])


def indexed(path: Path, num_shots: int, num_draws: int) -> dict[str, float]:
    """Return the results of a catalog with features of a model, and of clusters of all images of the new classes."""
    model = load(path)
    train, test = (features_of(model, FOLDER / 'old' / f'converted_{split}.json') for split in ('train', 'test'))
    features, labels, names = features_of(model, FOLDER / 'new' / 'images.json')
    draws = []
    for seed in range(num_draws):
        shutil.rmtree(FOLDER / 'catalog', ignore_errors=True)
        catalog = create_catalog(FOLDER / 'catalog', model.version, model.num_features)
        catalog.add(train[0], [train[2][label] for label in train[1]], list(map(str, range(len(train[1])))))
        before = accuracy_in(catalog, *test)
        rows = np.concatenate([  # those that tools/enroll.py draws
            members[sample_indices(len(members), name, num_shots, seed)]
            for label, name in enumerate(names)
            for members in [np.flatnonzero(labels == label)]
        ])  # fmt: skip
        catalog.add(features[rows], [names[label] for label in labels[rows]], [f'new {row}' for row in rows])
        held = np.setdiff1d(np.arange(len(labels)), rows)
        draws.append((accuracy_in(catalog, features[held], labels[held], names), before, accuracy_in(catalog, *test)))
    new, before, after = (statistics.mean(values) for values in zip(*draws, strict=True))
    valid = features_of(model, FOLDER / 'old' / 'converted_val.json')
    clusters = cluster_unknown(features, *valid[:2])
    random = np.random.default_rng(0)
    return {
        'index_new_accuracy': new,
        'index_new_accuracy_worst_draw': min(values[0] for values in draws),
        'index_old_accuracy_before': before,
        'index_old_accuracy_after': after,
        'cluster_purity': purity(clusters.numbers, labels),
        'cluster_purity_chance': statistics.mean(
            purity(random.permutation(clusters.numbers), labels) for _ in range(SHUFFLES)
        ),
        'num_clusters': len(clusters.sizes),
        'cluster_coverage': float((clusters.numbers >= 0).mean()),
    }


def main() -> None:
    title = __doc__.splitlines()[0]
    arguments = parse_arguments(title, shots=(5, 'images per new class'), draws=(5, 'draws of these images'))
    generate_demo(DEMO, seed=0)
    write_lists(FOLDER)
    run(
        'main.py', '--config', 'configs/demo.yaml', '--DATASET_NAME', 'annotations', '--DATASET_ROOT', DEMO,
        '--DATASET_TRAIN_JSON', FOLDER / 'old' / 'converted_train.json',
        '--DATASET_VALID_JSON', FOLDER / 'old' / 'converted_val.json',
        '--LOG_ROOT', FOLDER / 'log', '--RESUME_MODEL', 'last',
    )  # fmt: skip
    model, balanced = (FOLDER / root / 'demo' / 'best_model.pth' for root in ('log', 'log_tau'))
    run('tau_norm.py', '--RESUME_MODEL', model, '--TAU_NORM_LOG_ROOT', balanced.parents[1], '--OVERWRITE', True)
    results = enrolled(model, '', arguments.shots, arguments.draws)
    results |= enrolled(balanced, 'tau_', arguments.shots, arguments.draws)
    results |= indexed(model, arguments.shots, arguments.draws)
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
