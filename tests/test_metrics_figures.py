"""The published metrics' arithmetic against closed forms, against formulas written out with SciPy, and against figures of an
independent implementation; and what collectors hold while rows stream by."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from scipy.spatial import cKDTree
from scipy.special import softmax

from metric_references import RECORDED, feature_sets
from metrics.collectors import CHUNK, Moments, Rows
from metrics.frechet import frechet_distance, gaussian_distance, moments_distance
from metrics.inception_score import ClassSplits
from metrics.kernel import kernel_distance, polynomial_mmd2
from metrics.path_length import trimmed_mean
from metrics.precision_recall import precision_recall


def collected(kind, rows, step=100):
    """A collector of that class which has seen all `rows`, some at a time."""
    collector = kind(len(rows))
    for start in range(0, len(rows), step):
        collector.add(rows[start:start + step])
    return collector


def normal(num, mean, deviation, offset=0.0):
    """[num, F] normal rows on a lattice of low discrepancy: their moments are the distribution's to about 1 / num."""
    ratio = scipy.optimize.brentq(lambda x: x ** (len(mean) + 1) - x - 1, 1, 2)      # Roberts' generalised golden ratio
    steps = ratio ** -np.arange(1, len(mean) + 1)
    return scipy.stats.norm.ppf((0.5 + offset + np.arange(num)[:, None] * steps) % 1) * deviation + mean


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms.

def test_frechet_of_gaussians():
    a = normal(2 ** 14, [0, 1, 2], [1, 2, 0.5])
    b = normal(2 ** 14, [1, 1, 0], [2, 1, 0.5], offset=0.3)
    expected = 1 + 4 + 1 + 1                      # means, and squared differences of the deviations
    assert moments_distance(collected(Moments, a), collected(Moments, b)) == pytest.approx(expected, rel=1e-3)


def kernel_mean(a, b, size, deviation_a, deviation_b):
    """Mean of (x.y / size + 1)^3 for independent x ~ N(a, s^2), y ~ N(b, t^2) of `size` equal-variance coordinates."""
    s, t, ab = deviation_a ** 2, deviation_b ** 2, a @ b
    first = ab
    second = ab ** 2 + t * a @ a + s * b @ b + s * t * size
    third = ab ** 3 + 3 * ab * (t * a @ a + s * (b @ b + t * size)) + 6 * s * t * ab
    return 1 + 3 * first / size + 3 * second / size ** 2 + third / size ** 3


