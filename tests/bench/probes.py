"""Solvers of the probes against scikit-learn's, on synthetic features, one thread each.

The logistic sweep is SimCLR's 45 penalties on 50,000 x 384 features of 10 classes, both to the same tolerance of the
gradient (1e-5); accuracy is that of the best penalty on 10,000 other samples, in points. The second row is
scikit-learn with its weights kept from one penalty to the next. k-NN looks for 200 neighbours of 10,000 queries among
50,000 x 384; the peer is the faster of scikit-learn's two brute forces for it. Ridge takes 1,280,000 x 768 features
of 1,000 classes in parts, and chooses among 8 penalties on 40,000 others, whose scores would be 2.6 GB if they were
kept; memory is the peak of the process. Seconds are of CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from pipeline.evaluate.evaluators.knn import nearest
from pipeline.evaluate.evaluators.linear import Standardiser, path_shares
from pipeline.evaluate.evaluators.logistic import TOLERANCE, fit_path
from pipeline.evaluate.evaluators.ridge import Moments, choose_ridge
from pipeline.evaluate.recipe import SIMCLR_L2, RidgeSettings
from tests.bench.peak import peak_bytes
from tests.bench.row import Row

_TRAIN, _QUERIES, _WIDTH, _CLASSES = 50_000, 10_000, 384, 10
_PATH = sorted(SIMCLR_L2, reverse=True)
_NEIGHBOURS = 200
_RIDGE_WIDTH, _RIDGE_CLASSES = 768, 1_000
_ALLOWED_BYTES = 2_000_000_000


def measure() -> list[Row]:
    return [*_sweep_rows(), _knn_row(), _ridge_row()]


def features(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Classes that overlap, in features whose variance falls off like a network's."""
    base, draw = np.random.default_rng(7), np.random.default_rng(seed)
    turn = np.linalg.qr(base.normal(size=(_WIDTH, _WIDTH)))[0]
    scale = np.arange(1, _WIDTH + 1) ** -0.7
    centres = 0.15 * base.normal(size=(_CLASSES, _WIDTH)) * scale
    labels = draw.integers(0, _CLASSES, count)
    return np.tanh((centres[labels] + draw.normal(size=(count, _WIDTH)) * scale) @ turn).astype(np.float32), labels


def _timed(call: Callable[[], NDArray]) -> tuple[float, NDArray]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def _sweep_rows() -> list[Row]:
    train, labels = features(_TRAIN, 1)
    scale = Standardiser(train)
    train, (queries, truth) = scale(train), features(_QUERIES, 2)
    queries = scale(queries)

    def ours() -> NDArray:
        fits = list(fit_path(train, labels, _CLASSES, _PATH, max_iterations=1000))
        return path_shares(fits, queries, truth)

    def peer(warm: bool) -> NDArray:
        model = LogisticRegression(tol=TOLERANCE, max_iter=1000, warm_start=warm)
        found = []
        for l2 in _PATH:
            model.set_params(C=1 / (_TRAIN * l2)).fit(train, labels)
            found.append(model.score(queries, truth))
        return np.array(found)

    mine, shares = _timed(ours)
    rows = []
    for warm, least in ((False, 5.0), (True, None)):
        seconds, theirs = _timed(lambda warm=warm: peer(warm))
        apart = 100 * abs(shares.max() - theirs.max())
        what = f"45 penalties{', peer warm-started' if warm else ''}: best accuracy {apart:.2f} points apart"
        told = f"{mine:.1f} s, {shares.max():.2%}", f"{seconds:.1f} s, {theirs.max():.2%}"
        rows.append(Row(what, *told, seconds / mine, least if apart <= 0.1 else np.inf))
    return rows


def _knn_row() -> Row:
    train, queries = features(_TRAIN, 1)[0], features(_QUERIES, 2)[0]
    mine, found = _timed(lambda: np.concatenate([index for _, index in nearest(train, queries, _NEIGHBOURS)]))
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, queries)]
    peers = {
        "cosine": _timed(lambda: _brute_force("cosine", train, queries)),
        "sqeuclidean": _timed(lambda: _brute_force("sqeuclidean", *unit)),  # of unit vectors: the same order
    }
    name = min(peers, key=lambda name: peers[name][0])
    seconds, theirs = peers[name]
    same = np.mean([len(np.intersect1d(a, b)) / _NEIGHBOURS for a, b in zip(found, theirs, strict=True)])
    what = f"200 nearest of 50,000 for 10,000 queries: {same:.3%} the same"
    return Row(what, f"{mine:.1f} s", f"{seconds:.1f} s ({name})", seconds / mine, 1.0 if same > 0.999 else np.inf)


def _brute_force(metric: str, train: NDArray, queries: NDArray) -> NDArray:
    model = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute", metric=metric).fit(train)
    return model.kneighbors(queries, return_distance=False)


def _ridge_row() -> Row:
    command = [sys.executable, "-m", "tests.bench.probes"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    told = f"{found['bytes'] / 1e6:.0f} MB, {found['seconds']:.0f} s"
    what = "ridge, 1,280,000 x 768, 1,000 classes, 8 penalties, chosen on 40,000: memory"
    return Row(what, told, "2,000 MB allowed", _ALLOWED_BYTES / found["bytes"], 1.0)


def _ridge() -> dict[str, float]:
    """Peak bytes and CPU seconds, those of making the features left out."""
    moments, seconds = Moments(_RIDGE_WIDTH, _RIDGE_CLASSES), 0.0
    for chunk, labels in _ridge_parts(1_280_000, 0):
        seconds += _timed(lambda chunk=chunk, labels=labels: moments.add(chunk, labels))[0]
    held = list(_ridge_parts(40_000, 1))
    taken, (_, share) = _timed(lambda: choose_ridge(moments, held, RidgeSettings().l2))
    if moments.num_samples != 1_280_000 or not 0.5 < share < 1:
        raise AssertionError(f"ridge took {moments.num_samples:,} samples, and {share:.1%} of its choice are right")
    return {"bytes": peak_bytes(), "seconds": seconds + taken}


def _ridge_parts(count: int, seed: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features of which one is raised by the class; some classes share theirs."""
    draw, part = np.random.default_rng(seed), 20_000
    for _ in range(count // part):
        labels = draw.integers(0, _RIDGE_CLASSES, part)
        chunk = draw.standard_normal((part, _RIDGE_WIDTH), dtype=np.float32)
        chunk[np.arange(part), labels % _RIDGE_WIDTH] += 6
        yield chunk, labels


if __name__ == "__main__":
    print(json.dumps(_ridge()))
