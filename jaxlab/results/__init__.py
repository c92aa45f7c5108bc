"""The results of a run: its record, claims, tables, figures and HTML report."""

from __future__ import annotations

from jaxlab.results import figures as figures
from jaxlab.results.metrics import METRICS_FILE as METRICS_FILE
from jaxlab.results.metrics import MetricWriter as MetricWriter
from jaxlab.results.metrics import NoMetrics as NoMetrics
from jaxlab.results.metrics import read_metrics as read_metrics
from jaxlab.results.record import Claim as Claim
from jaxlab.results.record import Record as Record
from jaxlab.results.report import write_report as write_report
from jaxlab.results.storage import replace_json as replace_json
from jaxlab.results.tables import claim_lines as claim_lines
from jaxlab.results.tables import format_number as format_number
from jaxlab.results.tables import html_table as html_table
from jaxlab.results.tables import markdown_table as markdown_table
from jaxlab.results.tables import table as table

__all__ = [
    "Claim",
    "METRICS_FILE",
    "MetricWriter",
    "Record",
    "claim_lines",
    "figures",
    "format_number",
    "html_table",
    "markdown_table",
    "read_metrics",
    "replace_json",
    "table",
    "write_report",
]
