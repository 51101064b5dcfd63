"""Cost of int8 and bf16, compared with float32, for classes with many, medium and few training images.

python benchmarks/precision_cost.py RUN [RUN ...] [--precisions PRECISION ...] [--json FILE] [--options OPTIONS]

RUN is a run folder or a checkpoint; its validation split is that of the run. The features are computed by OpenVINO, in
bf16, and in int8 that is calibrated on training images; the classifier stays in float32. Results, per run and
precision: NAME_int8_loss, the increase of the mean class error (a fraction), NAME_int8_low and NAME_int8_high, the ends
of its paired 95 % interval, and the same of the groups as NAME_int8_many_loss. worst_int8_loss: that of the worst run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import finish, new_parser
from lib.commands.cli import cli_main, read_command
from lib.commands.loaded_model import load_model, split_features
from lib.inference.run import classify_features
from lib.metrics.precision_cost import ALL, PrecisionCost, precision_cost
from lib.runtime.log import print_lines

PRECISIONS = ('bf16', 'int8')


def costs_of(path: Path, precisions: list[str], options: list[str]) -> dict[str, PrecisionCost]:
    """Return the cost of each precision for a model."""
    words = ['--RESUME_MODEL', str(path), '--RUN_ENGINE', 'openvino', '--RUN_DEVICE', 'cpu', *options]
    trained = load_model(read_command(words, program='test.py', needs_model=True))
    valid = trained.valid
    before, *after = (
        classify_features(trained.engine, split_features(trained, valid, 'valid', precision=precision))
        for precision in ('float32', *precisions)
    )
    found = [precision_cost(before, one, trained.train_counts) for one in after]
    return dict(zip(precisions, found, strict=True))


def figures_of(name: str, cost: PrecisionCost) -> dict[str, float]:
    """Return the results of a run and precision."""
    results = {}
    for group, values in cost.groups.items():
        key = name if group == ALL else f'{name}_{group}'
        low, high = values.interval
        results |= {f'{key}_loss': values.difference, f'{key}_low': low, f'{key}_high': high}
    return results


def main() -> None:
    parser = new_parser('Measure the cost of int8 and bf16 on the validation split of trained models.')
    parser.add_argument('runs', nargs='+', metavar='RUN', type=Path, help='run folder or checkpoint')
    parser.add_argument('--precisions', nargs='+', choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument('--options', default='', help='options of test.py, such as --options="--DATASET_ROOT photos"')
    arguments = parser.parse_args()
    results: dict[str, float] = {}
    worst = dict.fromkeys(arguments.precisions, float('-inf'))
    for run in arguments.runs:
        path = run / 'best_model.pth' if run.is_dir() else run
        costs = costs_of(path, arguments.precisions, arguments.options.split())
        for precision, cost in costs.items():
            print_lines(['', path.parent.name, *cost.lines(precision)])
            results |= figures_of(f'{path.parent.name}_{precision}', cost)
            worst[precision] = max(worst[precision], cost.loss)
    finish(results | {f'worst_{precision}_loss': loss for precision, loss in worst.items()}, arguments.json)


if __name__ == '__main__':
    cli_main(main)
