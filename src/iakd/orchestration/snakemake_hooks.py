"""What the Snakefile needs: the experiment of its settings, a lock, and the reason for a failure."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn, cast

from iakd import files
from iakd.config import SOURCES, merged, parse, read_settings, typed
from iakd.data.earlier_results import refuse_other_data
from iakd.data.sources.download import fingerprint
from iakd.data.store import KINDS, MANIFEST, SPLITS, file_name
from iakd.errors import UserError, of_file_system, one_line
from iakd.experiment.jobs import LOGS, RESULTS, STATE, WORKFLOW_LOCK, Experiment, plan_experiment
from iakd.experiment.provenance import repository_of_experiment
from iakd.orchestration import fork_server, stale_results
from iakd.processes import WITH_PARENT, saying_what_takes_long
from iakd.tracking.follower import FOLLOWED

ROUNDING = 1e-3  # seconds by which a date may be rounded
log = logging.getLogger(__name__)
_held: list[IO[str]] = []  # the open lock file: it must live as long as the process


def stop(error: UserError | OSError) -> NoReturn:
    """End the process with the error's one line and exit code 2; Snakemake would print a traceback."""
    line = of_file_system(error) if isinstance(error, OSError) else str(error)
    if line is None:
        raise error
    print(f"iakd: {one_line(line)}", file=sys.stderr)
    sys.exit(2)


def set_up(paths: Sequence[Path], changes: dict[str, Any], main: bool, remote: bool = False) -> Experiment:
    """Read the settings, check them and pass them to the jobs: $IAKD_PARAMS names them, `iakd` is this environment's.

    `paths` are the settings files, of which a later one changes the earlier ones, and `changes` is what `--config`
    says; without a file, all settings, from a workflow that uses this one as a module. `main` is true in the process
    that decides what is out of date, and `remote` in a job that an executor such as Slurm runs. Snakemake reads such
    files, too, but of two equal keys it takes the last one.

    Raises UserError for a mistake in the settings, for results that only seem to be made with them, and in a folder
    that Snakemake cannot use.
    """
    files.refuse_braces(Path.cwd())
    origin = ", ".join(os.path.relpath(path) for path in paths) + (" with --config" if changes else "")
    origin = origin if paths else "config of the module"
    with saying_what_takes_long("reading the settings"):
        settings: Any = {}
        for change in (*map(read_settings, paths), typed(changes)):
            settings = merged(settings, change) if isinstance(settings, dict) and isinstance(change, dict) else change
        experiment = plan_experiment(parse(settings, origin))
    if main:
        _say_what_is_merged(experiment, typed(changes))
        for stage in ("tune", "export") if "DVC_STAGE" in os.environ else ():
            # which DVC wants even if nothing is tuned or exported; in its shell, a name would be a command line
            (experiment.report.parent / stage).mkdir(parents=True, exist_ok=True)
        if repository_of_experiment():
            _remove_others(experiment)
        refuse_other_data(experiment)  # before Snakemake deletes what it would make again
        stale_results.check(experiment, _Records())
        for job in experiment.teachers:
            job.check_file()  # before Snakemake, which would need many lines to say it
    os.environ["IAKD_PARAMS"] = str(_settings_file(settings))
    os.environ[WITH_PARENT] = "1"
    if remote:
        os.environ[FOLLOWED] = "1"
        signal.signal(signal.SIGUSR1, _leave_to_child)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return experiment


def start_fork_server() -> None:
    """Start the server that runs this workflow's commands, with the settings that `set_up` has written."""
    fork_server.start(STATE / "fork_server.socket", Path(os.environ["IAKD_PARAMS"]))


def _say_what_is_merged(experiment: Experiment, changes: Any) -> None:
    """Say that methods from `--config` are added to those of the file: somebody may expect them to be the only ones."""
    given = changes.get("methods")
    others = [label for label in experiment.params.methods if label not in given] if isinstance(given, dict) else []
    if others:
        print(
            f"iakd: --config adds to the settings file, which has {len(others)} more "
            f"{'method' if len(others) == 1 else 'methods'}; to run these alone, add only={{methods: "
            f"[{', '.join(given)}]}}",
            file=sys.stderr,
        )


def _leave_to_child(number: int, frame: FrameType | None) -> None:
    """Go on when Slurm warns all processes of a job: the command that Snakemake waits for saves its state and ends."""


def _remove_others(experiment: Experiment) -> None:
    """Delete the results of other pairs, methods and seeds, which DVC would record as those of its experiment.

    Only in a folder of `dvc exp run --temp` or `--queue`, to which DVC has copied them.
    """
    own = {job.folder for job in (*experiment.trained, *experiment.studies, *experiment.exports)}
    for pattern in ("teachers/*/seed*", "students/*/*/seed*", "tune/*/*", "export/*"):
        for folder in experiment.report.parent.glob(pattern):
            if folder.is_dir() and folder not in own:
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # others are left in it
                    folder.parent.rmdir()


