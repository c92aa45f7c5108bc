"""Compiled code for CPUs, behind the calls of the layers."""
