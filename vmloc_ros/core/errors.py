# SPDX-License-Identifier: Apache-2.0
"""Exceptions of the package. Libraries raise them; only command lines print them."""


class VmlocError(Exception):
    """Base of all errors that a user can cause or fix; the message is one line, to be shown as it is."""


class ConfigError(VmlocError):
    """A configuration has an unknown key, a wrong type or a value out of range."""


class MessageError(VmlocError):
    """A sensor message cannot be decoded: unknown encoding, missing field, short data."""


class DataError(VmlocError):
    """A dataset, bag or file on disk is missing something or malformed."""


class CheckpointError(VmlocError):
    """A checkpoint file is missing, foreign, truncated or of an unknown version."""


class ModelError(VmlocError):
    """A model cannot be built or has no usable input."""


class OutputError(VmlocError):
    """A file or folder cannot be written."""
