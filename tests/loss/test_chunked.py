"""The loss over chunks of images against the loss of all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lib.loss import chunked as module
from lib.loss.chunked import chunked_loss
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.sharded_logits import ClassSubset
from tests.loss.cases import CASES
from tests.loss.classifier_loss import LABEL_KINDS, Classifier, classifier_and_targets, sharded, weighted_loss, whole

every_loss = pytest.mark.parametrize('name', CASES)


def random_problem(seed, batch=9, num_features=5, num_classes=7, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, num_features, dtype=torch.float64, generator=random).to(dtype)
    weight = torch.randn(num_classes, num_features, dtype=torch.float64, generator=random).to(dtype)
    bias = torch.randn(num_classes, dtype=torch.float64, generator=random).to(dtype)
    return x, weight, bias, torch.randint(num_classes, (batch,), generator=random)


def cross_entropy(labels):
    """Return the mean cross entropy as a chunk loss."""
    return lambda logits, rows, extra: CrossEntropy()(logits, labels[rows]).sum() / len(labels)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('chunk', [0, 4, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 3, 9, 50))])
@every_loss
def test_chunks_equal_the_whole(name, chunk, weighted):
    """Loss, predictions and the gradients of features, weight, bias and scales are equal."""
    loss = weighted_loss(name, weighted=weighted)
    for kind in LABEL_KINDS:
        classifier, targets = classifier_and_targets(31, kind)
        found, expected = sharded(loss, classifier, targets, chunk=chunk), whole(loss, classifier, targets)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)
        assert found.keys() == expected.keys() == {'loss', 'predicted', *Classifier._fields}


class Recomputed(torch.autograd.Function):
    """A chunked loss that backward recomputes, because gradcheck differentiates the same graph twice."""

    @staticmethod
    def forward(ctx, function, *inputs):
        ctx.function, ctx.inputs = function, [tensor.detach().requires_grad_() for tensor in inputs]
        return function(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        with torch.enable_grad():
            value = ctx.function(*ctx.inputs)
        return (None, *torch.autograd.grad(value, ctx.inputs, upstream))


@pytest.mark.parametrize('chunk', [0, 4])
def test_gradients_are_those_of_finite_differences(chunk):
    x, weight, bias, labels = random_problem(seed=1)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, x.detach().clone())]

    def chunk_loss(logits, rows, extra):
        return (CrossEntropy()(logits, labels[rows]) * (1 + extra.square().sum(dim=1))).sum()

    def function(x, weight, bias, extra):
        return chunked_loss(x, weight, bias, chunk_loss, chunk=chunk, extra=extra)[0]

    assert torch.autograd.gradcheck(lambda *tensors: Recomputed.apply(function, *tensors), inputs)


@pytest.mark.parametrize('factor', [1.0, -2.5, 0.0])
def test_backward_multiplies_by_the_gradient_of_the_loss(factor):
    x, weight, _, labels = random_problem(seed=2)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    expected = torch.autograd.grad(factor * F.cross_entropy(F.linear(*leaves), labels), leaves)
    found = torch.autograd.grad(factor * chunked_loss(*leaves, None, cross_entropy(labels), chunk=4)[0], leaves)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradients_accumulate():
    x, weight, bias, labels = random_problem(seed=3)
    weight.requires_grad_()
    for _ in range(2):
        chunked_loss(x, weight, bias, cross_entropy(labels), chunk=4)[0].backward()
    (once,) = torch.autograd.grad(F.cross_entropy(F.linear(x, weight, bias), labels), weight)
    torch.testing.assert_close(weight.grad, 2 * once, rtol=1e-10, atol=1e-12)


def test_second_backward_raises():
    x, weight, _, labels = random_problem(seed=4)
    loss, _ = chunked_loss(x, weight.requires_grad_(), None, cross_entropy(labels))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='differentiated once'):
        loss.backward()


@pytest.mark.parametrize('required', [(0,), (1,), (2,), (0, 2), (3,)])
def test_inputs_without_gradient_get_none(required):
    x, weight, bias, labels = random_problem(seed=5)
    inputs = [x, weight, bias, x.clone()]
    for index in required:
        inputs[index].requires_grad_()

    def chunk_loss(logits, rows, extra):
        return (CrossEntropy()(logits, labels[rows]) * extra.sum(dim=1)).sum()

    value, _ = chunked_loss(*inputs[:3], chunk_loss, chunk=4, extra=inputs[3])
    (CrossEntropy()(F.linear(*inputs[:3]), labels) * inputs[3].sum(dim=1)).sum().backward()
    expected = [tensor.grad for tensor in inputs]
    found = torch.autograd.grad(value, [inputs[index] for index in required])
    for index, gradient in zip(required, found, strict=True):
        torch.testing.assert_close(gradient, expected[index], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('switch', [torch.no_grad, torch.inference_mode])
def test_without_gradient_mode_only_the_loss_is_computed(switch):
    x, weight, bias, labels = random_problem(seed=6)
    with switch():
        value, predicted = chunked_loss(x, weight.requires_grad_(), bias, cross_entropy(labels), chunk=4)
    assert not value.requires_grad
    logits = F.linear(x, weight, bias)
    torch.testing.assert_close(value, F.cross_entropy(logits, labels))
    assert torch.equal(predicted, logits.argmax(dim=1))


def test_no_images_have_no_gradient():
    _, weight, bias, labels = random_problem(seed=7)
    weight.requires_grad_()
    none = torch.zeros(0, 5, dtype=torch.float64)
    value, predicted = chunked_loss(none, weight, bias, lambda z, rows, extra: CrossEntropy()(z, labels[:0]).sum())
    value.backward()
    assert value == 0
    assert predicted.shape == (0,)
    assert weight.grad.count_nonzero() == 0


class RecordSizes(TorchDispatchMode):
    """Records the number of elements of each new storage."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self.sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@every_loss
