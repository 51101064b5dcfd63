"""Accuracy of new classes that tools/enroll.py adds to a trained model from five images each, without training.

python benchmarks/enroll.py [--shots N] [--draws N] [--json FILE]

Five classes of the demo, of five families and with 6 to 100 training images, are left out. A model is trained on the
other 59 classes with configs/demo.yaml (three minutes on two cores) and re-balanced by tau_norm.py. tools/enroll.py
then adds the five classes to both models from some of their 16 validation and test images; the other images are for
evaluation. Repeated with other draws of the images. Results, means over draws: new_accuracy (held-out images of the new
classes, classified into all 64 classes, so chance is 0.016), old_accuracy_before and old_accuracy_after (test images of
the 59 classes, which are not used for any choice), old_loss (their difference), reported_loss (reported by the tool,
cross-fitted on validation images), and the same of the re-balanced model as tau_... All are means over classes. The
runs are in log/enroll_benchmark; the same command resumes them.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import finish, parse_arguments
from lib.commands.cli import cli_main
from lib.commands.predict_output import stem_name
from lib.demo.generate import SPLITS, generate_demo
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (6, 19, 32, 45, 58)
DEMO, FOLDER = ROOT / 'dataset' / 'demo', ROOT / 'log' / 'enroll_benchmark'


def write_lists(folder: Path) -> None:
    """Write folder/old (train, val and test of the 59 classes) and folder/new (val and test of the others)."""
    names = json.loads((DEMO / 'classes.json').read_text(encoding='utf-8'))['names']
    annotations = {
        split: json.loads((DEMO / f'converted_{split}.json').read_text(encoding='utf-8'))['annotations']
        for split in SPLITS
    }
    old = [label for label in range(len(names)) if label not in LEFT_OUT]
    lists = [('old', f'converted_{split}.json', old, annotations[split]) for split in SPLITS]
    lists.append(('new', 'images.json', list(LEFT_OUT), annotations['val'] + annotations['test']))
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


def enrolled(model: Path, prefix: str, num_shots: int, num_draws: int) -> dict[str, float]:
    """Return the results of a model, with `prefix` before their names."""
    before = accuracy_on_test(model, FOLDER)
    draws = []
    for seed in range(num_draws):
        out = FOLDER / f'{prefix}enrolled_{seed}'
        run(
            'tools/enroll.py', '--RESUME_MODEL', model, '--ENROLL_IMAGES', FOLDER / 'new' / 'images.json',
            '--ENROLL_PER_CLASS', num_shots, '--ENROLL_OUT', out, '--SEED', seed, '--OVERWRITE', True,
        )  # fmt: skip
        report = json.loads((out / 'enroll.json').read_text(encoding='utf-8'))
        after = accuracy_on_test(out / 'best_model.pth', FOLDER)
        draws.append((report['new']['after'], after, report['old']['before'] - report['old']['after']))
    new, after, reported = (statistics.mean(values) for values in zip(*draws, strict=True))
    return {
        f'{prefix}new_accuracy': new,
        f'{prefix}new_accuracy_worst_draw': min(values[0] for values in draws),
        f'{prefix}old_accuracy_before': before,
        f'{prefix}old_accuracy_after': after,
        f'{prefix}old_loss': before - after,
        f'{prefix}old_loss_worst_draw': before - min(values[1] for values in draws),
        f'{prefix}reported_loss': reported,
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
    finish(results, arguments.json)


if __name__ == '__main__':
    cli_main(main)
