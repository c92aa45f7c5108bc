"""What every experiment shares: the command line, config files, commands that repeat a run."""

from __future__ import annotations

from jaxlab.study.command_line import main as main
from jaxlab.study.connect import connect as connect
from jaxlab.study.repeat import python_command as python_command
from jaxlab.study.repeat import repeat_command as repeat_command
from jaxlab.study.repeat import values_of as values_of
from jaxlab.study.repeat import with_command as with_command

__all__ = ["connect", "main", "python_command", "repeat_command", "values_of", "with_command"]
