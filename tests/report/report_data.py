"""A small run for the tests of the report."""

import numpy as np
from PIL import Image

from lib.metrics.predictions import Predictions
from lib.report.report_metrics import ReportData

HOSTILE = '<script>alert(1)</script> & "quoted" \'name\''
NUM_CLASSES = 12


def history(num_epochs=6):
    """Return objects of metrics.jsonl in which the error falls."""
    entries = []
    for epoch in range(num_epochs):
        error = 0.9 / (1 + epoch)
        entries.append(
            {'epoch': epoch, 'split': 'train', 'loss': 3 * error, 'top1': 1 - error, 'lr': 0.1 / (1 + epoch)}
        )
        groups = {'many': 1 - error / 2, 'medium': 1 - error, 'few': 1 - error}
        entries.append({'epoch': epoch, 'split': 'valid', 'loss': 4 * error, 'top1': 1 - error, **groups})
        entries[-1] |= {'mean_class_error': error, 'top5': 1 - error / 4}
    return entries


def tau_curve(metric='mean_class_error'):
    """Return the content of a tau.json whose lowest error is in the middle."""
    value = [0.4, 0.3, 0.2, 0.25, 0.5]
    if metric == 'top1':
        value = [1 - error for error in value]
    return {
        'chosen': 0.75,
        'optimum': 0.7,
        'metric': metric,
        'before': {'mean_class_error': 0.42, 'top1': 0.61, 'few': 0.3},
        'after': {'mean_class_error': 0.2, 'top1': 0.8, 'few': 0.5},
        'curve': {'tau': [0.2, 0.5, 0.9, 1.4], 'value': value},
        'max_tau': 2.0,
        'standard_error': 0.06,
        'stretch': [0.5, 1.4],
        'note': 'classes <without> images',
    }


def open_image(row):
    """Return an image with metadata; every fifth row is unreadable."""
    if row % 5 == 4:
        raise OSError('broken')
    image = Image.new('RGB', (300, 200), (row % 256, 90, 120))
    image.info['comment'] = b'PRIVATE-COMMENT'
    image.info['icc_profile'] = b'PRIVATE-PROFILE'
    return image


def predictions(labels, predicted, num_classes, seed=0):
    """Return top-5 predictions with these top-1 classes; higher confidence is correct more often."""
    rng = np.random.default_rng(seed)
    correct, unreadable = labels == predicted, predicted < 0
    confidence = np.where(correct, rng.beta(6, 2, len(labels)), rng.beta(3, 3, len(labels))).astype(np.float32)
    topk = np.stack([predicted, *rng.integers(0, num_classes, (4, len(labels)))], axis=1)
    topk[unreadable] = -1
    losses = np.where(correct, -np.log(confidence), 3.0).astype(np.float32)
    probabilities = np.stack([confidence, *[(1 - confidence) / 4] * 4], axis=1)
    probabilities[unreadable] = 0
    return Predictions(labels, topk, probabilities, np.where(unreadable, np.nan, losses))


def full_data(**changes):
    """Return the data of a run with every part; `changes` replaces fields."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(NUM_CLASSES), 6)
    predicted = np.where(rng.random(len(labels)) < 0.4, (labels + 1) % NUM_CLASSES, labels)
    predicted[7] = -1
    last = history()[-1]
    fields = {
        'title': HOSTILE,
        'command': 'python main.py --NAME "<b>x</b>"',
        'history': history(),
        'summary': {'best': last, 'last': last},
        'class_names': [HOSTILE, *(f'Tea {c}' for c in range(1, NUM_CLASSES))],
        'class_parents': [[HOSTILE, f'shelf {c % 3}'] for c in range(NUM_CLASSES)],
        'train_counts': np.geomspace(300, 3, NUM_CLASSES).astype(np.int64),
        'predictions': predictions(labels, predicted, NUM_CLASSES),
        'open_image': open_image,
        'tau': tau_curve(),
        'open_set': {
            'score': 'prototype',
            'is_left_out': True,
            'num_images': 60,
            'num_classes': 10,
            'wanted_rate': 0.05,
            'guaranteed_rate': 0.141,
            'known_accepted': 0.382,
            'auroc': 0.777,
            'fpr95': 0.61,
            'oscr': 0.55,
        },
        'config_text': f'NAME: {HOSTILE}',
        'environment_text': 'torch <2>',
        'notes': [HOSTILE],
        'corrections': {
            'train': {
                'file': f'{HOSTILE}.json',
                'digest': '',
                'counts': {'relabel': 3, 'drop': 1},
                'classes': [[HOSTILE, 4, 0], ['Tea 1', 0, 3]],
            },
        },
    }
    return ReportData(**(fields | changes))
