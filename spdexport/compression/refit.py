"""Fitting a layer to what the dense network has there, given what the compressed network brings to it.

Layers are taken front to back. With x what the layer reads in the compressed network and y what it gives in the dense
one, both about their means, G = E x x' and R = E y x'::

    B = (R + t W) (G + t I)^-1,    t = ridge * tr G / patch,

is the weight that comes nearest to y, drawn to the layer's own W where the data say little (Zhang et al. 2015, arXiv
1505.06798, refit against the error of earlier layers so; AA-SVD, arXiv 2604.02119, has anchored outputs). The bias is
E y - B E x. Moments about the mean are right: a free bias takes up the means of x and y whatever the weight is, and
what is left to fit is the centred problem.

Since E |y - A x|^2 + t |A - W|^2 = tr((A - B) (G + t I) (A - B)') + a constant, the best A of any form is the form of B
in the metric G + t I: a layer is compressed anew as though B were its weight (``decomposition.py``), which for V,U
gives Q the top eigenvectors of B (G + t I) B', U = Q, V = Q' B. A dense layer takes B itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.compression.candidates import grouped_weight
from spdexport.compression.metric import RIDGE, Metric
from spdexport.compression.separable import decomposed
from spdexport.forms import Form, FormKind, dense

if TYPE_CHECKING:
    from spdexport.compression.moments import Moments
    from spdexport.conv import Array, ConvSite, ConvSpec, FloatArray
    from spdexport.forms.families import Ranks


def anchored(weight: Array, spec: ConvSpec, moments: Moments, *, ridge: float = RIDGE) -> tuple[FloatArray, FloatArray]:
    """Return B and its bias.

    Args:
        weight: W, shape ``spec.weight_shape``.
        spec: The geometry.
        moments: Of the layer's input in the compressed network, with targets from the dense one, and a full Sigma.
        ridge: As for ``Metric``.

    Returns:
        float64, shapes (groups, out / groups, patch) and (out_channels,).
    """
    W, metric = grouped_weight(weight, spec), Metric.of(moments, ridge=ridge)
    return _anchored(W, metric, moments)


def refitted(site: ConvSite, kind: FormKind, ranks: Ranks, moments: Moments, *, ridge: float = RIDGE) -> Form:
    """Return the form of a kind and ranks that comes nearest to the dense network's output.

    Args:
        site: The layer.
        kind: DENSE, RECOMPRESSED, SPATIAL, TUCKER or CP.
        ranks: As ``Candidate.ranks``.
        moments: As for ``anchored``.
        ridge: As for ``Metric``.
    """
    spec, dtype = site.spec, site.weight.dtype
    metric = Metric.of(moments, ridge=ridge)
    B, bias = _anchored(grouped_weight(site.weight, spec), metric, moments)
    if kind is FormKind.DENSE:
        return dense(spec, B.reshape(spec.weight_shape).astype(dtype), bias.astype(dtype))
    return decomposed(B, spec, metric, kind, ranks[0]).form(ranks, bias, dtype)


def last_stage_refitted(form: Form, moments: Moments, *, ridge: float = RIDGE) -> Form:
    """Return a form with the last stage of its only chain fitted: A = (R + t A0) (G + t I)^-1, and the bias.

    This is the way where the layer's own patches are too long for a full Sigma, and for forms of other origin.

    Args:
        form: A form of one chain.
        moments: Of what its last stage reads in the compressed network, with targets from the dense one.
        ridge: As for ``Metric``.
    """
    (*front, last) = form.chains[0]
    weight = np.asarray(last.weight)
    A, bias = anchored(weight, last.spec, moments, ridge=ridge)
    fitted = replace(
        last, weight=A.reshape(last.spec.weight_shape).astype(weight.dtype), bias=bias.astype(weight.dtype), mask=None
    )
    return replace(form, chains=((*front, fitted),))


def _anchored(W: FloatArray, metric: Metric, moments: Moments) -> tuple[FloatArray, FloatArray]:
    if metric.full is None:
        raise ValueError("a weight is fitted with a full Sigma; of longer patches the last stage is")
    t = metric.ridge[:, None, None]
    # Where nothing varies there is nothing to fit: the layer's own weight stays.
    diagonal = np.arange(W.shape[-1])
    G = metric.full.copy()
    still = metric.ridge <= 0
    G[np.ix_(np.flatnonzero(still), diagonal, diagonal)] += np.eye(W.shape[-1])
    t = np.where(still[:, None, None], 1.0, t)
    B = np.swapaxes(np.linalg.solve(G, np.swapaxes(moments.cross_covariance() + t * W, 1, 2)), 1, 2)
    bias = moments.target_mean - (B @ moments.mean[..., None])[..., 0]
    return B, bias.ravel()
