"""Every command that writes files, with options by which it writes all kinds of its files.

A case runs in a folder with goods/ (a small converted data set), shop/ (class folders), more/ (further class folders),
downloads/ (an archive of AliProducts) and log/tiny (a finished run on goods/).
"""

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.sharded import ClassifierShard
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from lib.trainer.run_folder import RunFolder
from tests.aliproducts import draw_product, make_aliproducts
from tests.scripts.running import ON_CPU, REPOSITORY, TINY

NEW_RUN = ('--config', TINY, '--DATASET_ROOT', 'goods', '--NAME', 'new', '--TRAIN_SAVE_EVERY_EPOCHS', 1,
           '--TRAIN_KEEP_EPOCHS', 1)  # fmt: skip
LAST = ('--RESUME_MODEL', 'last')
BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
PREDICT = (*BEST, '--TEST_TOP_K', 2, '--TEST_EMBEDDINGS', True, '--TEST_PRODUCTS', 'folder', '--TEST_ABSTAIN_ERROR',
           0.5, '--DATASET_TEST_JSON', 'goods/converted_val.json', '--TEST_CONTACT_SHEET', True,
           '--TEST_REJECT_UNKNOWN', 0.5)  # fmt: skip
DEMO = ('--config', TINY, '--DATASET_NAME', 'demo', '--DATASET_ROOT', 'demo', '--TRAIN_MAX_EPOCH', 0)
CACHED = ('--config', TINY, '--DATASET_ROOT', 'goods', '--NAME', 'head', '--MODEL_TUNE', 'head', '--TRAIN_FEATURES',
          'cached')  # fmt: skip
SHOP = ('--DATASET_ROOT', 'shop/train', '--INPUT_SIZE', 32, '--INPUT_TEST_SIZE', 32, *ON_CPU)
PACK = ('--config', TINY, '--DATASET_ROOT', 'goods', '--PACK_OUT', 'packed', '--PACK_SHARD_IMAGES', 8)
ENROLL = (*BEST, '--ENROLL_IMAGES', 'more/train', '--ENROLL_PER_CLASS', 2, '--ENROLL_MAX_LOSS', 1)
PSEUDO = (*BEST, '--PSEUDO_IMAGES', 'shop', '--PSEUDO_ERROR', 0.9, '--PSEUDO_OUT', 'pseudo/train.json')
INDEX = ('tools/index.py', *BEST, '--INDEX_DIMENSIONS', 4)
INT8 = ('--EXPORT_PRECISION', 'int8', '--EXPORT_MAX_LOSS', 1)
GRID = ('--base', TINY, '--methods', 'ce,focal', '--seeds', 1, '--out', 'grid', '--overlays', 'repository/overlays',
        '--options', '--DATASET_ROOT goods --TRAIN_MAX_EPOCH 1 --RUN_DEVICE cpu', '--json', 'more.json')  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line, by which a script writes files.

    Attributes:
        argv: the script (in the repository, unless it is one that `prepare` puts into the folder) and its options.
        before: command lines that run first.
        prepare: further files.
        patch: as in inject.py.
        report: write report.html, which takes a second.
        resume: (checkpoints, argv): the command line that resumes a run once it has a checkpoint; else it is `argv`.
        allowed: names that the second command may leave, besides those of an undisturbed one.
    """

    argv: tuple
    before: tuple[tuple, ...] = ()
    prepare: Callable[[Path], None] | None = None
    patch: dict = field(default_factory=dict)
    report: bool = False
    resume: tuple[str, tuple] = ('', ())
    allowed: str = r'(?!)'


def copy_tools(folder: Path) -> None:
    """Copy scripts that write into their own repository."""
    for name in ('tools/get_dataset.py', 'tools/convert.py', 'tools/options.py'):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / 'docs').mkdir()


def shard_classifier(folder: Path) -> None:
    """Write the run's last checkpoint again as that of two ranks that share the classifier."""
    checkpoint = read_checkpoint(folder / 'log' / 'tiny' / 'last.pth')
    names = [name for name in checkpoint.state_dict if name.startswith('classifier.')]
    rows = {name: checkpoint.state_dict.pop(name) for name in names}
    whole = replace(checkpoint, optimizer=checkpoint.optimizer | {'rows': {}})
    for rank, classes in ((1, range(2, 3)), (0, range(2))):
        shard = {name: values[classes.start : classes.stop] for name, values in rows.items()}
        shard = ClassifierShard(shard, classes, 3, rank, 2)
        RunFolder(folder / 'log' / 'sharded', writes=rank == 0).save(replace(whole, classifier_shard=shard))


