"""The recognizer: a backbone, maybe an embedding, and a classifier."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lib.backbone.adapters import is_adapter
from lib.backbone.pooling import is_pooling
from lib.backbone.tuning import BaseWeights, first_stages, tune_backbone
from lib.classifier.base import Classifier
from lib.classifier.cosine import Projector

# Names in state_dict of the weights that features depend on begin with one of these.
FEATURE_PREFIXES = ('backbone.', 'embedding.')


class Embedding(nn.Module):
    """Linear layer and BatchNorm between backbone and classifier, as in ArcFace (Deng et al., CVPR 2019, section 3.1).

    Outputs of the backbone (batch, num_features) -> features (batch, width). Their L2 normalization is that of the
    cosine classifier and of the search by cosine similarity.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(features))


class Recognizer(nn.Module):
    """Backbone and classifier: images (batch, 3, H, W) -> logits (batch, num_classes).

    Its parameters are `backbone.*`, `classifier.weight` and, if it has them, `classifier.bias`, `classifier.centers`
    and `embedding.*`: the first three are the names of old checkpoints, so they must stay.

    Args:
        embedding: between backbone and classifier; None: the features are the outputs of the backbone.
        projector: for contrastive losses; not used in prediction.
        train_dtype, eval_dtype: autocast dtype in train and in eval mode; None: the dtype of the parameters.

    Attributes:
        base: where the constant weights of a tuned backbone come from, if checkpoints do not contain them.
        trains_head_only: the backbone is constant in the current epoch, see `train_head_only`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: Classifier,
        *,
        embedding: Embedding | None = None,
        projector: Projector | None = None,
        train_dtype: torch.dtype | None = None,
        eval_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedding = embedding
        self.classifier = classifier
        self.projector = projector
        self.train_dtype = train_dtype
        self.eval_dtype = eval_dtype
        self.base: BaseWeights | None = None
        self._is_frozen = self._is_tuned = self._has_frozen_stages = self._shifts_batchnorm = False
        self.trains_head_only = False

    @property
    def num_features(self) -> int:
        """Return the width of the features."""
        num_features = self.backbone.num_features if self.embedding is None else self.embedding.linear.out_features
        assert isinstance(num_features, int)
        return num_features

    @property
    def extractor(self) -> nn.Module:
        """Return the part of the network that maps images to features, with the same parameters."""
        return self.backbone if self.embedding is None else nn.Sequential(self.backbone, self.embedding)

    @property
    def is_sharded(self) -> bool:
        """Return whether the classifier holds a shard of the classes, and other ranks the others."""
        return len(self.classifier.classes) < self.classifier.num_classes

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of `images`."""
        with_gradient = torch.is_grad_enabled() and not self.trains_head_only
        with self._autocast(images.device), torch.set_grad_enabled(with_gradient):
            outputs = self.backbone(images)
        return self.from_backbone(outputs)

    def from_backbone(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of outputs of the backbone: their embedding, if any."""
        with self._autocast(outputs.device):
            return _at_least_float32(outputs if self.embedding is None else self.embedding(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, num_classes) of `images`."""
        return self.classify(self.features(images))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, num_classes) of features (batch, num_features)."""
        with self._autocast(features.device):
            return _at_least_float32(self.classifier(features))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x, weight and bias of the logits, see `Classifier.factors`, in the precision of the mode."""
        dtype = self.train_dtype if self.training else self.eval_dtype
        x, weight, bias = self.classifier.factors(features)
        if dtype is None:
            return x, weight, bias
        return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 embeddings (batch, width), of length 1, of features (batch, num_features)."""
        assert self.projector is not None, 'the model was built without a projector'
        with self._autocast(features.device):
            return self.projector.embed(features)

    def prototypes(self) -> torch.Tensor:
        """Return the float32 prototypes (num_classes, width), of length 1, projected from the classifier's rows."""
        assert self.projector is not None, 'the model was built without a projector'
        weight = self.classifier.weight
        with self._autocast(weight.device):
            return self.projector.prototypes(weight)

    def freeze_backbone(self, *, shift_batchnorm: bool = False) -> None:
        """Train only embedding and classifier: the backbone requires no gradient, and stays in eval mode after train().

        Its BatchNorm statistics are constant and its dropout is off.

        Args:
            shift_batchnorm: BatchNorm follows train(): it normalizes by the batch, and its running statistics adapt to
                the training images (shift learning: MiSLAS, Zhong et al., CVPR 2021).
        """
        self._is_frozen, self._shifts_batchnorm = True, shift_batchnorm
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train_head_only(self, head_only: bool) -> None:
        """Train only embedding and classifier, as with a frozen backbone, until this is called with False.

        No parameter changes its `requires_grad`, so optimizer, EMA and checkpoints are those of all parameters.
        """
        if head_only != self.trains_head_only:
            self.trains_head_only = head_only
            self.train(self.training)

    def tune_backbone(self, kind: str, *, rank: int, scale: float, seed: int, name: str) -> None:
        """Train a part of the backbone besides the classifier, see lib/backbone/tuning.py for the arguments.

        BatchNorm statistics are constant, also after train(); dropout and drop path are not.
        """
        tune_backbone(self.backbone, kind, rank=rank, scale=scale, seed=seed, name=name)
        self._is_tuned = True
        self.train(self.training)

    def freeze_stages(self, num_stages: int, *, name: str) -> None:
        """Do not train the first stages of the backbone; their BatchNorm statistics are constant, also after train().

        Args:
            num_stages: the stem is the first, see lib/backbone/tuning.py.
            name: MODEL.BACKBONE, for the error message.

        Raises:
            UserError: the backbone has no more stages than that.
        """
        for parameter in first_stages(self.backbone, num_stages, name=name):
            self.backbone.get_parameter(parameter).requires_grad_(False)
        self._has_frozen_stages = True
        self.train(self.training)

    def constant_names(self) -> set[str]:
        """Return the names in state_dict of the weights of a frozen or tuned backbone that no step changes."""
        if not (self._is_frozen or self._is_tuned):
            return set()
        changing = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if self._shifts_batchnorm:
            changing |= {name for name, _ in self.named_buffers()}
        return {
            name
            for name in self.state_dict()
            if name.startswith('backbone.') and name not in changing and not is_adapter(name) and not is_pooling(name)
        }

    def train(self, mode: bool = True) -> Self:
        is_constant = self._is_frozen or self.trains_head_only
        if is_constant and not self._shifts_batchnorm and not self.backbone.training:
            # Visiting the hundreds of modules of the backbone takes as long as several steps of the classifier.
            self.training = mode
            for child in self.children():
                if child is not self.backbone:
                    child.train(mode)
            return self
        super().train(mode)
        if self._is_tuned or self._has_frozen_stages:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) and (self._is_tuned or not module.weight.requires_grad):
                    module.eval()
        if is_constant:
            self.backbone.eval()
            if self._shifts_batchnorm:
                for module in self.backbone.modules():
                    if isinstance(module, _BatchNorm):
                        module.train(mode)
        return self

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        # Entered inside the methods, because the threads of DataParallel do not inherit it from the caller.
        dtype = self.train_dtype if self.training else self.eval_dtype
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class NoRandomWeights(TorchFunctionMode):
    """A context in which modules are built without drawing random weights, since they are loaded afterwards.

    The weights are then whatever was in memory. For 50,030 classes, drawing takes longer than reading a checkpoint.
    """

    _SKIPPED = frozenset(
        f'{name}_' for name in ('uniform', 'normal', 'trunc_normal', 'kaiming_uniform', 'kaiming_normal', 'orthogonal')
    ) | {'xavier_uniform_', 'xavier_normal_', 'erfinv_'}

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, '__name__', '') in self._SKIPPED:
            return args[0] if args else kwargs['tensor']  # the functions of torch.nn.init name it
        return func(*args, **kwargs)
