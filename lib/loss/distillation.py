"""Knowledge distillation, with flattened teacher probabilities (DiVE)."""

import torch
import torch.nn.functional as F
from torch import nn


class Distillation(nn.Module):
    """Distilling virtual examples, T^2 KL(t || s) (DiVE: He et al., ICCV 2021), the mean over the batch.

    s is the student's softmax at temperature T; t is the teacher's at T, to the power p and renormalized, which is its
    softmax at temperature T / p. A power below 1 flattens the teacher's probabilities and so the class distribution
    that the student learns from. Power 1 is knowledge distillation (Hinton et al., 2015).

    Logits of student and teacher (batch, num_classes) -> a scalar, computed in float32 even under autocast. The
    teacher's logits get no gradient.

    Args:
        temperature: T, above 0.
        power: p, from 0 (uniform teacher) to 1.
    """

    def __init__(self, temperature: float, power: float = 1.0) -> None:
        super().__init__()
        self.temperature, self.power = temperature, power

    def forward(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.promote_types(logits.dtype, torch.float32)
            student = F.log_softmax(logits.to(dtype) / self.temperature, dim=1)
            teacher = F.log_softmax(teacher_logits.detach().to(dtype) * (self.power / self.temperature), dim=1)
            return F.kl_div(student, teacher, log_target=True, reduction='batchmean') * self.temperature**2