class _Records:
    """Snakemake's records of its results; `workflow.persistence` is set only after the rules are read."""

    def __init__(self) -> None:
        from snakemake.persistence.file import FilePersistence

        self._persistence = FilePersistence(nolock=True)

    def params(self, path: Path) -> list[str] | None:
        from snakemake.io import IOFile

        return cast("list[str] | None", self._persistence.params(IOFile(str(path))))

    def is_incomplete(self, path: Path) -> bool:
        return bool(self._persistence._filter_incomplete_keys([str(path)]))

    def forget(self, path: Path) -> None:
        from snakemake.io import IOFile

        self._persistence.cleanup_metadata(IOFile(str(path)))


def ignore_damaged_records() -> None:
    """Have Snakemake drop those of its records that it cannot read, such as after a disk error, instead of failing.

    It does so itself only with records that are no JSON.
    """
    from snakemake.persistence.file import FilePersistence

    read = FilePersistence.metadata

    def metadata(persistence: Any, path: Any) -> Any:
        try:
            return read(persistence, path)
        except (TypeError, ValueError):
            log.warning("%s: Snakemake's record of it is damaged, and dropped", path)
            persistence.cleanup_metadata(path)
            return None

    FilePersistence.metadata = metadata


def accept_clocks_set_back() -> None:
    """Have Snakemake date inputs that seem newer than what a job has just made from them, instead of failing the job.

    They seem so if the clock was set back before the job ended. Snakemake would delete what it made, and has no option
    for this.
    """
    from snakemake.dag import DAG

    async def date_inputs(dag: Any, job: Any, outputs: list[str]) -> None:
        made = min((Path(path).stat().st_mtime_ns for path in outputs if Path(path).exists()), default=0)
        for path in map(Path, job.input):
            if made and path.exists() and path.stat().st_mtime_ns > made:
                os.utime(path, ns=(made, made))

    DAG.check_output_mtime = date_inputs


def limit_no_rate(workflow: Any) -> None:
    """Have Snakemake start jobs as fast as they come, before its first one.

    Its limit of 100 jobs per second looks at all jobs again a second after each look, and each job that ends begins
    another such series: after a few hundred jobs that is a large part of a core. No option turns it off.
    """
    workflow.scheduler.job_rate_limiter = None


def accept_by_content(experiment: Experiment) -> None:
    """Have Snakemake, when it has planned its jobs, decide by content about results that it did not see being made.

    What fits the settings, sources and inputs of a job is recorded and dated as if the job had just made it; what does
    not, and would be taken for current without a record, is made again. In a storage, which has no records of its own,
    such results end the process, also if nothing is to be done.

    A job finds in place what fits when it starts, and has nothing to do: what it is made from may have been made again
    with the same content, after damage. Snakemake would delete it first, and also when another product of the job has
    failed.
    """
    from snakemake.dag import DAG
    from snakemake.jobs import Job

    plan, clean_up, asked_for = DAG.init, Job.cleanup, set[str]()

    def fitting(job: Any) -> list[Any]:
        products = [path for path in map(Path, job.output) if path.exists()]
        if not products or job.rule.name == "latency":  # whose sources are in no record
            return []
        on_disk = stale_results.OnDisk(experiment)
        folders = {path.parent for path in products if on_disk.fit([path])}
        return [path for path in job.output if Path(path).parent in folders]

    async def remove_what_does_not_fit(job: Any) -> None:
        # a job on a cluster is always told to force what it makes
        forced = job.dag.workflow.is_main_process and _is_asked_for(job, asked_for)
        kept = [] if forced else fitting(job)
        for path in (*job.output, *job.log):
            if path not in kept:
                with contextlib.suppress(FileNotFoundError):
                    await path.remove(remove_non_empty_dir=False)

    async def clean_up_what_does_not_fit(job: Any, kept: Sequence[Any]) -> None:
        await clean_up(job, [*kept, *fitting(job)])

    Job.remove_existing_output, Job.cleanup = remove_what_does_not_fit, clean_up_what_does_not_fit

    async def init(dag: Any, *arguments: Any, **options: Any) -> None:
        asked_for.update(dag.forcefiles)
        await plan(dag, *arguments, **options)
        nothing_runs = dag.workflow.execution_settings is None  # only environments are made, or the like
        if not dag.workflow.is_main_process or nothing_runs:
            return
        if dag.workflow.storage_settings.default_storage_provider:
            try:
                _refuse_unrecorded(dag, dag.workflow.persistence)
            except UserError as error:
                stop(error)
        elif not dag.workflow.touch:
            await _Acceptance(dag, asked_for, stale_results.OnDisk(experiment)).run()

    DAG.init = init


