"""UDON: one student embedding for all domains, distilled online from a small head per domain that learns beside it.

A batch shows one domain. That domain's teacher head and the student are both trained to classify its classes, and
the student also imitates the teacher: its distribution over those classes, and its similarities between images.
Distillation stops at the teacher's outputs; everything else flows into the shared encoder.

Source: UDON (arXiv 2406.08332) and its code (nikosips/UDON), which settles what the paper leaves open: raw cosines at
temperature 0.1 without its square as a factor, teacher first in the divergence, and four terms divided by the sum of
their weights. Deviations:

- The student head is the model's own nested embedding (there: a linear layer of its own on the normalised class
  token), so that what is trained is what is served. Under `Matryoshka` every width is a student: it uses the first
  coordinates of the student prototypes, normalised again, and the teacher terms do not change.
- Similarities are compared inside blocks of `block` consecutive rows of the global batch, whatever the number of
  workers (there: inside a device's part of 128 rows). What is left behind the last whole block is a smaller block;
  every pair counts the same. The factor is that of 128 rows.

The heads of all domains are one stacked parameter. So those that a batch leaves alone have a gradient of zero, not
none, and AdamW's moments go on moving them, as in the reference. Skipped instead, a head that is used in every
eighth step would be moved 2.8 times less by each of its gradients.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from elastic.batch import NO_LABEL, Batch, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.distributed import gather, gather_with_grad, global_mean

RELATIONS_SCALE = 32.0
"""Factor of the mean squared difference of similarities: the reference sums over columns and divides by 4, which for
its batch of 128 is 32 times the mean over pairs."""


def classify(
    cosines: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], scale: float
) -> Float[Tensor, " batch"]:
    """Cross-entropy of every row over scaled cosines."""
    return F.cross_entropy(scale * cosines, labels, reduction="none")


def divergence(
    teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, " batch"]:
    """KL(teacher, student) of every row's distribution over the classes."""
    target, found = (F.log_softmax(cosines / temperature, dim=1) for cosines in (teacher, student))
    return (target.exp() * (target - found)).sum(dim=1)


def disagreement(
    student: Float[Tensor, "batch student_dim"], teacher: Float[Tensor, "batch teacher_dim"], block: int
) -> Float[Tensor, ""]:
    """Mean squared difference of the similarities of unit rows, over all pairs inside a block of consecutive rows.

    A row's pair with itself counts, as in the reference. The last block may be smaller.
    """
    u, t = _blocks(student, block), _blocks(teacher, block)
    whole, rest = divmod(len(student), block)
    # The rows that fill up the last block are zero in both, so that their pairs add nothing.
    return (u @ u.mT - t @ t.mT).square().sum() / (whole * block**2 + rest**2)


def _blocks(rows: Float[Tensor, "batch dim"], block: int) -> Float[Tensor, "blocks block dim"]:
    return F.pad(rows, (0, 0, 0, -len(rows) % block)).unflatten(0, (-1, block))


@dataclass(frozen=True, kw_only=True, slots=True)
class Udon(ObjectiveConfig):
    """Classification by a teacher head per domain and by the shared embedding, which the heads guide."""

    teacher_dim: int = 256
    """Width of the teacher heads; the embedding is usually narrower (UDON: 64)."""
    scale: float = 16.0
    """Inverse temperature of the cosines in both classifications."""
    temperature: float = 0.1
    """Softmax temperature of teacher and student where the student imitates the teacher's classification."""
    block: int = 32
    """Consecutive rows whose similarities are compared; UDON: what one device had."""
    teacher_weight: float = 1.0
    """Weight of the teacher's classification; all four are divided by their sum."""
    student_weight: float = 1.0
    """Weight of the student's classification."""
    logits_weight: float = 1.0
    """Weight of imitating the teacher's distribution over classes."""
    relations_weight: float = 1.0
    """Weight of imitating the teacher's similarities between images."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        weights = self.term_weights
        if min(self.teacher_dim, self.block) < 1 or min(self.scale, self.temperature) <= 0:
            raise ConfigError("udon", self, "needs teacher_dim, block >= 1 and scale, temperature > 0")
        if min(weights.values()) < 0 or sum(weights.values()) == 0:
            raise ConfigError("udon", weights, "needs weights that are not negative and not all zero")

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term, before they are divided by their sum."""
        return {
            "teacher_ce": self.teacher_weight,
            "student_ce": self.student_weight,
            "logits": self.logits_weight,
            "relations": self.relations_weight,
        }

    @property
    def needs(self) -> frozenset[str]:
        """Instance classes."""
        return frozenset({"labels"})

    def build(self, dims: Dimensions) -> "UdonLoss":
        """The loss with a teacher head for each domain and two prototypes for each class.

        Raises:
            ConfigError: the training data has no classes.
        """
        return UdonLoss(self, dims)