def fake_repository(folder: Path) -> None:
    """Write the fake scripts of a grid, which train nothing."""
    for script in ('main.py', 'test.py', 'tau_norm.py'):
        (folder / 'repository' / 'overlays').mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / 'tests' / 'experiments' / 'fakes.py', folder / 'repository' / script)
    for name in ('ce', 'focal'):
        (folder / 'repository' / 'overlays' / f'{name}.yaml').write_text('')
    training_set = TrainingSet('digest', np.array([3, 1]), ['a', 'b'], [])
    weights = {'classifier.weight': torch.zeros(2, 1)}
    done = Checkpoint(weights, '', {}, TrainProgress(epoch=1), training_set, optimizer={})
    write_checkpoint(folder / 'repository' / 'done.pth', done)


# Script -> name of the case -> case.
CASES: dict[str, dict[str, Case]] = {
    'main.py': {
        'new': Case(('main.py', *NEW_RUN, *LAST), report=True),
        'plain': Case(('main.py', *NEW_RUN), resume=('log/new/*.pth', ('main.py', *NEW_RUN, *LAST))),
        # Checkpoints are never removed without a request: OVERWRITE renames those of the interrupted run.
        'overwrite': Case(
            ('main.py', *NEW_RUN, '--NAME', 'tiny', '--TRAIN_MAX_EPOCH', 1, '--OVERWRITE', True),
            allowed='log/tiny_old_2',
        ),
        'cached features': Case(
            ('main.py', *BEST, *CACHED, '--RESUME_MODE', 'finetune'),
            resume=('log/head/*.pth', ('main.py', *CACHED, *LAST, *ON_CPU)),
        ),
        'class folders': Case(('main.py', *NEW_RUN, *LAST, '--DATASET_ROOT', 'shop/train', '--TRAIN_MAX_EPOCH', 1)),
        'demo data': Case(
            ('main.py', *DEMO),
            resume=('log/demo/*.pth', ('main.py', *DEMO, *LAST)),
            patch={
                'lib.demo.generate:_MAX_WORKERS': 1,
                'lib.demo.generate:LARGEST': 3,
                'lib.demo.generate:EVALUATION': 1,
            },
        ),
    },
    'test.py': {
        'split': Case(('test.py', *PREDICT)),
        'again': Case(('test.py', *PREDICT), before=(('test.py', *PREDICT, '--TEST_FLIP', True),)),
        'part': Case(('test.py', *PREDICT, '--TEST_PART', '1/2')),
        'merge': Case(
            ('test.py', *PREDICT, '--TEST_PART', 'merge/2'),
            before=tuple(('test.py', *PREDICT, '--TEST_PART', f'{part}/2') for part in (1, 2)),
            # A merge that has removed its parts cannot be repeated: the next command removes what it left of them.
            allowed=r'log/tiny/\.predictions_.*\.tmp\.partial',
        ),
    },
    'tau_norm.py': {
        'new': Case(('tau_norm.py', *BEST), report=True),
        'overwrite': Case(('tau_norm.py', *BEST, '--OVERWRITE', True), before=(('tau_norm.py', *BEST),)),
    },
    'tools/convert.py': {
        'new': Case(('tools/convert.py', 'imagefolder', 'shop', 'set')),
        'again': Case(
            ('tools/convert.py', 'imagefolder', 'more', 'set'),
            before=(('tools/convert.py', 'imagefolder', 'shop', 'set'),),
        ),
        'append': Case(
            ('tools/convert.py', 'imagefolder', 'more', 'set', '--append'),
            before=(('tools/convert.py', 'imagefolder', 'shop', 'set'),),
        ),
    },
    'tools/get_dataset.py': {
        'archive': Case(('tools/get_dataset.py', 'AiProducts', 'downloads'), prepare=copy_tools),
        'links': Case(('tools/get_dataset.py', 'AiProducts', 'unpacked'), prepare=copy_tools),
    },
    'tools/pack.py': {
        'copy': Case(('tools/pack.py', *PACK, '--PACK_IMAGES', 'copy')),
        'overwrite': Case(('tools/pack.py', *PACK, '--OVERWRITE', True), before=(('tools/pack.py', *PACK),)),
    },
    'tools/clean.py': {
        'relabel': Case(('tools/clean.py', *BEST, '--CLEAN_ROUNDS', 2, '--CLEAN_APPLY', 'relabel')),
        'no model': Case(('tools/clean.py', *SHOP, '--CLEAN_HEAD', 'cosine')),
    },
    'tools/doctor.py': {'new': Case(('tools/doctor.py', '--config', TINY, '--DATASET_ROOT', 'goods'))},
    'tools/enroll.py': {
        'new': Case(('tools/enroll.py', *ENROLL)),
        'overwrite': Case(('tools/enroll.py', *ENROLL, '--OVERWRITE', True), before=(('tools/enroll.py', *ENROLL),)),
        'propose': Case(('tools/enroll.py', *BEST, '--ENROLL_PROPOSE', 'more/train')),
        'index': Case(('tools/enroll.py', *ENROLL, '--ENROLL_INDEX', 'log/tiny/catalog'), before=(INDEX,)),
    },
    'tools/export.py': {
        # Killed right before its end, it leaves a lock of complete files; the next command that writes removes it.
        name: Case(('tools/export.py', *BEST, '--EXPORT_FORMAT', *options), allowed=r'log/tiny/\.files\.lock')
        for name, options in {
            'onnx': ('onnx',),
            'openvino': ('openvino',),
            'int8': ('openvino', *INT8),
            'torch_export': ('torch_export',),
            'safetensors': ('safetensors',),
        }.items()
    }
    | {
        # The same files again: a kill leaves the old ones or the new ones, never one of each.
        'overwrite': Case(
            ('tools/export.py', *BEST, '--EXPORT_FORMAT', 'openvino', '--OVERWRITE', True),
            before=(('tools/export.py', *BEST, '--EXPORT_FORMAT', 'openvino'),),
        ),
        'second file': Case(
            ('tools/export.py', *BEST, '--EXPORT_FORMAT', 'onnx'),
            patch={'lib.export.formats:MAX_ONNX_BYTES': 1000},
            allowed=r'log/tiny/\.files\.lock',
        ),
    },
    'tools/index.py': {
        'new': Case(INDEX),
        'add': Case((*INDEX, '--INDEX_ADD', 'more/train'), before=(INDEX,)),
        # tests/catalog/test_kills.py has large segments, whose graphs differ from run to run.
        'remove and add': Case((*INDEX, '--INDEX_REMOVE', '1', '--INDEX_ADD', 'more/train'), before=(INDEX,)),
    },
    'tools/merge.py': {
        'new': Case(('tools/merge.py', '--RESUME_MODEL', 'log/sharded/last.pth'), prepare=shard_classifier)
    },
    'tools/posthoc.py': {'new': Case(('tools/posthoc.py', *BEST, '--POSTHOC_FOLDS', 2))},
    'tools/pseudo_label.py': {
        'new': Case(('tools/pseudo_label.py', *PSEUDO)),
        'again': Case(
            ('tools/pseudo_label.py', *PSEUDO), before=(('tools/pseudo_label.py', *PSEUDO, '--TEST_FLIP', True),)
        ),
    },
    'tools/report.py': {'new': Case(('tools/report.py', *BEST, '--REPORT_JSON', True), report=True)},
    'tools/search.py': {
        'csv': Case(
            ('tools/search.py', *BEST, '--SEARCH_CSV', 'found.csv', '--DATASET_TEST_JSON', 'goods/converted_val.json')
        )
    },
    'tools/compare.py': {'new': Case(('tools/compare.py', 'log/tiny', 'log/tiny/last.pth', *ON_CPU))},
    'tools/grid.py': {
        'new': Case(
            ('tools/grid.py', *GRID),
            prepare=fake_repository,
            patch={'lib.experiments.grid:REPOSITORY': 'repository'},
        )
    },
    'tools/gallery.py': {'new': Case(('tools/gallery.py',), patch={'lib.experiments.gallery:GALLERY': 'methods.md'})},
    'tools/options.py': {'new': Case(('tools/options.py',), prepare=copy_tools)},
}

