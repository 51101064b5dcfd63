"""The open interval of tau in which an image is classified correctly, from one pass over its logits.

tau-normalization (Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR
2020, eq. 5) scores class j by z_j / n_j^tau: z_j = w_j . f without bias, n_j the norm of w_j. Post-hoc
logit adjustment (Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, eq. 9) scores it by
z_j - tau ln prior_j, the logarithm of exp(z_j) / prior_j^tau: the same problem with exp(z_j) for z_j and the
prior for the norm.

Write a score as a sign s and a logarithm m - tau l, where m = ln|z| and l = ln n (adjustment: s = 1, m = z,
l = ln prior). The label y beats a rival j of the same sign exactly when

    s (l_j - l_y) tau  >  s (m_j - m_y)          "slope * tau > level",

and of another sign when its own sign is the larger, whatever tau. So each rival leaves y a half-line of
tau, and all rivals together an open interval. Equal scores count as wrong, two zeros included.

Cost: classes form groups of 32, and only the maximum of each group is read from the logits. With the smallest
and the largest l of the group it bounds the score of any of its classes at any tau. Two exact cuts by the
groups with the highest bounds at tau = 0 and at max_tau decide most images; a rival that loses at both ends of
the remaining interval loses in between too, so only groups whose bound reaches the label at one of the two ends
are opened, and only there logarithms are computed, in float64. The bounds are tight where neighboring classes
have similar l: order the classes by l to be fast (`TauSweep` does); any order is exact.
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 32
PAIRS_AT_ONCE = 2**22  # image-rival pairs in one float64 cut: 32 MB per temporary
SLACK = 1e-6  # more than the rounding error of a float32 bound
EQUAL_LOGS = 1e-12  # logarithms this close differ by rounding: float32 logits cross only beyond tau 10,000


def log_norms(weight: Tensor) -> Tensor:
    """Return the logarithms of the rows' norms, ln n_j, -inf for a zero row.

    Norms that are all equal up to float32 rounding (a cosine classifier's) are made equal, so that their
    curve is flat.

    Args: weight (num_classes, num_features). Returns float64 (num_classes,), on the CPU.
    """
    rows = weight.detach().cpu().split(256)  # few at a time: no second weight in float64
    logs = torch.cat([torch.linalg.vector_norm(part.double(), dim=1).log() for part in rows])
    proper = logs.isfinite()
    if proper.any() and logs[proper].max() - logs[proper].min() < 1e-5:
        logs[proper] = logs[proper].mean()
    return logs


def log_priors(class_counts: Tensor) -> Tensor:
    """Return the logarithms of the class priors, -inf for a class without images, float64 (num_classes,) on the CPU."""
    counts = torch.as_tensor(class_counts).cpu().double()
    return counts.log() - counts.sum().log()


def tau_intervals(scores: Tensor, labels: Tensor, log_norms: Tensor, max_tau: float) -> tuple[Tensor, Tensor]:
    """Return the open interval of tau in which z_j / n_j^tau ranks each image's label first (Kang et al., 2020).

    Args:
        scores: float32 (batch, num_classes), logits without bias, on any device; left as they are.
        labels: int64 (batch,).
        log_norms: float64 (num_classes,), from `log_norms`; a class at -inf (zero norm) never wins.
        max_tau: taus are searched in [0, max_tau].

    Returns: low, high, float64 (batch,), on the device of the scores (on the CPU for MPS, which has no
        float64). Correct at tau in [0, max_tau] exactly when low < tau < high. An end outside the range is
        infinite; never correct is (inf, -inf). An image whose scores contain NaN or inf is never correct.

    Raises: ValueError where max_tau is not above 0.
    """
    return _intervals(scores, labels, log_norms, max_tau, _sign_and_log)


def adjustment_intervals(logits: Tensor, labels: Tensor, log_priors: Tensor, max_tau: float) -> tuple[Tensor, Tensor]:
    """Return the open interval of tau in which z_j - tau ln prior_j ranks the label first (Menon et al., 2021).

    As `tau_intervals`, with logits including bias, and `log_priors`; a class without training images
    never wins.
    """
    return _intervals(logits, labels, log_priors, max_tau, _as_logarithm)


def _sign_and_log(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores.sign(), scores.abs().log()


def _as_logarithm(logits: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(logits), logits


def _intervals(scores: Tensor, labels: Tensor, logs: Tensor, max_tau: float, read: Callable) -> tuple[Tensor, Tensor]:
    if not max_tau > 0:
        raise ValueError(f'max_tau is {max_tau}: it must be above 0')
    search = _Search(scores, labels, logs, max_tau, read)
    every = torch.arange(len(scores), device=search.device)
    for tau in (0.0, max_tau):
        search.cut(every, search.bounds(tau).argmax(1))
    search.cut(*search.contenders())
    return search.ends()


class _Search:
    """The intervals of one batch, cut down by one group of rivals after another.

    Scores are compared by s (m - tau l) + s * step, with a step that separates the signs: the sum
    rises with the score, is linear in tau, and does not overflow where a power would.
    """

    def __init__(self, scores: Tensor, labels: Tensor, logs: Tensor, max_tau: float, read: Callable) -> None:
        self.device = torch.device('cpu') if scores.device.type == 'mps' else scores.device
        self.scores, self.max_tau, self.read = scores, max_tau, read
        self.labels = labels.to(self.device)
        self.logs = logs.to(self.device)
        self.step = 200 + 2 * max_tau * self.logs.nan_to_num(neginf=0.0).abs().amax().item()

        own = scores.gather(1, labels.to(scores.device)[:, None]).to(self.device).double()
        self.own_sign, self.own_size = read(own)  # (batch, 1)
        self.own_log = self.logs[self.labels][:, None]
        maxima = _group_maxima(scores).to(self.device)  # (batch, groups)
        sign, size = read(maxima)
        self.bound = torch.where(sign == 0, 0, sign * (size + self.step))
        self.bound_slope = sign * torch.where(sign > 0, *_group_ranges(self.logs))

        never_correct = ~((maxima.amax(1) < torch.inf) & own[:, 0].isfinite() & self.own_log[:, 0].isfinite())
        self.low = torch.where(never_correct, torch.inf, -torch.inf).double()  # (batch,)
        self.high = -self.low

    def bounds(self, tau: Tensor | float) -> Tensor:
        """Return the upper bound of each group's score at tau, float32 (batch, groups)."""
        return self.bound - tau * self.bound_slope

    def contenders(self) -> tuple[Tensor, Tensor]:
        """Return pairs (row, group) where a group may beat the label at an end of the row's interval."""
        reached = torch.zeros_like(self.bound, dtype=torch.bool)
        for end in (self.low, self.high):
            tau = end.clamp(0, self.max_tau)[:, None]
            own = self.own_sign * (self.own_size + self.step - tau * self.own_log)
            own = torch.where(self.own_sign == 0, 0, own)
            limit = own - SLACK * (self.step + own.abs())
            reached |= self.bounds(tau.float()) >= limit.float()
        rows, groups = (reached & self._is_open()[:, None]).nonzero(as_tuple=True)
        return rows, groups

    def cut(self, rows: Tensor, groups: Tensor) -> None:
        """Cut the rows' intervals by all classes of the groups, exactly. rows, groups: int64 (pairs,)."""
        step = PAIRS_AT_ONCE // GROUP
        for some_rows, some_groups in zip(rows.split(step), groups.split(step), strict=True):
            low, high = self._half_lines(some_rows, some_groups)
            self.low.scatter_reduce_(0, some_rows, low, 'amax')
            self.high.scatter_reduce_(0, some_rows, high, 'amin')

    def _half_lines(self, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        num_classes = self.scores.shape[1]
        rivals = groups[:, None] * GROUP + torch.arange(GROUP, device=self.device)  # (pairs, GROUP)
        real = (rivals < num_classes) & (rivals != self.labels[rows][:, None])
        rivals.clamp_(max=num_classes - 1)
        real &= self.logs[rivals].isfinite()
        where = self.scores.device
        scores = self.scores[rows.to(where)[:, None], rivals.to(where)].to(self.device).double()
        sign, size = self.read(scores)

        own_sign, own_size = self.own_sign[rows], self.own_size[rows]
        same = (sign == own_sign) & (sign != 0)
        slope = own_sign * (self.logs[rivals] - self.own_log[rows])
        slope = torch.where(same & (slope.abs() > EQUAL_LOGS), slope, 0)
        level = own_sign * (size - own_size)
        level = torch.where(same, level, torch.where(sign < own_sign, -torch.inf, torch.inf))

        at = level / slope
        beaten = (real & (slope == 0) & (level >= 0)).any(1)
        low = torch.where(real & (slope > 0), at, -torch.inf).amax(1)
        high = torch.where(real & (slope < 0), at, torch.inf).amin(1)
        return low.masked_fill_(beaten, torch.inf), high

    def _is_open(self) -> Tensor:
        return (self.low < self.high) & (self.low < self.max_tau) & (self.high > 0)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the intervals within [0, max_tau]: ends outside are infinite, empty intervals are (inf, -inf)."""
        is_open = self._is_open()
        low = self.low.masked_fill(self.low < 0, -torch.inf).masked_fill(~is_open, torch.inf)
        high = self.high.masked_fill(self.high > self.max_tau, torch.inf).masked_fill(~is_open, -torch.inf)
        return low, high


def _group_maxima(scores: Tensor) -> Tensor:
    """Return the largest score of each group of classes, the only pass over the scores: (batch, groups)."""
    full = scores.shape[1] // GROUP * GROUP
    maxima = scores[:, :full].unflatten(1, (full // GROUP, GROUP)).amax(2)
    if full < scores.shape[1]:
        maxima = torch.cat([maxima, scores[:, full:].amax(1, keepdim=True)], dim=1)
    return maxima


def _group_ranges(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest logarithm of each group, over its classes that can win: two of (groups,)."""
    missing = -len(logs) % GROUP
    padded = torch.cat([logs, logs.new_full((missing,), -torch.inf)]).unflatten(0, (-1, GROUP))
    low = torch.where(padded.isfinite(), padded, torch.inf).amin(1)
    high = padded.amax(1)
    return low.masked_fill(~low.isfinite(), 0).float(), high.masked_fill(~high.isfinite(), 0).float()
