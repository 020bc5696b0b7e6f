"""Everything that tells of a run as a whole: who records it, the files, the table at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.launcher.diagnosis.log_teller import LogTeller
from pytest_infserver.pool.member import LocalMember
from pytest_infserver.pool.process.member import OwnerMember
from pytest_infserver.reporting.html_extras import add_html_extras
from pytest_infserver.reporting.paths import from_here
from pytest_infserver.reporting.profiles import paths_of
from pytest_infserver.reporting.record.engine_metrics import Counters, difference
from pytest_infserver.reporting.record.recorder import Recorder
from pytest_infserver.reporting.record.records_of_tests import DETAILS, MESSAGE, details, first_line
from pytest_infserver.reporting.record.run_files import RECORD, REPORT, TRACE, RunFiles, as_json, run_folder
from pytest_infserver.reporting.record.uses import FACTORY, Use, add_properties, attach_uses, uses_in
from pytest_infserver.reporting.terminal.log_lines import LogLines
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run
    from pytest_infserver.reporting.record.worker_notes import Notes


class RunReport:
    """The report of one run of pytest; in a worker of xdist only of what belongs to that."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        """Begin to record.

        Args:
            config: pytest's configuration.
            run: What is recorded.
        """
        self._config = config
        self._run = run
        self._files = RunFiles(run_folder(run.settings, run.choice.configs))
        member = run.member
        if isinstance(member, OwnerMember):
            self._recorder = Recorder(self._files.folder, member.servers, member.note_test)
            member.owner.listeners.began = self._files.claim
        else:
            self._recorder = Recorder(self._files.folder)
        self._record: Mapping[str, Any] | None = None
        self._html: Path | None = None
        self._before: dict[str, Counters | None] = {}
        self._latest: dict[str, Counters | None] = {}
        self._log: LogTeller | None = None
        if run.settings.log == "live":
            lines = LogLines(config)
            self._log = LogTeller(lines)
            if isinstance(member, OwnerMember):
                member.owner.listeners.log = lines
        run.on_extra = lambda server: self._watch(server, f"{server.name}{FACTORY}")
        if isinstance(member, LocalMember):
            member.pool.on_made = self._watch
            self._recorder.servers.on_start(self._files.claim)
        if member.owns_pool:
            config.pluginmanager.register(self._recorder, "infserver-recorder")

    def _watch(self, server: InferenceServer, label: str | None = None) -> None:
        """Record what becomes of a server of this process, and show its log if that is wanted."""
        self._recorder.servers.watch(server, label)
        if self._log is not None:
            self._log.watch(server, label)

    def end_log(self) -> None:
        """Show what is left of the logs of this process's servers."""
        if self._log is not None:
            self._log.close()

    def begin_test(self) -> None:
        """Read what the engines of a test's servers have counted before it, or before it is repeated."""
        # Where nobody else uses them they have counted nothing since the last test.
        known = self._latest if self._run.member.alone else {}
        self._before = {
            use.label: known[use.label] if use.label in known else self._read(use) for use in uses_in(self._run)
        }

    def note_uses(self, report: pytest.TestReport, item: pytest.Item) -> None:
        """Let the report of a phase of a test say which servers the test has used.

        Args:
            report: The report.
            item: The test.
        """
        uses = uses_in(self._run)
        add_properties(report, item, uses)
        if report.failed:
            secrets = self._recorder.secrets.union(*(use.server.secrets for use in uses))
            setattr(report, MESSAGE, first_line(report, secrets) or "")
            setattr(report, DETAILS, details(report, secrets))
        if report.when == "teardown" or report.failed:
            # A test that is going to be repeated has no report of its teardown.
            attach_uses(report, uses, self._count)
        elif report.when == "setup":
            # Nor has one that is interrupted, or whose worker crashes.
            attach_uses(report, uses, lambda use: None)
        if report.when == "teardown":
            add_html_extras(report, item.config, uses, paths_of(report))
            self._before = {}

    def _count(self, use: Use) -> dict[str, float] | None:
        """Return what a server has counted since the test began."""
        latest = self._latest[use.label] = self._read(use)
        return difference(self._before.get(use.label), latest)

    def _read(self, use: Use) -> Counters | None:
        return None if use.label.endswith(FACTORY) else self._recorder.servers.metrics.read(use.server)

    def add_servers(self, notes: Notes) -> None:
        """Note what became of the servers that belong to this process; when they are stopped."""
        try:
            if isinstance(self._run.member, OwnerMember):
                self._recorder.hide(self._run.member.secrets)
                notes.servers += self._run.member.records
            notes.servers += self._recorder.servers.server_records()
        except Exception as error:
            # A backend of the user's may fail to say what it is.
            notes.incidents.append(f"what became of the servers cannot be told: {type(error).__name__}: {error}")

    def clean(self, notes: Notes) -> None:
        """Clean the texts of notes, whoever has left them."""
        secrets = self._recorder.secrets
        for texts in (notes.incidents, notes.errors):
            texts[:] = [clean(text, secrets) for text in texts]

    def write(self, session: pytest.Session, notes: Notes) -> None:
        """Write the files, if there was a server; what is in the way of that is noted.

        Args:
            session: pytest's session.
            notes: What belongs to no test, and the records of all servers.
        """
        if not self._run.member.owns_pool or not notes.servers:
            self._files.close()
            return
        from pytest_infserver.reporting.timeline.bystanders import without_bystanders
        from pytest_infserver.reporting.timeline.html import render_html
        from pytest_infserver.reporting.timeline.trace_events import trace_text

        workers = len(self._config.getoption("tx", None) or ())
        status, cluster = int(session.exitstatus), self._run.settings.cluster
        try:
            record = self._recorder.record(status, workers, cluster, notes.servers, notes.incidents, notes.errors)
            self._record = record
            self._files.write(RECORD, lambda: as_json(record))
            shown = without_bystanders(record)
            self._files.write(TRACE, lambda: trace_text(shown))
            self._html = self._files.write(REPORT, lambda: render_html(shown, self._recorder.excerpt))
        except OSError as error:
            notes.incidents.append(f"the report of this run cannot be written: {error}")
        except Exception as error:
            # The tests have had their say: a mistake in what tells of them is no error of pytest.
            notes.incidents.append(f"the report of this run cannot be made: {type(error).__name__}: {error}")
        finally:
            self._files.close()

    def summary(self) -> list[str]:
        """Return the lines of the table, if it is to be shown."""
        from pytest_infserver.reporting.terminal.summary import is_wanted, summary_lines

        if self._record is None:
            return []
        failed = any(self._record["outcomes"].get(outcome) for outcome in ("failed", "error"))
        verbosity = self._config.get_verbosity()
        if not is_wanted(self._run.settings.summary, verbosity=verbosity, failed=failed):
            return []
        lines = summary_lines(self._record, self._files.folder)
        return lines if self._html is None else [*lines, f"report: {from_here(self._html)}"]