# Scripts that write nothing, with a command line.
READ_ONLY = {
    'tools/plan.py': ('--config', TINY, '--DATASET_ROOT', 'goods', '--PLAN_NUM_CLASSES', 1000),
    'tools/summary.py': ('--config', TINY, '--NAME', 'tiny'),
}

# It runs until it is stopped; tests/service/test_feedback.py kills it while it stores feedback.
ENDLESS = {'tools/serve.py'}


def all_cases() -> list[tuple[str, str]]:
    """Return (script, name) of all cases."""
    return [(script, name) for script, cases in CASES.items() for name in cases]


def scripts_on_disk() -> set[str]:
    """Return the commands of the repository."""
    tools = {f'tools/{path.name}' for path in (REPOSITORY / 'tools').glob('*.py')}
    return tools | {path.name for path in REPOSITORY.glob('*.py')}


def make_inputs(folder: Path) -> None:
    """Write shop/, more/, unpacked/, downloads/ and goods/, which is not converted yet."""
    random = np.random.default_rng(5)
    for root, classes in (('shop', ('ale', 'bread')), ('more', ('bread', 'cheese'))):
        for split, number in (('train', 3), ('val', 2)):
            for label, name in enumerate(classes):
                (folder / root / split / name).mkdir(parents=True)
                for image in range(number):
                    path = folder / root / split / name / f'{root}_{image}.jpg'
                    draw_product(label, 3, 32, random).save(path, quality=90)
    for root in ('goods', 'unpacked'):
        make_aliproducts(folder / root, 3, (5, 4, 3), valid_per_class=2, num_test=2, size=32)
    (folder / 'downloads').mkdir()
    with tarfile.open(folder / 'downloads' / 'train.tar.gz', 'w:gz') as archive:
        for path in sorted((folder / 'unpacked').iterdir()):
            archive.add(path, path.name)


def read_lines(path: Path) -> list:
    """Return the objects of a file with one JSON value per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]
