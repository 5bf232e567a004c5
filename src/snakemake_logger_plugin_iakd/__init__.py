"""A logger plugin of Snakemake, `snakemake --logger iakd`: shows a run in one calm view, and a dry run as a status.

Snakemake finds it by the name of this package, and imports it at every start: hence the late imports.
"""

import logging
import sys
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from iakd.orchestration.run_view import RunView


class LogHandler(LogHandlerBase):
    """Shows a run, or for a dry run the state of the experiment; hands all else to Snakemake's own handler."""

    def __post_init__(self) -> None:
        settings = self.common_settings
        self._run: RunView | None = None
        self._before: list[logging.LogRecord] = []  # what was said before it is known what Snakemake is asked for
        self._started = False
        self._failed = False
        # Who asks Snakemake for more or less gets its own words.
        silent = "all" in (settings.quiet or ())
        self._gives_way = bool(settings.verbose or settings.debug_dag or settings.printshellcmds or silent)

    @cached_property
    def _snakemake(self) -> logging.Handler:
        """Snakemake's own handler."""
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

        settings = self.common_settings
        quiet = set(settings.quiet or ())
        handler = ColorizingTextHandler(settings.nocolor, sys.stdout if settings.stdout else sys.stderr)
        handler.setFormatter(DefaultFormatter(quiet, settings.show_failed_logs))
        handler.addFilter(
            DefaultFilter(quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds)
        )
        return handler

    @property
    def writes_to_stream(self) -> bool:
        """Whether it takes the place of Snakemake's own handler."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """Whether it writes to a file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether Snakemake shall add no filter."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Whether Snakemake shall add no formatter."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """Whether it needs the graph of the rules."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Show what the record says. If that fails, Snakemake's own words follow: a view must stop no run."""
        if not self._gives_way:
            try:
                self._show(record)
                return
            except Exception as error:
                self._gives_way = True
                with suppress(Exception):
                    self._end()
                about = f"{type(error).__name__}: {error}"
                print(f"the view of this run failed ({about}); Snakemake's own follows", file=sys.stderr)
        self._snakemake.handle(record)

    def _show(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.WORKFLOW_STARTED:
            self._started, self._before = True, []
            if not self.common_settings.dryrun:
                from iakd.orchestration.run_view import view_of_a_run

                self._run = view_of_a_run()
        elif record.levelno >= logging.WARNING and event != LogEvent.JOB_ERROR:
            self._failed = self._failed or record.levelno >= logging.ERROR
            if self._run is None:
                self._snakemake.handle(record)
            else:
                self._run.warn(record.getMessage())
        elif self._run:
            self._run.take(event, record)
        elif not self._started:
            self._before.append(record)

    def _end(self) -> None:
        run, self._run = self._run, None
        if run:
            run.end()

    def close(self) -> None:
        """End the view with what was done; Python calls this once more when it exits."""
        before, self._before = self._before, []
        started, self._started = self._started, False
        try:
            for record in before:  # no run: --report, --lint and the like
                self._snakemake.handle(record)
            self._end()
            if started and self.common_settings.dryrun and not (self._gives_way or self._failed):
                from iakd.orchestration.status import show_status

                show_status()
        except Exception as error:
            print(f"the view failed ({type(error).__name__}: {error})", file=sys.stderr)
        super().close()