class UdonLoss(Objective):
    """The four terms, already divided by the sum of their weights, so that their sum is the loss."""

    def __init__(self, config: Udon, dims: Dimensions) -> None:
        super().__init__()
        if dims.num_classes < 1:
            raise ConfigError("num_classes", dims.num_classes, "udon needs labelled training data")
        owners = dims.class_domains
        assert len(owners) == dims.num_classes and list(owners) == sorted(owners), "classes are sorted by domain"
        self.config = config
        num_domains = owners[-1] + 1
        self._classes = [(bisect_left(owners, domain), bisect_right(owners, domain)) for domain in range(num_domains)]
        std = 1 / math.sqrt(dims.width)
        self.teacher_weight = nn.Parameter(torch.randn(num_domains, config.teacher_dim, dims.width) * std)
        self.teacher_bias = nn.Parameter(torch.zeros(num_domains, config.teacher_dim))
        self.teacher_prototypes = nn.Parameter(_lecun_uniform(dims.num_classes, config.teacher_dim))
        self.student_prototypes = nn.Parameter(_lecun_uniform(dims.num_classes, dims.embed_dim))

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`teacher_ce`, `student_ce`, `logits`, `relations`; and `teacher_ce@raw`, undivided.

        Random embeddings of d dimensions start near the log of the domain's classes plus 128 / d. Rows without a
        label are only imitated.

        Raises:
            ConfigError: the batch shows several domains, or one that has no classes.
        """
        assert batch.labels is not None
        domain = self._domain(batch)
        start, stop = self._classes[domain]
        labelled, labels = batch.labels != NO_LABEL, (batch.labels - start).clamp(min=0)
        teacher = self.teach(passes.clean.cls_token, domain)
        student = F.normalize(passes.clean.embedding, dim=1)
        teacher_cosines = teacher @ F.normalize(self.teacher_prototypes[start:stop], dim=1).T
        prototypes = self.student_prototypes[start:stop, : student.shape[1]]
        student_cosines = student @ F.normalize(prototypes, dim=1).T
        imitation = divergence(teacher_cosines.detach(), student_cosines, self.config.temperature)
        relations = disagreement(gather_with_grad(student), gather(teacher.detach()), self.config.block)
        values = {
            "teacher_ce": global_mean(classify(teacher_cosines, labels, self.config.scale), labelled),
            "student_ce": global_mean(classify(student_cosines, labels, self.config.scale), labelled),
            "logits": global_mean(imitation, torch.ones_like(labelled)),
            "relations": RELATIONS_SCALE * relations,
        }
        weights = self.config.term_weights
        total = sum(weights.values())
        terms = {name: weights[name] / total * value for name, value in values.items()}
        return terms | {"teacher_ce@raw": values["teacher_ce"].detach()}

    def teach(self, cls_token: Float[Tensor, "batch width"], domain: int) -> Float[Tensor, "batch teacher_dim"]:
        """The unit embeddings that a domain's teacher head gives."""
        backbone = F.normalize(cls_token, dim=1)
        return F.normalize(F.linear(backbone, self.teacher_weight[domain], self.teacher_bias[domain]), dim=1)

    def _domain(self, batch: Batch) -> int:
        """The domain that all rows show; waits for the device, because the sizes that follow depend on it."""
        first, last = int(batch.domains.min()), int(batch.domains.max())
        if first != last or first >= len(self._classes) or self._classes[first][0] == self._classes[first][1]:
            rule = "udon needs batches of one domain that has classes: give every domain a stream of its own"
            raise ConfigError(f"data.streams.{batch.stream}.domains", (first, last), rule)
        return first


def _lecun_uniform(rows: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Uniform with variance 1 / `dim`."""
    bound = math.sqrt(3 / dim)
    return torch.empty(rows, dim).uniform_(-bound, bound)