def _is_asked_for(job: Any, asked_for: set[str]) -> bool:
    """Whether the user wants a job's products to be made again in any case; `asked_for` are such files."""
    return job.rule in job.dag.forcerules or not asked_for.isdisjoint(job.output)


class _Acceptance:
    """Goes through the jobs of a plan; `asked_for` are files that the user wants to be made again in any case."""

    def __init__(self, dag: Any, asked_for: set[str], on_disk: stale_results.OnDisk) -> None:
        self.dag = dag
        self.records = dag.workflow.persistence
        self.asked_for = asked_for
        self.on_disk = on_disk
        self.accepted: set[Any] = set()
        self.refused: set[Any] = set()
        self.decided: set[Any] = set()  # these, and those of which Snakemake knows, and is right

    async def run(self) -> None:
        """Accept what fits until nothing is left to be decided, and say so in a line."""
        while await self._accept():
            for job in self.dag.jobs:
                self.dag.reason(job).clear()
            self.dag.workflow.iocache.mtime.clear()
            self.records.deactivate_cache()  # which has what was there before
            await self.dag.update_needrun(create_inventory=True)
            self.records.drop_iocache()  # a dry run has saved the old dates
        for jobs, what in (
            (self.accepted, "fit these settings: accepted, although this workflow did not make them"),
            (self.refused, "do not fit these settings, sources and inputs: made again"),
        ):
            if jobs:
                print(f"iakd: the results of {len(jobs)} {'job' if len(jobs) == 1 else 'jobs'} {what}", file=sys.stderr)

    async def _accept(self) -> bool:
        """Decide about all jobs whose results may fit or have been exchanged; return whether to make the plan again."""
        before = len(self.accepted) + len(self.refused)
        for level in list(self.dag.toposorted()):  # a job after those that it depends on, since dates follow
            for job in level:
                if job in self.decided:
                    continue
                undecided = await self._is_undecided(job)
                if not undecided and not self._is_taken_for_current(job):
                    continue
                fits = self.on_disk.fit([Path(path) for path in job.output])
                if fits and undecided:
                    await self._record(job)
                    self.accepted.add(job)
                elif not fits and not self.dag.needrun(job):
                    self.dag.forcefiles.update(job.output)
                    self.refused.add(job)
                if fits or job in self.refused:
                    self.decided.add(job)
        return len(self.accepted) + len(self.refused) > before

    async def _is_undecided(self, job: Any) -> bool:
        """Whether a job's inputs and products are there, and Snakemake does not know that it has made the products."""
        if not job.output or not (self.dag.needrun(job) or self.dag.reason(job).no_metadata):
            return False
        if _is_asked_for(job, self.asked_for):
            return False
        if not all(Path(path).exists() for path in (*job.output, *job.input)):
            return False
        return job.rule.name != "latency" or not self.records.params_changed(job)  # its sources are in no other record

    def _is_taken_for_current(self, job: Any) -> bool:
        """Whether Snakemake calls products current that it has a record of, with which they may have been exchanged.

        Not of the data, whose hashes take long, nor where the user has asked for some of Snakemake's triggers only.
        """
        from snakemake.settings.types import RerunTrigger

        decided_by_all = self.dag.workflow.rerun_triggers == RerunTrigger.all()
        known = job.rule.name != "prepare" and self.on_disk.knows([Path(path) for path in job.output])
        follows = any(one in self.refused or self.dag.needrun(one) for one in self.dag.dependencies[job])
        return decided_by_all and known and not follows and not self.dag.needrun(job)

    async def _record(self, job: Any) -> None:
        """Record that Snakemake has made the products, and date them no earlier than what they were made from."""
        dates = [(await path.mtime_uncached()).local_or_storage(follow_symlinks=True) for path in job.input]
        made = max(dates, default=0.0)
        for path in (*job.output, *([job.benchmark] if job.benchmark else [])):
            if Path(path).exists() and (await path.mtime_uncached()).local_or_storage() < made:
                times = (made + ROUNDING,) * 2
                if path.is_directory:
                    path.touch(times)  # a file in it has the date
                else:
                    os.utime(path, times)
                    os.utime(path, times, follow_symlinks=False)
        self.records.cleanup(job)
        await self.records.finished(job)
        self.dag.forcefiles.difference_update(job.output)


def data_products(experiment: Experiment) -> list[str]:
    """Return the arrays that `iakd prepare` always writes; storage auto decides about images while it reads them."""
    dataset = experiment.params.dataset
    storage = dataset.storage if "storage" in SOURCES[dataset.source].settings else "array"
    return [file_name(split, kind) for split in SPLITS for kind in KINDS.get(storage, ("labels",))]


