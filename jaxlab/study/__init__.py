"""What experiments share: trainings, measurements by seed, claims, a page, the command line."""

from __future__ import annotations

from jaxlab.study.claims import above as above
from jaxlab.study.claims import below as below
from jaxlab.study.command_line import Results as Results
from jaxlab.study.command_line import main as main
from jaxlab.study.connect import connect as connect
from jaxlab.study.measuring import Measurements as Measurements
from jaxlab.study.measuring import Rows as Rows
from jaxlab.study.measuring import measure as measure
from jaxlab.study.measuring import numbers_of as numbers_of
from jaxlab.study.page import Bars as Bars
from jaxlab.study.page import Lines as Lines
from jaxlab.study.page import Page as Page
from jaxlab.study.page import curves as curves
from jaxlab.study.repeat import python_command as python_command
from jaxlab.study.repeat import repeat_command as repeat_command
from jaxlab.study.repeat import values_of as values_of
from jaxlab.study.repeat import with_command as with_command
from jaxlab.study.sharing import Share as Share
from jaxlab.study.sharing import Unfinished as Unfinished
from jaxlab.study.sharing import use_share as use_share
from jaxlab.study.text import TEXT_SAMPLE_FLAGS as TEXT_SAMPLE_FLAGS
from jaxlab.study.text import SampleConfig as SampleConfig
from jaxlab.study.text import loss_curves as loss_curves
from jaxlab.study.text import score_numbers as score_numbers
from jaxlab.study.text import state_figures as state_figures
from jaxlab.study.text import text_figures as text_figures
from jaxlab.study.text import text_hints as text_hints
from jaxlab.study.text import text_sampler as text_sampler
from jaxlab.study.text import text_tables as text_tables
from jaxlab.study.text import text_training as text_training
from jaxlab.study.text import training_numbers as training_numbers
from jaxlab.study.text import write_text as write_text
from jaxlab.study.training import Training as Training
from jaxlab.study.training import check as check
from jaxlab.study.training import describe as describe
from jaxlab.study.training import fit as fit
from jaxlab.study.training import is_dry_run as is_dry_run
from jaxlab.study.training import open_record as open_record

__all__ = [
    "Bars",
    "Lines",
    "Measurements",
    "Page",
    "Results",
    "Rows",
    "SampleConfig",
    "Share",
    "TEXT_SAMPLE_FLAGS",
    "Training",
    "Unfinished",
    "above",
    "below",
    "check",
    "connect",
    "curves",
    "describe",
    "fit",
    "is_dry_run",
    "loss_curves",
    "main",
    "measure",
    "numbers_of",
    "open_record",
    "python_command",
    "repeat_command",
    "score_numbers",
    "state_figures",
    "text_figures",
    "text_hints",
    "text_sampler",
    "text_tables",
    "text_training",
    "training_numbers",
    "use_share",
    "values_of",
    "with_command",
    "write_text",
]
