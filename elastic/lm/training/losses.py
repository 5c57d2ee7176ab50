"""What a MatLM learns from: the text's next token, and the largest submodel's prediction of it.

Both are means over positions, in nats. Source: MatFormer (arXiv 2310.07707) section 3.2 for the first; US-Nets (arXiv
1903.05134) section 3.3 for in-place distillation, here mixed with the text. Temperature 1: submodels are to agree with
what the largest would say, which is what makes them draft for it.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def next_token_nats(logits: Float[Tensor, "batch block vocab"], tokens: Int[Tensor, "batch next"]) -> Float[Tensor, ""]:
    """Cross-entropy of each token after the first, `tokens` being one longer than what was read."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def divergence(
    teacher: Float[Tensor, "batch block vocab"], logits: Float[Tensor, "batch block vocab"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) of the next token; the teacher's logits get no gradient."""
    student, target = (F.log_softmax(x.flatten(0, 1).float(), dim=-1) for x in (logits, teacher.detach()))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)
