import numpy as np
import pytest
from PIL import Image

from lib.errors import UserError
from lib.metrics.class_report import detailed_metrics
from lib.metrics.predictions import Predictions
from lib.report.comparison import comparison_lines, draw_comparison

TRAIN_COUNTS = np.array([900] * 10 + [50] * 10 + [5] * 20)
LABELS = np.repeat(np.arange(40), 5)


def model(seed, accuracy, labels=LABELS):
    random = np.random.default_rng(seed)
    predicted = np.where(random.random(len(labels)) < accuracy, labels, (labels + 1) % 40)
    losses = np.full(len(labels), 0.7, np.float32)
    probabilities = random.beta(4, 1, (len(labels), 1)).astype(np.float32)
    return Predictions(labels, predicted[:, None], probabilities, losses)


def test_lines_contain_the_metrics():
    predictions = [model(0, 0.5), model(1, 0.9)]
    lines = comparison_lines(['ce', 'ldam'], predictions, TRAIN_COUNTS)
    expected = detailed_metrics(predictions[1], TRAIN_COUNTS)
    low, high = expected['interval']['mean_class_error']
    assert lines[2].split() == [
        'ldam',
        f'{100 * expected["mean_class_error"]:.1f}',
        f'[{100 * low:.1f},',
        f'{100 * high:.1f}]',
        *(f'{100 * expected[name]:.1f}' for name in ('top1', 'many', 'medium', 'few', 'ece')),
    ]
    assert lines[3:5] == ['', 'difference from ce on the same 200 images:']
    first, second = predictions
    alone = [int((one.correct & ~other.correct).sum()) for one, other in ((second, first), (first, second))]
    assert lines[6].split()[4:] == [*map(str, alone), 'p<.0001']
    assert lines[6].split()[1].startswith('-')
    assert len(comparison_lines(['ce'], predictions[:1], TRAIN_COUNTS)) == 2


def test_a_model_compared_with_itself_has_no_difference():
    one = model(0, 0.5)
    line = comparison_lines(['a', 'b'], [one, one], TRAIN_COUNTS)[-1]
    assert line.split()[:2] == ['b', '0.0']
    assert line.split()[-3:] == ['0', '0', '1.0000']


@pytest.mark.parametrize('accuracy', [0.0, 0.5, 1.0])
def test_lines_fit_80_columns_and_short_names_differ(accuracy):
    names = [f'balanced_softmax_with_a_long_name_{number}_and_end' for number in range(3)]
    lines = comparison_lines(names, [model(0, 1 - accuracy), *[model(1, accuracy)] * 2], TRAIN_COUNTS)
    assert max(map(len, lines)) <= 80
    assert len({line[:20] for line in lines[1:4]}) == 3
    ends = comparison_lines(['x' * 40 + 'one', 'x' * 40 + 'two'], [model(0, 0.5)] * 2, TRAIN_COUNTS)
    assert [line.split()[0][-3:] for line in ends[1:3]] == ['one', 'two']


def test_missing_groups_are_dashes():
    lines = comparison_lines(['a'], [model(0, 0.5)], np.full(40, 50))
    assert lines[1].split()[5:8:2] == ['-', '-']


def test_models_on_different_or_unlabeled_images_are_an_error():
    with pytest.raises(UserError, match=r'b: its labels differ from those of a \(100 and 200 images'):
        comparison_lines(['a', 'b'], [model(0, 0.5), model(0, 0.5, LABELS[:100])], TRAIN_COUNTS)
    with pytest.raises(UserError, match='a: its images have no labels'):
        comparison_lines(['a'], [model(0, 0.5, np.full(9, -1))], TRAIN_COUNTS)


@pytest.mark.parametrize('num_models', [1, 3, 9])
def test_charts_are_images_with_reproducible_bytes(tmp_path, num_models):
    names = [f'model <{number}> $x$' for number in range(num_models)]
    metrics = [detailed_metrics(model(number, number / num_models), TRAIN_COUNTS) for number in range(num_models)]
    paths = [draw_comparison(tmp_path / f'{name}.png', names, metrics) for name in 'ab']
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        assert min(image.size) > 400


def test_no_metrics_write_no_file(tmp_path):
    assert draw_comparison(tmp_path / 'a.png', ['a'], [{}]) is None
    assert list(tmp_path.iterdir()) == []


def test_a_perfect_model_can_be_drawn(tmp_path):
    metrics = [detailed_metrics(model(0, 1.0), np.full(40, 50))]
    assert draw_comparison(tmp_path / 'a.png', ['perfect'], metrics).exists()
