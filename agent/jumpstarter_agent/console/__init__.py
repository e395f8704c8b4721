# SPDX-License-Identifier: Apache-2.0
"""The console of a device: kept open and logged, its boot followed, commands and files over it exact.

``ConsoleSession`` is all that others need. From the bytes upwards: ``transport`` and ``node_console`` (bytes),
``ring``, ``transcript``, ``phases`` and ``line`` (what was said), ``expect``, ``prompts``, ``boot`` and ``uboot``
(talking to whoever is there), ``prepare``, ``link``, ``device_shell.sh`` (our program on the device), ``shell``,
``send``, ``receive`` and ``transfer`` (commands and files).
"""

from .boot import BootReport
from .errors import (
    BoardGone,
    BoardRestarted,
    ConsoleError,
    ConsoleLost,
    ConsoleTimeout,
    DeviceError,
    DeviceToolMissing,
    ExecTimeout,
    KernelPanic,
    LoginFailed,
    TransferRefused,
    UbootError,
    VerifyFailed,
    WrongPhase,
)
from .expect import Match
from .node_console import NodeConsole
from .phases import Phase, PhasePatterns, PhaseRecord
from .ring import LogSlice
from .session import ConsoleEvent, ConsoleSession, RawConsole
from .settings import ConsoleSettings, Login
from .shell import ExecResult
from .transfer import TransferResult
from .transport import ByteConsole, Chunk
from .uboot import UbootResult

__all__ = [
    "BoardGone",
    "BoardRestarted",
    "BootReport",
    "ByteConsole",
    "Chunk",
    "ConsoleError",
    "ConsoleEvent",
    "ConsoleLost",
    "ConsoleSession",
    "ConsoleSettings",
    "ConsoleTimeout",
    "DeviceError",
    "DeviceToolMissing",
    "ExecResult",
    "ExecTimeout",
    "KernelPanic",
    "LogSlice",
    "Login",
    "LoginFailed",
    "Match",
    "NodeConsole",
    "Phase",
    "PhasePatterns",
    "PhaseRecord",
    "RawConsole",
    "TransferRefused",
    "TransferResult",
    "UbootError",
    "UbootResult",
    "VerifyFailed",
    "WrongPhase",
]
