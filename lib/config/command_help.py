"""The options that --help shows for each command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandHelp:
    """One command's part of the config tree.

    Attributes:
        own: sections that --help shows in full.
        most_used: further keys that it shows.
        sections: all sections that the command uses.
    """

    own: tuple[str, ...]
    most_used: tuple[str, ...]
    sections: tuple[str, ...]


_RUN = ('NAME', 'LOG_ROOT')
_CHECKPOINT = ('RESUME_MODEL', *_RUN)
_DATA = ('DATASET.NAME', 'DATASET.ROOT', 'DATASET.TRAIN_JSON', 'DATASET.VALID_JSON')
_MACHINE = ('RUN.DEVICE', 'RUN.NUM_WORKERS')
_METHOD = (
    'INPUT.SIZE',
    'SAMPLER.TYPE',
    'MODEL.BACKBONE',
    'MODEL.PRETRAINED',
    'MODEL.CLASSIFIER',
    'LOSS.TYPE',
    'LOSS.CLASS_WEIGHTS',
    'MIX.TYPE',
    'OPTIMIZER.TYPE',
    'OPTIMIZER.LR',
    'SCHEDULE.TYPE',
)
_RECIPE = ('DATASET', 'INPUT', 'SAMPLER', 'MODEL', 'LOSS', 'MIX', 'OPTIMIZER', 'SCHEDULE', 'TRAIN')
_INFERENCE = ('DATASET', 'INPUT', 'MODEL', 'TEST', 'RUN')
_EVALUATION = (*_CHECKPOINT, 'DATASET.ROOT', 'DATASET.VALID_JSON', 'TEST.BATCH_SIZE', *_MACHINE)

COMMANDS: dict[str, CommandHelp] = {
    'main.py': CommandHelp(
        ('TRAIN',),
        ('NAME', 'LOG_ROOT', 'SEED', 'RESUME_MODEL', 'RESUME_MODE', 'OVERWRITE', *_DATA, *_METHOD, *_MACHINE),
        (*_RECIPE, 'LOG', 'TEST', 'REPORT', 'RUN'),
    ),
    'test.py': CommandHelp(
        ('TEST',),
        (*_CHECKPOINT, 'DATASET.ROOT', 'DATASET.TEST_JSON', 'DATASET.TEST_ROOT', 'INPUT.TEST_SIZE', *_MACHINE),
        _INFERENCE,
    ),
    'tau_norm.py': CommandHelp(('TAU_NORM',), (*_EVALUATION, 'OVERWRITE'), ('TAU_NORM', *_INFERENCE, 'REPORT')),
    'tools/doctor.py': CommandHelp(('DOCTOR',), (*_RUN, *_DATA, 'RUN.NUM_WORKERS'), ('DOCTOR', 'DATASET', 'RUN')),
    'tools/clean.py': CommandHelp(
        ('CLEAN',),
        (*_CHECKPOINT, 'SEED', *_DATA, 'MODEL.BACKBONE', 'MODEL.PRETRAINED', *_MACHINE),
        ('CLEAN', *_INFERENCE),
    ),
    'tools/enroll.py': CommandHelp(('ENROLL',), (*_EVALUATION, 'SEED', 'OVERWRITE'), ('ENROLL', *_INFERENCE)),
    'tools/export.py': CommandHelp(('EXPORT',), (*_CHECKPOINT, 'OVERWRITE'), ('EXPORT', *_INFERENCE)),
    'tools/index.py': CommandHelp(('INDEX',), (*_EVALUATION, 'DATASET.TRAIN_JSON'), ('INDEX', *_INFERENCE)),
    'tools/pseudo_label.py': CommandHelp(
        ('PSEUDO',), (*_EVALUATION, 'DATASET.TRAIN_JSON', 'OVERWRITE'), ('PSEUDO', *_INFERENCE)
    ),
    'tools/pack.py': CommandHelp(
        ('PACK',),
        ('OVERWRITE', *_DATA, 'DATASET.TEST_JSON', 'DATASET.TEST_ROOT', 'RUN.NUM_WORKERS'),
        ('PACK', 'DATASET', 'INPUT', 'RUN'),
    ),
    'tools/plan.py': CommandHelp(
        ('PLAN',),
        ('DATASET.TRAIN_JSON', 'TRAIN.BATCH_SIZE', 'TRAIN.DEVICE_BATCH_SIZE', *_METHOD, 'RUN.PRECISION'),
        ('PLAN', *_RECIPE, 'RUN'),
    ),
    'tools/posthoc.py': CommandHelp(('POSTHOC',), (*_EVALUATION, 'OVERWRITE'), ('POSTHOC', 'TAU_NORM', *_INFERENCE)),
    'tools/report.py': CommandHelp(('REPORT',), _EVALUATION, ('REPORT', *_INFERENCE)),
    'tools/search.py': CommandHelp(
        ('SEARCH',), (*_EVALUATION, 'DATASET.TRAIN_JSON', 'DATASET.TEST_JSON'), ('SEARCH', *_INFERENCE)
    ),
    'tools/serve.py': CommandHelp(('SERVE',), (*_CHECKPOINT, *_MACHINE), ('SERVE', *_INFERENCE)),
    'tools/summary.py': CommandHelp((), (*_RUN, 'TAU_NORM.LOG_ROOT'), ('TAU_NORM',)),
}
