"""Public Python API, for notebooks and scripts: load a manifest or find a run, and do what the command line does.

Everything here is also available as `hpcq.load`, `hpcq.runs` and so on. Paths may be given as `str` or `Path`. No
function changes the process: no umask, working directory, signal handler or environment variable.

Example:
    >>> import hpcq
    >>> run = hpcq.load("m.toml", **{"tasks.limit": 4})
    >>> run.submit(wait=True).status.state.value
    'done'
    >>> [(row.task, row.n) for row in run.scores() if row.is_main]
    [('arc_challenge', 4)]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcq.core.addressing import slug
from hpcq.core.errors import HpcqError, KeyedInputError, SetupError, UserInputError
from hpcq.core.files import make_folder, write_text
from hpcq.core.frozen import dataclass
from hpcq.data import find_manifest
from hpcq.monitor.status import RunStatus
from hpcq.run import operations
from hpcq.run.record import RunRecord, find_latest_run, find_lock_file, find_runs, manifest_layout, read_run
from hpcq.run.wait import wait_until_ended

if TYPE_CHECKING:
    import pandas

    from hpcq.doctor.finding import Finding
    from hpcq.report.cut_prompts import CutPrompts
    from hpcq.report.formats import Report
    from hpcq.report.make_report import MergedRun
    from hpcq.report.rows import Row
    from hpcq.run.load import LoadedRun
    from hpcq.run.overview import RunOverview
    from hpcq.run.submit import PlanResult, StatusCallback, SubmitResult
    from hpcq.stage.progress import StagedItem, StageReporter

__all__ = [
    "PlanResult",
    "Records",
    "ResponseRecord",
    "Run",
    "RunStatus",
    "SubmitResult",
    "build_report",
    "cut_prompts",
    "diagnose",
    "export",
    "find",
    "init_manifest",
    "init_profile",
    "latest",
    "load",
    "make_report",
    "overviews",
    "runs",
]

_LOADED_ON_USE = ("PlanResult", "SubmitResult")

Confirm = Callable[[Mapping[str, float], float], bool]
"""Receives GPU-hours per GPU class and the limit that they exceed; returns whether to submit."""

T = TypeVar("T")


def __getattr__(name: str) -> Any:
    """Import the results of planning and submitting on first use, because they import the whole planner."""
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpcq.run import submit

    return getattr(submit, name)


class Records(tuple[T, ...]):
    """Immutable sequence of records of one type, convertible to a pandas DataFrame.

    Example:
        >>> import hpcq
        >>> hpcq.load("m.toml").scores().to_pandas().query("is_main").task.tolist()
        ['arc_challenge']
    """

    __slots__ = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per record, with one column per field.

        Raises:
            SetupError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise SetupError("to_pandas needs pandas: install it, or use the records themselves.") from error
        return pandas.DataFrame([vars(record) for record in self])


@dataclass(frozen=True, kw_only=True)
class ResponseRecord:
    """One stored response of a variant.

    Attributes:
        variant: Id of the variant.
        task: Name of lm-eval's task; for a group of tasks, of its member.
        doc_id: Index of the document in the task's data set.
        request_index: Index of the request among those of its document (for multiple choice: the choice).
        repeat: Index of the repetition of the request.
        loglikelihood: Natural logarithm of the probability; None for generated text. For a window of the fidelity
            panel, that of all its tokens but the first; the other numbers are arrays in `results.h5` (docs/formats.md).
        is_greedy: Whether greedy decoding would produce the continuation; None where the request does not ask for it.
        text: Generated text; None for log-likelihoods.
        cut_tokens: Tokens that were removed from the left of the prompt to fit the model; None if that is unknown.
    """

    variant: str
    task: str
    doc_id: int
    request_index: int
    repeat: int
    loglikelihood: float | None
    is_greedy: bool | None
    text: str | None
    cut_tokens: int | None = None


class Run:
    """A run: the manifest that defines it and the folder with what it has computed. Created by `load` and `runs`.

    Every method reads the current state from disk (and from Slurm where it must). A method that reads results raises a
    UserInputError if the run was submitted with other settings than this manifest's.

    Args:
        source: A manifest, or the name or folder of an existing run.
        overrides: `key=value` settings applied to the manifest.

    Example:
        >>> import hpcq
        >>> run = hpcq.load("m.toml")
        >>> run.name
        'demo'
    """

    def __init__(self, source: str | Path, overrides: Iterable[str] = ()) -> None:
        self._source = Path(source)
        self._overrides = tuple(overrides)
        self._working_directory = Path.cwd()
        self._is_manifest = find_manifest(self._source).suffix == ".toml" and not self._source.is_dir()
        self._found = None if self._is_manifest else find_lock_file(str(source)).parent.absolute()

    def __repr__(self) -> str:
        return f"hpcq.load({str(self._source)!r})"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def folder(self) -> Path:
        """Folder of the run, absolute. It exists once the run has been submitted."""
        return self._found or manifest_layout(self._manifest, self._overrides).folder

    @property
    def _manifest(self) -> Path:
        """Path of the manifest.

        Raises:
            UserInputError: The working directory has changed: relative paths in the manifest would mean other folders.
        """
        if Path.cwd() != self._working_directory:
            raise UserInputError(f"{self!r}: the working directory has changed; load the run again.")
        return self._source

    @property
    def _name(self) -> str:
        """Name of an existing run for messages and look-ups: as given, or its folder from another working directory."""
        return str(self._source if Path.cwd() == self._working_directory else self._found)

    def load(self) -> LoadedRun:
        """Resolve and plan the manifest: all models, schemes, tasks and units.

        Raises:
            ManifestError: The manifest is invalid; the message lists every problem.
            UserInputError: The run does not exist.

        Example:
            >>> import hpcq
            >>> loaded = hpcq.load("m.toml").load()
            >>> [unit.kind.value for unit in loaded.plan.units]
            ['evaluate', 'merge']
        """
        from hpcq.run.load import load_manifest, load_run

        if self._is_manifest:
            return load_manifest(self._manifest, self._overrides)
        return load_run(self._name, self._overrides)

    def plan(self) -> PlanResult:
        """Plan without submitting anything: the arrays are exactly those that `submit` would submit now.

        If the run has jobs and Slurm does not respond, the field `slurm_error` of the document has the reason, and
        units whose jobs are pending or running count as missing.

        Raises:
            ManifestError: The manifest is invalid; the message lists every problem.
            UserInputError: The hub has no such repository or revision.

        Example:
            >>> import hpcq
            >>> planned = hpcq.load("m.toml").plan()
            >>> [unit["kind"] for unit in planned.document["units"]]
            ['evaluate', 'merge']
        """
        from hpcq.run.submit import plan_run

        return plan_run(self.load())

    def estimate_gpu_hours(self, *, retry_failed: bool = False) -> dict[str, float]:
        """Estimate the GPU-hours per GPU class that `submit` would add now. Pending and running jobs are not counted.

        Raises:
            SetupError: Slurm does not respond.

        Example:
            >>> import hpcq
            >>> hpcq.load("m.toml").estimate_gpu_hours()
            {}
        """
        from hpcq.run.submit import estimate_gpu_hours

        return estimate_gpu_hours(self.load(), retry_failed=retry_failed)

    def check(self) -> PlanResult:
        """Plan, and run all checks of `submit` without submitting anything.

        Raises:
            UserInputError: Same reasons as in `submit`.
            SetupError: Same reasons as in `submit`.

        Example:
            >>> import hpcq
            >>> hpcq.load("m.toml").check().document["refused"]
            []
        """
        from hpcq.run.submit import check_run

        return check_run(self.load())

    def submit(
        self,
        *,
        wait: bool = False,
        confirm: Confirm | None = None,
        retry_failed: bool = False,
        unattended: bool = False,
        on_status: StatusCallback | None = None,
        reporter: StageReporter | None = None,
    ) -> SubmitResult:
        """Submit all missing units to Slurm; with the local scheduler, run them and return when they have ended.

        Can be repeated: what is done, pending or running is not submitted again.

        Args:
            wait: With Slurm, return when the run has ended.
            confirm: Called with the estimated GPU-hours per GPU class and the limit if their sum is above
                `plan.confirm_above_gpu_hours` of the manifest. Nothing is submitted unless it returns True.
            retry_failed: Also submit units that have failed permanently.
            unattended: Called by a job, not by the user: skip units on hold, and do not ask.
            on_status: Called every few seconds with the state of the run while this function waits for it.
            reporter: Receives reports of what is staged before the submission.

        Raises:
            UserInputError: A unit cannot run, the estimate is too high, the run's folder belongs to another manifest,
                jobs of an earlier plan are still active, or another user can write to the run's folders.
            SetupError: A model, an environment or Slurm is missing.

        Example:
            >>> import hpcq
            >>> result = hpcq.load("m.toml").submit(wait=True)
            >>> result.status.counts
            {'done': 2}
        """
        finished = None if self._is_manifest or self._overrides else self._finished()
        if finished is not None:
            return finished
        from hpcq.run.submit import submit_run

        loaded = self.load()
        if not unattended:
            _confirm_gpu_hours(loaded, confirm, retry_failed=retry_failed)
        result = submit_run(
            loaded, retry_failed=retry_failed, unattended=unattended, on_status=on_status, reporter=reporter
        )
        if not wait:
            return result
        started = find(loaded.layout.folder)
        status = wait_until_ended(result.status, lambda: started.status(patient=True), on_status)
        return replace(result, status=status)

    def status(self, *, patient: bool = False) -> RunStatus:
        """Return the state of the run, with at most one call to Slurm for all of its units.

        If Slurm does not respond in time, `slurm_error` of the result has the reason.

        Args:
            patient: Wait for Slurm for up to 30 s instead of 4 s.

        Example:
            >>> import hpcq
            >>> hpcq.load("m.toml").status().state.value
            'done'
        """
        if self._is_manifest and not manifest_layout(self._manifest, self._overrides).manifest_lock.is_file():
            return self.plan().status
        return operations.query_status(self._record(), patient=patient)

    def scores(self, *, compare: str | None = None) -> Records[Row]:
        """Return the scores of the run: a tuple with one record per variant, task, metric and filter.

        `.to_pandas()` of the result makes a DataFrame, with one column per field of `Row`.

        Args:
            compare: A study with published scores, or 'published' for all studies; None for those in the manifest.

        Raises:
            RunIncompleteError: The run has no merged results yet, or its responses are synthetic.

        Example:
            >>> import hpcq
            >>> scores = hpcq.load("m.toml").scores()
            >>> {row.scheme for row in scores}
            {'bf16'}
        """
        from hpcq.report.make_report import report_rows

        return Records(report_rows([_merged_run(self._record())], compare=compare).rows)

    def responses(self, task: str | None = None, *, variant: str | None = None) -> Records[ResponseRecord]:
        """Return the stored responses of the run: a tuple with one record per response.

        `.to_pandas()` of the result makes a DataFrame, with one column per field of `ResponseRecord`.

        Args:
            task: lm-eval's name of a task; None for all tasks.
            variant: Id of a variant, or name of a scheme; None for all variants.

        Raises:
            UserInputError: The results contain no such task or variant.
            RunIncompleteError: The run has no merged results yet.

        Example:
            >>> import hpcq
            >>> first = hpcq.load("m.toml").responses("arc_challenge")[0]
            >>> (first.doc_id, first.request_index, first.loglikelihood < 0)
            (0, 0, True)
        """
        return Records(_read_responses(self._record(), task, variant))

    def report(self, *, output_format: str = "text", compare: str | None = None) -> str:
        """Return the scores of the run as text; `hpcq.make_report` takes several runs.

        Args:
            output_format: text, md, csv, latex, html or json.
            compare: As in `scores`.

        Example:
            >>> import hpcq
            >>> print(hpcq.load("m.toml").report(output_format="csv").splitlines()[0].split(",")[:3])
            ['run', 'variant', 'model']
        """
        return make_report([self], output_format=output_format, compare=compare)

    def merge(self, *, run_code: bool = False) -> dict[str, Any]:
        """Merge all committed responses on this machine and return the document of `merge --json`.

        Args:
            run_code: Run code that the models wrote on this machine, although the run belongs to a cluster.

        Raises:
            UserInputError: The run has no units, another user can write to its folders, or the merge would run code.
            SetupError: The merge failed.

        Example:
            >>> import hpcq
            >>> hpcq.load("m.toml").merge()["missing"]
            0
        """
        return operations.merge_run(self._record(), run_code=run_code)

    def logs(self, unit: str | None = None) -> list[Path]:
        """Return the log files of the run's units, oldest first; for a unit that never started, the log of its job.

        Args:
            unit: A unit, as in `cancel`; None for all units.

        Example:
            >>> import hpcq
            >>> [path.suffix for path in hpcq.load("m.toml").logs("merge")]
            ['.log']
        """
        return operations.log_files(self._record(), unit)

    def cancel(self, *units: str) -> list[str]:
        """Cancel the pending and running jobs of the run, and return the ids of their units when they have ended.

        Args:
            units: Ids of units, whole components of ids (a kind, a model, a scheme, a variant, a shard, at least 6
                digits of the digest), or shell patterns for whole ids; none for all units.

        Raises:
            UserInputError: A name selects no unit; the message has the nearest ids.
            SetupError: A command on another host is running the units, or the jobs do not end in time.

        Example:
            >>> import hpcq
            >>> hpcq.load("m.toml").cancel()
            []
        """
        return operations.cancel_units(self._record(), units)

    def match_units(self, *units: str) -> dict[str, tuple[str, ...]]:
        """Return the ids of the run's units that each name selects.

        Args:
            units: Names of units, as in `cancel`.

        Raises:
            UserInputError: A name selects no unit; the message has the nearest ids.

        Example:
            >>> import hpcq
            >>> hpcq.load("m.toml").match_units("merge")
            {'merge': ('merge.demo',)}
        """
        return operations.match_units(self._record(), units)

    def stage(self, *, reporter: StageReporter | None = None) -> list[StagedItem]:
        """Stage environments, models, data of tasks and texts of the run on the shared file system.

        Can be repeated and interrupted: what is complete stays.

        Args:
            reporter: Receives progress, retries and results.

        Returns:
            One entry per model, task, text and environment.

        Raises:
            UserInputError: The hub has no such repository, revision or file.
            SetupError: The hub or a package is not available, no access, or no space.

        Example:
            >>> import hpcq
            >>> [item.origin.value for item in hpcq.load("m.toml").stage()]
            ['already staged', 'already staged', 'already staged']
        """
        from hpcq.catalog.make_task_index import environment_creation
        from hpcq.run.staging import stage_run
        from hpcq.stage.progress import ResultList, SilentReporter

        results = ResultList(reporter or SilentReporter())
        with environment_creation():
            loaded = self.load()
        stage_run(loaded, results)
        return results.staged

    def _finished(self) -> SubmitResult | None:
        """Return the result of submitting an existing run that is done; None: something is missing, or its plan is."""
        try:
            return operations.finished_run(self._record())
        except SetupError:
            return None

    def _record(self) -> RunRecord:
        """Read the run's folder.

        Raises:
            UserInputError: The run was not submitted yet, or with other settings: its results would be those of another
                run.
        """
        record = read_run(str(self.folder) if self._is_manifest else self._name)
        if self._is_manifest or self._overrides:
            from hpcq.run.plan_change import check_same_plan

            check_same_plan(self.load())
        return record


def load(source: str | Path, /, **overrides: Any) -> Run:
    """Load a manifest, or a run that was submitted before.

    Args:
        source: Path of a manifest, or name or folder of an existing run.
        overrides: Settings by dotted key, as with `-O` on the command line: `**{"tasks.limit": 20}`.

    Raises:
        UserInputError: A value cannot be written as TOML.

    Example:
        >>> import hpcq
        >>> hpcq.load("m.toml", **{"run.name": "other"}).name
        'other'
    """
    return Run(source, [f"{key}={_as_toml(key, value)}" for key, value in overrides.items()])


def find(run: str | Path, /, overrides: Iterable[str] = ()) -> Run:
    """Find a run that was submitted before, by its name, its folder or its manifest.

    Args:
        run: Name or folder of the run, or its manifest.
        overrides: `key=value` settings that are applied to the run's lock file.

    Raises:
        UserInputError: The run does not exist.

    Example:
        >>> import hpcq
        >>> hpcq.find("demo").status().state.value
        'done'
    """
    lock = find_lock_file(str(run))
    return Run(lock.parent if Path(run).suffix == ".toml" else run, overrides)


def latest(folder: str | Path = "runs") -> Run:
    """Return the run in `folder` whose plan was written last.

    Raises:
        UserInputError: There is none.

    Example:
        >>> import hpcq
        >>> hpcq.latest().name
        'demo'
    """
    return Run(find_latest_run(Path(folder)))


def runs(folder: str | Path = "runs") -> list[Run]:
    """Return all runs in `folder`, sorted by name.

    Example:
        >>> import hpcq
        >>> [run.name for run in hpcq.runs()]
        ['demo']
    """
    return [Run(found) for found in find_runs(Path(folder))]


def overviews(folder: str | Path = "runs") -> list[RunOverview]:
    """Return state, size, age and GPU-hours of each run in `folder`, the latest first, with one call to Slurm.

    Example:
        >>> import hpcq
        >>> [(one.run, one.state.value) for one in hpcq.overviews()]
        [('demo', 'done')]
    """
    from hpcq.run.overview import overviews as found

    return found(Path(folder))


def diagnose(manifest: str | Path | None = None, overrides: Iterable[str] = ()) -> Iterator[Finding]:
    """Check this machine, its cluster, and what a manifest needs; submit and download nothing.

    Args:
        manifest: A manifest; None: check the machine and the cluster alone.
        overrides: `key=value` settings applied to the manifest.

    Example:
        >>> import hpcq
        >>> [one.fix for one in hpcq.diagnose("m.toml") if one.level.value == "fail"]
        []
    """
    from hpcq.doctor.diagnose import diagnose as findings
    from hpcq.doctor.diagnose import problem_finding
    from hpcq.run.load import load_manifest

    loaded = None
    if manifest is not None:
        try:
            loaded = load_manifest(find_manifest(Path(manifest)), list(overrides))
        except HpcqError as error:
            yield from problem_finding(error)
    yield from findings(loaded)


def make_report(
    runs: Iterable[Run | str | Path],
    *,
    output_format: str = "text",
    compare: str | None = None,
    margin_points: float | None = None,
    claims: str | Path | None = None,
    width: int | None = None,
) -> str:
    """Return the scores of several runs in one table.

    Args:
        runs: Runs, or their names, folders or manifests.
        output_format: text, md, csv, latex, html or json.
        compare: A study with published scores, or 'published' for all studies; None for those in the manifests.
        margin_points: Largest difference from the unquantized model, in percentage points, that counts as equivalent;
            None for the manifests'.
        claims: A TOML file with claims to evaluate, or a study ('published' for all) whose claims are evaluated.
            Without runs, they are evaluated on the published tables.
        width: Columns of the terminal that the text must fit; None: as wide as the table.

    Raises:
        UserInputError: A run or the study does not exist.
        RunIncompleteError: A run has no merged results yet.

    Example:
        >>> import hpcq
        >>> hpcq.make_report(hpcq.runs(), output_format="json")[:1]
        '{'
    """
    from hpcq.report import make_report

    return make_report.make_report(
        _merged_runs(runs),
        output_format=output_format,
        compare=compare,
        margin_points=margin_points,
        claims=None if claims is None else str(claims),
        width=width,
    )


def build_report(
    runs: Iterable[Run | str | Path],
    *,
    compare: str | None = None,
    margin_points: float | None = None,
    claims: str | Path | None = None,
    width: int | None = None,
    gate: str | Path | None = None,
) -> Report:
    """Return a report before it is formatted: rows, tables, and the result of a gate.

    Args:
        runs: As in `make_report`.
        compare: As in `make_report`.
        margin_points: As in `make_report`.
        claims: As in `make_report`.
        width: As in `make_report`.
        gate: TOML file with the largest losses that pass (docs/gate.md).

    Raises:
        UserInputError: A run or the study does not exist, or the policy is invalid or selects no variant.
        RunIncompleteError: A run has no merged results yet.

    Example:
        >>> import hpcq
        >>> len(hpcq.build_report(hpcq.runs()).rows) > 0
        True
    """
    from hpcq.report import make_report

    build = partial(
        make_report.build_report,
        _merged_runs(runs),
        compare=compare,
        margin_points=margin_points,
        claims=None if claims is None else str(claims),
        width=width,
    )
    if gate is None:
        return build()
    from hpcq.manifest.gate_policy import PolicyFile

    policy = PolicyFile(Path(gate))
    try:
        return build(gate=policy.policy)
    except KeyedInputError as error:
        raise policy.error(error) from None


def cut_prompts(runs: Iterable[Run | str | Path]) -> list[CutPrompts]:
    """Return how many prompts of each variant and task were cut to fit the model, with the numbers of their items.

    Args:
        runs: As in `make_report`.

    Raises:
        UserInputError: A run does not exist.
        RunIncompleteError: A run has no merged results yet.

    Example:
        >>> import hpcq
        >>> [found.cut for found in hpcq.cut_prompts("demo")]
        [0]
    """
    from hpcq.report.cut_prompts import cut_prompts as found

    return found(_merged_runs(runs))


def export(runs: Iterable[Run | str | Path], folder: str | Path, *, output_format: str = "lm-eval") -> list[Path]:
    """Write results in the files of another tool, in one folder per variant (docs/exports.md).

    Args:
        runs: As in `make_report`.
        folder: Folder to write to; it is created.
        output_format: 'lm-eval' for `results_*.json` and `samples_*.jsonl`, 'inspect' for `.eval` logs,
            'eee' for records of Every Eval Ever.

    Returns:
        The paths of the files.

    Raises:
        UserInputError: A run does not exist, or `folder` is a file.
        RunIncompleteError: A run has no merged results yet.

    Example:
        >>> import hpcq
        >>> [path.name[:8] for path in hpcq.export("demo", "exported")]
        ['results_', 'samples_']
    """
    from hpcq.report.exports import EXPORTERS

    if Path(folder).is_file():
        raise UserInputError(f"{folder}: is a file; name a folder.")
    return list(EXPORTERS[output_format](_merged_runs(runs), Path(folder)))


def _merged_runs(runs: Iterable[Run | str | Path]) -> list[MergedRun]:
    given = [runs] if isinstance(runs, str | Path) else runs
    records = [(run if isinstance(run, Run) else find(run))._record() for run in given]  # noqa: SLF001 (same module)
    return [_merged_run(record) for record in records]


def init_manifest(path: str | Path = "manifest.toml", *, overwrite: bool = False) -> Path:
    """Write an example manifest to `path` and return its path.

    Raises:
        UserInputError: The file exists and `overwrite` is False.

    Example:
        >>> import hpcq
        >>> hpcq.init_manifest("first.toml").name
        'first.toml'
    """
    from hpcq.manifest.templates import manifest_template

    return _write_new(Path(path), manifest_template(), overwrite=overwrite)


def init_profile(path: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a profile of this Slurm cluster to `path` (default: `clusters/NAME.toml`) and return its path.

    Raises:
        UserInputError: The file exists and `overwrite` is False.
        SetupError: Slurm is missing, does not respond, or has no nodes that hpcq can use.

    Example:
        >>> import hpcq
        >>> hpcq.init_profile("clusters/mine.toml").name
        'mine.toml'
    """
    from hpcq.manifest.templates import draft_profile
    from hpcq.slurm.client import cluster_name
    from hpcq.slurm.sacctmgr import max_submitted_jobs
    from hpcq.slurm.sinfo import node_groups

    name = cluster_name() or "cluster"
    target = Path(path) if path else Path("clusters") / f"{slug(name)}.toml"
    text = draft_profile(name, node_groups(), max_submitted_jobs=max_submitted_jobs(name))
    return _write_new(target, text, overwrite=overwrite)


