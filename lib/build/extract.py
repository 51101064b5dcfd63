"""The features of a split."""

import numpy as np
import torch

from lib.build.loader import build_eval_loader
from lib.build.split import Split
from lib.build.trained import Trained
from lib.errors import UserError
from lib.runtime.log import progress


@torch.inference_mode()
def features_of(trained: Trained, split: Split, *, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (n, num_features) float32, labels (n,) int32 and whether each image could be decoded (n,) bool.

    Images are seen as in validation; the features of those that cannot be decoded are zeros.

    Args:
        label: name of the split on the progress bar.

    Raises:
        UserError: the split has no image.
    """
    if not len(split):
        raise UserError(f'{split.source}: no images, so there are no features')
    loader = build_eval_loader(trained.cfg, split, trained.device)
    features = np.zeros((len(split), trained.model.classifier.weight.shape[1]), np.float32)
    readable = np.zeros(len(split), bool)
    trained.model.eval()
    for batch in progress(loader, total=len(loader), label=label):
        rows = batch.rows.numpy()
        readable[rows] = batch.readable.cpu().numpy()
        features[rows] = (trained.model.features(batch.images) * batch.readable[:, None]).cpu().numpy()
    return features, np.asarray(split.labels), readable
