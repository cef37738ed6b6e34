"""Interface of the backends: how requests are answered, for built-in engines and plugins.

A third party registers one as an entry point in the group `hpcq.backends`: `my-engine = my_package.module:MyBackend`,
called with an `EvaluateWork`. Its declaration is described in hpcq/catalog/plugins.py.

Imports no model library: a backend imports its own when it loads.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol, runtime_checkable

from hpcq.catalog.plugins import Group
from hpcq.catalog.tools import load_tool, loadable_names
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.requests import Request
from hpcq.store import RequestKey, Response


class Backend(Protocol):
    """Answers requests with a model. Constructed from an `EvaluateWork`; no model library is imported before `load`."""

    def load(self) -> None:
        """Load the model onto the device."""

    def stream(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Yield every request whose key is not in `answered` with its response, as it completes; may yield others too.

        Requests of the fidelity panel (kind TOP_LOGPROBS, `hpcq.evaluate.panel_requests`) are made only if the
        declaration of the backend has `reads_fidelity_panel`. Their responses have packed `TopLogprobs`.

        A response has the number of tokens that were removed from its prompt (`Response.cut_tokens`). The
        caller detects log-likelihoods that are not finite. Only the backend can detect such logits of a generated text.

        A response depends on its chunk alone, bit for bit, not on `answered` or on other chunks. A backend that cannot
        guarantee this reports in `describe`, as "varies", by how much a log-likelihood may differ.

        Args:
            chunks: The requests of a chunk have one task, one kind and the same generation arguments.
            answered: Keys of the requests that need no response.

        Raises:
            NotFiniteError: The logits of a generated text are not finite.
        """

    def token_counts(self) -> dict[str, int]:
        """Return the tokens of all log-likelihood requests so far; empty if unknown. Called from any thread.

        Returns:
            `asked_tokens`, each request counted in full, and `computed_tokens`, how many of these the model computed.
        """

    def describe(self) -> dict[str, str | int | float]:
        """Return what may influence the responses: versions, device, dtype, threads."""


@runtime_checkable
class DiagnosingBackend(Protocol):
    """A backend that can find the layer in which NaN or infinite numbers begin."""

    def not_finite_origin(self, request: Request) -> str | None:
        """Compute `request` again; return the first layer whose output is not finite, as a clause; None: none."""


@runtime_checkable
class MultiNodeBackend(Protocol):
    """A backend that can run on several nodes; `EvaluateWork.node_context` identifies the node."""

    def run_follower(self) -> None:
        """On a node of rank > 0: serve the backend that is loaded on rank 0. Never returns; raises what stops it."""


@runtime_checkable
class SharingBackend(Protocol):
    """A backend that computes common prefixes of log-likelihood requests once, if a check shows the same results."""

    def check(self, sample: Sequence[Request]) -> None:
        """Compare shared and unshared computation of requests of the run; stop sharing if they differ.

        Called once, after `load` and before `describe`.

        Args:
            sample: Log-likelihood requests, of which the run has the same sample in every process (`check_sample`);
                empty if it has none.
        """


def make_backend(work: EvaluateWork) -> Backend:
    """Return the backend that `work` names, not loaded yet. A third party cannot replace a built-in one.

    Raises:
        UserInputError: There is no backend of that name.
        SetupError: The plugin's module cannot be imported.
    """
    made = load_tool(Group.BACKENDS, work.backend)
    if made is None:
        known = ", ".join(loadable_names(Group.BACKENDS))
        raise UserInputError(f"evaluate.backend: {work.backend!r} is not an installed backend: choose {known}.")
    backend: Backend = made(work)
    return backend
