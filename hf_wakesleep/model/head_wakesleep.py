"""SemiParametricHead: a growing classifier mixed with a closed-form LDA."""

import torch
from torch import nn
from torch.nn import functional as F

from .shrinkage_wakesleep import choose_shrinkage, mean_weights

INITIAL_SCALE = 16.0  # of cosine similarities
START_SHRINKAGE = 0.3  # at least, where output units start from LDA and are trained with the features


class LinearClassifier(nn.Module):
    """Inner product of features and one weight vector per class, plus a bias."""

    def __init__(self, feature_dim: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, feature_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (B, C)."""
        return F.linear(features, self.weight, self.bias)  # (B, C)


class CosineClassifier(nn.Module):
    """Cosine similarity between features and one weight vector per class, times a learned scale."""

    def __init__(self, feature_dim: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, feature_dim))
        self.scale = nn.Parameter(torch.full((), INITIAL_SCALE))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (B, C)."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))  # (B, C)


class LinearDiscriminant(nn.Module):
    """Shrunk linear discriminant that follows in closed form from sufficient statistics of the features.

    Statistics (float32 buffers): `counts` (C,) int64, `means` (C, D), and `scatter` (D (D + 1) / 2,), the lower
    triangle, row by row, of the sum over all images of the outer product of a feature's deviation from its class mean.
    They do not depend on the order of the images beyond rounding. Source: streaming LDA (Hayes & Kanan 2020, arXiv
    1909.01520), with shrinkage towards tr(Sigma)/D I, and class means drawn together as far as they are uncertain.

    What predicts follows from them, and is not saved: `weight` (C, D) and `bias` (C,), float32. Every change of the
    statistics brings it up to date but [`update`], which comes once per batch: call [`refresh`] after the last one, or
    leave it to the next forward pass.

    Args:
        feature_dim (`int`): Feature width D.
        num_classes (`int`): Number of classes C.
        shrinkage (`float`, *optional*): Weight e of the identity in the covariance, in (0, 1]; chosen anew from the
            statistics, by [`choose_shrinkage`], if missing.
    """

    def __init__(self, feature_dim: int, num_classes: int, shrinkage: float | None = None):
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(num_classes, feature_dim, dtype=torch.float32))
        self.register_buffer("scatter", torch.zeros(feature_dim * (feature_dim + 1) // 2, dtype=torch.float32))
        self.register_buffer("weight", torch.zeros(num_classes, feature_dim, dtype=torch.float32), persistent=False)
        self.register_buffer("bias", torch.zeros(num_classes, dtype=torch.float32), persistent=False)
        self._is_stale = False
        self.register_load_state_dict_post_hook(_refresh_after_load)

    @property
    def num_bytes(self) -> int:
        """Bytes of the statistics."""
        return sum(part.numel() * part.element_size() for part in (self.counts, self.means, self.scatter))

    @property
    def bytes_per_class(self) -> int:
        """Bytes of the statistics that one more class takes."""
        return self.counts.element_size() + self.means.shape[1] * self.means.element_size()

    def reset(self) -> None:
        """Forget all statistics."""
        for buffer in self.buffers():
            buffer.zero_()
        self._is_stale = False

    @torch.inference_mode(False)
    def grow(self, num_new: int) -> None:
        """Append `num_new` classes without statistics."""
        self.counts = F.pad(self.counts, (0, num_new))  # (C + new,)
        self.means = F.pad(self.means, (0, 0, 0, num_new))  # (C + new, D)
        self.refresh()

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        """Bring what predicts up to date with the statistics; it is zero as long as there are none at all."""
        weight, bias = self.solve()
        self.weight, self.bias = weight, bias.masked_fill(~(self.counts > 0).any(), 0.0)
        self._is_stale = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add images to the statistics, by the pairwise update of Chan et al. (1979).

        Args:
            features (`torch.Tensor` of shape `(B, D)`): Features.
            labels (`torch.Tensor` of shape `(B,)`): Class indices, int64.
        """
        features = features.to(self.means)
        counts = torch.bincount(labels, minlength=len(self.counts))  # (C,)
        sums = torch.zeros_like(self.means).index_add_(0, labels, features)  # (C, D)
        means = sums / counts.clamp(min=1)[:, None]  # (C, D)
        deviations = features - means[labels]  # (B, D)
        total = (self.counts + counts).clamp(min=1)  # (C,)
        shift = means - self.means  # (C, D)
        outer = deviations.T @ deviations + (shift * (counts * self.counts / total)[:, None]).T @ shift  # (D, D)
        rows, columns = self._triangle()
        self.scatter += outer[rows, columns]
        self.means += shift * (counts / total)[:, None]
        self.counts += counts
        self._is_stale = True

    def covariance(self) -> torch.Tensor:
        """Return the covariance of features within classes, shared by all, float32 (D, D): scatter / (N - C)."""
        dim, (rows, columns) = self.means.shape[1], self._triangle()
        entries = self.scatter.float() / (self.counts.sum() - (self.counts > 0).sum()).clamp(min=1)
        covariance = entries.new_empty(dim, dim)
        covariance[rows, columns] = covariance[columns, rows] = entries
        return covariance

    @torch.inference_mode(False)
    @torch.no_grad()
    def set_moments(self, means: torch.Tensor, covariance: torch.Tensor) -> None:
        """Replace the means (C, D) and what `covariance` returns (D, D); the counts stay."""
        rows, columns = self._triangle()
        freedom = (self.counts.sum() - (self.counts > 0).sum()).clamp(min=1)
        self.means.copy_(means)
        self.scatter.copy_(covariance.to(self.scatter.device)[rows, columns] * freedom)
        self.refresh()

    @torch.inference_mode(False)
    @torch.no_grad()
    def forget(self, index: int, own_covariance: torch.Tensor | None = None) -> None:
        """Remove a class: its count, its mean, and its share of the scatter.

        Only the sum of the scatter of all classes is kept, so that share, (n - 1) times the covariance within the
        class, must be told. Where it is an estimate, directions in which it exceeds the sum are left with none.

        Args:
            index (`int`): Which class.
            own_covariance (`torch.Tensor` of shape `(D, D)`, *optional*): Covariance of features within it; that of
                all classes if missing.
        """
        shared, count = self.covariance(), self.counts[index]
        own = shared if own_covariance is None else own_covariance.to(shared)
        freedom = (self.counts.sum() - (self.counts > 0).sum()).clamp(min=1)
        rest = (shared * freedom - own * (count - 1).clamp(min=0)).double()
        values, vectors = torch.linalg.eigh(rest.cpu())
        rest = ((vectors * values.clamp(min=0)) @ vectors.T).to(shared)
        rows, columns = self._triangle()
        self.scatter.copy_(rest[rows, columns])
        keep = torch.arange(len(self.counts), device=self.counts.device) != index
        self.counts, self.means = self.counts[keep], self.means[keep]
        self.refresh()

    def _triangle(self) -> torch.Tensor:
        """Return row and column of every entry of `scatter`, int64 (2, D (D + 1) / 2)."""
        return torch.tril_indices(*2 * self.means.shape[1:], device=self.scatter.device)

    def find_shrinkage(self, least: float = 0.0) -> float:
        """Return the weight e of the identity in the covariance: the one given, or what fits the statistics.

        Args:
            least (`float`, defaults to 0.0): Lower bound of what is chosen.
        """
        if self.shrinkage is not None:
            return self.shrinkage
        return max(least, choose_shrinkage(self.counts, self.means, self.covariance()))

    def solve(self, least: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the discriminant's weights (C, D) and biases (C,), equal priors; classes without images get -inf.

        Lambda = [(1 - e) Sigma + e tr(Sigma)/D I]^-1, m_c = mu + a_c (mu_c - mu), w_c = Lambda m_c and b_c = -1/2 m_c'
        Lambda m_c, with the shared covariance Sigma, the mean mu of all class means and the share a_c of the way to
        mu_c that [`mean_weights`] finds reliable, by the distances (mu_c - mu)' Lambda (mu_c - mu) and the noise
        tr(Lambda Sigma).

        Args:
            least (`float`, defaults to 0.0): Lower bound of e, unless it was given.
        """
        known, covariance = self.counts > 0, self.covariance()  # (C,), (D, D)
        dim, variance, shrinkage = len(covariance), covariance.diagonal().mean(), self.find_shrinkage(least)
        identity = torch.eye(dim, device=covariance.device)
        shrunk = (1 - shrinkage) * covariance + shrinkage * variance * identity  # (D, D)
        means = self.means.float().masked_fill(~known[:, None], 0.0)  # (C, D)
        grand = means.sum(dim=0, keepdim=True) / known.sum().clamp(min=1)  # (1, D)
        apart = means - grand  # (C, D)
        parts = torch.cat([apart, grand, covariance])  # (C + 1 + D, D)
        solved = torch.linalg.solve(torch.where(variance > 0, shrunk, identity), parts.T).T  # (C + 1 + D, D)
        directions, middle, noise = solved.split([len(apart), 1, dim])
        kept = mean_weights(self.counts, (apart * directions).sum(dim=1), noise.trace(), dim)[:, None]  # (C, 1)
        weights, means = middle + kept * directions, grand + kept * apart  # (C, D)
        biases = -0.5 * (weights * means).sum(dim=-1)  # (C,)
        return weights.masked_fill(~known[:, None], 0.0), biases.masked_fill(~known, -torch.inf)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (B, C) in float32; zeros as long as there are no statistics at all."""
        if self._is_stale:
            self.refresh()
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.to(self.weight), self.weight, self.bias)  # (B, C)

    def _apply(self, fn, recurse=True):
        """Move to a device, but never to another precision: sums of squares overflow in half precision."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


def _refresh_after_load(lda: LinearDiscriminant, _) -> None:
    lda.refresh()


class SemiParametricHead(nn.Module):
    """Parametric half: a linear or cosine classifier. Non-parametric half: [`LinearDiscriminant`].

    Both grow with new classes.

    Args:
        config (`WakeSleepConfig`): Gives the classes and the kind of classifier.
        feature_dim (`int`): Feature width D.
    """

    def __init__(self, config, feature_dim: int):
        super().__init__()
        self.config = config
        self.feature_dim = feature_dim
        self.classifier = self._new_classifier(len(config.id2label))
        self.lda = LinearDiscriminant(feature_dim, len(config.id2label), config.lda_shrinkage)

    def _new_classifier(self, num_classes: int) -> nn.Module:
        build = CosineClassifier if self.config.classifier == "cosine" else LinearClassifier
        return build(self.feature_dim, num_classes)

    @torch.inference_mode(False)
    def grow(self, num_new: int, generator: torch.Generator | None = None) -> None:
        """Append `num_new` output units; what was there keeps its values, bit for bit.

        Args:
            num_new (`int`): Number of new classes.
            generator (`torch.Generator`, *optional*): CPU generator that the new weights are drawn from.
        """
        old = self.classifier.state_dict()
        num_old = len(self.classifier.weight)
        weight = self.classifier.weight
        grown = self._new_classifier(num_old + num_new).to(weight)
        with torch.no_grad():
            grown.weight.copy_(0.02 * torch.randn(grown.weight.shape, generator=generator))
            grown.weight[:num_old] = old["weight"]
            if "bias" in old:
                grown.bias.zero_()
                grown.bias[:num_old] = old["bias"]
            else:
                grown.scale.copy_(old["scale"])
        self.classifier = grown
        self.lda.grow(num_new)

    @torch.inference_mode(False)
    @torch.no_grad()
    def forget(self, index: int, own_covariance: torch.Tensor | None = None) -> None:
        """Remove the output unit of a class and its statistics; what belongs to others keeps its values.

        Args:
            index (`int`): Which class.
            own_covariance (`torch.Tensor` of shape `(D, D)`, *optional*): See [`LinearDiscriminant.forget`].
        """
        old = self.classifier.state_dict()
        keep = torch.arange(len(old["weight"]), device=old["weight"].device) != index
        shrunk = self._new_classifier(len(old["weight"]) - 1).to(self.classifier.weight)
        shrunk.load_state_dict({name: value[keep] if value.ndim else value for name, value in old.items()})
        self.classifier = shrunk
        self.lda.forget(index, own_covariance)

    @torch.no_grad()
    def start_from_lda(self, first: int, label_smoothing: float = 0.0) -> None:
        """Set the output units from `first` on to what LDA answers, so that they are right before any training.

        A cosine classifier takes the class means as directions (imprinting, Qi et al. 2018, arXiv 1712.07136). A
        linear one takes weights and bias of LDA, which softmax sees only up to what all classes share: both halves
        are centred over the older classes, and LDA is scaled to fit the older units best at their class means.
        Without older classes it is scaled, down only, to the least cross-entropy at the class means: LDA is so sure
        of itself that smoothed labels would tear the features apart. Its covariance is shrunk by 0.3 at least, unless
        its shrinkage was given: what fits the features best is not what lasts while they are trained.

        Args:
            first (`int`): Index of the first new class; units of classes without statistics stay as they are.
            label_smoothing (`float`, defaults to 0.0): Label smoothing of the training to come.
        """
        known = self.lda.counts > 0  # (C,)
        new = known[first:].nonzero()[:, 0] + first
        classifier, means = self.classifier, self.lda.means
        if not isinstance(classifier, LinearClassifier):
            classifier.weight[new] = F.normalize(means[new], dim=-1).to(classifier.weight)
            return
        weights, biases = self.lda.solve(START_SHRINKAGE)
        discriminant = torch.cat([weights, biases[:, None]], dim=1)  # (C, D + 1)
        own = torch.cat([classifier.weight, classifier.bias[:, None]], dim=1).to(discriminant)  # (C, D + 1)
        points = F.pad(means, (0, 1), value=1.0)  # (C, D + 1)
        old = known[:first].nonzero()[:, 0]
        if len(old):
            centre, offset = discriminant[old].mean(dim=0), own[old].mean(dim=0)
            theirs = (discriminant[old] - centre) @ points[old].T  # (K, K)
            scale = ((own[old] - offset) @ points[old].T * theirs).sum() / theirs.square().sum().clamp(min=1e-12)
        else:
            centre, offset = discriminant[new].mean(dim=0), discriminant.new_zeros(discriminant.shape[1])
            logits = points[new] @ (discriminant[new] - centre).T  # (K, K)
            scale = _best_scale(logits, label_smoothing)
        units = (scale * (discriminant[new] - centre) + offset).to(classifier.weight)
        classifier.weight[new], classifier.bias[new] = units[:, :-1], units[:, -1]

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mixed logits (log-probabilities), classifier logits and LDA logits, each of shape (B, C)."""
        classifier_logits = self.classifier(features)  # (B, C)
        lda_logits = self.lda(features)  # (B, C)
        return self.mix(classifier_logits, lda_logits, self.config.lda_weight), classifier_logits, lda_logits

    @staticmethod
    def mix(classifier_logits: torch.Tensor, lda_logits: torch.Tensor, lda_weight: float) -> torch.Tensor:
        """Return log((1 - w) softmax(classifier) + w softmax(LDA)), shape (B, C), float32, w = `lda_weight`."""
        weight = torch.tensor([1 - lda_weight, lda_weight]).log().to(classifier_logits.device)
        classifier = classifier_logits.float().log_softmax(dim=-1) + weight[0]
        lda = lda_logits.log_softmax(dim=-1) + weight[1]
        return torch.logaddexp(classifier, lda)  # (B, C)


def _best_scale(logits: torch.Tensor, label_smoothing: float) -> float:
    """Return the power of 1/2, up to 1, that gives logits (K, K), one row a class, the least cross-entropy."""
    labels = torch.arange(len(logits), device=logits.device)
    scales = [0.5**power for power in range(17)]
    losses = [F.cross_entropy(scale * logits, labels, label_smoothing=label_smoothing).item() for scale in scales]
    return scales[losses.index(min(losses))]
