"""An evaluation as one page that can be sent to anybody: no network, no patient data, nothing to install."""

from madclip.report.html import write_report

__all__ = ["write_report"]
