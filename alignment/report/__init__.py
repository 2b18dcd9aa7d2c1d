"""The page a person reads after a run."""

from alignment.report.build_report import build_report
from alignment.report.page import write_report
from alignment.report.run_report import Command, Registered, RunReport

__all__ = ["Command", "Registered", "RunReport", "build_report", "write_report"]