def test_no_tensor_is_as_large_as_the_logits(name):
    """The only other tensor of the size of the weight is its gradient."""
    loss = weighted_loss(name, weighted=False)
    _, targets = classifier_and_targets(1, 'hard')
    x, weight, bias, _ = random_problem(seed=8, num_features=3, num_classes=6)
    weight = weight.repeat(10, 1)[:6].contiguous()
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    batch, num_classes = 9, 6

    def chunk_loss(logits, rows, extra):
        return loss.total(logits, targets.select(rows), extra)

    with RecordSizes() as record:
        value, _ = chunked_loss(*leaves, chunk_loss, chunk=1, extra=x)
        (2 * value).backward()
    assert max(record.sizes) < batch * num_classes
    assert (
        sum(size >= weight.numel() for size in record.sizes) <= 2 + 2
    )  # gradients of weight, x and extra, and their sum


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_are_close(dtype, monkeypatch):
    """Weight and x have one dtype, or the weight and its gradient a more exact one."""
    monkeypatch.setattr(module, '_BLOCK_ELEMENTS', 3 * 5)  # several blocks of classes
    exact = random_problem(seed=9)
    labels = exact[3]
    expected_leaves = [tensor.requires_grad_() for tensor in exact[:3]]
    expected = torch.autograd.grad(F.cross_entropy(F.linear(*expected_leaves), labels), expected_leaves)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for weight_dtype in (dtype, torch.float32):
        x, weight, bias, _ = random_problem(seed=9)
        leaves = [x.to(dtype).requires_grad_()] + [t.to(weight_dtype).requires_grad_() for t in (weight, bias)]
        value, _ = chunked_loss(*leaves, cross_entropy(labels), chunk=4)
        assert value.dtype == torch.float32
        for leaf, gradient, true in zip(leaves, torch.autograd.grad(value, leaves), expected, strict=True):
            assert gradient.dtype == leaf.dtype
            torch.testing.assert_close(gradient.double(), true, rtol=tolerance, atol=tolerance)


def test_float16_gradients_below_its_smallest_number_are_scaled():
    """With 60,000 classes and 64 images the gradient of a logit is 2.6e-7, which float16 stores with two bits."""
    num_classes, batch = 60_000, 64
    x = torch.ones(batch, 2)
    weight = torch.zeros(num_classes, 2)
    labels = torch.zeros(batch, dtype=torch.int64)
    leaves = [x.half().requires_grad_(), weight.requires_grad_()]
    value, _ = chunked_loss(*leaves, None, cross_entropy(labels), chunk=16)
    _, grad_weight = torch.autograd.grad(2.0**16 * value, leaves)
    torch.testing.assert_close(
        grad_weight[1:] / 2.0**16, torch.full((num_classes - 1, 2), 1 / num_classes), rtol=2e-3, atol=0
    )


def test_autocast_changes_nothing():
    x, weight, bias, labels = random_problem(seed=10, dtype=torch.float32)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    expected = torch.autograd.grad(chunked_loss(*leaves, bias, cross_entropy(labels), chunk=4)[0], leaves)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value, _ = chunked_loss(*leaves, bias, cross_entropy(labels), chunk=4)
    found = torch.autograd.grad(value, leaves)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_sampled_classes():
    """The loss is that of a classifier with only these classes; predictions are numbered over all classes."""
    x, weight, bias, _ = random_problem(seed=11)
    classes = torch.tensor([4, 10, 11, 15, 16, 20, 31])
    rows = torch.randint(7, (9,))
    value, predicted = chunked_loss(
        x, weight, bias, cross_entropy(classes[rows]), chunk=4, subset=ClassSubset(classes, 40)
    )
    logits = F.linear(x, weight, bias)
    torch.testing.assert_close(value, F.cross_entropy(logits, rows))
    assert torch.equal(predicted, classes[logits.argmax(dim=1)])
