"""pass@k: the probability that at least one of k sampled answers is right."""

from math import comb


def pass_at_k(answers: int, right: int, k: int) -> float:
    """Return the unbiased estimate of pass@k for one item.

    1 - C(n - c, k) / C(n, k), for n answers of which c are right (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
        answers: Number of answers, n.
        right: Number of right answers, c.
        k: Number of answers to draw, at most `answers`.
    """
    return 1.0 - comb(answers - right, k) / comb(answers, k)