def _write_new(path: Path, text: str, *, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise UserInputError(f"{path} exists: choose another file, or add --overwrite.")
    make_folder(path.parent)
    write_text(path, text)
    return path


def _as_toml(key: str, value: Any) -> str:
    """Return `value` as a TOML value on one line. JSON's strings, numbers and booleans are valid TOML."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(str(k))} = {_as_toml(key, v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_as_toml(key, item) for item in value) + "]"
        case Path():
            return _as_toml(key, str(value))
        case str() | bool() | int() | float():
            return json.dumps(value, ensure_ascii=False)
    raise UserInputError(f"{key} = {value!r}: use a string, a number, a boolean, a list or a dict.")


def _confirm_gpu_hours(loaded: LoadedRun, confirm: Confirm | None, *, retry_failed: bool) -> None:
    from hpcq.run.submit import estimate_gpu_hours

    limit = loaded.resolved.manifest.plan.confirm_above_gpu_hours
    if limit is None:
        return
    hours = estimate_gpu_hours(loaded, retry_failed=retry_failed)
    total = sum(hours.values())
    if total <= limit or (confirm and confirm(hours, limit)):
        return
    raise UserInputError(
        f"Nothing was submitted: this would take about {total:,.3g} GPU-hours, more than plan.confirm_above_gpu_hours ="
        f" {limit:g}. Confirm it to submit."
    )


def _merged_run(record: RunRecord) -> MergedRun:
    from hpcq.report.make_report import MergedRun

    return MergedRun(
        name=record.layout.name,
        results=record.layout.results,
        plan_document=record.plan_document,
        failures=operations.failed_variants(record),
        attempts=record.layout.attempts,
    )


def _read_responses(record: RunRecord, task: str | None, variant: str | None) -> Iterator[ResponseRecord]:
    from hpcq.store import read_responses, read_results

    path = record.layout.results
    known = read_results(path).variants
    chosen = [one for one in known if variant in (None, one.variant, one.provenance["scheme"])]
    if not chosen:
        raise UserInputError(f"{path}: no variant '{variant}'; variants: {', '.join(one.variant for one in known)}.")
    tasks = sorted({name for one in chosen for name in one.rows})
    if task is not None and task not in tasks:
        raise UserInputError(f"{path}: no responses to task '{task}'; tasks: {', '.join(tasks)}.")
    for one in chosen:
        for key, response in sorted(read_responses(path, one.variant).items()):
            if task in (None, key.task):
                yield ResponseRecord(
                    variant=one.variant,
                    task=key.task,
                    doc_id=key.doc_id,
                    request_index=key.request_index,
                    repeat=key.repeat,
                    loglikelihood=response.loglikelihood,
                    is_greedy=response.is_greedy,
                    text=response.text,
                    cut_tokens=response.cut_tokens,
                )
