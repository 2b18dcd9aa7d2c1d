"""The page a person reads after a run."""

from alignment.report.collect import build_report
from alignment.report.model import Command, Registered, RunReport
from alignment.report.page import write_report

__all__ = ["Command", "Registered", "RunReport", "build_report", "write_report"]