def test_kernel_distance_of_gaussians():
    """The kernel sees moments up to the third, and six points can have those of a Gaussian exactly."""
    a, b = np.array([1.0, 0, -1]), np.array([0.0, 2, 0])
    corners = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    x, y = a + corners, b + 0.5 * corners

    def without_pairs_of_one(points, mean, deviation):      # the estimate leaves out k(x, x)
        own = np.mean([(p @ p / 3 + 1) ** 3 for p in points])
        return (6 * kernel_mean(mean, mean, 3, deviation, deviation) - own) / 5
    expected = without_pairs_of_one(x, a, 1) + without_pairs_of_one(y, b, 0.5) - 2 * kernel_mean(a, b, 3, 1, 0.5)
    assert polynomial_mmd2(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_points():
    """Written out: two points each, every pair by hand."""
    x, y = np.array([[1.0, 0], [0, 2]]), np.array([[1.0, 1], [2, 0]])
    k = lambda u, v: (u @ v / 2 + 1) ** 3   # noqa: E731
    cross = np.mean([k(u, v) for u in x for v in y])
    assert polynomial_mmd2(x, y) == pytest.approx(k(x[0], x[1]) + k(y[0], y[1]) - 2 * cross)


@pytest.mark.parametrize('probabilities, expected', [
    (np.eye(8)[np.arange(800) % 8], 8.0),                                # sure of all, all classes: their number
    (np.full([800, 8], 1 / 8), 1.0),                                     # sure of nothing
    (np.tile(np.eye(8)[3], [800, 1]), 1.0),                              # always the same
    (0.5 * np.eye(8)[np.arange(800) % 8] + 0.5 / 8,
     8 * np.exp(9 / 16 * np.log(9 / 16) + 7 / 16 * np.log(1 / 16)))])
def test_inception_score_of_known_classes(probabilities, expected):
    scores = collected(ClassSplits, probabilities).scores()
    assert scores == pytest.approx(np.full(10, expected), rel=1e-6)


def test_inception_score_of_parts_of_unequal_length():
    probabilities = softmax(np.random.RandomState(0).standard_normal([77, 5]), axis=1)
    kl = [np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean())
          for p in (probabilities[i * 77 // 10:(i + 1) * 77 // 10] for i in range(10))]
    assert collected(ClassSplits, probabilities, step=9).scores() == pytest.approx(kl)


def test_precision_and_recall_of_intervals():
    whole, half = np.linspace(0, 1, 2001)[:, None], np.linspace(0, 0.5, 1001)[:, None]
    assert precision_recall(collected(Rows, whole), collected(Rows, whole)) == (1, 1)
    precision, recall = precision_recall(collected(Rows, whole), collected(Rows, half))      # only half of it is made
    assert precision == 1 and recall == pytest.approx(0.5, abs=4e-3)
    precision, recall = precision_recall(collected(Rows, half), collected(Rows, whole))
    assert precision == pytest.approx(0.5, abs=4e-3) and recall == 1
    assert precision_recall(collected(Rows, whole), collected(Rows, half + 10)) == (0, 0)


def test_trimmed_mean():
    distances = np.arange(1000.0)
    distances[-1] = 1e9
    assert trimmed_mean(distances) == pytest.approx(np.arange(9, 991).mean())
    assert trimmed_mean(np.full(10, 3.0)) == 3


def test_a_set_against_itself():
    real, _, _ = feature_sets()
    moments, rows = collected(Moments, real), collected(Rows, real)
    scale = np.trace(moments.covariance)
    assert moments_distance(moments, moments) < 1e-10 * scale
    assert abs(polynomial_mmd2(real, real)) < 0.05 * abs(polynomial_mmd2(real, real + 1))
    # Split in two, the halves are as near as chance makes them: an unbiased estimate is about 0, of either sign.
    half, other, moved = (collected(Rows, rows) for rows in (real[::2], real[1::2], real[1::2] + 1))
    assert abs(kernel_distance(half, other, subset_size=300)) < 0.05 * kernel_distance(half, moved, subset_size=300)
    assert precision_recall(rows, rows) == (1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Other implementations.

def test_against_torch_fidelity():
    """Recorded figures; see metric_references.py for their command."""
    real, fake, logits = feature_sets()
    assert moments_distance(collected(Moments, real), collected(Moments, fake)) == pytest.approx(RECORDED['fid'], rel=1e-3)
    assert kernel_distance(collected(Rows, real), collected(Rows, fake), 100, 400) == pytest.approx(RECORDED['kid'], rel=1e-3)
    scores = collected(ClassSplits, softmax(logits, axis=1)).scores()
    assert (scores.mean(), scores.std()) == pytest.approx((RECORDED['is_mean'], RECORDED['is_std']), rel=1e-3)
    assert precision_recall(collected(Rows, real), collected(Rows, fake)) == pytest.approx(
        (RECORDED['precision'], RECORDED['recall']), rel=1e-3)


def test_against_scipy():
    real, fake, _ = feature_sets()
    root = scipy.linalg.sqrtm(np.cov(real, rowvar=False) @ np.cov(fake, rowvar=False)).real
    expected = (np.square(real.mean(axis=0, dtype=np.float64) - fake.mean(axis=0, dtype=np.float64)).sum()
                + np.trace(np.cov(real, rowvar=False) + np.cov(fake, rowvar=False) - 2 * root))
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)

    def covered(rows, manifold):
        radius = cKDTree(manifold).query(manifold, k=4)[0][:, 3]
        return np.mean([(np.linalg.norm(manifold - row, axis=1) <= radius).any() for row in rows])
    assert precision_recall(collected(Rows, real), collected(Rows, fake)) == pytest.approx(
        (covered(fake, real), covered(real, fake)), rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Collectors.

def test_moments_are_those_of_numpy_far_from_zero():
    rows = np.random.RandomState(0).standard_normal([1700, 6]) * 1e-3 + 1e4
    moments = collected(Moments, rows, step=7)
    assert moments.mean == pytest.approx(rows.mean(axis=0), rel=1e-12)
    assert moments.covariance == pytest.approx(np.cov(rows, rowvar=False), rel=1e-6)


@pytest.mark.parametrize('kind', [Moments, Rows, ClassSplits])
def test_what_is_held_does_not_grow(kind):
    held = []
    collector = kind(20 * CHUNK)
    for _ in range(20):
        collector.add(np.full([CHUNK, 16], 1 / 16, dtype=np.float32))
        collector.flush()
        held.append(collector.num_retained)
    assert max(held) == held[0] and held[0] <= 16 * 16 + 16 + 10 * 17
    collector.add(np.zeros([1, 16], dtype=np.float32))
    assert collector.num_retained <= held[0] + 16
    collector.close()


def test_rows_come_back():
    rows = np.random.RandomState(0).standard_normal([1300, 5]).astype(np.float32)
    collector = collected(Rows, rows, step=33)
    assert np.array_equal(collector.take([1299, 0, 7, 7]), rows[[1299, 0, 7, 7]])
    assert np.array_equal(np.concatenate([block for _, block in collector.blocks(400)]), rows)
    assert [start for start, _ in collector.blocks(400)] == [0, 400, 800, 1200]


@pytest.mark.parametrize('kind', [Moments, Rows])
def test_kept_collectors_come_back(kind, tmp_path):
    rows = np.random.RandomState(0).standard_normal([600, 5]).astype(np.float32)
    collected(kind, rows).save(tmp_path / 'kept')
    loaded = kind.load(tmp_path / 'kept', 600)
    if kind is Moments:
        assert gaussian_distance(loaded.mean, loaded.covariance, rows.mean(axis=0), np.cov(rows, rowvar=False)) < 1e-8
    else:
        assert np.array_equal(loaded.take(range(600)), rows)
    assert loaded.count == 600
    with pytest.raises(ValueError):
        kind.load(tmp_path / 'kept', 601)


@pytest.mark.parametrize('kind', [Moments, Rows, ClassSplits])
def test_what_is_not_finite_is_refused(kind):
    with pytest.raises(ValueError, match='finite'):
        kind(4).add(np.array([[1.0, np.nan]]))
