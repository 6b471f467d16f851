"""Deep embedding clustering against golden values, closed forms, scikit-learn and cases made by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdrun.core.errors import ConfigError, KdrunError
from kdrun.core.schema import build
from kdrun.methods.clustering import ClusteringConfig, dec, kl, kmeans, match_classes, sharpen, student_t

Z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.1], [0.9, 0.2]], dtype=torch.float64)
MU = torch.tensor([[0.0, 0.0], [1.0, 0.1]], dtype=torch.float64)
QUICK = ClusteringConfig(n_init=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(distance, count=600, clusters=4, dim=12, seed=0):
    """Gaussians of unit variance per dimension around centers of that spread, and which one each point is from."""
    source = generator(seed)
    labels = torch.arange(count) % clusters
    centers = distance * torch.randn(clusters, dim, generator=source)
    return centers[labels] + torch.randn(count, dim, generator=source), labels


def same_partition(a, b):
    from sklearn.metrics import adjusted_rand_score

    return adjusted_rand_score(a.numpy(), b.numpy())


@pytest.fixture(scope="module")
def overlapping():
    features, labels = blobs(1.0)
    return features, labels, dec(features, 4, 0, QUICK)


# ------------------------------------------------------------------------------------------------------ equations


def test_golden_values():
    q = student_t(Z, MU)
    p = sharpen(q)
    assert q[0].tolist() == pytest.approx([0.667774, 0.332226], abs=1e-6)
    assert p[0].tolist() == pytest.approx([0.806571, 0.193429], abs=1e-6)
    assert kl(p, q).item() == pytest.approx(0.035829, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 10.0])
def test_equations_as_plain_loops(alpha):
    z, mu = torch.randn(7, 3, generator=generator()).double(), torch.randn(4, 3, generator=generator(1)).double()
    q = np.array([[(1 + ((a - b) ** 2).sum() / alpha) ** (-(alpha + 1) / 2) for b in mu.numpy()] for a in z.numpy()])
    q /= q.sum(1, keepdims=True)
    p = q**2 / q.sum(0)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(student_t(z, mu, alpha), q, rtol=1e-12)
    np.testing.assert_allclose(sharpen(student_t(z, mu, alpha)), p, rtol=1e-12)
    assert kl(torch.from_numpy(p), torch.from_numpy(q)).item() == pytest.approx((p * np.log(p / q)).sum() / 7)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def gradients_by_hand(p, z, mu, alpha):
    """Eq. 4 and 5: (alpha + 1) / alpha sum (1 + d^2 / alpha)^-1 (p - q)(z - mu), over N for our mean. P is fixed."""
    apart = z[:, None] - mu
    pull = (alpha + 1) / alpha * (p - student_t(z, mu, alpha)) / (1 + apart.square().sum(2) / alpha)
    by_pair = pull[..., None] * apart / len(z)
    return by_pair.sum(1), -by_pair.sum(0)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_gradients_are_the_paper_s(alpha):
    z = torch.randn(6, 3, generator=generator()).double().requires_grad_()
    mu = torch.randn(4, 3, generator=generator(1)).double().requires_grad_()
    q = student_t(z, mu, alpha)
    p = sharpen(q).detach()
    kl(p, q).backward()
    to_z, to_mu = gradients_by_hand(p, z.detach(), mu.detach(), alpha)
    torch.testing.assert_close(z.grad, to_z)
    torch.testing.assert_close(mu.grad, to_mu)


def test_gradient_agrees_with_finite_differences():
    p = sharpen(student_t(Z, MU))
    assert torch.autograd.gradcheck(
        lambda z, mu: kl(p, student_t(z, mu)), (Z.clone().requires_grad_(), MU.clone().requires_grad_())
    )


def test_far_from_the_origin_and_far_apart():
    near = student_t(Z.float(), MU.float())
    torch.testing.assert_close(student_t(Z.float() + 1000, MU.float() + 1000), near, rtol=0, atol=1e-3)
    spots = 1e6 * torch.randn(50, 8, generator=generator())
    assert torch.equal(student_t(spots, spots).argmax(1), torch.arange(50))
    far = student_t(torch.tensor([[0.0], [1e9]]), torch.tensor([[0.0], [1e9]]), 30.0)
    assert torch.equal(far, torch.eye(2))
    assert kl(sharpen(far), far).item() == 0


def test_kl_is_zero_only_at_equality():
    q = student_t(Z, MU)
    assert kl(q, q).item() == pytest.approx(0, abs=1e-15)
    assert kl(sharpen(q), q).item() > 0.01


def test_alpha_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        student_t(Z, MU, 0.0)


# -------------------------------------------------------------------------------------------------------- clusters


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_separated_blobs_are_what_scikit_learn_finds(normalize, seed):
    from sklearn.cluster import KMeans

    features, labels = blobs(5.0, clusters=6)
    x = F.normalize(features, dim=1) if normalize else features
    theirs = torch.from_numpy(KMeans(6, n_init=3, random_state=seed).fit(x.numpy()).labels_)
    config = QUICK.replace(normalize=normalize)
    found = dec(features, 6, seed, config)
    assert same_partition(found.assignment, theirs) == 1
    assert same_partition(kmeans(features, 6, seed, config), theirs) == 1
    assert same_partition(found.assignment, labels) == 1
    assert found.converged
    assert found.steps == config.update_steps * len(found.history) < config.update_steps * config.max_updates


def test_overlapping_blobs_are_not_left_as_k_means_has_them(overlapping):
    features, _, found = overlapping
    assert torch.equal(found.start, kmeans(features, 4, 0, QUICK))
    assert 0.005 < (found.assignment != found.start).double().mean().item() < 0.5
    assert (found.centers - found.start_centers).norm(dim=1).min().item() > 0.1
    assert (found.projection - torch.eye(len(found.projection))).norm().item() > 0.1


def test_kl_falls(overlapping):
    """Against the same P at every update; against each new P (a sharper goal) first up, then down."""
    _, _, found = overlapping
    assert len(found.history) > 5
    assert all(update.kl_after < update.kl_before for update in found.history)
    highest = max(update.kl_before for update in found.history)
    assert found.history[-1].kl_before < 0.9 * highest


def test_learning_makes_assignments_surer_without_collapse(overlapping):
    features, labels, found = overlapping
    start = dec(features, 4, 0, QUICK.replace(max_updates=0))
    assert found.soft.max(1).values.mean() > start.soft.max(1).values.mean() + 0.1
    assert all(0.5 < update.spread < 2 for update in found.history)
    assert len(found.assignment.unique()) == 4
    assert same_partition(found.assignment, labels) > 0.8


def test_result_fits_together(overlapping):
    _, _, found = overlapping
    assert found.soft.shape == (600, 4)
    assert found.soft.dtype == torch.float32
    torch.testing.assert_close(found.soft.sum(1), torch.ones(600))
    assert found.assignment.dtype == found.start.dtype == torch.int32
    assert torch.equal(found.assignment.long(), found.soft.argmax(1))
    assert found.converged == (found.history[-1].changed < QUICK.tolerance)
    assert all(update.changed >= QUICK.tolerance for update in found.history[:-1])
    grown = [found.soft, found.centers, found.projection]
    assert not any(tensor.requires_grad for tensor in grown)


def test_no_updates_is_the_start():
    features, _ = blobs(1.0)
    found = dec(features, 4, 0, QUICK.replace(max_updates=0))
    assert torch.equal(found.assignment, found.start)
    assert torch.equal(found.centers, found.start_centers)
    assert torch.equal(found.projection, torch.eye(12))
    assert (found.steps, found.history, found.converged) == (0, (), False)


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_tolerance_decides_when_to_stop(tolerance):
    found = dec(blobs(5.0)[0], 4, 0, QUICK.replace(tolerance=tolerance, max_updates=3, update_steps=5))
    assert found.converged == bool(tolerance)
    assert len(found.history) == (1 if tolerance else 3)
    assert found.steps == 5 * len(found.history)


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_two_steps_by_hand(alpha):
    """SGD with momentum on the whole set, two steps with one P; then P is made anew."""
    features, labels = blobs(1.0, count=60)
    config = ClusteringConfig(
        init="class_means", normalize=False, pca=None, alpha=alpha, lr=0.5, update_steps=2, max_updates=2, tolerance=0
    )
    found = dec(features, 4, 0, config, labels=labels)
    x = prepare(features, normalize=False, pca=None).double()
    w, mu = torch.eye(12, dtype=torch.float64), torch.stack([x[labels == c].mean(0) for c in range(4)])
    speed_w, speed_mu = torch.zeros_like(w), torch.zeros_like(mu)
    for update in found.history:
        p = sharpen(student_t(x @ w, mu, alpha))
        assert update.kl_before == pytest.approx(kl(p, student_t(x @ w, mu, alpha)).item(), rel=1e-4)
        for _ in range(2):
            to_z, to_mu = gradients_by_hand(p, x @ w, mu, alpha)
            speed_w, speed_mu = 0.9 * speed_w + x.T @ to_z, 0.9 * speed_mu + to_mu
            w, mu = w - 0.5 * speed_w, mu - 0.5 * speed_mu
        assert update.kl_after == pytest.approx(kl(p, student_t(x @ w, mu, alpha)).item(), rel=1e-4)
    torch.testing.assert_close(found.projection.double(), w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.centers.double(), mu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.soft.double(), student_t(x @ w, mu, alpha), rtol=1e-4, atol=1e-5)


def test_k_means_of_many_images_starts_on_some_and_ends_on_all(monkeypatch):
    from sklearn.cluster import KMeans

    import kdrun.methods.clustering

    monkeypatch.setattr(kdrun.methods.clustering, "START_IMAGES", 50)
    monkeypatch.setattr(kdrun.methods.clustering, "START_IMAGES_PER_CLUSTER", 20)
    fitted = []
    fit = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, x: fitted.append((self.n_init, x.shape)) or fit(self, x))
    features, labels = blobs(5.0)
    found = dec(features, 4, 0, QUICK.replace(normalize=False, pca=None, max_updates=0))
    assert fitted == [(3, (80, 12)), (1, (600, 12))]
    x = prepare(features, normalize=False, pca=None)
    means = torch.stack([x[found.assignment == k].mean(0) for k in range(4)])
    torch.testing.assert_close(found.start_centers, means, rtol=1e-4, atol=1e-4)
    assert same_partition(found.assignment, labels) == 1


# --------------------------------------------------------------------------------------------------- reproducible


def test_same_seed_same_bits_whatever_the_threads_and_global_generators():
    features, _ = blobs(0.8)
    threads = torch.get_num_threads()
    try:
        found = []
        for i, count in enumerate((1, 2)):
            torch.set_num_threads(count)
            torch.manual_seed(i)
            np.random.seed(i)
            states = torch.get_rng_state(), np.random.get_state()[1].copy()
            found.append(dec(features, 4, 3, QUICK.replace(max_updates=3)))
            assert torch.equal(torch.get_rng_state(), states[0])
            assert (np.random.get_state()[1] == states[1]).all()
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for name in ("assignment", "soft", "start", "centers", "projection"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    assert found[0].history == found[1].history


def test_nothing_runs_on_several_threads(monkeypatch):
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_info

    seen = []
    fit = KMeans.fit

    def spy(self, x):
        seen.extend([torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())])
        return fit(self, x)

    monkeypatch.setattr(KMeans, "fit", spy)
    for cluster in (kmeans, dec):
        cluster(blobs(1.0)[0], 4, 0, QUICK.replace(max_updates=0))
    assert set(seen) == {1}


def test_seed_matters():
    features, labels = blobs(0.8)
    config = QUICK.replace(max_updates=0)
    assert not torch.equal(dec(features, 4, 0, config).start_centers, dec(features, 4, 1, config).start_centers)
    config = QUICK.replace(max_updates=1, init="class_means")  # only the order of images is drawn
    assert not torch.equal(dec(features, 4, 0, config, labels).centers, dec(features, 4, 1, config, labels).centers)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    features, _ = blobs(1.0)
    config = QUICK.replace(max_updates=1)
    with mode():
        inside = dec(features * 1, 4, 0, config)
        assert not torch.is_grad_enabled()
    assert torch.equal(inside.soft, dec(features, 4, 0, config).soft)


def test_features_are_left_alone():
    features, _ = blobs(1.0)
    features.requires_grad_()
    before = features.detach().clone()
    dec(features, 4, 0, QUICK.replace(max_updates=1))
    assert torch.equal(features.detach(), before)
    assert features.grad is None


# -------------------------------------------------------------------------------------------------------- features


def prepare(features, **keys):
    from kdrun.methods.clustering import _prepare

    return _prepare(features, 1, ClusteringConfig(**keys))


@pytest.mark.parametrize("normalize", [True, False])
def test_components_are_scikit_learn_s(normalize):
    """More rows than one chunk; equal up to a common scale and the signs of components."""
    from sklearn.decomposition import PCA

    features = torch.randn(5000, 30, generator=generator()) * torch.arange(30, 0, -1) + 7
    x = F.normalize(features, dim=1) if normalize else features
    theirs = PCA(8, svd_solver="full").fit_transform(x.double().numpy())
    theirs *= np.sqrt(theirs.size / (theirs**2).sum())
    ours = prepare(features, normalize=normalize, pca=8).double().numpy()
    np.testing.assert_allclose(ours * np.sign((ours * theirs).sum(0)), theirs, atol=1e-4)


def test_scale_does_not_depend_on_that_of_the_features():
    features, _ = blobs(1.0)
    for pca in (5, None):
        x = prepare(features * 1e-3, normalize=False, pca=pca)
        assert x.square().mean().item() == pytest.approx(1, abs=1e-4)
        assert x.mean(0).abs().max().item() < 1e-5
        torch.testing.assert_close(x, prepare(features * 1e3, normalize=False, pca=pca), rtol=1e-3, atol=1e-4)


def test_without_components_only_shift_and_scale():
    features, _ = blobs(1.0)
    centered = features - features.mean(0)
    x = prepare(features, normalize=False, pca=None)
    torch.testing.assert_close(x, centered / centered.square().mean().sqrt(), rtol=1e-4, atol=1e-5)


def test_signs_of_components_are_fixed():
    features, _ = blobs(1.0)
    x = prepare(features, normalize=False)
    basis = torch.linalg.lstsq(features - features.mean(0), x).solution
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_constant_and_repeated_columns_bring_no_components():
    features, _ = blobs(1.0, dim=5)
    wide = torch.cat([features, torch.full((600, 3), 4.0), features], 1)
    assert prepare(wide, normalize=False).shape == (600, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype):
    features, labels = blobs(5.0)
    assert same_partition(dec(features.to(dtype), 4, 0, QUICK).assignment, labels) == 1


def test_huge_features():
    features, labels = blobs(5.0)
    assert same_partition(dec(features * 1e30, 4, 0, QUICK.replace(normalize=False)).assignment, labels) == 1


# ------------------------------------------------------------------------------------------------------- odd input


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("cluster", [dec, kmeans])
def test_fewer_images_than_clusters(cluster, count):
    with pytest.raises(KdrunError, match=f"^clustering: {count} images are too few for 4 clusters$"):
        cluster(torch.randn(count, 5), 4, 0, QUICK)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("cluster", [dec, kmeans])
def test_features_that_are_not_finite(cluster, value):
    features, _ = blobs(1.0)
    features[599, 3] = value
    with pytest.raises(KdrunError, match="NaN or infinite"):
        cluster(features, 4, 0, QUICK)


def test_features_that_are_all_the_same():
    with pytest.raises(KdrunError, match="all 50 images are the same"):
        dec(torch.full((50, 7), 0.1), 2, 0, QUICK)


@pytest.mark.parametrize("shape", [(10,), (10, 0), (10, 2, 2)])
def test_features_of_another_shape(shape):
    with pytest.raises(KdrunError, match=r"needs features \(N, D\)"):
        dec(torch.zeros(shape), 2, 0, QUICK)


def test_as_many_clusters_as_images():
    found = dec(torch.eye(5), 5, 0, QUICK.replace(max_updates=2, update_steps=5))
    assert sorted(found.assignment.tolist()) == [0, 1, 2, 3, 4]


def test_one_cluster():
    found = dec(blobs(1.0)[0], 1, 0, QUICK)
    assert not found.assignment.any()
    assert found.converged


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_duplicates_share_a_cluster():
    distinct = torch.randn(3, 6, generator=generator())
    rows = torch.arange(90) % 3
    found = dec(distinct[rows], 5, 0, QUICK.replace(max_updates=3))
    assert found.soft.isfinite().all()
    assert same_partition(found.assignment, rows) == 1


def test_learning_rate_that_diverges_is_named():
    with pytest.raises(KdrunError, match="smaller lr than 1e"):
        dec(blobs(1.0)[0], 4, 0, QUICK.replace(lr=1e30))


def test_config_refuses_what_cannot_work():
    assert build(ClusteringConfig, {}, "clustering") == ClusteringConfig()
    for node, key in (
        ({"pca": 0}, "pca"),
        ({"lr": 0.0}, "lr"),
        ({"init": "random"}, "init"),
        ({"alpha": 0.0}, "alpha"),
    ):
        with pytest.raises(ConfigError, match=rf"^clustering\.{key}: "):
            build(ClusteringConfig, node, "clustering")


# ----------------------------------------------------------------------------------------------------- class means


def test_class_means_are_means_of_the_labels():
    features, labels = blobs(1.0)
    config = ClusteringConfig(init="class_means", normalize=False, pca=None, max_updates=0)
    some = torch.where(torch.arange(600) % 3 == 0, labels, -1)
    found = dec(features, 4, 0, config, labels=some)
    x = (features - features.mean(0)) / (features - features.mean(0)).square().mean().sqrt()
    expected = torch.stack([x[some == c].mean(0) for c in range(4)])
    torch.testing.assert_close(found.start_centers, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.assignment.long(), torch.cdist(x, expected).argmin(1))


def test_class_without_labels_starts_far_from_the_others():
    features, labels = blobs(6.0)
    partly = labels.where(labels < 2, torch.full_like(labels, -1))
    found = dec(features, 4, 0, QUICK.replace(init="class_means"), labels=partly)
    assert same_partition(found.assignment, labels) == 1
    assert torch.equal(found.assignment[labels < 2].long(), labels[labels < 2])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels$"),
        (torch.full((600,), -1), "all of them are -1"),
        (torch.full((600,), 4), "from 0 to 3"),
        (torch.full((600,), -2), "from 0 to 3"),
        (torch.zeros(599, dtype=torch.int64), r"must be \(600,\)"),
    ],
)
def test_labels_that_give_no_means(labels, message):
    with pytest.raises(KdrunError, match=message):
        dec(blobs(1.0)[0], 4, 0, QUICK.replace(init="class_means"), labels=labels)


# ------------------------------------------------------------------------------------------------ cluster -> class


def match(table, how):
    """`match_classes` of the images that a table clusters x classes counts."""
    table = torch.tensor(table)
    rows, columns = (index.flatten() for index in torch.meshgrid(*map(torch.arange, table.shape), indexing="ij"))
    times = table.flatten()
    cluster, predicted = rows.repeat_interleave(times).int(), columns.repeat_interleave(times)
    return match_classes(cluster, predicted, *table.shape, how).tolist()


@pytest.mark.parametrize(
    ("table", "hungarian", "majority"),
    [
        ([[0, 9], [7, 1]], [1, 0], [1, 0]),  # both agree
        ([[9, 8], [8, 0]], [1, 0], [0, 0]),  # one to one: 8 + 8 beats 9 + 0
        ([[5, 0], [0, 4], [3, 2]], [0, 1, -1], [0, 1, 0]),  # more clusters than classes
        ([[1, 0, 6], [0, 3, 2]], [2, 1], [2, 1]),  # more classes than clusters
        ([[4, 4], [0, 0]], [0, -1], [0, -1]),  # a tie; a cluster without images
        ([[6, 0], [5, 0]], [0, -1], [0, 0]),  # left with a class that it shares no image with
    ],
)
def test_match_by_hand(table, hungarian, majority):
    assert match(table, "hungarian") == hungarian
    assert match(table, "majority") == majority


def test_match_of_nothing():
    nothing = torch.empty(0, dtype=torch.int64)
    for how in ("hungarian", "majority"):
        assert match_classes(nothing, nothing, 3, 2, how).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_is_the_best_of_all_permutations(seed):
    from itertools import permutations

    table = torch.randint(1, 50, (5, 5), generator=generator(seed))
    best = max(sum(table[i, c].item() for i, c in enumerate(order)) for order in permutations(range(5)))
    classes = match(table.tolist(), "hungarian")
    assert sorted(classes) == [0, 1, 2, 3, 4]
    assert sum(table[i, c].item() for i, c in enumerate(classes)) == best


def test_matched_clusters_recover_the_classes():
    features, labels = blobs(5.0)
    found = dec(features, 4, 0, QUICK)
    classes = match_classes(found.assignment, labels, 4, 4, "hungarian")
    assert classes.dtype == torch.int64
    assert torch.equal(classes[found.assignment.long()], labels)