def data_files(experiment: Experiment) -> str | None:
    """Return a hash of the user's files at `dataset.path`; if they are gone, the hash of those that were read."""
    manifest = experiment.data.folder / MANIFEST
    with contextlib.suppress(OSError, UserError):
        return fingerprint(experiment.params.dataset) or files.read_object(manifest, "").get("fingerprint")
    return None


def _settings_file(settings: dict[str, Any]) -> Path:
    """Write the settings to a file named after their content, so that jobs read exactly these and no other run's.

    As JSON, since each job reads them.
    """
    path = STATE / "params" / f"{files.digest(settings)[:12]}.json"
    text = json.dumps(settings)
    if not path.exists() or path.read_bytes() != text.encode():
        files.write_text(path, text)
    return path


def link_results(settings: Any, provider: Any) -> Path:
    """Return where jobs find and leave results: RESULTS, or Snakemake's local copies of those in a default storage.

    RESULTS is then a link to the copies, since it is the only name that `iakd` knows. `settings` and `provider` are
    Snakemake's, of the storage. Raises UserError if RESULTS is a folder in spite of a storage.
    """
    if provider is None:
        return RESULTS
    prefix = str(settings.default_storage_prefix or "").rstrip("/")
    copies = Path(provider.object(f"{prefix}/{RESULTS}").local_path())
    if RESULTS.exists() and not RESULTS.is_symlink():
        raise UserError(f"{RESULTS}/ has results of this machine, not of {prefix}; rename it, or run in another folder")
    copies.mkdir(parents=True, exist_ok=True)
    RESULTS.unlink(missing_ok=True)
    RESULTS.symlink_to(copies)
    return copies


def _refuse_unrecorded(dag: Any, records: Any) -> None:
    """Raise UserError for results in a storage that Snakemake would call current, but knows nothing about.

    Another folder has made them, with whatever settings.
    """
    unknown = [job for job in dag.jobs if job.output and not dag.needrun(job) and not records.has_metadata(job)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{unknown[0].output[0].storage_object.query}{more}: made from another folder, with settings that are not "
            "known here; run there, or choose another --default-storage-prefix"
        )


def check_image(image: Path) -> None:
    """Raise UserError if the container that jobs are to run in does not exist."""
    if not image.exists():
        raise UserError(
            f"{image} does not exist, in which --sdm apptainer runs the jobs: build it with "
            f"`apptainer build {image} apptainer.def`, or run without --sdm"
        )


def take_lock() -> None:
    """Lock this folder until the process ends. Raises UserError if another workflow is running in it.

    Unlike Snakemake's own lock, this one cannot outlive a killed process.
    """
    WORKFLOW_LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = files.try_lock(WORKFLOW_LOCK)
    if file is None:
        raise UserError(f"another workflow is running in {Path.cwd()}; wait for it to end")
    _held.append(file)


TRACEBACK = "Traceback (most recent call last):"


def check_folders(jobs: Iterable[Any]) -> None:
    """Raise OSError where the workflow cannot write its results or logs; Snakemake would print a traceback per job.

    `jobs` are those of Snakemake that are to run: it deletes their products first, folders with all that they hold.
    """
    folders = {RESULTS, LOGS}
    for job in jobs:
        products = [*job.output, *job.log, *([job.benchmark] if job.benchmark else [])]
        for path in map(Path, products):
            folders.add(next((above for above in path.parents if above.exists()), RESULTS))
            if path.is_dir():
                folders |= {path, *(inside for inside in path.glob("**/") if inside.is_dir())}
    for folder in sorted(folders):
        folder.mkdir(exist_ok=True)
        files.check_writable(folder)


def last_line(logs: list[str]) -> str:
    """Return the log and its last line, which states why a job failed, or that the job could not say it."""
    for path in map(Path, logs):
        lines = path.read_text(errors="replace").split("\n") if path.exists() else []
        last = next((line for line in reversed(lines) if line.strip()), "")
        if last.startswith("iakd: ") or TRACEBACK in lines:
            return f"{path}: {last}"
        after = f" after {last!r}" if last else ""
        return f"{path}: ended without a reason{after}: killed, perhaps because memory ran out; run again to resume"
    return "a job without a log failed"


def report_on_the_others(experiment: Experiment, failed: Iterable[str]) -> str | None:
    """Return what to add to a command for a report without the methods of which the files `failed` were not made.

    None where no method is left, or where something failed that all methods need.
    """
    labels = {job.folder: job.label for job in (*experiment.studies, *experiment.students)}
    broken = {labels.get(Path(path).parent) for path in failed}
    others = [label for label in experiment.params.methods if label not in broken]
    return f"--config 'only={{methods: [{', '.join(others)}]}}'" if broken and None not in broken and others else None
