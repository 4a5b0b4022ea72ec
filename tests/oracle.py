"""Scores from stored activations in float64, written from the definitions alone.

Nothing here imports the package: singular vectors and `numpy.linalg.lstsq` stand where the
package uses moments.
"""

import numpy as np

# Directions of x this much shorter than the longest are the rounding of float32 activations (a
# layer norm, say, leaves one direction that only rounding fills).
RELATIVE_CUTOFF = 1e-6


def _scale(x):
    """One over the norm of each column, so that a massive one does not set the cutoff for the others."""
    norms = np.linalg.norm(x, axis=0)
    return np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0)


def in_sample(x, y):
    """(linearity, update linearity) of ``[n, p]`` arrays, by projection on the left singular vectors of x."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    left, singular, _ = np.linalg.svd((x - x.mean(0)) * _scale(x - x.mean(0)), full_matrices=False)
    left = left[:, singular > singular[0] * RELATIVE_CUTOFF]

    def explained(z):
        z = z - z.mean(0)
        return np.sum((left.T @ z) ** 2) / np.sum(z**2)

    return explained(y), explained(y - x)


def held_out(x, y, folds):
    """Per fold (linearity, update linearity): fit on the others by lstsq, their means on the fold."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scores = []
    for part in np.unique(folds):
        inside = folds == part
        mean_x, mean_y = x[~inside].mean(0), y[~inside].mean(0)
        scale = _scale(x[~inside] - mean_x)
        train_x, test_x = (x[~inside] - mean_x) * scale, (x[inside] - mean_x) * scale
        row = []
        for target, mean in ((y, mean_y), (y - x, mean_y - mean_x)):
            coefficients = np.linalg.lstsq(train_x, target[~inside] - mean, rcond=RELATIVE_CUTOFF)[0]
            test = target[inside] - mean
            row.append(1 - np.sum((test_x @ coefficients - test) ** 2) / np.sum(test**2))
        scores.append(row)
    return np.array(scores)


def adjusted(score, n, p):
    return 1 - (1 - score) * (n - 1) / (n - p - 1)


def least_squares(x, d, ridge=0.0, rank=None, intercept=True):
    """(map, bias): ridge as rows added to the data, and the rank by an SVD of all that is then fitted."""
    x, d = np.asarray(x, np.float64), np.asarray(d, np.float64)
    mean_x, mean_d = (x.mean(0), d.mean(0)) if intercept else (np.zeros(x.shape[1]), np.zeros(d.shape[1]))
    x, d = x - mean_x, d - mean_d
    scale = np.linalg.norm(x, axis=0)
    rows = np.vstack([x / scale, np.sqrt(ridge) * np.eye(len(scale))])
    weight = np.linalg.lstsq(rows, np.vstack([d, np.zeros((len(scale), d.shape[1]))]), rcond=1e-13)[0]
    if rank is not None:
        leading = np.linalg.svd(rows @ weight, full_matrices=False)[2][:rank]
        weight = weight @ leading.T @ leading
    weight = weight / scale[:, None]
    return weight, mean_d - mean_x @ weight
