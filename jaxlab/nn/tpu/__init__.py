"""Pallas kernels for TPUs, behind the calls of the layers."""
